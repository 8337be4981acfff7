"""Data to try parts on: balls with a pattern, seen by cameras around them, with every field that a batch may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvcore.config_base import Options
from mvcore.packing import concatenate
from mvcore.specs import BATCH_FIELDS, Axis
from mvcore.types import Cameras, Features, Tracks, ViewBatch

VIEW_COUNTS = (4, 5, 4, 6, 4, 5)
TAG = "toy"
WIDTH = 16
"""Width of the stored vectors that the toy gives, and of the tiny model's features."""

_WORDS = ("ball", "globe", "marble")
_RADIUS, _DISTANCE = 0.6, 2.0
_TRACKED = 60
"""Points of each ball that are followed from view to view."""

Layout = Sequence[tuple[int, Sequence[int]]]
"""Objects in the order of a batch, each with its views in order (numbers within the object)."""

RAGGED: Layout = ((0, (0, 1, 2)), (1, (0,)), (2, (2, 0)), (3, (3, 1, 0, 5)))
PAIRS: Layout = ((0, (0, 1)), (1, (1, 2)), (2, (3, 0)), (3, (4, 5)))


class ToyOptions(Options):
    """Options of the toy data set."""

    image_size: int = 32


class ToyViews:
    """An indexed dataset of six objects; pixels, depth, masks, cameras and tracks belong together."""

    provides = BATCH_FIELDS
    store_key = "mvcore.testing"
    n_store_objects = len(VIEW_COUNTS)
    n_store_views = sum(VIEW_COUNTS)

    def __init__(self, image_size: int = 32) -> None:
        self.image_size = image_size

    def __len__(self) -> int:
        return len(VIEW_COUNTS)

    def views_of(self, i: int) -> range:
        """The ids of object `i`'s views."""
        first = sum(VIEW_COUNTS[:i])
        return range(first, first + VIEW_COUNTS[i])

    def object_name(self, i: int) -> str:
        """The object's name."""
        return f"toy-{i}"

    def category(self, i: int) -> str:
        """One of three words."""
        return _WORDS[i % len(_WORDS)]

    def cameras_of(self, i: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Intrinsics and world-to-camera of all views of an object."""
        cameras = [self._camera(view) for view in self.views_of(i)]
        return np.stack([k for k, _ in cameras]), np.stack([w for _, w in cameras])

    def load(self, i: int, views: Sequence[int], rng: np.random.Generator | None) -> ViewBatch:
        """One object's batch; the training transform is a change of brightness."""
        shown = [self._rendered(i, view) for view in views]
        images = np.stack([image for image, _ in shown]).astype(np.float32)
        if rng is not None:
            images = np.clip(images * rng.uniform(0.8, 1.0), 0, 255)
        depth = torch.from_numpy(np.stack([depth for _, depth in shown]))
        cameras = [self._camera(view) for view in views]
        front = self.views_of(i)[0]
        rows = [row for row, view in enumerate(views) if view == front]  # the one view with a caption of its own
        texts = [f"a {self.category(i)} with pattern {i}", *[f"the front of pattern {i}" for _ in rows]]
        return ViewBatch.make(
            [len(views)],
            images=torch.from_numpy(images.astype(np.uint8)).permute(0, 3, 1, 2).contiguous(),
            object_ids=torch.tensor([i]),
            view_ids=torch.tensor(list(views)),
            captions=texts,
            caption_object=torch.zeros(len(texts), dtype=torch.int64),
            caption_view=torch.tensor([-1, *rows]),
            cameras=Cameras(*(torch.tensor(np.stack(c), dtype=torch.float32) for c in zip(*cameras, strict=True))),
            camera_valid=torch.ones(len(views), dtype=torch.bool),
            depth=depth,
            depth_valid=torch.ones(len(views), dtype=torch.bool),
            masks=depth > 0,
            tracks=self._tracks(i, cameras),
            embeddings={
                f"{TAG}/image": torch.stack([_vector(f"image {view}") for view in views]),
                f"{TAG}/text": torch.stack([_vector(text) for text in texts]),
            },
        )

    def _camera(self, view: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Looks at the origin from a place on a ring, a little higher for every other view."""
        angle, height = 0.35 * view, 0.3 * (view % 2)
        place = np.array([np.cos(angle), np.sin(angle), height])
        place *= _DISTANCE / np.linalg.norm(place)
        z = -place / _DISTANCE
        x = np.cross(z, [0.0, 0.0, 1.0])
        x /= np.linalg.norm(x)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([x, np.cross(z, x), z])
        pose[:3, 3] = -pose[:3, :3] @ place
        size = float(self.image_size)
        return np.array([[1.4 * size, 0, size / 2], [0, 1.4 * size, size / 2], [0, 0, 1.0]]), pose

    def _tracks(self, i: int, cameras: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Tracks:
        """Points of the ball, each in the views that it is turned to."""
        xyz = np.random.default_rng(i).standard_normal((_TRACKED, 3))
        xyz *= _RADIUS / np.linalg.norm(xyz, axis=1, keepdims=True)
        tracks = Tracks.none(len(cameras), _TRACKED)
        for row, (intrinsics, pose) in enumerate(cameras):
            local = xyz @ pose[:3, :3].T + pose[:3, 3]
            seen = (local * (local - pose[:3, 3])).sum(1) < 0
            pixels = local @ intrinsics.T
            tracks.points[row, seen] = torch.tensor(pixels[seen, :2] / pixels[seen, 2:]).float()
            tracks.ids[row, seen] = torch.from_numpy(seen.nonzero()[0])
            tracks.xyz[row, seen] = torch.tensor(xyz[seen]).float()
        return tracks

    def _rendered(self, i: int, view: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """(S, S, 3) pixels and (S, S) z-depth, 0 beside the ball, by meeting each pixel's ray with the ball."""
        intrinsics, pose = self._camera(view)
        steps = np.arange(self.image_size) + 0.5
        u, v = np.meshgrid(steps, steps)
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(intrinsics).T
        centre = pose[:3, 3]  # the origin of the world, in the camera
        a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - _RADIUS**2
        inside = b**2 > a * c
        depth = np.where(inside, (b - np.sqrt(np.maximum(b**2 - a * c, 0))) / a, 0)
        points = (rays * depth[..., None] - centre) @ pose[:3, :3]
        frequency = np.random.default_rng(i).uniform(3, 9, (3, 3))
        colours = 128 + 110 * np.sin(points @ frequency)
        return np.where(inside[..., None], colours, 255).astype(np.uint8), depth.astype(np.float32)


def _vector(text: str) -> Tensor:
    """(WIDTH,) the same for the same text."""
    return torch.from_numpy(np.random.default_rng(list(text.encode())).standard_normal(WIDTH).astype(np.float32))


def batch_of(dataset: Any, layout: Layout) -> ViewBatch:
    """The batch of some views, with the evaluation transforms."""
    loaded: list[ViewBatch] = []
    for i, views in layout:
        ids = list(dataset.views_of(i))
        loaded.append(dataset.load(i, [ids[view % len(ids)] for view in views], None))
    return concatenate(loaded)


@dataclass(frozen=True)
class Example:
    """A batch with features and published state whose rows are known, so that it can be arranged anew.

    Args:
        axes: what the rows of each feature and of each state (without `state:`) stand for.
    """

    dataset: Any
    layout: Layout
    batch: ViewBatch
    features: Mapping[str, Tensor]
    axes: Mapping[str, Axis]

    def arranged(self, layout: Layout) -> Example:
        """The same rows in another order, or some of them."""
        batch = batch_of(self.dataset, layout)
        rows = {
            "view": _places(self.batch.view_ids.tolist(), batch.view_ids.tolist()),
            "object": _places(self.batch.object_ids.tolist(), batch.object_ids.tolist()),
            "caption": _places(list(self.batch.captions), list(batch.captions)),
        }

        def picked(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: v if self.axes[k] == "none" else v[rows[self.axes[k]]] for k, v in values.items()}

        return replace(
            self, layout=layout, batch=batch.with_state(picked(self.batch.state)), features=picked(self.features)
        )

    def reversed_objects(self) -> Example:
        """Objects in the opposite order, each with its views as they are."""
        return self.arranged(self.layout[::-1])

    def reversed_views(self) -> Example:
        """The views of each object in the opposite order."""
        return self.arranged([(i, views[::-1]) for i, views in self.layout])

    def leaves(self, rounded_to: torch.dtype | None = None) -> Features:
        """The features as leaves that collect gradients, in float32, on request rounded as half precision does."""
        values: dict[str, Tensor] = {}
        for key, value in self.features.items():
            leaf = value.detach().clone()
            if rounded_to is not None and leaf.is_floating_point():
                leaf = leaf.to(rounded_to).to(leaf.dtype)
            values[key] = leaf.requires_grad_(leaf.is_floating_point())
        return Features(values, axes=self.axes)


def _places(known: list[Any], wanted: list[Any]) -> Tensor:
    """Where each wanted entry stands among those known."""
    table = {entry: place for place, entry in enumerate(known)}
    return torch.tensor([table[entry] for entry in wanted], dtype=torch.int64)
