"""Acceptance A4-A14: the losses against loops over all pairs, in value and gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvc_oracles import across, autoencoder, contrastive, gradient, inside, mean_of, members, vectors
from mvcore_mvc_heads import autoencoder_loss, contrastive_loss, object_similarity_loss
from mvcore_mvc_heads.blocks import blocks_of, directions
from mvcore_mvc_heads.losses import attraction, info_nce, repulsion
from torch import Tensor

seeds = st.integers(0, 2**31)
CHOICES = [("mean", "all"), ("reference", "all"), ("mean", "figure"), ("reference", "figure")]


def both(found: Tensor, expected: Tensor, of: Tensor) -> None:
    """Equal in value and in gradient."""
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(gradient(found, of), gradient(expected, of), atol=1e-10, rtol=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, objects=st.integers(1, 5), count=st.integers(1, 4), dim=st.integers(1, 6))
def test_a4_a10_the_object_loss_is_minus_the_mean_over_all_pairs_of_an_object(
    seed: int, objects: int, count: int, dim: int
) -> None:
    text, views = vectors(seed, objects, dim), vectors(seed + 1, objects, count, dim).requires_grad_()
    found = object_similarity_loss(text, views)
    both(found, -mean_of(inside(members(text, views))), views)
    assert -1 - 1e-12 <= float(found.detach()) <= 1 + 1e-12
    torch.testing.assert_close(found, contrastive_loss(text, views, similarity_weight=1.0))


@pytest.mark.parametrize(("normalise", "cross_pairs"), CHOICES)
@settings(max_examples=15, deadline=None)
@given(seed=seeds, objects=st.integers(1, 5), count=st.integers(1, 4), w=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_a5_a9_the_contrastive_loss_equals_the_loop(
    normalise: Any, cross_pairs: Any, seed: int, objects: int, count: int, w: float
) -> None:
    text, views = vectors(seed, objects, 5), vectors(seed + 1, objects, count, 5).requires_grad_()
    found = contrastive_loss(text, views, similarity_weight=w, normalise=normalise, cross_pairs=cross_pairs)
    both(found, contrastive(text, views, w, normalise, cross_pairs), views)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_a5_the_authors_divisor_makes_it_more_than_a_mean(count: int) -> None:
    text, views = vectors(0, 4, 8), vectors(1, 4, count, 8)
    mean = mean_of(across(members(text, views)))
    for normalise, factor in (("mean", 1.0), ("reference", (count + 1) / count)):
        found = contrastive_loss(text, views, similarity_weight=0.0, normalise=normalise)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(found, factor * mean)


def test_a5_one_object_has_nothing_across() -> None:
    text, views = vectors(0, 1, 8), vectors(1, 1, 4, 8).requires_grad_()
    assert float(contrastive_loss(text, views, similarity_weight=0.0).detach()) == 0
    half = contrastive_loss(text, views)
    torch.testing.assert_close(half, 0.5 * object_similarity_loss(text, views))
    half.backward()
    assert views.grad is not None
    assert views.grad.isfinite().all()


@pytest.mark.parametrize("count", [2, 6])
def test_a6_everything_in_one_direction(count: int) -> None:
    text = torch.ones(5, 7)
    loss = contrastive_loss(text, 3 * torch.ones(5, count, 7), normalise="reference")
    assert float(loss) == pytest.approx(1 / (2 * count), abs=1e-5)
    assert float(contrastive_loss(text, torch.ones(5, count, 7))) == pytest.approx(0, abs=1e-5)


def test_a7_objects_at_right_angles() -> None:
    text = torch.eye(6)
    loss = contrastive_loss(text, text[:, None].expand(6, 4, 6), normalise="reference")
    assert float(loss) == pytest.approx(-0.5, abs=1e-5)


def simplex(objects: int) -> Tensor:
    """(B, B) unit vectors with equal cosines -1 / (B - 1)."""
    return directions(torch.eye(objects, dtype=torch.float64) - 1 / objects)


def antipodal(objects: int) -> Tensor:
    return torch.eye(objects, dtype=torch.float64)[:1] * torch.tensor([1.0, -1.0]).repeat(objects // 2)[:, None]


@pytest.mark.parametrize(("objects", "count"), [(6, 6), (4, 3), (8, 1)])
def test_a8_two_antipodal_clusters_are_as_good_as_a_simplex(objects: int, count: int) -> None:
    expected = -0.5 * (1 + (count + 1) / (count * (objects - 1)))
    for place in (simplex(objects), antipodal(objects)):
        views = place[:, None].expand(objects, count, objects)
        assert float(contrastive_loss(place, views, normalise="reference")) == pytest.approx(expected, abs=1e-6)
    if (objects, count) == (6, 6):
        assert expected == pytest.approx(-0.6166667, abs=1e-7)


def contrast(place: Tensor, count: int) -> float:
    rows = place.repeat_interleave(count, dim=0)
    owner = torch.arange(len(place)).repeat_interleave(count)
    return float(info_nce(rows, owner, len(place), temperature=0.07))


@pytest.mark.parametrize("objects", [4, 6, 12])
def test_the_softmax_tells_a_simplex_from_two_clusters(objects: int) -> None:
    assert contrast(simplex(objects), 3) < contrast(antipodal(objects), 3) - 0.5
    everything = torch.ones(objects, 4, dtype=torch.float64)
    assert contrast(everything, 3) == pytest.approx(math.log(3 * objects - 1))


@settings(max_examples=20, deadline=None)
@given(seed=seeds, owners=st.lists(st.integers(0, 3), min_size=2, max_size=9), temperature=st.sampled_from([0.05, 1.0]))
def test_the_softmax_contrast_equals_the_loop(seed: int, owners: list[int], temperature: float) -> None:
    rows, owner = vectors(seed, len(owners), 5).requires_grad_(), torch.tensor(owners)
    unit = rows / rows.norm(dim=1, keepdim=True)
    terms: list[Tensor] = []
    for i, mine in enumerate(owners):
        scores = {j: unit[i] @ unit[j] / temperature for j in range(len(owners)) if j != i}
        company = [scores[j] for j in scores if owners[j] == mine]
        if company:
            terms.append(torch.stack(list(scores.values())).logsumexp(dim=0) - torch.stack(company).mean())
    expected = torch.stack(terms).mean() if terms else 0 * rows.sum()
    both(info_nce(rows, owner, 4, temperature=temperature), expected, rows)


def test_the_softmax_contrast_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, owner = vectors(0, 23, 6).requires_grad_(), torch.arange(23) % 5
    whole = info_nce(rows, owner, 5, temperature=0.1)
    monkeypatch.setattr("mvcore_mvc_heads.losses._ROWS", 4)
    both(info_nce(rows, owner, 5, temperature=0.1), whole, rows)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_a11_scale_and_order_change_nothing_but_swapping_views_does(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    text, views = vectors(seed, 4, 6), vectors(seed + 1, 4, 3, 6)
    losses = [object_similarity_loss, contrastive_loss]
    scales = torch.rand(4, 3, 1, generator=rng, dtype=torch.float64) * 1000 + 1e-3
    order, inner = torch.randperm(4, generator=rng), torch.randperm(3, generator=rng)
    swapped = views.clone()
    swapped[0, 0], swapped[1, 0] = views[1, 0], views[0, 0]
    for loss in losses:
        plain = loss(text, views)
        torch.testing.assert_close(loss(text * 0.01, views * scales), plain)
        torch.testing.assert_close(loss(text[order], views[order]), plain)
        torch.testing.assert_close(loss(text, views[:, inner]), plain)
        assert not torch.allclose(loss(text, swapped), plain)


def test_a12_no_gradient_flows_into_the_text() -> None:
    text, views = vectors(0, 3, 5).requires_grad_(), vectors(1, 3, 2, 5).requires_grad_()
    (object_similarity_loss(text, views) + contrastive_loss(text, views)).backward()
    assert text.grad is None
    assert views.grad is not None
    assert views.grad.abs().sum() > 0


@pytest.mark.parametrize("normalise", ["mean", "reference"])
@settings(max_examples=15, deadline=None)
@given(
    seed=seeds,
    objects=st.integers(1, 4),
    count=st.integers(2, 4),
    w=st.sampled_from([0.0, 0.5, 1.0]),
    a=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a13_a14_the_autoencoder_loss_equals_the_loop(
    normalise: Any, seed: int, objects: int, count: int, w: float, a: float
) -> None:
    views, decoded = vectors(seed, objects, count, 5), vectors(seed + 1, objects, count, 5).requires_grad_()
    invariant = vectors(seed + 2, objects, count, 3).requires_grad_()
    settings_ = {"similarity_weight": w, "reconstruction_weight": a}
    found = autoencoder_loss(views, decoded, invariant, **settings_, normalise=normalise)
    expected = autoencoder(views, decoded, invariant, w, a, normalise)
    both(found, expected, invariant)
    torch.testing.assert_close(gradient(found, decoded), gradient(expected, decoded))


def test_a13_the_authors_divisor_at_six_views() -> None:
    invariant = vectors(0, 4, 6, 8)
    mean = mean_of(across(members(None, invariant)))
    found = autoencoder_loss(
        invariant, invariant, invariant, similarity_weight=0.0, reconstruction_weight=0.0, normalise="reference"
    )
    torch.testing.assert_close(found, 1.2 * mean)


def test_a13_one_view_is_refused_and_one_object_trains() -> None:
    one = vectors(0, 3, 1, 4)
    with pytest.raises(ValueError, match=r"at least 2 views .* got views \(3, 1, 4\)"):
        autoencoder_loss(one, one, one)
    views, decoded = vectors(1, 1, 4, 4), vectors(2, 1, 4, 4).requires_grad_()
    invariant = vectors(3, 1, 4, 2).requires_grad_()
    autoencoder_loss(views, decoded, invariant).backward()
    for leaf in (decoded, invariant):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0


def test_perfect_reconstruction_has_a_finite_gradient() -> None:
    views = vectors(0, 2, 3, 4)
    decoded, invariant = views.clone().requires_grad_(), vectors(1, 2, 3, 2)
    autoencoder_loss(views, decoded, invariant, reconstruction_weight=1.0).backward()
    assert decoded.grad is not None
    assert decoded.grad.isfinite().all()


def test_no_loss_changes_its_inputs() -> None:
    text, views, decoded, invariant = (vectors(k, *s) for k, s in enumerate([(3, 5), (3, 4, 5), (3, 4, 5), (3, 4, 2)]))
    kept = [each.clone() for each in (text, views, decoded, invariant)]
    for leaf in (views, decoded, invariant):
        leaf.requires_grad_()
    total = object_similarity_loss(text, views) + contrastive_loss(text, views, normalise="reference")
    (total + autoencoder_loss(views, decoded, invariant, normalise="reference")).backward()
    for before, after in zip(kept, (text, views, decoded, invariant), strict=True):
        assert torch.equal(before, after)


def test_a_zero_vector_has_no_cosine_and_no_gradient() -> None:
    text, views = vectors(0, 3, 5), vectors(1, 3, 4, 5)
    views[1, 2] = 0
    views.requires_grad_()
    for loss in (object_similarity_loss, contrastive_loss):
        found = loss(text, views)
        expected = contrastive(text, views, 1.0 if loss is object_similarity_loss else 0.5, "mean", "all")
        torch.testing.assert_close(found, expected)
        assert not gradient(found, views)[1, 2].any()
        assert gradient(found, views).isfinite().all()
    rows = torch.zeros(4, 3, requires_grad=True)
    info_nce(rows, torch.tensor([0, 0, 1, 1]), 2, temperature=0.1).backward()
    assert rows.grad is not None
    assert not rows.grad.any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_vectors_that_are_not_finite_are_named(value: float) -> None:
    text, views = vectors(0, 3, 5), vectors(1, 3, 4, 5)
    bad = views.clone()
    bad[2, 1, 0] = value
    with pytest.raises(ValueError, match=r"views\[2, 1\] holds a value that is not finite"):
        contrastive_loss(text, bad)
    with pytest.raises(ValueError, match=r"decoded\[2, 1\] holds"):
        autoencoder_loss(views, bad, views)
    with pytest.raises(ValueError, match=r"text\[1\] holds"):
        object_similarity_loss(text.index_fill(0, torch.tensor([1]), value), views)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: contrastive_loss(torch.ones(3, 4), torch.ones(2, 5, 4)), r"text must be \(B, D\).*\(3, 4\)"),
        (lambda: contrastive_loss(torch.ones(3, 4), torch.ones(3, 4)), r"views must be \(B, V, D\).*\(3, 4\)"),
        (lambda: contrastive_loss(torch.ones(3, 4), torch.ones(3, 0, 4)), r"at least one object and view.*\(3, 0, 4\)"),
        (lambda: contrastive_loss(torch.ones(3, 4).long(), torch.ones(3, 2, 4)), "text must be floating, not .*int64"),
        (lambda: contrastive_loss(torch.ones(1, 4), torch.ones(1, 2, 4), similarity_weight=1.5), "0 to 1, not 1.5"),
        (lambda: contrastive_loss(torch.ones(1, 4), torch.ones(1, 2, 4), normalise="sum"), "'mean' or 'reference'"),  # pyright: ignore[reportArgumentType]
        (lambda: autoencoder_loss(torch.ones(2, 3, 4), torch.ones(2, 3, 5), torch.ones(2, 3, 2)), r"both be \(B, V"),
        (lambda: autoencoder_loss(*[torch.ones(2, 3, 4)] * 3, reconstruction_weight=-1), "reconstruction_weight.*-1"),
    ],
)
def test_wrong_arguments_are_named(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_single_precision_at_least(dtype: torch.dtype) -> None:
    text, views = vectors(0, 40, 64).to(dtype), vectors(1, 40, 6, 64).to(dtype)
    found = contrastive_loss(text, views)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = contrastive_loss(text.double(), views.double())
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=1e-5)


def test_single_precision_holds_at_the_size_of_the_paper() -> None:
    """The sums cancel: of thousands of vectors about one direction the difference of two large numbers is left."""
    centre = vectors(0, 64)
    text, views = centre + vectors(1, 1638, 64), 3 * centre + vectors(2, 1638, 6, 64)
    for normalise in ("mean", "reference"):
        exact = contrastive_loss(text, views, normalise=normalise)  # pyright: ignore[reportArgumentType]
        single = contrastive_loss(text.float(), views.float(), normalise=normalise)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(single.double(), exact, atol=2e-6, rtol=0)


def test_the_text_can_be_weighed() -> None:
    text, views = vectors(0, 4, 6), vectors(1, 4, 3, 6)
    items = members(text, views)
    each = torch.arange(4)
    blocks = blocks_of(views.flatten(0, 1), each.repeat_interleave(3), torch.full((4,), 3), text, each)
    image = mean_of([p for p in inside(items) if {p[0][1], p[1][1]} == {"view"}])
    mixed = mean_of([p for p in inside(items) if "text" in (p[0][1], p[1][1])])
    torch.testing.assert_close(attraction(blocks, 0.2), 0.8 * image + 0.2 * mixed)
    image = mean_of(across(items, lambda a, b: {a[1], b[1]} == {"view"}))
    mixed = mean_of(across(items, lambda a, b: {a[1], b[1]} == {"view", "text"}))
    torch.testing.assert_close(repulsion(blocks, text_weight=0.2), 0.8 * image + 0.2 * mixed)
