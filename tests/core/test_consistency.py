"""The three similarities against loops over all pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.evaluation import consistency
from mvcore.evaluation.similarity import pair_similarity, view_similarity_map
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float(a @ b / (a.norm() * b.norm()))


def loops(text: Tensor, views: list[Tensor]) -> dict[str, list[float]]:
    """Every ordered pair, one at a time."""
    same = [cosine(a, b) for v in views for a, b in itertools.permutations(v, 2)]
    different = [cosine(a, b) for v, w in itertools.permutations(views, 2) for a in v for b in w]
    matched = [cosine(t, a) for t, v in zip(text, views, strict=True) for a in v]
    return {"same_object": same, "different_object": different, "text_to_image": matched}


def ragged(counts: list[int], dim: int, seed: int, spread: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    centers = torch.randn(len(counts), dim, generator=rng)
    views = [
        c + spread * torch.randn(n, dim, generator=rng) * torch.rand(n, 1, generator=rng).add(0.1)
        for c, n in zip(centers, counts, strict=True)
    ]
    return torch.randn(len(counts), dim, generator=rng), views


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=7),
    dim=st.integers(2, 9),
    seed=st.integers(0, 1000),
    double=st.booleans(),
)
def test_equals_loops_over_pairs(counts: list[int], dim: int, seed: int, double: bool) -> None:
    text, views = ragged(counts, dim, seed)
    kind = torch.float64 if double else torch.float32
    found = consistency(text.to(kind), torch.cat(views).to(kind), torch.tensor(counts))
    for name, values in loops(text, views).items():
        similarity = getattr(found, name)
        assert similarity.n == len(values)
        if values:
            assert similarity.mean == pytest.approx(np.mean(values), abs=1e-9)
            assert similarity.samples.shape == (len(counts),)
            assert similarity.samples.mean() == pytest.approx(similarity.mean, abs=1e-9)
        else:
            assert math.isnan(similarity.mean)
        if len(values) > 1:
            assert similarity.std == pytest.approx(np.std(values, ddof=1), abs=1e-7)


def test_dense_and_packed_agree() -> None:
    text, views = ragged([4] * 5, 6, 0)
    a, b = consistency(text, torch.stack(views)), consistency(text, torch.cat(views), torch.full((5,), 4))
    assert (a.same_object, a.different_object, a.text_to_image) == (
        b.same_object,
        b.different_object,
        b.text_to_image,
    )


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 11])
def test_blocks_of_any_size_agree(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text, views = ragged([1, 9, 3, 3, 12, 2], 5, 3)
    counts = torch.tensor([len(v) for v in views])
    whole = consistency(text, torch.cat(views), counts)
    monkeypatch.setattr("mvcore.evaluation.similarity._ROWS", rows)
    pieces = consistency(text, torch.cat(views), counts)
    for name in ("same_object", "different_object", "text_to_image"):
        a, b = getattr(whole, name), getattr(pieces, name)
        assert (a.mean, a.std, a.n) == pytest.approx((b.mean, b.std, b.n), abs=1e-12)
        np.testing.assert_allclose(a.samples, b.samples, atol=1e-12)


def test_identical_views_and_orthogonal_objects() -> None:
    views = torch.eye(6)[:4, None].expand(4, 5, 6) * torch.tensor([1.0, 2.0, 0.5, 9.0])[:, None, None]
    found = consistency(torch.eye(6)[:4], views)
    assert found.same_object.mean == pytest.approx(1, abs=1e-12)
    assert found.same_object.std == pytest.approx(0, abs=1e-9)
    assert found.different_object.mean == pytest.approx(0, abs=1e-12)
    assert found.different_object.std == pytest.approx(0, abs=1e-9)
    assert found.text_to_image.mean == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(found.center_mean, 1, atol=1e-12)
    np.testing.assert_allclose(found.center_min, 1, atol=1e-12)


def test_per_object_values_of_different_objects_count_twice() -> None:
    _, views = ragged([3] * 5, 4, 9)
    found = consistency(None, torch.stack(views)).different_object
    own = [np.mean([cosine(a, b) for j in range(5) if j != i for a in views[i] for b in views[j]]) for i in range(5)]
    np.testing.assert_allclose(found.samples, found.mean + 2 * (np.array(own) - found.mean), atol=1e-9)


def test_the_swapped_names_are_aliases() -> None:
    found = consistency(*[torch.randn(3, 4), torch.randn(3, 2, 4)])
    assert found.inter_object_similarity is found.same_object
    assert found.intra_object_similarity is found.different_object


def test_invariant_to_length_order_and_rotation() -> None:
    text, views = ragged([3, 5, 2], 4, 5)
    counts = torch.tensor([3, 5, 2])
    base = consistency(text, torch.cat(views), counts)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    order = [2, 0, 1]
    moved = [views[i].flip(0).double() @ turn * 3.0 for i in order]
    other = consistency(text[order].double() @ turn, torch.cat(moved), counts[order])
    for name in ("same_object", "different_object", "text_to_image"):
        a, b = getattr(base, name), getattr(other, name)
        assert (a.mean, a.std) == pytest.approx((b.mean, b.std), abs=1e-6)
        np.testing.assert_allclose(a.samples[order], b.samples, atol=1e-6)


def test_center_cosines_equal_loops() -> None:
    _, views = ragged([3, 1, 6], 4, 8)
    found = consistency(None, torch.cat(views), torch.tensor([3, 1, 6]))
    for i, v in enumerate(views):
        unit = v.double() / v.double().norm(dim=1, keepdim=True)
        to_center = [cosine(u, unit.mean(0)) for u in unit]
        assert found.center_mean[i] == pytest.approx(np.mean(to_center), abs=1e-9)
        assert found.center_min[i] == pytest.approx(min(to_center), abs=1e-9)
    assert found.text_to_image.n == 0


def test_pairs_of_several_captions() -> None:
    rng = torch.Generator().manual_seed(2)
    views, texts = torch.randn(5, 3, generator=rng), torch.randn(4, 3, generator=rng)
    rows, columns = torch.tensor([0, 0, 1, 3, 4]), torch.tensor([0, 1, 2, 3, 3])
    found = pair_similarity(views, texts, rows, columns, torch.tensor([0, 0, 1, 1, 2]), 3)
    values = [cosine(views[i], texts[j]) for i, j in zip(rows, columns, strict=True)]
    assert (found.mean, found.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)), abs=1e-9)
    assert found.n == 5


def test_map_agrees_with_the_figure() -> None:
    _, views = ragged([6] * 9, 5, 4)
    stacked = torch.stack(views)
    mean, std = view_similarity_map(stacked)
    values = np.array([[[cosine(a, b) for b in v] for a in v] for v in views])
    np.testing.assert_allclose(mean, values.mean(0), atol=1e-9)
    np.testing.assert_allclose(std, values.std(0, ddof=1), atol=1e-9)
    np.testing.assert_array_equal(mean, mean.T)
    assert mean[~np.eye(6, dtype=bool)].mean() == pytest.approx(consistency(None, stacked).same_object.mean, abs=1e-9)
    assert mean.diagonal().tolist() == [1.0] * 6
    assert std.diagonal().tolist() == [0.0] * 6


@pytest.mark.parametrize(
    ("text", "views", "counts", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 3), None, r"\(O, V, D\)"),
        (torch.ones(2, 4), torch.ones(2, 2, 3), None, r"text must be .* not \(2, 4\)"),
        (None, torch.ones(4, 3), torch.tensor([1, 2]), "sum to 4 views"),
        (None, torch.ones(4, 3), torch.tensor([4, 0]), "at least 1"),
        (None, torch.ones(4, 3), torch.tensor([4.0]), "integer view_counts"),
        (None, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([2]), "row 1 has length 0"),
        (None, torch.tensor([[1.0, 0.0], [math.nan, 0.0]]), torch.tensor([2]), "row 1 has length nan"),
        (torch.zeros(1, 2), torch.ones(2, 2), torch.tensor([2]), "text: row 0 has length 0"),
    ],
)
def test_wrong_input_is_named(text: Tensor | None, views: Tensor, counts: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        consistency(text, views, counts)
