"""`equivariance.correspondence` on rendered ellipsoids, with models whose features are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mvcore
import numpy as np
import pytest
import torch
from mvcore.api import Backbone, DenseGrid, EvalResult, ViewBatch
from mvcore.evaluation.runner import evaluate
from mvcore.model import Model, Pipeline
from mvcore_data import ViewStoreWriter
from mvcore_data.rigs import make_rig
from mvcore_data.views import Views
from numpy.typing import NDArray
from torch import Tensor, nn

SIZE = 48
AXES = np.array([0.5, 0.35, 0.42])
ID = "equivariance.correspondence"


def ellipsoid(intrinsics: NDArray, world_to_camera: NDArray) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """An ellipsoid seen by a camera: RGB is the place on the surface, and z-depth, both by ray casting."""
    column, row = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
    rays = np.stack([column, row, np.ones_like(row)], -1) @ np.linalg.inv(intrinsics).T
    turn, shift = world_to_camera[:3, :3], world_to_camera[:3, 3]
    start, step = -turn.T @ shift / AXES, rays @ turn / AXES
    a, b, c = (step**2).sum(-1), step @ start, start @ start - 1
    root = b**2 - a * c
    depth = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, 0)
    surface = (start + step * depth[..., None]) * (depth > 0)[..., None]
    return np.rint(127.5 + 127 * surface * (depth > 0)[..., None]).astype(np.uint8), depth.astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ellipsoids in twelve views each."""
    return write(tmp_path_factory.mktemp("store") / "s")


def write(path: Path, **without: bool) -> Path:
    intrinsics, extrinsics = make_rig("mvc36", 18).cameras(SIZE)
    with ViewStoreWriter(path, codec="png") as writer:
        for name in ("egg", "pebble"):
            seen = [ellipsoid(*camera) for camera in zip(intrinsics, extrinsics, strict=True)]
            maps: dict[str, Any] = {
                "cameras": list(zip(intrinsics, extrinsics, strict=True)),
                "depth": [depth for _, depth in seen],
                "masks": [depth > 0 for _, depth in seen],
            }
            kept = {key: value for key, value in maps.items() if not without.get(key)}
            writer.add_object(name, [image for image, _ in seen], **kept)
    return path


class Known(Backbone):
    """A dense map of known values; its cells are pixels."""

    dims: Mapping[str, int] = {"dense": 8}
    provides = frozenset(dims)
    image_size = SIZE
    library = "known"

    def __init__(self, what: str = "surface") -> None:
        super().__init__()
        self.what = what
        self.scale = nn.Parameter(torch.ones(()))

    @property
    def model(self) -> nn.Module:
        return self

    def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
        assert batch.images is not None
        if self.what == "surface":
            place = batch.images.float() / 127.5 - 1
            dense = torch.cat([place, torch.ones_like(place[:, :1])], dim=1)
        else:
            dense = torch.stack(
                [torch.randn(8, SIZE, SIZE, generator=torch.Generator().manual_seed(int(v))) for v in batch.view_ids]
            )
        if self.what == "broken":
            dense[:, :, 0, 0] = torch.nan
        return {"dense": dense * self.scale}

    def dense_grid(self, width: int, height: int) -> DenseGrid:
        return DenseGrid.tiling(height, width, width, height)

    def set_trainable(self, mode: str) -> None:
        """Nothing of it trains."""


def measured(source: Any, output: Path, what: str = "surface", **options: Any) -> EvalResult:
    part = mvcore.api.build({"id": ID, "args": options}, "evaluator")
    return evaluate(Model(Pipeline(Known(what), []).eval()), {ID: part}, {"s": source}, output)[ID]


def test_surface_features_find_the_point(store: Path, tmp_path: Path) -> None:
    found = measured(Views(path=str(store), depth=True), tmp_path)
    assert found[f"{ID}/ape/s"].value < 1.5 / SIZE
    assert found[f"{ID}/pcdp_0.05/s"].value > 0.97
    assert found[f"{ID}/chance_pcdp_0.05/s"].value < 0.2
    assert all(picture.stat().st_size > 10_000 for picture in found.pictures)
    assert {picture.name for picture in found.pictures} == {"correspondences-s.png", "features-s.png"}


@pytest.mark.parametrize("domain", ["mask", "image"])
def test_random_features_are_at_the_chance_level(store: Path, tmp_path: Path, domain: str) -> None:
    options: dict[str, Any] = {"domain": domain, "points_per_pair": None, "pairs_per_object": 40, "picture": False}
    found = measured(Views(path=str(store), depth=True), tmp_path, "random", **options)
    for what in ("ape", "pcdp_0.05", "pcdp_0.1", "pcdp_0.2"):
        assert found[f"{ID}/{what}/s"].value == pytest.approx(found[f"{ID}/chance_{what}/s"].value, abs=0.01)
