"""The prompt with which the authors had a language model caption a view of an object whose category is known."""

from __future__ import annotations


def caption_prompt(category: str) -> str:
    """The category-guided captioning prompt (Omniview-Tuning, figure 3.2).

    Raises:
        ValueError: an empty category.
    """
    category = category.strip()
    if not category:
        raise ValueError("a guided caption needs a category, got an empty one")
    return f"Write a short description for the image, noting that the main instance of the image is a {category}."
