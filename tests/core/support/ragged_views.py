"""Vectors of objects with unequally many views, and cameras around them, for tests of the ledger."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

DIM = 6


def ragged(counts: Sequence[int], dim: int = DIM, seed: int = 0, mean: float = 0.0) -> list[Tensor]:
    """Views of each object in float64: a centre of its own and noise."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(counts), dim, generator=rng, dtype=torch.float64) + mean
    return [
        c + 0.7 * torch.randn(n, dim, generator=rng, dtype=torch.float64) for c, n in zip(centres, counts, strict=True)
    ]


def look_at(azimuths: Tensor, elevations: Tensor) -> Tensor:
    """(N, 4, 4) cameras at distance 2 that look at the origin, Y up."""
    az, el = torch.deg2rad(azimuths.double()), torch.deg2rad(elevations.double())
    position = 2 * torch.stack([el.cos() * az.sin(), el.sin(), el.cos() * az.cos()], dim=1)
    forward = normalize(-position, dim=1)
    right = normalize(torch.linalg.cross(forward, torch.tensor([[0.0, 1, 0]]).double().expand_as(forward)), dim=1)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    matrix = torch.eye(4).double().repeat(len(az), 1, 1)
    matrix[:, :3, :3], matrix[:, :3, 3] = rotation, -(rotation @ position[:, :, None]).squeeze(2)
    return matrix.float()
