"""Where the camera of a view stands, for measurements by viewpoint."""

from __future__ import annotations

import torch
from torch import Tensor

from mvcore.types import ViewBatch

STEP = 15
"""Degrees between the azimuths at which measurements are collected."""


def azimuths(batch: ViewBatch) -> Tensor:
    """(N,) azimuth of each view's camera in degrees in (-180, 180], NaN where it is not known.

    Objects stand Y-up, as in glTF: 0 is a camera on +Z (the frontal view), 90 one on +X.
    """
    if batch.cameras is None:
        return torch.full((batch.n_views,), torch.nan, dtype=torch.float64)
    position = _positions(batch.cameras.world_to_camera)
    angle = torch.rad2deg(torch.atan2(position[:, 0], position[:, 2]))
    # Straight above or below there is no azimuth, only round-off.
    level = position[:, [0, 2]].norm(dim=1)
    known = level > 1e-6 * position.norm(dim=1)
    if batch.camera_valid is not None:
        known &= batch.camera_valid
    return torch.where(known, torch.where(angle <= -180, 180.0, angle), torch.nan)


def elevations(batch: ViewBatch) -> Tensor:
    """(N,) elevation of each view's camera above the object's origin in degrees, -90 to 90, NaN where it is not known.

    Objects stand Y-up: 90 is a camera straight above, on +Y.
    """
    if batch.cameras is None:
        return torch.full((batch.n_views,), torch.nan, dtype=torch.float64)
    position = _positions(batch.cameras.world_to_camera)
    angle = torch.rad2deg(torch.atan2(position[:, 1], position[:, [0, 2]].norm(dim=1)))
    known = position.norm(dim=1) > 0
    if batch.camera_valid is not None:
        known &= batch.camera_valid
    return torch.where(known, angle, torch.nan)


def optical_axes(batch: ViewBatch) -> Tensor:
    """(N, 3) unit direction that each view's camera looks in, in the object's axes; NaN where it is not known."""
    if batch.cameras is None:
        return torch.full((batch.n_views, 3), torch.nan, dtype=torch.float64)
    axes = torch.nn.functional.normalize(batch.cameras.world_to_camera[:, 2, :3].double(), dim=1)
    if batch.camera_valid is None:
        return axes
    return torch.where(batch.camera_valid[:, None], axes, torch.nan)


def nearest_step(angles: Tensor) -> Tensor:
    """(K,) int64 multiples of `STEP` in (-180, 180] that known angles are nearest to."""
    steps = (angles / STEP).round().to(torch.int64) * STEP
    return torch.where(steps <= -180, steps + 360, steps)


def _positions(world_to_camera: Tensor) -> Tensor:
    """(N, 3) where the cameras stand."""
    matrix = world_to_camera.double()
    return -(matrix[:, :3, :3].mT @ matrix[:, :3, 3:]).squeeze(2)
