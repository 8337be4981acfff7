"""The prompts of captioning."""

from __future__ import annotations

GUIDED = "Write a short description for the image, noting that the main instance of the image is a {category}."
"""The category-guided prompt of Omniview-Tuning (figure 3.2)."""

UNGUIDED = "Write a short description for the image."
"""For objects without a category: the same without its second half (the authors' unguided ablation)."""
