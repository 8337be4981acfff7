"""Acceptance A1-A7, A9 and S1: anchors and outlier views."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore_ovt import anchors as module
from mvcore_ovt import outlier_views, viewpoint_anchors
from torch import Tensor
from torch.nn.functional import normalize


def _load_oracles() -> Any:
    spec = importlib.util.spec_from_file_location("ovt_oracles", Path(__file__).with_name("oracles.py"))
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


oracles = _load_oracles()
RULES = ("inverse_distance", "inverse_similarity", "mean")


def ragged(seed: int, counts: list[int], dim: int = 16, spread: float = 0.7) -> tuple[Tensor, Tensor]:
    """Unit views around each object's own direction, in an order that mixes the objects."""
    rng = torch.Generator().manual_seed(seed)
    index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    centres = torch.randn(len(counts), dim, generator=rng, dtype=torch.float64)
    views = centres[index] + spread * torch.randn(len(index), dim, generator=rng, dtype=torch.float64)
    order = torch.randperm(len(index), generator=rng)
    return normalize(views[order], dim=-1), index[order]


counts_lists = st.lists(st.integers(1, 12), min_size=1, max_size=8)
seeds = st.integers(0, 2**31)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("views", [2, 5, 6, 37])
def test_a1_identical_views_give_that_view(rule: Any, views: int) -> None:
    view = normalize(torch.randn(1, 512, generator=torch.Generator().manual_seed(1)), dim=-1)
    found = viewpoint_anchors(view.expand(views, -1), torch.zeros(views, dtype=torch.int64), rule=rule)
    torch.testing.assert_close(found, view, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_a1_identical_views_weigh_the_same(rule: Any) -> None:
    # A large common part and equal views: rounding in a Gram matrix alone would make the weights differ.
    base = normalize(torch.randn(1, 64, generator=torch.Generator().manual_seed(2)), dim=-1)
    views = base.repeat(30, 1)
    found = viewpoint_anchors(views, torch.zeros(30, dtype=torch.int64), rule=rule)
    torch.testing.assert_close(found, base, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("neighbours", [1, 5])
@settings(max_examples=25, deadline=None)
@given(seed=seeds, counts=counts_lists)
def test_a2_anchors_equal_the_double_loop(rule: Any, neighbours: int, seed: int, counts: list[int]) -> None:
    views, index = ragged(seed, counts)
    expected = oracles.anchors(views.numpy(), index.numpy(), rule, neighbours)
    found = viewpoint_anchors(views, index, rule=rule, neighbours=neighbours)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_a2_float32_equals_the_double_loop_on_large_ragged_objects(rule: Any) -> None:
    views, index = ragged(3, [2, 3, 6, 7, 50, 99, 100, 2, 50], dim=128)
    single = views.float()
    expected = oracles.anchors(single.numpy(), index.numpy(), rule)
    np.testing.assert_allclose(viewpoint_anchors(single, index, rule=rule).numpy(), expected, atol=1e-6)


def test_a2_nearly_equal_views_keep_their_digits_in_float32() -> None:
    rng = torch.Generator().manual_seed(4)
    scales = torch.tensor([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])[torch.arange(40) % 5, None]
    views = (normalize(torch.randn(1, 64, generator=rng), dim=-1) + scales * torch.randn(40, 64, generator=rng)).float()
    index = torch.zeros(40, dtype=torch.int64)
    expected = oracles.anchors(views.numpy(), index.numpy(), "inverse_distance")
    np.testing.assert_allclose(viewpoint_anchors(views, index).numpy(), expected, atol=2e-7)


def test_a2_views_are_taken_as_given_not_normalised() -> None:
    views = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    index = torch.zeros(2, dtype=torch.int64)
    for rule in RULES:
        found = viewpoint_anchors(views, index, rule=rule)
        np.testing.assert_allclose(found.numpy(), [[1.5, 0.5]], atol=1e-6)


def _with_isolated_views() -> Tensor:
    """25 views close together and 5 far from everything."""
    rng = torch.Generator().manual_seed(5)
    core = torch.randn(1, 512, generator=rng) + 0.3 * torch.randn(25, 512, generator=rng)
    isolated = torch.randn(1, 512, generator=rng) * 0.7 + torch.randn(5, 512, generator=rng)
    return normalize(torch.cat([core, isolated]), dim=-1)


@pytest.mark.parametrize(("rule", "heavier"), [("inverse_distance", "core"), ("inverse_similarity", "isolated")])
def test_a3_isolated_views_weigh_less_by_distance_and_more_by_similarity(rule: Any, heavier: str) -> None:
    views = _with_isolated_views().double()
    anchor = viewpoint_anchors(views, torch.zeros(30, dtype=torch.int64), rule=rule)
    # The views are independent, so their weights can be read off the anchor.
    weights = torch.linalg.lstsq(views.T, anchor.T).solution[:, 0]
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert (weights >= 0).all()
    assert (weights[:25].mean() > weights[25:].mean()) == (heavier == "core")
    expected = oracles.weights_of(list(views.numpy()), rule, 5)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a4_a_single_view_is_its_own_anchor(rule: Any) -> None:
    views, index = ragged(6, [1, 4, 1])
    found = viewpoint_anchors(views, index, rule=rule)
    for single in (0, 2):
        torch.testing.assert_close(found[single], views[index == single][0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("views", [2, 3, 4, 5, 6])
def test_a4_fewer_views_than_neighbours(rule: Any, views: int) -> None:
    embeddings, index = ragged(views, [views])
    expected = oracles.anchors(embeddings.numpy(), index.numpy(), rule, 5)
    np.testing.assert_allclose(viewpoint_anchors(embeddings, index, rule=rule).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=15, deadline=None)
@given(seed=seeds, counts=counts_lists)
def test_a5_permutation_rotation_and_scale(rule: Any, seed: int, counts: list[int]) -> None:
    views, index = ragged(seed, counts)
    rng = torch.Generator().manual_seed(seed)
    found = viewpoint_anchors(views, index, rule=rule)
    chosen = outlier_views(views, index, found, 3)

    order = torch.randperm(len(views), generator=rng)
    torch.testing.assert_close(viewpoint_anchors(views[order], index[order], rule=rule), found)
    relabelled = torch.randperm(len(counts), generator=rng)
    torch.testing.assert_close(viewpoint_anchors(views, relabelled[index], rule=rule)[relabelled], found)

    rotation = torch.linalg.qr(torch.randn(16, 16, generator=rng, dtype=torch.float64)).Q
    turned = viewpoint_anchors(views @ rotation, index, rule=rule)
    torch.testing.assert_close(turned, found @ rotation)

    scale = 0.1 + 10 * torch.rand(len(views), 1, generator=rng, dtype=torch.float64)
    assert torch.equal(outlier_views(scale * views, index, found, 3), chosen)
    of_directions = module.anchors_of(scale * views, index, rule=rule, neighbours=5, unit=True)
    torch.testing.assert_close(of_directions, found)


def test_a5_rotation_keeps_the_outliers() -> None:
    views, index = ragged(7, [30, 41, 6])
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).double()).Q
    before = outlier_views(views, index, viewpoint_anchors(views, index), 5)
    turned = views @ rotation
    assert torch.equal(outlier_views(turned, index, viewpoint_anchors(turned, index), 5), before)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, counts=counts_lists, k=st.integers(1, 8), half=st.booleans())
def test_a6_outliers_equal_the_double_loop(seed: int, counts: list[int], k: int, half: bool) -> None:
    views, index = ragged(seed, counts)
    # Coarse values make ties common.
    views = (views * 4).round() / 4 + 0.25 if half else views
    views = views.half() if half else views
    table = viewpoint_anchors(views, index)
    expected = oracles.outliers(views.numpy(), index.numpy(), table.numpy(), k)
    # Views whose cosines agree to the last digits of float64 may be ordered either way by the two sums.
    cosines = module.anchor_cosines(views, index, table)
    differing = (outlier_views(views, index, table, k).numpy() != expected).nonzero()[0]
    for row in differing:
        others = cosines[index == index[row]]
        assert ((others - cosines[row]).abs() < 1e-12).sum() > 1


def test_a6_ties_go_by_index() -> None:
    views = torch.tensor([[1.0, 0.3], [0.2, 1.0], [1.0, 0.3], [1.0, 0.3], [0.2, 1.0]])
    index = torch.zeros(5, dtype=torch.int64)
    anchor = torch.tensor([[0.0, 1.0]])
    assert outlier_views(views, index, anchor, 2).tolist() == [True, False, True, False, False]
    assert outlier_views(views, index, anchor, 4).tolist() == [True, True, True, True, False]


def test_a6_outliers_equal_the_double_loop_where_nothing_ties() -> None:
    views, index = ragged(14, [3, 30, 57, 8, 30])
    table = viewpoint_anchors(views, index)
    expected = oracles.outliers(views.numpy(), index.numpy(), table.numpy(), 5)
    np.testing.assert_array_equal(outlier_views(views, index, table, 5).numpy(), expected)


def test_a8_anchors_have_no_gradient_and_embeddings_stay_as_they_are() -> None:
    views, index = ragged(15, [4, 9])
    before = views.clone()
    views.requires_grad_()
    for rule in RULES:
        found = viewpoint_anchors(views, index, rule=rule)
        assert not found.requires_grad
        assert not outlier_views(views, index, found, 2).requires_grad
    assert torch.equal(views, before)


@pytest.mark.parametrize("rule", RULES)
def test_a6_blocks_do_not_change_the_result(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    views, index = ragged(8, [40, 3, 40, 17, 1, 40])
    found = viewpoint_anchors(views, index, rule=rule)
    chosen = outlier_views(views, index, found, 4)
    # So small that one object's similarities need several blocks of rows.
    monkeypatch.setattr(module, "_BLOCK", 100)
    torch.testing.assert_close(viewpoint_anchors(views, index, rule=rule), found)
    assert torch.equal(outlier_views(views, index, found, 4), chosen)


def test_a6_a_memory_mapped_file_gives_the_same(tmp_path: Path) -> None:
    views, index = ragged(9, [8, 20, 3])
    mapped = np.lib.format.open_memmap(tmp_path / "views.npy", "w+", np.float64, tuple(views.shape))
    mapped[:] = views.numpy()
    found = viewpoint_anchors(torch.from_numpy(mapped), index)
    assert torch.equal(found, viewpoint_anchors(views, index))
    assert torch.equal(outlier_views(torch.from_numpy(mapped), index, found, 5), outlier_views(views, index, found, 5))


@settings(max_examples=25, deadline=None)
@given(seed=seeds, counts=counts_lists, k=st.integers(1, 15))
def test_a7_as_many_outliers_as_the_definition_says(seed: int, counts: list[int], k: int) -> None:
    views, index = ragged(seed, counts)
    chosen = outlier_views(views, index, viewpoint_anchors(views, index), k)
    assert chosen.dtype == torch.bool
    assert int(chosen.sum()) == sum(min(k, count) for count in counts)


def test_a7_objects_without_views_have_zero_anchors_that_are_not_read() -> None:
    views, index = ragged(10, [4, 5])
    gaps = torch.tensor([1, 4])[index]
    found = viewpoint_anchors(views, gaps)
    assert found.shape == (5, 16)
    assert not found[[0, 2, 3]].any()
    torch.testing.assert_close(found[[1, 4]], viewpoint_anchors(views, index))
    found[[0, 2, 3]] = torch.nan
    assert torch.equal(
        outlier_views(views, gaps, found, 3), outlier_views(views, index, viewpoint_anchors(views, index), 3)
    )


@pytest.mark.parametrize("rule", RULES)
def test_a9_half_precision(rule: Any) -> None:
    views, index = ragged(11, [20] * 12, dim=128, spread=0.5)
    full, half = views.float(), views.half()
    anchors, from_half = (viewpoint_anchors(v, index, rule=rule) for v in (full, half))
    assert from_half.dtype == torch.float32
    assert float((anchors - from_half).abs().max()) < 2e-3
    chosen, chosen_half = outlier_views(full, index, anchors, 5), outlier_views(half, index, from_half, 5)
    # Only objects whose choice does not hang on a gap below half precision.
    cosines = module.anchor_cosines(full, index, anchors)
    clear = [o for o in range(12) if _gap(cosines[index == o], 5) > 1e-3]
    assert len(clear) >= 4
    kept = torch.isin(index, torch.tensor(clear))
    overlap = (chosen & chosen_half & kept).sum() / (chosen & kept).sum()
    assert overlap >= 0.99


def _gap(cosines: Tensor, k: int) -> float:
    ordered = cosines.sort().values
    return float(ordered[k] - ordered[k - 1])


def test_no_views_give_no_anchors() -> None:
    assert viewpoint_anchors(torch.empty(0, 8), torch.empty(0, dtype=torch.int64)).shape == (0, 8)


@pytest.mark.parametrize(
    ("views", "index", "options", "text"),
    [
        (torch.ones(3), torch.zeros(3, dtype=torch.int64), {}, r"\(N, D\)"),
        (torch.ones(3, 2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), {}, "floating"),
        (torch.ones(3, 2), torch.zeros(4, dtype=torch.int64), {}, r"must be \(3,\), not \(4,\)"),
        (torch.ones(3, 2), torch.zeros(3), {}, "integers"),
        (torch.ones(3, 2), torch.tensor([0, -1, 0]), {}, "negative, found -1"),
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), {"rule": "median"}, "inverse_distance.*'median'"),
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), {"neighbours": 0}, "neighbours"),
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), {"neighbours": 2.5}, "whole number.*2.5"),
        (np.ones((3, 2)), torch.zeros(3, dtype=torch.int64), {}, "embeddings must be a torch tensor, not ndarray"),
        (torch.ones(3, 2), [0, 0, 0], {}, "object_index must be a torch tensor, not list"),
        (torch.tensor([[1.0, 0], [0, 0]]), torch.zeros(2, dtype=torch.int64), {}, "view 1 is zero"),
        (torch.tensor([[1.0, 0], [1, torch.nan]]), torch.tensor([1, 0]), {"rule": "mean"}, "view 1 is zero or not"),
    ],
)
def test_wrong_input_is_named(views: Any, index: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        viewpoint_anchors(views, index, **options)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integers_number_the_objects(dtype: torch.dtype) -> None:
    views, index = ragged(12, [3, 6, 2])
    found = viewpoint_anchors(views, index.to(dtype))
    assert torch.equal(found, viewpoint_anchors(views, index))
    assert torch.equal(outlier_views(views, index.to(dtype), found, 2), outlier_views(views, index, found, 2))


def test_wrong_outlier_input_is_named() -> None:
    views, index = ragged(12, [3, 3])
    anchors = viewpoint_anchors(views, index)
    with pytest.raises(ValueError, match="k must be"):
        outlier_views(views, index, anchors, 0)
    with pytest.raises(ValueError, match="k must be"):
        outlier_views(views, index, anchors, 1.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"\(2, 16\), not \(1, 16\)"):
        outlier_views(views, index, anchors[:1], 2)
    with pytest.raises(ValueError, match="zero or not finite"):
        outlier_views(views, index, torch.zeros_like(anchors), 2)


def test_s1_the_batched_form_equals_the_loop_at_the_benchmark_width() -> None:
    views, index = ragged(13, [50] * 6, dim=512)
    single = views.float()
    table = viewpoint_anchors(single, index)
    expected = oracles.anchors(single.numpy(), index.numpy(), "inverse_distance")
    np.testing.assert_allclose(table.numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(
        outlier_views(single, index, table, 5).numpy(),
        oracles.outliers(single.numpy(), index.numpy(), table.numpy(), 5),
    )
