"""`equivariance.transfer` on small files in PF-PASCAL's layout, with features whose answers are known."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mvcore
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_backbones import KnownBackbone
from mvcore.api import Backbone, ConfigError, DataError, DenseGrid, EvalResult, ViewBatch
from mvcore.evaluation.runner import evaluate
from mvcore.model import Model, Pipeline
from mvcore_equivariance.evaluation.transfer import CLASSES, Canvas, read_pairs
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

ID = "equivariance.transfer"
PUBLISHED = [15, 30, 10, 6, 8, 32, 19, 27, 13, 3, 8, 24, 9, 27, 12, 7, 1, 13, 20, 15]
CELL = 4


class Colours(KnownBackbone):
    """Features are the mean colours of squares of 4 pixels, with a constant; `loud` ones are longer where red is."""

    dims: Mapping[str, int] = {"dense": 4}
    provides = frozenset(dims)
    any_size = True

    def __init__(self, loud: bool = False) -> None:
        super().__init__()
        self.loud = loud

    def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
        assert batch.images is not None
        colour = nn.functional.avg_pool2d(batch.images.float() / 127.5 - 1, CELL)
        dense = torch.cat([colour, torch.full_like(colour[:, :1], 0.5)], dim=1)
        if self.loud:
            dense = nn.functional.normalize(dense, dim=1) * (1 + 50 * (colour[:, :1] > 0.9))
        return {"dense": dense * self.scale}

    def dense_grid(self, width: int, height: int) -> DenseGrid:
        return DenseGrid.tiling(height // CELL, width // CELL, width, height)


def picture(width: int, height: int) -> NDArray[np.uint8]:
    """Red from left to right and green from top to bottom: a place's colour is its own."""
    red, green = np.meshgrid(np.linspace(30, 220, width), np.linspace(30, 220, height))
    return np.stack([red, green, np.full_like(red, 128)], axis=-1).astype(np.uint8)


def write(folder: Path, rows: list[list[str]], images: Mapping[str, NDArray[np.uint8]]) -> Path:
    """PF-PASCAL's layout: two lists in `PF-dataset-PASCAL`, and images named from the folder above."""
    data = folder / "PF-dataset-PASCAL"
    (data / "JPEGImages").mkdir(parents=True)
    for name, pixels in images.items():
        Image.fromarray(pixels).save(data / "JPEGImages" / name)
    for which in ("different", "same"):
        with (data / f"test_pairs_pf_{which}_views.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["source_image", "target_image", "class", "XA", "YA", "XB", "YB"], *rows])
    return data


def row(source: str, target: str, category: int, points: NDArray, truth: NDArray) -> list[str]:
    columns = [";".join(f"{v:g}" for v in column) for array in (points, truth) for column in array.T]
    return [f"PF-dataset-PASCAL/JPEGImages/{source}", f"PF-dataset-PASCAL/JPEGImages/{target}", str(category), *columns]


def measured(data: Path, output: Path, model: Backbone | None = None, **options: Any) -> EvalResult:
    args = {"data": str(data), "size": 64, "patches": None, "picture": False, "lists": ("different",), **options}
    part = mvcore.api.build({"id": ID, "args": args}, "evaluator")
    return evaluate(Model(Pipeline(model or Colours(), []).eval()), {ID: part}, {}, output)[ID]


def test_an_image_matched_to_itself_is_all_right(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(6, 36, (7, 2))
    images = {"a.png": picture(64, 48), "b.png": picture(40, 60)}
    data = write(tmp_path, [row(n, n, c, points, points) for n, c in (("a.png", 1), ("b.png", 8))], images)
    found = measured(data, tmp_path / "out", picture=True, lists=("different", "same"))
    for which in ("different", "same"):
        assert found[f"{ID}/pck_0.05/{which}"].value == 1
        assert found[f"{ID}/pck_0.05/{which}"].n == 14
    assert [path.name for path in found.pictures] == ["transfer-different.png", "transfer-same.png"]
    assert all(path.stat().st_size > 10_000 for path in found.pictures)
    assert [r[:3] for r in found.tables[0].rows] == [["aeroplane", "1", "7"], ["cat", "1", "7"]]


def test_classes_count_by_their_pairs(tmp_path: Path) -> None:
    """The 20 published numbers of pairs, each class with a known share of right keypoints."""
    assert sum(PUBLISHED) == 299
    rng = np.random.default_rng(0)
    images = {"a.png": picture(64, 64)}
    rows, shares = [], []
    for number, pairs in enumerate(PUBLISHED, 1):
        right = total = 0
        for _ in range(pairs):
            points = rng.uniform(8, 56, (int(rng.integers(1, 4)), 2))
            wrong = rng.random(len(points)) < 0.5
            rows.append(row("a.png", "a.png", number, points, np.where(wrong[:, None], (points + 32) % 64, points)))
            right, total = right + int((~wrong).sum()), total + len(points)
        shares.append(right / total)
    data = write(tmp_path, rows, images)
    assert len(read_pairs(data, "different")) == 299
    figure = measured(data, tmp_path / "out")[f"{ID}/pck_0.1/different"]
    assert figure.value == pytest.approx(float(np.average(shares, weights=PUBLISHED)), abs=1e-9)
    assert figure.low < figure.value < figure.high


@given(st.integers(10, 900), st.integers(10, 900), st.integers(16, 1000), st.integers(0, 100))
def test_keypoints_come_back_from_the_square(width: int, height: int, size: int, seed: int) -> None:
    canvas = Canvas(width, height, size)
    points = np.random.default_rng(seed).uniform(0, 1, (5, 2)) * (width, height)
    there = canvas.to_square(points)
    assert np.abs(canvas.to_image(there) - points).max() < 1e-4
    assert (there >= 0).all()
    # What is rounded to whole pixels is half a pixel, and the corner another half.
    assert (there <= size + 1).all()


def test_the_image_lies_where_its_keypoints_do() -> None:
    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[20:24, 40:44] = 255
    canvas = Canvas(60, 30, 120)
    painted = canvas.paint(pixels)[:, :, 0].astype(float)
    y, x = np.indices(painted.shape) + 0.5
    centre = np.array([(x * painted).sum(), (y * painted).sum()]) / painted.sum()
    assert centre == pytest.approx(canvas.to_square(np.array([[42.0, 22.0]]))[0], abs=0.05)
    assert not painted[: canvas.corner[1] - 1].any()


def test_the_dot_product_prefers_long_features_and_the_cosine_does_not(tmp_path: Path) -> None:
    image = picture(64, 64)
    image[:8, :8] = (255, 90, 90)
    points = np.array([[40.0, 40.0]])
    data = write(tmp_path, [row("a.png", "a.png", 1, points, points)], {"a.png": image})
    cosine = measured(data, tmp_path / "c", Colours(loud=True))[f"{ID}/pck_0.1/different"].value
    dot = measured(data, tmp_path / "d", Colours(loud=True), product="dot")[f"{ID}/pck_0.1/different"].value
    assert (cosine, dot) == (1, 0)


def test_the_padding_is_searched_only_on_demand(tmp_path: Path) -> None:
    # A dark keypoint whose like is nowhere in the target but in the black padding.
    source, target = picture(64, 32), np.full((32, 64, 3), 250, np.uint8)
    source[12:20, 28:36] = 0
    target[12:20, 28:36] = 120
    points = np.array([[32.0, 16.0]])
    data = write(tmp_path, [row("a.png", "b.png", 1, points, points)], {"a.png": source, "b.png": target})
    image = measured(data, tmp_path / "i")[f"{ID}/pck_0.1/different"].value
    canvas = measured(data, tmp_path / "c", search="canvas")[f"{ID}/pck_0.1/different"].value
    assert (image, canvas) == (1, 0)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"PF-PASCAL '.*none' does not exist"):
        measured(tmp_path / "none", tmp_path / "out")
    points = np.array([[5.0, 5.0]])
    data = write(tmp_path, [row("gone.png", "gone.png", 1, points, points)], {})
    with pytest.raises(DataError, match=r"gone\.png: no such image"):
        measured(data, tmp_path / "out")
    path = data / "test_pairs_pf_different_views.csv"
    for text, problem in (
        ("a,b,21,1,1,1,1", "class from 1 to 20"),
        ("a,b,1,1;2,1,1,1", "as many numbers in x as in y"),
        ("a,b,1,1;x,1;2,1,1", "must be as many numbers"),
        ("a,b,1,,,1,1", "has no keypoint in both images"),
        ("../../etc/passwd,b,1,1,1,1,1", "lies outside of"),
        ("a,b,1,inf,1,1,1", "must be a list of points"),
    ):
        path.write_text(f"head\n{text}\n")
        with pytest.raises(DataError, match=problem) as error:
            measured(data, tmp_path / "out")
        assert "line 2" in str(error.value)
        assert "\n" not in str(error.value)
    path.write_text("head\n")
    with pytest.raises(DataError, match="holds no pair"):
        measured(data, tmp_path / "out")


def test_a_model_without_settings_says_so(tmp_path: Path) -> None:
    data = write(tmp_path, [row("a.png", "a.png", 1, np.ones((1, 2)), np.ones((1, 2)))], {"a.png": picture(64, 64)})
    with pytest.raises(ConfigError, match=r"equivariance.transfer: the map cannot be taken with patches 60: .*null"):
        measured(data, tmp_path / "out", patches=60)


def test_classes_are_those_of_pascal() -> None:
    assert len(CLASSES) == 20
    assert CLASSES[0] == "aeroplane"
    assert CLASSES[-1] == "tvmonitor"


def test_evaluation_leaves_a_tuned_model_as_it_was(tmp_path: Path, tuned: Model) -> None:
    points = np.array([[20.0, 20.0], [40.0, 30.0]])
    data = write(tmp_path, [row("a.png", "a.png", 1, points, points)], {"a.png": picture(64, 48)})
    part = mvcore.api.build({"id": ID, "args": {"data": str(data), "size": 64, "patches": 4}}, "evaluator")
    found = evaluate(tuned, {ID: part}, {}, tmp_path / "out")[ID]
    assert found[f"{ID}/pck_0.1/same"].n == 2
