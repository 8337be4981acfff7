"""The ledger's pictures: order of views, blocks, ranges that show negative cosines, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mvcore.config import LEDGER
from mvcore.evaluation.ledger_maps import Maps
from mvcore.evaluation.results import EvalResult, Figure
from mvcore.report.figures import angle_norm
from mvcore.report.heat_maps import draw_all_pairs, draw_by_relative_angle, draw_view_maps, view_order
from mvcore.report.ledger import angle_curve, draw_ledger
from PIL import Image


def maps(elevations: list[float], azimuths: list[float] | None = None, sign: float = 1.0) -> Maps:
    """Views that are alike within an elevation, and `sign` alike across."""
    heights = np.array(elevations, np.float32)
    mean = np.where(heights[:, None] == heights, 0.9, sign * 0.4).astype(np.float32)
    np.fill_diagonal(mean, 1)
    std = np.where(np.eye(len(heights)) > 0, 0, 0.1).astype(np.float32)
    words = np.array(["chair", "cup", "cup", "lamp"] * 3)
    pairs = np.where(words[:, None] == words, 0.8, sign * 0.5).astype(np.float16)
    turned = np.zeros(len(heights)) if azimuths is None else np.array(azimuths)
    order = np.argsort(words)
    return Maps(
        mean,
        std,
        heights,
        turned.astype(np.float32),
        pairs[np.ix_(order, order)],
        words[order],
        np.arange(12).astype(str),
    )


def dominant(path: Path, part: tuple[float, float, float, float]) -> tuple[int, int, int]:
    """Mean colour of a part of a picture, given as shares of its width and height."""
    with Image.open(path) as image:
        width, height = image.size
        box = (int(part[0] * width), int(part[1] * height), int(part[2] * width), int(part[3] * height))
        red, green, blue = np.asarray(image.convert("RGB").crop(box)).reshape(-1, 3).mean(0)
        return int(red), int(green), int(blue)


def test_views_stand_by_elevation_and_azimuth_in_blocks() -> None:
    order, blocks = view_order(maps([40, 10, 40, 10, 40, 10], [90, 0, 0, 180, -90, 90]))
    assert order.tolist() == [1, 5, 3, 2, 0, 4]
    assert blocks == [(0, "10°"), (3, "40°")]


@pytest.mark.parametrize("heights", [[20.0] * 4, [10, 20, 30, 40], [10, 10, math.nan, 20]])
def test_without_blocks_nothing_is_marked(heights: list[float]) -> None:
    order, blocks = view_order(maps(heights))
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert blocks == []


def test_the_range_of_colours_covers_negative_cosines() -> None:
    norm = angle_norm()
    assert norm(-1) == pytest.approx(0)
    assert norm(0) == pytest.approx(0.5)
    assert norm(1) == pytest.approx(1)


def test_negative_and_positive_maps_differ_in_colour(tmp_path: Path) -> None:
    heights = [10.0] * 6 + [40.0] * 6
    alike = draw_view_maps({"alike": maps(heights)}, tmp_path / "a.png", title="x")
    opposed = draw_view_maps({"opposed": maps(heights, sign=-1)}, tmp_path / "b.png", title="x")
    upper = (0.1, 0.15, 0.8, 0.5)
    (warm_red, _, warm_blue), (cold_red, _, cold_blue) = dominant(alike, upper), dominant(opposed, upper)
    # Half of the map changes its sign, and turns from red to blue with it.
    assert warm_red - warm_blue > cold_red - cold_blue + 40


def test_pictures_grow_with_the_models(tmp_path: Path) -> None:
    one = maps([10.0] * 4 + [40.0] * 4)
    sizes = []
    for count in (1, 3):
        path = draw_all_pairs({f"model {i}": one for i in range(count)}, tmp_path / f"{count}.png")
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes[1][0] > 2 * sizes[0][0] - 300
    assert sizes[0][1] == sizes[1][1]


def points(*values: float) -> EvalResult:
    figures = [
        Figure(f"{LEDGER}/angle/ood/{30 * i}", value, 10, "d", value - 0.05, value + 0.05)
        for i, value in enumerate(values)
    ]
    return EvalResult([*figures[::-1], Figure(f"{LEDGER}/different_object/ood", 0.2, 10, "d")])


def test_the_curve_rises_in_angle() -> None:
    assert [angle for angle, _ in angle_curve(points(0.9, 0.8, 0.7), "ood")] == [0, 30, 60]


def test_the_curve_is_drawn_also_below_zero_and_without_intervals(tmp_path: Path) -> None:
    curves: dict[str, Any] = {"a": angle_curve(points(0.9, -0.5), "ood")}
    curves["b"] = [(0.0, Figure("x", 0.5, 1, "d")), (30.0, Figure("x", 0.4, 1, "d"))]
    path = draw_by_relative_angle(curves, {}, tmp_path / "c.png", title="t")
    with Image.open(path) as image:
        assert image.size[0] > 900


def test_a_ledger_without_maps_and_cameras_has_no_pictures(tmp_path: Path) -> None:
    result = EvalResult([Figure(f"{LEDGER}/same_object/ood", 0.5, 10, "d")])
    assert draw_ledger({"a": tmp_path / "none"}, {"a": result}, tmp_path / "out") == []


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="maps of one size"):
        draw_view_maps({}, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"maps of one size, not \[\(4, 4\), \(6, 6\)\]"):
        draw_view_maps({"a": maps([10.0] * 4), "b": maps([10.0] * 6)}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="no map"):
        draw_all_pairs({}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="no curve"):
        draw_by_relative_angle({"a": []}, {}, tmp_path / "x.png")
