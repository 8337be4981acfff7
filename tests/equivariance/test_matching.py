"""Nearest neighbours against brute force; the same for every size of tile; ties go to the first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import DenseGrid, sample_dense
from mvcore_equivariance import matching
from mvcore_equivariance.matching import Given, Sampled, mutual_nearest, nearest, pixel_grid, within
from torch import Tensor


def vectors(count: int, width: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def brute_force(queries: Tensor, candidates: Tensor, *, normalised: bool = True) -> list[int]:
    """The first candidate of the largest product, one product at a time in float64."""
    rows = [
        [v.double() / v.double().norm() if normalised else v.double() for v in part] for part in (queries, candidates)
    ]
    found = []
    for query in rows[0]:
        best = max(range(len(rows[1])), key=lambda k: (float(query @ rows[1][k]), -k))
        found.append(best)
    return found


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000), st.booleans())
def test_it_is_brute_force(queries: int, candidates: int, seed: int, normalised: bool) -> None:
    first, second = vectors(queries, seed=seed), vectors(candidates, seed=seed + 1)
    found = nearest(Given(first, normalised=normalised), Given(second, normalised=normalised))
    assert found.index.tolist() == brute_force(first, second, normalised=normalised)


def test_the_score_is_the_cosine() -> None:
    first, second = vectors(9), vectors(30, seed=1)
    cosines = torch.nn.functional.normalize(first.double()) @ torch.nn.functional.normalize(second.double()).T
    assert torch.allclose(nearest(Given(first), Given(second)).score, cosines.amax(1), atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 64, 10_000])
def test_tiles_do_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Many equal descriptors, so that a sum in another order would be seen.
    first, second = vectors(200, 384).round(decimals=1), vectors(50, 384, seed=1).repeat(7, 1)
    expected = nearest(Given(first), Given(second))
    monkeypatch.setattr(matching, "_CANDIDATES", 41)
    found = nearest(Given(first), Given(second), chunk=chunk)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.score, expected.score)
    assert int(found.index.max()) < 50


def test_of_equal_candidates_the_first_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_CANDIDATES", 4)
    same = torch.ones(11, 7) * torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert nearest(Given(same), Given(same), chunk=3).index.tolist() == [0] * 11
    assert mutual_nearest(Given(same), Given(same), chunk=3).tolist() == [[0, 0]]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000), st.integers(1, 50))
def test_mutual_neighbours_are_symmetric_and_a_loop(queries: int, candidates: int, seed: int, chunk: int) -> None:
    first, second = vectors(queries, seed=seed), vectors(candidates, seed=seed + 1)
    forward, backward = brute_force(first, second), brute_force(second, first)
    expected = [[i, j] for i, j in enumerate(forward) if backward[j] == i]
    found = mutual_nearest(Given(first), Given(second), chunk=chunk)
    assert found.tolist() == expected
    swapped = mutual_nearest(Given(second), Given(first), chunk=chunk)
    assert sorted(swapped.flip(1).tolist()) == expected


def test_sampled_descriptors_are_those_of_the_map() -> None:
    dense = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0))
    grid = DenseGrid.tiling(6, 8, 64, 48)
    points = pixel_grid((64, 48), 3)
    there = sample_dense(dense[None], points[None], grid)[0]
    lazily, at_once = nearest(Given(there), Sampled(dense, points, grid)), nearest(Given(there), Given(there))
    assert torch.equal(lazily.index, at_once.index)
    product = nearest(Given(there), Sampled(dense, points, grid, normalised=False))
    assert product.index.tolist() == (there.double() @ there.double().T).argmax(1).tolist()


def test_the_search_keeps_to_the_mask() -> None:
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[4:9, 10:17] = True
    grid = pixel_grid((30, 20))
    inside = grid[within(grid, mask)]
    assert len(inside) == 35
    assert inside[0].tolist() == [10.5, 4.5]
    assert inside[-1].tolist() == [16.5, 8.5]
    dense = torch.randn(8, 20, 30, generator=torch.Generator().manual_seed(0))
    cells = DenseGrid.tiling(20, 30, 30, 20)
    query = sample_dense(dense[None], torch.tensor([[[0.5, 0.5], [12.5, 5.5]]]), cells)[0]
    whole, only = (points[nearest(Given(query), Sampled(dense, points, cells)).index] for points in (grid, inside))
    assert whole.tolist() == [[0.5, 0.5], [12.5, 5.5]]
    assert only[1].tolist() == [12.5, 5.5]
    assert bool(within(only, mask).all())


def test_the_grid_of_cells_lies_within_the_image() -> None:
    assert pixel_grid((3, 2)).tolist() == [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5]]
    assert pixel_grid((9, 4), 4).tolist() == [[2, 2], [6, 2]]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Given(torch.zeros(3)), r"descriptors must be \(P, C\), not \(3,\)"),
        (lambda: Given(torch.tensor([[np.nan]])), "not finite"),
        (lambda: nearest(Given(vectors(0)), Given(vectors(2))), "needs queries and candidates, not 0 and 2"),
        (lambda: nearest(Given(vectors(1)), Given(vectors(2)), chunk=0), "a chunk above 0"),
        (
            lambda: Sampled(torch.zeros(2, 2), torch.zeros(1, 2), DenseGrid.tiling(2, 2, 4, 4)),
            r"dense must be \(C, h, w\) and points \(P, 2\), not \(2, 2\)",
        ),
    ],
)
def test_wrong_input_is_named(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
