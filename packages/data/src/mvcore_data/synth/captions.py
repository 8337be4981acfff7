"""Captions of the procedural objects: several phrasings, each with the category and some of its attributes."""

from __future__ import annotations

from numpy.random import Generator

from mvcore_data.synth.paint import Paint

_WITH = {
    "striped": "{second} stripes",
    "banded": "{second} bands",
    "dotted": "{second} dots",
    "checked": "{second} checks",
    "speckled": "{second} speckles",
}


def describe(category: str, shape: str, paint: Paint, rng: Generator) -> tuple[str, ...]:
    """Five captions of one object: a fixed set of facts, its phrasing drawn by chance."""
    look = [paint.colour] if paint.pattern == "plain" else [paint.colour, paint.pattern]
    detail = _WITH.get(paint.pattern, "{second} parts").format(second=paint.second)
    opening = str(rng.choice(["a photo of", "a picture of", "a render of", "a view of"]))
    return (
        f"{opening} {_article(category)}",
        _article(" ".join([*look, category])),
        f"{opening} {_article(f'{shape} {category}')}",
        _article(f"{shape} {paint.colour} {category}"),
        f"{_article(f'{paint.colour} {category}')} with {detail}",
    )


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
