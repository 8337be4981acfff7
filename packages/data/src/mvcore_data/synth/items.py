"""Procedural objects as something to render, and their splits."""

from __future__ import annotations

from dataclasses import dataclass

from mvcore_data.render.jobs import Drawable

LICENCE = "MIT"
SOURCE = "procedural, mvcore data synth"


@dataclass(frozen=True)
class SyntheticItem:
    """The object with that number of a category."""

    category: str
    number: int
    seed: int
    geometry: bool
    licence: str = LICENCE
    source: str = SOURCE

    @property
    def id(self) -> str:
        return f"{self.category}-{self.number:03d}"

    def build(self, unit: str) -> Drawable:
        from mvcore_data.render.surfaces import normalise
        from mvcore_data.synth.objects import make_object

        made = make_object(self.category, self.number, self.seed)
        return Drawable(normalise(made.surfaces, unit), made.captions)

    def fingerprint(self) -> str:
        return f"{self.seed}"


def split_items(items: list[SyntheticItem]) -> dict[str, list[str]]:
    """Object ids of ``train``, ``val`` and ``test``: the last fifth of each category is test, a tenth before it is val.

    Objects of a category are independent draws, so their order carries nothing. Test takes at least 4 objects where
    the category has 8, val at least 1 where it has 6.
    """
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for category in dict.fromkeys(item.category for item in items):
        ids = [item.id for item in items if item.category == category]
        test = max(len(ids) // 5, 4 if len(ids) >= 8 else len(ids) // 3)
        val = max(len(ids) // 10, 1 if len(ids) >= 6 else 0)
        train = len(ids) - test - val
        splits["train"] += ids[:train]
        splits["val"] += ids[train : train + val]
        splits["test"] += ids[train + val :]
    return splits
