"""Acceptance L1-L5: the viewpoint-consistency loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import Features, ViewBatch
from mvcore.encoders.open_clip import OpenClip
from mvcore_ovt import ViewpointConsistency, viewpoint_consistency
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

seeds = st.integers(0, 2**31)


def pairs(seed: int, rows: int = 9, dim: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    anchors = torch.randn(rows, dim, generator=rng, dtype=dtype)
    views = anchors + 0.5 * torch.randn(rows, dim, generator=rng, dtype=dtype)
    return views.requires_grad_(), anchors


def loop(views: Tensor, anchors: Tensor, margin: float) -> Tensor:
    """The definition, term by term."""
    terms: list[Tensor] = []
    for view, anchor in zip(views, anchors, strict=True):
        if not anchor.any():
            continue
        term = 1 - (view @ anchor) / (view.norm() * anchor.norm()) + margin
        if term > 0:
            terms.append(term)
    return torch.stack(terms).mean() if terms else 0 * views.sum()


@pytest.mark.parametrize("margin", [0.3, 0.0, -0.05, -0.15, -3.0])
@settings(max_examples=20, deadline=None)
@given(seed=seeds, rows=st.integers(1, 9))
def test_l2_value_and_gradient_equal_the_loop(margin: float, seed: int, rows: int) -> None:
    views, anchors = pairs(seed, rows)
    with torch.no_grad():
        anchors[torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.2] = 0
    found, expected = viewpoint_consistency(views, anchors, margin=margin), loop(views, anchors, margin)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, views)[0] for value in (found, expected)))


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.0])
def test_l1_a_margin_only_adds_a_constant(margin: float) -> None:
    views, anchors = pairs(1)
    loss = viewpoint_consistency(views, anchors, margin=margin)
    torch.testing.assert_close(loss, (1 - cosine_similarity(views, anchors)).mean() + margin)
    plain = viewpoint_consistency(views, anchors, margin=0.0)
    assert torch.equal(torch.autograd.grad(loss, views)[0], torch.autograd.grad(plain, views)[0])


def test_l1_the_least_value_is_the_margin() -> None:
    _, anchors = pairs(2)
    torch.testing.assert_close(
        viewpoint_consistency(anchors, anchors, margin=0.3), torch.tensor(0.3, dtype=torch.float64)
    )


@settings(max_examples=40, deadline=None)
@given(seed=seeds, tolerance=st.floats(0.01, 0.5))
def test_l2_a_negative_margin_tolerates_that_distance(seed: int, tolerance: float) -> None:
    views, anchors = pairs(seed)
    loss = viewpoint_consistency(views, anchors, margin=-tolerance)
    (gradient,) = torch.autograd.grad(loss, views)
    distance = 1 - cosine_similarity(views, anchors)
    assert torch.equal(gradient.abs().sum(dim=1) > 0, distance > tolerance)
    assert (loss == 0) == bool((distance <= tolerance).all())


def test_l3_scale_changes_nothing_and_the_gradient_turns_only() -> None:
    views, anchors = pairs(3)
    loss = viewpoint_consistency(views, anchors, margin=0.3)
    torch.testing.assert_close(viewpoint_consistency(views * 7, anchors * 0.01, margin=0.3), loss)
    (gradient,) = torch.autograd.grad(loss, views)
    assert float((gradient * views.detach()).sum(dim=1).abs().max()) < 1e-12


def test_l3_a_zero_anchor_is_left_out() -> None:
    views, anchors = pairs(4)
    anchors[[0, 5]] = 0
    kept = [1, 2, 3, 4, 6, 7, 8]
    loss = viewpoint_consistency(views, anchors, margin=0.3)
    torch.testing.assert_close(loss, viewpoint_consistency(views[kept], anchors[kept], margin=0.3))
    (gradient,) = torch.autograd.grad(loss, views)
    assert not gradient[[0, 5]].any()
    nothing = viewpoint_consistency(views, torch.zeros_like(anchors), margin=0.3)
    assert nothing == 0
    assert not torch.autograd.grad(nothing, views)[0].any()


def test_no_gradient_flows_into_anchors() -> None:
    views, anchors = pairs(5)
    anchors.requires_grad_()
    viewpoint_consistency(views, anchors, margin=0.3).backward()
    assert anchors.grad is None


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((3,), (3,)), ((3, 4), (3, 5))])
def test_wrong_shapes_are_named(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    views, anchors = (torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"must both be \(M, D\)"):
        viewpoint_consistency(views, anchors, margin=0.3)


def test_whole_numbers_are_refused_by_type() -> None:
    with pytest.raises(ValueError, match=r"floating.*int64"):
        viewpoint_consistency(torch.ones(3, 4, dtype=torch.int64), torch.ones(3, 4), margin=0.3)


@pytest.mark.parametrize("margin", [float("nan"), float("inf")])
def test_a_margin_that_is_not_finite_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        viewpoint_consistency(torch.ones(3, 4), torch.ones(3, 4), margin=margin)


def batch_of(counts: list[int], outliers: list[bool], anchors: Tensor) -> ViewBatch:
    state = {"ovt.anchors": anchors, "ovt.outliers": torch.tensor(outliers)}
    return ViewBatch.make(counts).with_state(state)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, counts=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_l5_the_module_equals_selecting_the_outliers(seed: int, counts: list[int]) -> None:
    rng = torch.Generator().manual_seed(seed)
    views = torch.randn(sum(counts), 6, generator=rng, dtype=torch.float64, requires_grad=True)
    anchors = torch.randn(len(counts), 6, generator=rng, dtype=torch.float64)
    chosen = torch.rand(sum(counts), generator=rng) < 0.4
    batch = batch_of(counts, chosen.tolist(), anchors)
    found = ViewpointConsistency(margin=0.3)(Features({"view": views}), batch)
    expected = viewpoint_consistency(views[chosen], anchors[batch.object_of_view[chosen]], margin=0.3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, views)[0] for value in (found, expected)))


def test_l4_no_outlier_gives_zero_and_leaves_the_other_terms_alone() -> None:
    views, text = pairs(6)
    batch = batch_of([9], [False] * 9, torch.ones(1, 12, dtype=torch.float64))
    loss = ViewpointConsistency()(Features({"view": views}), batch)
    assert loss == 0
    other = torch.nn.functional.cross_entropy(normalize(views, dim=-1) @ text.T, torch.arange(9))
    torch.testing.assert_close(other + loss, other, rtol=0, atol=0)
    assert torch.equal(
        torch.autograd.grad(other + loss, views, retain_graph=True)[0], torch.autograd.grad(other, views)[0]
    )


def test_l5_embeddings_already_made_equal_a_second_forward(small_clip: Callable[[], OpenClip]) -> None:
    encoder = small_clip()
    encoder.set_trainable("last:1")
    encoder.eval()
    rng = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=rng)
    anchors = torch.randn(2, 24, generator=rng)
    chosen = torch.tensor([True, False, False, True, True, False])
    trained = [p for p in encoder.parameters() if p.requires_grad]
    batch = batch_of([3, 3], chosen.tolist(), anchors)

    view = frozenset({"view"})
    once = encoder.encode(ViewBatch.make([3, 3], images=images), view)
    loss = ViewpointConsistency()(Features(once), batch)
    twice = encoder.encode(ViewBatch.make([1] * 3, images=images[chosen]), view)["view"]
    expected = viewpoint_consistency(twice, anchors[batch.object_of_view[chosen]], margin=0.3)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for a, b in zip(
        torch.autograd.grad(loss, trained, allow_unused=True),
        torch.autograd.grad(expected, trained, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
