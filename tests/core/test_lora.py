"""Low-rank updates: nothing at init, the stated formula in value and gradient, and an exact merge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import apply_lora, merge_lora
from torch import nn
from torch.nn.utils import parametrize


def fill(update: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in update.parameters():
            factor.copy_(torch.randn(factor.shape, generator=generator, dtype=factor.dtype))


@pytest.mark.parametrize("batch_first", [True, False])
def test_nothing_changes_at_init(batch_first: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    x = torch.randn(3, 5, 8)
    before_weight, before = attention.in_proj_weight.detach().clone(), attention(x, x, x)[0]
    apply_lora(attention, "in_proj_weight", rank=2, alpha=8)
    assert torch.equal(attention.in_proj_weight, before_weight)
    assert torch.equal(attention(x, x, x)[0], before)


def test_factors_have_the_stated_shapes_and_train() -> None:
    linear = nn.Linear(6, 12)
    linear.requires_grad_(False)
    update = apply_lora(linear, "weight", rank=3, alpha=6, rows=[slice(0, 4), range(8, 12)])
    assert update.a.shape == (3, 6)
    assert update.b.shape == (8, 3)
    assert update.scale == 2.0
    assert [n for n, p in linear.named_parameters() if p.requires_grad] == [
        "parametrizations.weight.0.a",
        "parametrizations.weight.0.b",
    ]


@pytest.mark.parametrize("trains", [True, False])
def test_the_weight_keeps_its_identity_and_flag(trains: bool) -> None:
    linear = nn.Linear(4, 4)
    weight = linear.weight.requires_grad_(trains)
    apply_lora(linear, "weight", rank=1, alpha=1)
    assert linear.parametrizations.weight.original is weight  # pyright: ignore
    assert weight.requires_grad is trains
    merge_lora(linear)
    assert linear.weight is weight
    assert weight.requires_grad is trains


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3), st.integers(3, 7), st.integers(3, 7), st.floats(0.1, 20.0), st.integers(0, 2**16), st.booleans()
)
def test_value_and_gradient_are_those_of_the_formula(
    rank: int, columns: int, n_rows: int, alpha: float, seed: int, all_rows: bool
) -> None:
    torch.manual_seed(seed)
    linear: Any = nn.Linear(columns, n_rows, dtype=torch.float64)
    rows = None if all_rows else range(3)
    x = torch.randn(4, columns, dtype=torch.float64)
    update = apply_lora(linear, "weight", rank=rank, alpha=alpha, rows=rows)
    fill(update, seed)
    original = linear.parametrizations.weight.original
    a, b = update.a.detach().numpy(), update.b.detach().numpy()
    expected = original.detach().numpy().copy()
    for i in range(b.shape[0]):
        for j in range(columns):
            expected[i, j] += alpha / rank * sum(b[i, k] * a[k, j] for k in range(rank))
    np.testing.assert_allclose(linear.weight.detach().numpy(), expected, rtol=1e-10, atol=1e-12)

    explicit = [original.detach().clone(), update.a.detach().clone(), update.b.detach().clone()]
    weight, a_, b_ = (tensor.requires_grad_() for tensor in explicit)
    full = torch.cat([alpha / rank * b_ @ a_, torch.zeros(n_rows - b_.shape[0], columns, dtype=torch.float64)])
    torch.nn.functional.linear(x, weight + full, linear.bias.detach()).pow(2).sum().backward()
    linear(x).pow(2).sum().backward()
    for got, want in ((original, weight), (update.a, a_), (update.b, b_)):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-9, atol=1e-9)


def test_only_the_named_rows_change_and_the_rank_holds() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    before = attention.in_proj_weight.detach().clone()
    fill(apply_lora(attention, "in_proj_weight", rank=2, alpha=2, rows=[range(16, 24), range(8)]))
    delta = attention.in_proj_weight.detach() - before
    assert torch.equal(delta[8:16], torch.zeros(8, 8))
    assert torch.linalg.matrix_rank(delta, atol=1e-4) == 2
    assert bool((delta[:8].abs().sum() > 0) and (delta[16:].abs().sum() > 0))


def test_a_convolution_counts_as_a_matrix() -> None:
    conv = nn.Conv2d(3, 4, 3)
    before = conv.weight.detach().clone()
    update = apply_lora(conv, "weight", rank=2, alpha=4)
    fill(update)
    expected = before + 2 * (update.b @ update.a).reshape(4, 3, 3, 3)
    torch.testing.assert_close(conv.weight, expected)


def test_merge_is_exact_and_leaves_the_library_alone() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    keys, kind = list(attention.state_dict()), type(attention)
    x = torch.randn(2, 5, 8)
    fill(apply_lora(attention, "in_proj_weight", rank=2, alpha=1), 1)
    fill(apply_lora(attention, "in_proj_weight", rank=3, alpha=2, rows=range(8, 16)), 2)
    fill(apply_lora(attention.out_proj, "weight", rank=2, alpha=1), 3)
    tuned_weight, tuned = attention.in_proj_weight.detach().clone(), attention(x, x, x)[0]
    assert merge_lora(attention) == 2
    assert list(attention.state_dict()) == keys
    assert type(attention) is kind
    assert torch.equal(attention.in_proj_weight, tuned_weight)
    torch.testing.assert_close(attention(x, x, x)[0], tuned, rtol=1e-5, atol=1e-5)
    assert merge_lora(attention) == 0


def test_strength_scales_and_zero_is_the_untouched_weight() -> None:
    linear = nn.Linear(5, 5)
    before = linear.weight.detach().clone()
    update = apply_lora(linear, "weight", rank=2, alpha=2)
    fill(update)
    whole = linear.weight.detach() - before
    update.set_strength(0.5)
    torch.testing.assert_close(linear.weight - before, whole / 2)
    update.set_strength(0)
    assert torch.equal(linear.weight, before)


def test_autocast_does_not_round_the_weight() -> None:
    linear = nn.Linear(8, 8)
    update = apply_lora(linear, "weight", rank=2, alpha=2)
    fill(update)
    exact = linear.weight.detach().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear.weight, exact)


def test_cached_evaluates_a_weight_once() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    update = apply_lora(attention, "in_proj_weight", rank=2, alpha=2)
    calls: list[int] = []
    update.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 5, 8)
    with parametrize.cached():
        attention(x, x, x)
        attention(x, x, x)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 0, "alpha": 1}, "rank must be from 1 to 4"),
        ({"rank": 5, "alpha": 1}, "got 5"),
        ({"rank": 1, "alpha": 0}, "alpha must be a positive number, got 0"),
        ({"rank": 1, "alpha": float("nan")}, "got nan"),
        ({"rank": 1, "alpha": 1, "rows": range(2, 9)}, "range(2, 9)"),
        ({"rank": 1, "alpha": 1, "rows": [range(2), range(1, 3)]}, "do not overlap"),
        ({"rank": 1, "alpha": 1, "rows": slice(0, 4, 2)}, "step 1"),
        ({"rank": 1, "alpha": 1, "rows": []}, "non-empty"),
        ({"rank": 1, "alpha": 1, "rows": "qv"}, "'qv'"),
        ({"rank": 1, "alpha": 1, "rows": [(0, 2)]}, "(0, 2)"),
        ({"rank": 1, "alpha": 1, "rows": 2}, "got 2"),
    ],
)
def test_what_cannot_be_is_refused_with_the_value(options: dict, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        apply_lora(nn.Linear(6, 4), "weight", **options)
    assert text in str(caught.value)


def test_a_missing_weight_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"Linear has no weight matrix 'qkv' \(it has: weight\)"):
        apply_lora(nn.Linear(4, 4), "qkv", rank=1, alpha=1)


def test_merge_refuses_what_is_not_low_rank() -> None:
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    apply_lora(linear.parametrizations.weight, "original1", rank=1, alpha=1)  # pyright: ignore
    assert merge_lora(linear) == 1
    spectral = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    apply_lora(spectral, "weight", rank=1, alpha=1)
    with pytest.raises(ValueError, match="_Orthogonal"):
        merge_lora(spectral)
