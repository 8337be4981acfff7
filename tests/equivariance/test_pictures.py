"""Pictures of dense features: what is in them, read from their pixels and from the colours before they are drawn."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import mvcore
import numpy as np
import pytest
import yaml
from mvcore.api import new_figure
from mvcore.plugins import load_plugins
from mvcore_equivariance.evaluation.options import (
    CorrespondenceOptions,
    PoseOptions,
    TrackingOptions,
    TransferOptions,
)
from mvcore_equivariance.pictures import MatchedPair, draw_matches, draw_pair, draw_pca, draw_tracks, principal_colours
from numpy.typing import NDArray
from PIL import Image

BLUE, ORANGE = (0x1F, 0x6F, 0xB4), (0xE1, 0x81, 0x2C)
GREY = np.full((40, 60, 3), 128, np.uint8)


def count(path: Path, colour: tuple[int, int, int]) -> int:
    """How many pixels of a picture are nearly of a colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - colour).max(axis=2) < 12).sum())


def pair(right: NDArray[np.bool_]) -> MatchedPair:
    points = np.random.default_rng(0).uniform(5, 35, (len(right), 2))
    return MatchedPair(GREY, GREY, points, points + 3.0, points, right)


def test_right_and_wrong_matches_differ_in_colour(tmp_path: Path) -> None:
    right = draw_matches([pair(np.ones(9, bool))], tmp_path / "right.png")
    wrong = draw_matches([pair(np.zeros(9, bool))], tmp_path / "wrong.png")
    # The legend has both colours.
    assert count(right, BLUE) > 2 * count(wrong, BLUE)
    assert count(wrong, ORANGE) > 2 * count(right, ORANGE)


@pytest.mark.parametrize(
    ("number", "about", "title"),
    [
        (4, "", "4 of 4 points right"),
        (40, "", "40 of 40 points right, 24 of them drawn"),
        (4, "viewpoint changes by 62 degrees", "viewpoint changes by 62 degrees: 4 of 4 points right"),
    ],
)
def test_a_row_says_what_it_is_and_how_many_are_right(number: int, about: str, title: str) -> None:
    axis = new_figure(3, 3).subplots()
    draw_pair(axis, replace(pair(np.ones(number, bool)), about=about))
    assert axis.get_title() == title
    assert len(axis.lines) == 3 * min(number, 24), "a line and its two ends"


def test_each_pair_has_a_row(tmp_path: Path) -> None:
    one, three = (
        Image.open(draw_matches([pair(np.ones(4, bool))] * number, tmp_path / f"{number}.png")) for number in (1, 3)
    )
    assert one.width == three.width
    assert 2 < three.height / one.height < 3
    with pytest.raises(ValueError, match="no pair of views"):
        draw_matches([], tmp_path / "none.png")


def test_equal_features_have_equal_colours() -> None:
    """Three groups of directions, over two views: as many colours, the same in both."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(3, 16))
    kinds = rng.integers(0, 3, (2, 5, 6))
    dense = directions[kinds].transpose(0, 3, 1, 2) * rng.uniform(1, 9, (2, 1, 5, 6))
    colours = principal_colours(dense)
    assert colours.shape == (2, 5, 6, 3)
    groups = [colours[kinds == kind] for kind in range(3)]
    for group in groups:
        assert np.ptp(group, axis=0).max() < 1e-6
    assert min(np.abs(groups[a][0] - groups[b][0]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 0.2


def test_cells_outside_are_white_and_do_not_count() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(2, 8, 5, 6))
    cells = rng.random((2, 5, 6)) < 0.6
    colours = principal_colours(dense, cells)
    assert (colours[~cells] == 1).all()
    changed = np.where(cells[:, None], dense, 100 * rng.normal(size=dense.shape))
    assert np.allclose(principal_colours(changed, cells)[cells], colours[cells])


def test_fewer_components_than_three_are_drawn() -> None:
    assert principal_colours(np.ones((1, 2, 3, 3))).shape == (1, 3, 3, 3)
    assert np.isfinite(principal_colours(np.ones((1, 1, 1, 1)))).all()


def test_the_map_is_drawn_under_its_view(tmp_path: Path) -> None:
    images = np.stack([GREY, GREY])
    foreground = np.zeros((2, 40, 60), bool)
    foreground[:, 10:30, 10:40] = True
    dense = np.random.default_rng(0).normal(size=(2, 8, 10, 15))
    path = draw_pca(images, dense, foreground, tmp_path / "pca.png", title="a title")
    assert Image.open(path).width > 400
    assert count(path, (128, 128, 128)) > 10_000
    with pytest.raises(ValueError, match=r"dense \(V, C, h, w\), not \(2, 40, 60, 3\) and \(1, 8, 10, 15\)"):
        draw_pca(images, dense[:1], None, tmp_path / "x.png")


def test_hidden_points_are_rings(tmp_path: Path) -> None:
    frames = np.stack([GREY] * 5)
    tracks = np.full((1, 5, 2), 20.0)
    seen, hidden = (
        draw_tracks(frames, tracks, np.full((1, 5), value), tmp_path / f"{value}.png") for value in (False, True)
    )
    red = (255, 0, 0)
    assert count(seen, red) > 1.5 * count(hidden, red) > 0
    with pytest.raises(ValueError, match=r"tracks must be \(N, 5, 2\), not \(1, 4, 2\), \(1, 4\)"):
        draw_tracks(frames, tracks[:, :4], np.zeros((1, 4), bool), tmp_path / "x.png")


PAGE = Path(__file__).parents[2] / "docs" / "methods" / "equivariance-evaluation.md"
MODELS: dict[str, Any] = {
    "correspondence": CorrespondenceOptions,
    "pose": PoseOptions,
    "tracking": TrackingOptions,
    "transfer": TransferOptions,
}


def test_the_page_shows_evaluators_and_options_that_there_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for name, args in yaml.safe_load(block).items():
        options = mvcore.api.build({"id": name, "args": args}, "evaluator").options
        assert args == {key: (list(v) if isinstance(v := getattr(options, key), tuple) else v) for key in args}
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL))
    for name, model in MODELS.items():
        load_plugins().spec("evaluator", f"equivariance.{name}")
        assert f"| `equivariance.{name}` |" in text
        rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| .* \| .* \|$", sections[name.capitalize()], re.MULTILINE)
        written = {option for row in rows for option in re.findall(r"`(\w+)`", row)}
        assert written == set(model.model_fields), name
