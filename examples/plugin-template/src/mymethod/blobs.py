"""A dataset by index: mvcore draws, collates, shards and seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mvcore.api import ViewBatch

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


class Blobs:
    """`mymethod.blobs`: each object is a blob of one colour, and a view moves it.

    Args:
        objects: how many there are.
        views: views of each.
        image_size: side of the images in pixels.
    """

    provides = frozenset({"images", "captions", "object_ids", "view_ids"})

    def __init__(self, objects: int, views: int, image_size: int) -> None:
        self.image_size = image_size
        self._objects, self._views = objects, views
        # Datasets with equal keys share object and view ids.
        self.store_key = f"mymethod.blobs {objects} {views}"
        self.n_store_objects, self.n_store_views = objects, objects * views

    def __len__(self) -> int:
        return self._objects

    def views_of(self, i: int) -> range:
        """The ids of an object's views."""
        return range(i * self._views, (i + 1) * self._views)

    def object_name(self, i: int) -> str:
        """The object's name."""
        return f"blob-{i}"

    def category(self, i: int) -> str:
        """Its colour's word."""
        return list(COLOURS)[i % len(COLOURS)]

    def load(self, i: int, views: Sequence[int], rng: np.random.Generator | None) -> ViewBatch:
        """One object's batch; `rng` drives what is drawn in training, and None means evaluation."""
        images = np.stack([self._drawn(i, view) for view in views]).astype(np.float32)
        if rng is not None:
            images *= rng.uniform(0.8, 1.0)
        return ViewBatch.make(
            [len(views)],
            images=torch.from_numpy(images.astype(np.uint8)),
            object_ids=torch.tensor([i]),
            view_ids=torch.tensor(list(views)),
            captions=[f"a {self.category(i)} blob"],
            caption_object=torch.tensor([0]),
            caption_view=torch.tensor([-1]),  # of the whole object
        )

    def _drawn(self, i: int, view: int) -> np.ndarray:
        """(3, S, S) uint8."""
        size = self.image_size
        x, y = np.random.default_rng(view).uniform(0.3, 0.7, 2) * size
        u, v = np.meshgrid(np.arange(size), np.arange(size))
        inside = (u - x) ** 2 + (v - y) ** 2 < (0.15 + 0.02 * (i % 5)) ** 2 * size**2
        colour = np.array(COLOURS[self.category(i)])[:, None, None]
        return np.where(inside, colour, 255).astype(np.uint8)
