"""Packed attention: every backend equals the definition, in value and gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from mvcore import attention
from mvcore.attention import BACKENDS, Segments, attend
from mvcore.errors import DeviceError
from torch import Tensor

LENGTHS = [[1], [5], [3, 3, 3], [1, 3, 2, 6], [4, 1, 4, 2, 1], [50, 300, 100]]


def tokens(
    total: int, heads: int = 2, dim: int = 8, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(total)
    q, k, v = torch.randn(3, total, heads, dim, dtype=torch.float64, generator=generator)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def by_loop(inputs: tuple[Tensor, Tensor, Tensor], lengths: list[int], scale: float | None) -> Tensor:
    """The definition, segment by segment, head by head, query by query."""
    q, k, v = inputs
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    rows, start = [], 0
    for length in lengths:
        keys, values = k[start : start + length], v[start : start + length]
        for query in q[start : start + length]:
            heads = []
            for h in range(q.shape[1]):
                weights = torch.softmax(torch.stack([scale * (query[h] @ key[h]) for key in keys]), 0)
                heads.append(torch.stack([w * value[h] for w, value in zip(weights, values, strict=True)]).sum(0))
            rows.append(torch.stack(heads))
        start += length
    return torch.stack(rows)


def with_gradients(out: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]


def bounds(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])


@pytest.mark.parametrize("name", ["sdpa", "dense"])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("lengths", LENGTHS[:5])
def test_value_and_gradient_are_those_of_the_definition(
    name: attention.Backend, scale: float | None, lengths: list[int]
) -> None:
    inputs = tokens(sum(lengths))
    expected = with_gradients(by_loop(inputs, lengths, scale), inputs)
    with attention.backend(name):
        out = attend(*inputs, bounds(lengths), max(lengths), scale=scale)
    for found, wanted in zip(with_gradients(out, inputs), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 3), st.sampled_from([1, 4, 16]))
@settings(deadline=None, max_examples=60)
def test_segments_of_any_length_agree_with_the_dense_form(lengths: list[int], heads: int, dim: int) -> None:
    inputs = tokens(sum(lengths), heads, dim)
    found: list[list[Tensor]] = []
    names: tuple[attention.Backend, ...] = ("sdpa", "dense")
    for name in names:
        with attention.backend(name):
            found.append(with_gradients(attend(*inputs, Segments.of(lengths)), inputs))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_a_segment_does_not_see_the_others() -> None:
    lengths = [3, 1, 4]
    inputs = tokens(8)
    out = attend(*inputs, Segments.of(lengths))
    (gradient,) = torch.autograd.grad(out[:3].sum(), inputs[2])
    assert torch.equal(gradient[3:], torch.zeros_like(gradient[3:]))
    assert (gradient[:3] != 0).any()


def test_equal_lengths_are_not_copied() -> None:
    segments = Segments.of([4, 4, 4])
    assert segments.by_length is None
    assert segments.buckets == ((4, 3),)
    assert Segments.of([2, 1]).by_length is not None


def test_our_mask_is_that_of_xformers() -> None:
    mask = pytest.importorskip("xformers.ops.fmha.attn_bias").BlockDiagonalMask
    for lengths in LENGTHS[:5]:
        total = sum(lengths)
        theirs = mask.from_seqlens(lengths).materialize((total, total)) == 0
        of = Segments.of(lengths).segment_of
        assert torch.equal(theirs, of[:, None] == of[None, :])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"cu_seqlens": torch.tensor([0, 3, 3, 6])}, r"at least one token, got lengths \[3, 0, 3\]"),
        ({"cu_seqlens": torch.tensor([1, 6])}, "must start at 0, not 1"),
        ({"cu_seqlens": torch.tensor([0, 4])}, "hold 4 tokens, but q has 6"),
        ({"cu_seqlens": torch.tensor([0.0, 6.0])}, "integers, not .*float32"),
        ({"cu_seqlens": torch.tensor([0, 4, 2, 6])}, "at least one token"),
        ({"max_seqlen": 5}, "max_seqlen is 5, but the longest segment has 4"),
        ({"k": torch.zeros(6, 1, 8)}, r"\(6, 2, 8\), \(6, 1, 8\), \(6, 2, 8\)"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], text: str) -> None:
    q, k, v = tokens(6)
    given: dict[str, Any] = {"q": q, "k": k, "v": v, "cu_seqlens": torch.tensor([0, 4, 6])}
    with pytest.raises(ValueError, match=text):
        attend(**(given | change))


@pytest.mark.parametrize("name", ["xformers", "varlen"])
def test_a_backend_that_cannot_run_says_why(name: attention.Backend) -> None:
    with attention.backend(name), pytest.raises(DeviceError, match=f"backend {name}: it runs on CUDA devices, not on"):
        attend(*tokens(3), Segments.of([3]))
    with pytest.raises(ValueError, match="known: xformers, varlen, sdpa, dense"), attention.backend("flash"):  # pyright: ignore
        pass
    assert attention.preferred("cpu", torch.float32) == "sdpa"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_cuda_every_backend_agrees(name: attention.Backend, dtype: torch.dtype) -> None:
    if reason := attention.unusable(name, "cuda", dtype):
        pytest.skip(reason)
    for lengths in LENGTHS:
        exact = tokens(sum(lengths), 4, 64)
        with attention.backend("dense"):
            expected = with_gradients(attend(*exact, Segments.of(lengths)), exact)
        q, k, v = (tensor.detach().to("cuda", dtype).requires_grad_() for tensor in exact)
        with attention.backend(name):
            found = with_gradients(attend(q, k, v, Segments.of(lengths, "cuda")), (q, k, v))
        for one, other in zip(found, expected, strict=True):
            limit = (1e-4 if dtype == torch.float32 else 2e-2) * max(1, float(other.abs().max()))
            torch.testing.assert_close(one.double().cpu(), other, atol=limit, rtol=0)


def test_what_attention_was_given_can_be_looked_at() -> None:
    lengths = [2, 5, 3]
    q, k, v = tokens(10)
    with attention.attention_inputs() as seen:
        out = attend(q, k, v, bounds(lengths))
        attend(q, k, v, Segments.of(lengths), scale=0.7)
    attend(q, k, v, bounds(lengths))
    assert len(seen) == 2
    for token in (0, 4, 9):
        first, end = next((a, a + n) for a, n in zip((0, 2, 7), lengths, strict=True) if a <= token < a + n)
        weights = seen[0].weights(token)
        assert weights.shape == (2, end - first)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
        mixed = torch.einsum("hk,khd->hd", weights.double(), v[first:end])
        torch.testing.assert_close(mixed, out[token], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(seen[0].weights(4), seen[1].weights(4))
