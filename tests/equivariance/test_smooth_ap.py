"""Smooth-AP against three naive loops in float64, and against the values that the method's description gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore_equivariance import chunks
from mvcore_equivariance.average_precision import info_nce, one_positive, several_positives, smooth_ap
from mvcore_equivariance.chunks import Bounds, Points, over_near, over_own
from torch import Tensor
from torch.nn.functional import normalize


def sigmoid(x: Tensor, tau: float) -> Tensor:
    return 1 / (1 + torch.exp(torch.clamp(-x / tau, -50, 50)))


def naive_terms(f1: Tensor, f2: Tensor, x1: Tensor, x2: Tensor, positive: float, negative: float, tau: float) -> Tensor:
    """The authors' form, one positive and one negative after the other: (|P|,) terms."""
    terms = []
    for s in range(len(f1)):
        apart = [math.dist(x1[s].tolist(), x2[t].tolist()) for t in range(len(f2))]
        similar = [(f1[s] * f2[t]).sum() for t in range(len(f2))]
        for p in range(len(f2)):
            if not apart[p] < positive:
                continue
            first = 1 + sigmoid(similar[p] - 1, tau)
            second = 1 + sigmoid(1 - similar[p], tau)
            all_first, all_second = first, second
            for n in range(len(f2)):
                if apart[n] > negative:
                    all_first = all_first + sigmoid(similar[n] - 1, tau)
                    all_second = all_second + sigmoid(similar[n] - similar[p], tau)
            terms.append(1 - (first / all_first + second / all_second) / 2)
    return torch.stack(terms) if terms else (f1.sum() * 0)[None]


def naive(f1: Tensor, f2: Tensor, x1: Tensor, x2: Tensor, **bounds: float) -> Tensor:
    return naive_terms(f1, f2, x1, x2, **bounds).mean()


def naive_average_precision(f1: Tensor, f2: Tensor, x1: Tensor, x2: Tensor, **given: float) -> Tensor:
    """Smooth-AP as its authors write it, the query being one of its own positives; mean over sources."""
    losses = []
    for s in range(len(f1)):
        apart = [math.dist(x1[s].tolist(), x2[t].tolist()) for t in range(len(f2))]
        near = [t for t in range(len(f2)) if apart[t] < given["positive"]]
        if not near:
            continue
        similar = [torch.ones((), dtype=f1.dtype), *[(f1[s] * f2[t]).sum() for t in near]]
        others = [(f1[s] * f2[t]).sum() for t in range(len(f2)) if apart[t] > given["negative"]]
        precision = []
        for i, own in enumerate(similar):
            among = 1 + sum(sigmoid(x - own, given["tau"]) for j, x in enumerate(similar) if j != i)
            precision.append(among / (among + sum(sigmoid(x - own, given["tau"]) for x in others)))
        losses.append(1 - torch.stack([torch.as_tensor(value) for value in precision]).mean())
    return torch.stack(losses).mean()


def scene(seed: int, sources: int = 12, targets: int = 15, width: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points in a unit cube, some of which are near others, some twice; unit descriptors in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x1 = torch.rand(sources, 3, dtype=torch.float64, generator=generator) * 0.3
    from_first = torch.randint(sources, (targets,), generator=generator)
    x2 = x1[from_first] + draw(targets, 3) * torch.tensor([0.0, 2e-3, 2e-2])[torch.arange(targets) % 3, None]
    f1 = normalize(draw(sources, width), dim=1)
    f2 = normalize(f1[from_first] + 0.3 * draw(targets, width), dim=1)
    return f1.requires_grad_(), f2.requires_grad_(), x1, x2


def assert_same(found: Tensor, expected: Tensor, inputs: tuple[Tensor, Tensor]) -> None:
    """In value and gradient."""
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    pairs = zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True)
    for one, other in pairs:
        assert (one - other).abs().max() < 1e-11


def points(features: Tensor, xyz: Tensor) -> Points:
    return Points(features[None], xyz[None], torch.ones(1, len(xyz), dtype=torch.bool))


@pytest.fixture(params=[40, 1 << 18], ids=["many chunks", "one chunk"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How much is evaluated at a time."""
    monkeypatch.setattr(chunks, "_AT_ONCE", request.param)
    return request.param


BOUNDS = {"positive": 5e-3, "negative": 0.1, "tau": 0.01}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([20, 90, 1 << 18]), st.sampled_from([0.01, 0.1]))
def test_d1_it_is_the_sum_of_three_loops(seed: int, size: int, tau: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_AT_ONCE", size)
        f1, f2, x1, x2 = scene(seed)
        found = smooth_ap(f1, f2, x1, x2, tau=tau)
    assert_same(found, naive(f1, f2, x1, x2, positive=5e-3, negative=0.1, tau=tau), (f1, f2))


def test_d2_it_is_smooth_ap_of_one_positive_and_the_query() -> None:
    f1, f2, _, _ = scene(3)
    # Every source has its own target and nothing else near.
    x1 = torch.arange(12.0, dtype=torch.float64)[:, None] * torch.ones(3, dtype=torch.float64)
    x2 = torch.cat([x1, x1[:3] + 0.5])
    assert smooth_ap(f1, f2, x1, x2).item() == pytest.approx(
        naive_average_precision(f1, f2, x1, x2, **BOUNDS).item(), abs=1e-12
    )


@pytest.mark.usefixtures("at_once")
def test_all_positives_of_a_source_can_be_ranked_together() -> None:
    f1, f2, x1, x2 = scene(5, sources=4)
    bounds = Bounds(torch.tensor(2e-2, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64))
    found, count = over_near(points(f1, x1), points(f2, x2), bounds, several_positives(0.05), "sources")
    expected = naive_average_precision(f1, f2, x1, x2, positive=2e-2, negative=0.1, tau=0.05)
    assert int(count) == int((torch.cdist(x1, x2) < 2e-2).sum()) > len(x1)
    assert_same(found, expected, (f1, f2))


@pytest.mark.usefixtures("at_once")
def test_info_nce_is_a_cross_entropy_among_a_positive_and_its_negatives() -> None:
    f1, f2, x1, x2 = scene(7)
    bounds = Bounds(torch.tensor(5e-3, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64))
    found, _ = over_near(points(f1, x1), points(f2, x2), bounds, info_nce(0.07))
    apart = torch.cdist(x1, x2)
    losses = []
    for s, p in (apart < 5e-3).nonzero().tolist():
        logits = torch.stack([f1[s] @ f2[p], *[f1[s] @ f2[n] for n in range(len(f2)) if apart[s, n] > 0.1]]) / 0.07
        losses.append(-logits.log_softmax(0)[0])
    expected = torch.stack(losses).mean()
    assert_same(found, expected, (f1, f2))


@pytest.mark.usefixtures("at_once")
def test_own_positives_are_those_of_equal_number_in_several_pairs_at_once() -> None:
    parts = [scene(seed, sources=6, targets=9) for seed in (1, 2, 3)]
    own = torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) < 0.7
    own[2] = False
    f1, f2, x1, x2 = (torch.stack([part[k].detach() for part in parts]) for k in range(4))
    f1.requires_grad_()
    f2.requires_grad_()
    x2[:, :6] = x1
    there = torch.ones(3, 9, dtype=torch.bool)
    there[1, 8] = False
    bounds = Bounds(torch.full((3, 6), 5e-3, dtype=torch.float64), torch.full((3, 6), 0.1, dtype=torch.float64))
    bounds.negative[0, 2] = 0.2
    found, counts = over_own(
        Points(f1, x1, torch.ones(3, 6, dtype=torch.bool)), Points(f2, x2, there), bounds, own, one_positive(0.05)
    )
    assert counts.tolist() == own.sum(1).tolist()
    expected = f1.sum() * 0
    for b in range(2):
        terms = []
        for s in range(6):
            if not own[b, s]:
                continue
            p = f1[b, s] @ f2[b, s]
            far = ((x1[b, s] - x2[b]).norm(dim=1) > bounds.negative[b, s]) & there[b]
            others = f2[b, far] @ f1[b, s]
            first, second = 1 + sigmoid(p - 1, 0.05), 1 + sigmoid(1 - p, 0.05)
            precision = first / (first + sigmoid(others - 1, 0.05).sum())
            terms.append(1 - (precision + second / (second + sigmoid(others - p, 0.05).sum())) / 2)
        expected = expected + torch.stack(terms).mean()
    assert_same(found, expected, (f1, f2))


def test_both_directions_are_the_mean_of_the_two() -> None:
    """What the loss's option `symmetric` relies on: swapping views swaps the direction."""
    f1, f2, x1, x2 = scene(11)
    forward, backward = smooth_ap(f1, f2, x1, x2), smooth_ap(f2, f1, x2, x1)
    assert forward.item() == pytest.approx(naive(f1, f2, x1, x2, **BOUNDS).item(), abs=1e-12)
    assert backward.item() == pytest.approx(naive(f2, f1, x2, x1, **BOUNDS).item(), abs=1e-12)


def one_against(positive: float, negative: float, negatives: int = 999) -> float:
    """The loss where the positive and all negatives have a given similarity."""
    f1 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    def at(similarity: float) -> Tensor:
        return torch.tensor([[similarity, math.sqrt(1 - similarity**2)]], dtype=torch.float64)

    f2 = torch.cat([at(positive), at(negative).expand(negatives, 2)])
    x2 = torch.tensor([[0.0, 0, 0], [1.0, 0, 0]], dtype=torch.float64)[[0] + [1] * negatives]
    return smooth_ap(f1, f2, torch.zeros(1, 3, dtype=torch.float64), x2).item()


@pytest.mark.parametrize(
    ("positive", "negative", "value"),
    [(1, -1, 0.000), (0.9, 0.8, 0.0111), (0.9, 0.9, 0.5197), (0.5, 0.9, 0.521), (1, 1, 0.997), (1, 0.95, 0.817)],
)
def test_d3_known_values(positive: float, negative: float, value: float) -> None:
    digits = len(str(value).split(".")[1])
    assert one_against(positive, negative) == pytest.approx(value, abs=1e-4 if digits == 4 else 6e-4)


def random_features(x: Tensor, width: int, seed: int) -> Tensor:
    return normalize(torch.randn(len(x), width, generator=torch.Generator().manual_seed(seed)), dim=1)


def ball(count: int, seed: int) -> Tensor:
    """Points on an ellipsoid of longest side 1."""
    on_sphere = normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), dim=1)
    return on_sphere * torch.tensor([0.5, 0.35, 0.2])


def test_d3_random_perfect_and_collapsed_descriptors() -> None:
    x = ball(3000, 0)
    assert 0.45 < smooth_ap(random_features(x, 384, 1), random_features(x, 384, 2), x, x).item() < 0.52
    same = torch.ones(3000, 1)
    assert smooth_ap(same, same, x, x).item() > 0.98
    assert smooth_ap(torch.eye(200), torch.eye(200), ball(200, 1), ball(200, 1)).item() < 1e-6


def test_d4_descriptors_that_know_the_place_are_perfect() -> None:
    x1, x2 = ball(1500, 0), ball(1500, 1)
    generator = torch.Generator().manual_seed(2)
    directions, phases = torch.randn(3, 512, generator=generator), torch.rand(512, generator=generator) * 2 * math.pi

    def places(x: Tensor, bandwidth: float) -> Tensor:
        return normalize(torch.cos(x @ directions / bandwidth + phases), dim=1)

    x2 = torch.cat([x1[:500], x2])
    losses = [smooth_ap(places(x1, s), places(x2, s), x1, x2).item() for s in (0.05, 0.1, 0.3, 1.0)]
    assert losses[0] < 1e-3
    assert losses[1] < 1e-3
    assert losses == sorted(losses)
    assert losses[3] > 0.9


def test_d4_order_does_not_matter_and_the_band_between_is_left_alone() -> None:
    f1, f2, x1, x2 = scene(13)
    order, other = torch.randperm(12), torch.randperm(15)
    assert smooth_ap(f1[order], f2[other], x1[order], x2[other]).item() == pytest.approx(
        smooth_ap(f1, f2, x1, x2).item()
    )
    x = torch.zeros(1, 3, dtype=torch.float64)
    away = torch.tensor([4.9e-3, 5.1e-3, 0.099, 0.101], dtype=torch.float64)
    x2 = torch.stack([away, away * 0, away * 0], dim=1)
    f2 = normalize(
        torch.tensor([[1, 0.1], [1, 0.05], [1, 0.06], [1, 0.11]], dtype=torch.float64), dim=1
    ).requires_grad_()
    f1 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    (grad,) = torch.autograd.grad(smooth_ap(f1, f2, x, x2), f2)
    assert [bool(row.any()) for row in grad] == [True, False, False, True]


def test_d5_gradients_range_and_the_ends_of_similarity() -> None:
    f1, f2, x1, x2 = scene(17, sources=5, targets=6, width=3)
    assert torch.autograd.gradcheck(lambda a, b: smooth_ap(a, b, x1, x2, tau=0.1), (f1, f2))
    one = torch.tensor([[1.0, 0.0]])
    f1 = torch.cat([one, -one]).requires_grad_()
    f2 = torch.cat([one, -one, one, -one]).requires_grad_()
    x1 = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    x2 = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]])
    loss = smooth_ap(f1, f2, x1, x2)
    assert 0 <= loss.item() <= 1
    assert all(bool(grad.isfinite().all()) for grad in torch.autograd.grad(loss, (f1, f2)))


@pytest.mark.parametrize("far", [False, True], ids=["no points", "none near"])
def test_d5_without_a_positive_loss_and_gradient_are_zero(far: bool) -> None:
    f1, f2 = torch.randn(4, 3, requires_grad=True), torch.randn(5 if far else 0, 3, requires_grad=True)
    loss = smooth_ap(f1, f2, torch.zeros(4, 3), torch.full((len(f2), 3), 3.0))
    loss.backward()
    assert float(loss.detach()) == 0
    assert f1.grad is not None
    assert f2.grad is not None
    assert not f1.grad.any()
    assert not f2.grad.any()


def test_points_that_are_not_there_take_no_part() -> None:
    f1, f2, x1, x2 = scene(19)
    kept1, kept2 = torch.arange(12) % 4 != 1, torch.arange(15) % 5 != 2
    expected = smooth_ap(f1[kept1], f2[kept2], x1[kept1], x2[kept2])
    x1, x2 = x1.clone(), x2.clone()
    x1[~kept1, 1], x2[~kept2, 0] = torch.nan, torch.inf
    found = smooth_ap(f1, f2, x1, x2)
    assert float(found) == pytest.approx(float(expected), abs=1e-12)
    grads = torch.autograd.grad(found, (f1, f2))
    assert not grads[0][~kept1].any()
    assert not grads[1][~kept2].any()


@pytest.mark.parametrize(("distance", "kind"), [(4.9e-3, 1), (5.1e-3, 0), (0.099, 0), (0.101, -1)])
def test_d6_thresholds_are_exact_far_from_the_origin(distance: float, kind: int) -> None:
    """Where the matrix product's distances would be off by more than the thresholds differ."""
    x1 = torch.full((1, 3), 2.0).expand(40, 3)
    x2 = x1 + torch.tensor([distance, 0, 0])
    f = torch.tensor([[1.0, 0.0]]).expand(40, 2).clone().requires_grad_()
    # A target of its own keeps every source in the loss.
    loss = smooth_ap(f, torch.cat([f, f[:1]]), x1, torch.cat([x2, x1[:1]]))
    expected = {1: 0.0, 0: 0.0, -1: one_against(1, 1, 40)}[kind]
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-4)
    (grad,) = torch.autograd.grad(loss, f)
    assert bool(grad.any()) == (kind == -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_d6_the_same_under_autocast_and_low_precision_products(dtype: torch.dtype) -> None:
    f1, f2, x1, x2 = (value.detach().float() for value in scene(23, 80, 90, 64))
    f1, f2 = f1.to(dtype), f2.to(dtype)
    expected = smooth_ap(f1, f2, x1, x2)
    backends: Any = torch.backends
    before = backends.mkldnn.matmul.fp32_precision
    backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = smooth_ap(f1, f2, x1, x2)
        assert backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        backends.mkldnn.matmul.fp32_precision = before
    assert found.dtype == torch.float32
    assert float(found) == float(expected)


@pytest.mark.parametrize("positives", ["few", "many"])
def test_d7_chunks_give_what_the_whole_gives(positives: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x1 = torch.rand(300, 3, generator=generator, dtype=torch.float64)
    x2 = x1 if positives == "few" else x1[torch.arange(300) % 20]
    f1, f2 = (torch.randn(300, 8, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        found = list[tuple[Tensor, ...]]()
        for size in (1, 5000, 1 << 24):
            patch.setattr(chunks, "_AT_ONCE", size)
            loss = smooth_ap(f1, f2, x1, x2)
            found.append((loss.detach(), *torch.autograd.grad(loss, (f1, f2))))
    for other in found[1:]:
        assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(found[0], other, strict=True))


def _shape(change: Callable[[dict[str, Tensor]], None]) -> dict[str, Tensor]:
    values = {"f1": torch.zeros(3, 2), "f2": torch.zeros(4, 2), "x1": torch.zeros(3, 3), "x2": torch.zeros(4, 3)}
    change(values)
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(f1=torch.zeros(3, 5)), r"\(3, 5\)"),
        (lambda v: v.update(x1=torch.zeros(4, 3)), r"\(4, 3\)"),
        (lambda v: v.update(x2=torch.zeros(4, 2)), r"\(4, 2\)"),
        (lambda v: v.update(f2=torch.zeros(4, 2, dtype=torch.int64)), "int64"),
        (lambda v: v.update(tau=0.0), "tau > 0"),
        (lambda v: v.update(positive=0.2), "positive <= negative"),
        (lambda v: v.update(tau=math.nan), "nan"),
    ],
)
def test_bad_input_is_refused_by_name(change: Callable[[dict[str, Tensor]], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smooth_ap(**_shape(change))  # pyright: ignore[reportArgumentType]
