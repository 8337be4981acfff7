"""Acceptance D7 and V4: the captioning prompt, and the groups of the paper's table 2."""

from __future__ import annotations

import pytest
from mvcore.evaluation.statistics import group_means
from mvcore_ovt import BENCHMARK_GROUPS, caption_prompt


def test_d7_prompt() -> None:
    expected = "Write a short description for the image, noting that the main instance of the image is a teapot."
    assert caption_prompt("teapot") == expected
    assert caption_prompt(" teapot\n") == expected


def test_d7_an_empty_category_is_refused() -> None:
    with pytest.raises(ValueError, match="category"):
        caption_prompt("  ")


# Top-1 accuracies and averages as table 2 prints them.
_ROWS = {
    "OpenCLIP B/32": (
        [81.1, 66.5, 75.8, 58.1, 53.6, 34.8, 61.0, 53.5, 54.4, 37.1, 46.9, 33.0],
        [74.5, 52.2, 42.8, 54.6],
    ),
    "OVT-OpenCLIP B/32": (
        [80.9, 67.8, 65.0, 58.0, 45.8, 42.8, 50.3, 51.7, 61.9, 59.5, 52.8, 35.4],
        [71.2, 49.7, 52.4, 56.0],
    ),
    "OVT-OpenCLIP L/14": (
        [89.0, 77.3, 79.2, 69.6, 61.9, 27.5, 71.3, 56.4, 72.2, 69.8, 57.3, 50.0],
        [81.8, 57.3, 62.3, 65.1],
    ),
}


@pytest.mark.parametrize("row", _ROWS)
def test_v4_group_averages_are_the_printed_ones(row: str) -> None:
    accuracies, printed = _ROWS[row]
    values = dict(zip(BENCHMARK_GROUPS["total"], accuracies, strict=True))
    found = group_means(values, BENCHMARK_GROUPS)
    for group, expected in zip(("clean", "2d-ood", "viewpoint-ood", "total"), printed, strict=True):
        assert found[group] == pytest.approx(expected, abs=0.1)
