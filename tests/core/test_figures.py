"""Pictures: drawn without a display, whole files, fixed ranges, errors by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mvcore.errors import DataError
from mvcore.report.figures import (
    draw_by_viewpoint,
    draw_lines,
    draw_similarity_maps,
    draw_training_curves,
    read_metrics,
)
from PIL import Image


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def ring(count: int, low: float) -> np.ndarray:
    angle = 2 * np.pi * np.arange(count) / count
    return low + (1 - low) * (1 + np.cos(angle[:, None] - angle[None])) / 2


def test_similarity_maps_show_negatives_and_compare(tmp_path: Path) -> None:
    path = draw_similarity_maps({"untouched": ring(24, -0.6), "tuned": ring(24, 0.7)}, tmp_path / "new" / "maps.png")
    assert pixels(path).std() > 20
    # One colour stands for one cosine, whatever else is in the picture.
    same = [draw_similarity_maps({"a": ring(8, low)}, tmp_path / f"{low}.png") for low in (-1.0, 0.9)]
    images = [pixels(p) for p in same]
    assert np.array_equal(images[0][:, -60:], images[1][:, -60:])
    assert not np.array_equal(images[0], images[1])
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("bad", [np.ones((2, 3)), np.full((2, 2), 1.5), np.full((2, 2), np.nan)])
def test_what_is_no_map_is_refused(bad: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="map 'x' must be"):
        draw_similarity_maps({"x": bad}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="no similarity map"):
        draw_similarity_maps({}, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_viewpoint_curves(tmp_path: Path) -> None:
    azimuth = np.arange(-180, 180, 30)
    before, after = 0.45 + 0.4 * np.cos(np.radians(azimuth)), 0.7 + 0.2 * np.cos(np.radians(azimuth))
    curves = {"untouched": (azimuth, before), "tuned": (azimuth[::-1], after[::-1])}
    path = draw_by_viewpoint(
        curves, tmp_path / "azimuth.png", quantity="top-1", percent=True, title="Top-1 by viewpoint", trained=[0]
    )
    in_order = draw_by_viewpoint(
        {"untouched": (azimuth, before), "tuned": (azimuth, after)},
        tmp_path / "order.png",
        quantity="top-1",
        percent=True,
        title="Top-1 by viewpoint",
        trained=[0],
    )
    assert np.array_equal(pixels(path), pixels(in_order))
    with pytest.raises(ValueError, match="curve 'a': azimuths and values"):
        draw_by_viewpoint({"a": (azimuth, before[:3])}, tmp_path / "x.png", quantity="q")


def test_training_curves_of_a_sparse_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["step,epoch,train/core.itc,train/loss,validate/top1"]
    for step in range(600):
        loss = 2 * np.exp(-step / 150) + 0.2 * rng.random()
        lines.append(f"{step},0,{loss:.4f},{loss + 0.3:.4f},")
        if step % 100 == 0:
            lines.append(f"{step},0,,,{0.3 + step / 2000:.3f}")
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("\n".join(lines) + "\n")
    series = read_metrics(metrics)
    assert {name: len(steps) for name, (steps, _) in series.items()} == {
        "train/core.itc": 600,
        "train/loss": 600,
        "validate/top1": 6,
    }
    assert series["validate/top1"][1][-1] == 0.55
    path = draw_training_curves(metrics, tmp_path / "curves.png")
    assert path is not None
    assert pixels(path).std() > 5
    assert draw_training_curves(metrics, tmp_path / "none.png", prefix="nothing/") is None
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "step,train/x\n1,abc\n", "", "step,train/x\n1,2,3\n"])
def test_a_file_that_is_no_metrics_is_named(text: str, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(text)
    with pytest.raises(DataError, match=r"metrics\.csv: .*give the metrics\.csv of a run"):
        read_metrics(metrics)
    with pytest.raises(DataError, match="cannot be read"):
        read_metrics(tmp_path / "absent.csv")


def test_lines_have_a_row_each_and_a_band_where_there_is_a_deviation(tmp_path: Path) -> None:
    numbers, values = [12, 1, 5], [0.6, 0.3, 0.5]
    for name, deviations in (("plain", [np.nan] * 3), ("band", [0.1] * 3)):
        draw_lines({"a": (numbers, values, deviations)}, tmp_path / f"{name}.png", quantity="q", along="n")
    plain, band = pixels(tmp_path / "plain.png"), pixels(tmp_path / "band.png")
    assert plain.shape == band.shape
    assert (plain != band).any(axis=2).sum() > 1000
    draw_lines({"a": (numbers[::-1], values[::-1], [np.nan] * 3)}, tmp_path / "same.png", quantity="q", along="n")
    assert (pixels(tmp_path / "same.png") == plain).all()
    with pytest.raises(ValueError, match=r"curve 'b': .* must all be \(K,\)"):
        draw_lines({"b": ([1, 2], [0.1], [0.0])}, tmp_path / "x.png", quantity="q", along="n")
    with pytest.raises(ValueError, match="no curve"):
        draw_lines({}, tmp_path / "x.png", quantity="q", along="n")
