"""`equivariance.correspondence` on rendered ellipsoids, with models whose features are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mvcore
import numpy as np
import pytest
import torch
from known_backbones import KnownBackbone
from mvcore.api import ConfigError, DataError, DenseGrid, EvalResult, ViewBatch
from mvcore.cli.main import run
from mvcore.evaluation.runner import evaluate
from mvcore.model import Model, Pipeline
from mvcore_data import ViewStoreWriter
from mvcore_data.rigs import make_rig
from mvcore_data.views import Views
from mvcore_equivariance.evaluation.pairs import draw_pairs
from numpy.typing import NDArray
from torch import Tensor

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


class Known(KnownBackbone):
    """A dense map of known values; its cells are pixels."""

    dims: Mapping[str, int] = {"dense": 8}
    provides = frozenset(dims)
    image_size = SIZE

    def __init__(self, what: str = "surface") -> None:
        super().__init__()
        self.what = what

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
    options: dict[str, Any] = {"domain": domain, "points_per_pair": None, "pairs_per_object": 24, "picture": False}
    found = measured(Views(path=str(store), depth=True), tmp_path, "random", **options)
    for what in ("ape", "pcdp_0.05", "pcdp_0.1", "pcdp_0.2"):
        assert found[f"{ID}/{what}/s"].value == pytest.approx(found[f"{ID}/chance_{what}/s"].value, abs=0.01)


def test_figures_carry_number_interval_and_bins(store: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"pairs_per_object": 10, "points_per_pair": 20, "angle_bins": (0, 60, 120)}
    found = measured(Views(path=str(store), depth=True), tmp_path, picture=False, **options)
    whole = found[f"{ID}/ape/s"]
    assert 2 * 10 * 15 < whole.n <= 2 * 10 * 20  # a pair may share less than 20 points
    assert whole.low <= whole.value <= whole.high
    assert whole.headline == "APE s"
    bins = [found[f"{ID}/ape/{label}/s"] for label in ("0-60deg", "60-120deg")]
    assert all(0 < figure.n < whole.n for figure in bins)
    rows = {row[0]: row for table in found.tables for row in table.rows}
    assert rows["all"][1] == str(whole.n)
    assert rows["0-60"][1] == str(bins[0].n)
    assert rows["all"][2] == f"{100 * whole.value:.2f}"


def test_draws_hang_on_the_seed_and_not_on_the_order_of_the_objects(store: Path, tmp_path: Path) -> None:
    source = Views(path=str(store), depth=True)
    again = [
        measured(source, tmp_path / str(k), "random", picture=False, seed=seed)[f"{ID}/ape/s"].value
        for k, seed in enumerate((0, 0, 1))
    ]
    assert again[0] == again[1] != again[2]


def test_normaliser_box_counts_errors_in_sizes_of_the_object(store: Path, tmp_path: Path) -> None:
    source = Views(path=str(store), depth=True)
    edge, box = (
        measured(source, tmp_path / name, picture=False, normaliser=name)[f"{ID}/chance_ape/s"].value
        for name in ("edge", "bbox")
    )
    # The ellipsoids fill 0.5 to 0.8 of the images.
    assert 1 / 0.8 < box / edge < 1 / 0.5


def test_a_coarser_search_finds_the_nearest_centre(store: Path, tmp_path: Path) -> None:
    found = measured(Views(path=str(store), depth=True), tmp_path, picture=False, search_stride=4)
    # A point is up to 2.8 and on average 1.5 pixels from the centre of its cell of 4.
    assert 1.0 / SIZE < found[f"{ID}/ape/s"].value < 2.5 / SIZE


def test_masks_take_from_the_object(store: Path, tmp_path: Path) -> None:
    source = Views(path=str(store), depth=True, masks=True)
    found = measured(source, tmp_path, picture=False)
    without = measured(Views(path=str(store), depth=True), tmp_path, picture=False)
    assert found[f"{ID}/ape/s"].value == without[f"{ID}/ape/s"].value


@pytest.mark.parametrize("missing", ["cameras", "depth"])
def test_a_source_without_cameras_or_depth_is_refused(tmp_path: Path, missing: str) -> None:
    bare = Views(path=str(write(tmp_path / "bare", **{missing: True})), depth=missing != "depth")
    with pytest.raises(DataError, match=f"source 's' gives no {missing}, from which") as error:
        measured(bare, tmp_path)
    assert "\n" not in str(error.value)


class Changed(Views):
    """A source whose batches are changed on the way."""

    change: Any = None

    def load(self, i: int, views: Any, rng: Any) -> ViewBatch:
        return type(self).change(super().load(i, views, rng))


def test_an_object_seen_edge_on_is_refused(store: Path, tmp_path: Path) -> None:
    class EdgeOn(Changed):
        """Only two views, of which the second shows nothing."""

        def views_of(self, i: int) -> Any:
            return super().views_of(i)[:2]

        @staticmethod
        def change(batch: ViewBatch) -> ViewBatch:
            assert batch.depth is not None
            batch.depth[1] = 0
            return batch

    with pytest.raises(DataError, match=r"no two views of an object of source 's'.*\(2 objects, 4 pairs tried\)"):
        measured(EdgeOn(path=str(store), depth=True), tmp_path)


def test_depth_that_is_not_a_number_is_refused(store: Path, tmp_path: Path) -> None:
    class NotANumber(Changed):
        @staticmethod
        def change(batch: ViewBatch) -> ViewBatch:
            assert batch.depth is not None
            batch.depth[1, 0, 0] = torch.nan
            return batch

    with pytest.raises(DataError, match=r"source 's', object 'egg': the depth of view 1 is not finite"):
        measured(NotANumber(path=str(store), depth=True), tmp_path)


def test_a_camera_without_focal_length_is_refused(store: Path, tmp_path: Path) -> None:
    class Flat(Changed):
        @staticmethod
        def change(batch: ViewBatch) -> ViewBatch:
            assert batch.cameras is not None
            batch.cameras.intrinsics[1, 0, 0] = 0
            return batch

    with pytest.raises(DataError, match=r"source 's', object 'egg': the camera of view 1 is none: intrinsics"):
        measured(Flat(path=str(store), depth=True), tmp_path)


def test_broken_features_are_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source 's', object 'egg': the model gives dense features that are not"):
        measured(Views(path=str(store), depth=True), tmp_path, "broken")


def test_an_unknown_source_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no source 'x' to measure on; there are: s"):
        measured(Views(path=str(store), depth=True), tmp_path, sources=("x",))


def test_pairs_are_ordered_and_different() -> None:
    rng = np.random.default_rng(0)
    assert draw_pairs(3, None, rng) == [(1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (1, 2)]
    some = draw_pairs(10, 20, rng)
    assert len(set(some)) == 20
    assert all(first != second for first, second in some)
    assert draw_pairs(1, 5, rng) == []
    assert draw_pairs(0, 5, rng) == []


def test_the_command_measures_a_store(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": SIZE, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    (tmp_path / "clip.json").write_text(json.dumps(clip))
    arguments = ["eval", str(tmp_path / "clip.json"), "--data", f"s={store}", "--on", ID, "-o", str(tmp_path / "out")]
    assert run(arguments) == 0
    assert "APE s" in capsys.readouterr().out
    bare = write(tmp_path / "bare", depth=True)
    arguments[3] = f"s={bare}"
    assert run([*arguments[:-1], str(tmp_path / "other")]) == 2
    assert "no view of the source has depth" in capsys.readouterr().err


def test_evaluation_leaves_a_tuned_model_as_it_was(store: Path, tmp_path: Path, tuned: Model) -> None:
    part = mvcore.api.build({"id": ID, "args": {"pairs_per_object": 4, "picture": False}}, "evaluator")
    found = evaluate(tuned, {ID: part}, {"s": Views(path=str(store), depth=True)}, tmp_path)[ID]
    assert 0 < found[f"{ID}/ape/s"].value < 1
