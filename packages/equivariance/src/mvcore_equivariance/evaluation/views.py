"""The views of one object with cameras, depth and what stands before the background, and their dense features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mvcore.api import Cameras, DataError, Embedder, IndexedDataset, ViewBatch
from torch import Tensor

from mvcore_equivariance.evaluation.dense import DENSE
from mvcore_equivariance.geometry import Camera


@dataclass(frozen=True)
class ObjectViews:
    """Views of one object that have a camera and depth.

    Args:
        name: the object's name, with that of its source, for the text of errors.
        images: (V, 3, H, W) uint8.
        intrinsics, world_to_camera: (V, 3, 3) and (V, 4, 4) float64.
        depth: (V, H, W) float32 z-depth, 0 = none, and 0 outside of the mask where the source gives masks.
        object_ids, view_ids: the batch's.
    """

    name: str
    images: Tensor
    intrinsics: Tensor
    world_to_camera: Tensor
    depth: Tensor
    object_ids: Tensor
    view_ids: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.images.shape[3], self.images.shape[2]

    @property
    def foreground(self) -> Tensor:
        """(V, H, W) bool: what has depth."""
        return self.depth > 0

    def centres(self) -> Tensor:
        """(V, 3) where the cameras stand."""
        turn, shift = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3]
        return -(turn.transpose(1, 2) @ shift[:, :, None])[:, :, 0]

    def dense(self, model: Embedder, rows: Sequence[int], views_at_once: int) -> Tensor:
        """(R, C, h, w) features of some of the views, on the model's device.

        Raises:
            DataError: features that are not finite.
        """
        parts = [self._encoded(model, rows[k : k + views_at_once]) for k in range(0, len(rows), views_at_once)]
        dense = torch.cat(parts)
        if not bool(dense.isfinite().all()):
            raise DataError(f"{self.name}: the model gives dense features that are not finite")
        return dense

    def _encoded(self, model: Embedder, rows: Sequence[int]) -> Tensor:
        at = torch.tensor(rows)
        batch = ViewBatch.make(
            [len(rows)],
            images=self.images[at],
            object_ids=self.object_ids,
            view_ids=self.view_ids[at],
            cameras=Cameras(self.intrinsics[at].float(), self.world_to_camera[at].float()),
            camera_valid=torch.ones(len(rows), dtype=torch.bool),
            depth=self.depth[at],
            depth_valid=torch.ones(len(rows), dtype=torch.bool),
            masks=self.depth[at] > 0,
        )
        return model.features(batch, DENSE).dense.float()


def load_views(source: str, dataset: IndexedDataset, i: int, views_at_once: int) -> ObjectViews:
    """The views of object `i` with a camera and depth, under the evaluation transforms.

    Raises:
        DataError: depth that is not finite, or a camera that is none.
    """
    views = list(dataset.views_of(i))
    name = f"source {source!r}, object {dataset.object_name(i)!r}"
    parts = [_known(dataset.load(i, views[k : k + views_at_once], None)) for k in range(0, len(views), views_at_once)]
    images, intrinsics, extrinsics, depth, masks, ids = (
        torch.cat(column) for column in zip(*(part[:-1] for part in parts), strict=True)
    )
    if not bool(depth.isfinite().all()):
        wrong = int((~depth.isfinite().flatten(1).all(1)).nonzero()[0])
        raise DataError(f"{name}: the depth of view {int(ids[wrong])} is not finite; 0 stands for no depth")
    sound = Camera(intrinsics.double(), extrinsics.double()).sound()
    if not bool(sound.all()):
        wrong = int((~sound).nonzero()[0])
        raise DataError(
            f"{name}: the camera of view {int(ids[wrong])} is none: intrinsics {intrinsics[wrong].tolist()} and pose "
            f"{extrinsics[wrong].tolist()} must be finite, with an inverse and positive focal lengths"
        )
    return ObjectViews(name, images, intrinsics.double(), extrinsics.double(), depth * masks, parts[0][-1], ids)


def _known(batch: ViewBatch) -> tuple[Tensor, ...]:
    """Images, cameras, depth, masks and ids of the views of a batch whose camera and depth are known."""
    assert batch.images is not None
    assert batch.cameras is not None
    assert batch.depth is not None
    known = torch.ones(batch.n_views, dtype=torch.bool)
    for valid in (batch.camera_valid, batch.depth_valid):
        known &= True if valid is None else valid
    masks = torch.ones_like(batch.depth, dtype=torch.bool) if batch.masks is None else batch.masks
    cameras = batch.cameras
    rows = (batch.images, cameras.intrinsics, cameras.world_to_camera, batch.depth, masks, batch.view_ids)
    return (*(values[known] for values in rows), batch.object_ids)
