"""Attention within the segments of a packed sequence: one contract, several backends.

Tokens of all segments stand one after another, (total, heads, head_dim); a token attends to the tokens of its own
segment alone. There is no padding to compute, whatever the lengths.

| backend | runs | how |
|---|---|---|
| `xformers` | CUDA | `memory_efficient_attention` under a `BlockDiagonalMask` |
| `varlen` | CUDA, half precision | torch's own kernel for sequences of variable length |
| `sdpa` | anywhere | `scaled_dot_product_attention` on segments brought together by length |
| `dense` | anywhere | the definition: one matrix over all tokens under a block mask; for tests and small inputs |
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from mvcore.errors import DeviceError

Backend: TypeAlias = Literal["xformers", "varlen", "sdpa", "dense"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
_HALVES = (torch.float16, torch.bfloat16)

_asked: ContextVar[Backend | None] = ContextVar("attention_backend", default=None)
_seen: ContextVar[list[AttentionInputs] | None] = ContextVar("attention_inputs", default=None)


@dataclass(frozen=True, eq=False)
class Segments:
    """Where the segments of a packed sequence lie; made once and used by every layer, so that no layer waits.

    Args:
        lengths: tokens of each segment, at least 1; on the host.
        device: where the tokens are.

    Raises:
        ValueError: no segment, or one without tokens.
    """

    lengths: tuple[int, ...]
    device: torch.device

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"every segment needs at least one token, got lengths {list(self.lengths)}")

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device | str = "cpu") -> Segments:
        """Segments of these lengths."""
        return Segments(tuple(int(length) for length in lengths), torch.device(device))

    @staticmethod
    def between(cu_seqlens: Tensor) -> Segments:
        """Segments from their bounds, (S + 1,) integers from 0 up; waits for the device where they are on one.

        Raises:
            ValueError: bounds of another shape or kind, that do not start at 0, or do not grow.
        """
        if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"cu_seqlens must be (S + 1,) integers, not {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}")
        bounds: list[int] = cu_seqlens.tolist()
        if bounds[0] != 0:
            raise ValueError(f"cu_seqlens must start at 0, not {bounds[0]}")
        return Segments.of([b - a for a, b in pairwise(bounds)], cu_seqlens.device)

    @property
    def total(self) -> int:
        """Tokens of all segments."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest segment."""
        return max(self.lengths)

    @cached_property
    def bounds(self) -> Tensor:
        """(S + 1,) int32 on the device."""
        return _on(self.device, torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32))

    @cached_property
    def segment_of(self) -> Tensor:
        """(total,) int64 on the device: the segment of each token."""
        lengths = torch.tensor(self.lengths)
        return _on(self.device, torch.repeat_interleave(torch.arange(len(lengths)), lengths))

    @cached_property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        """(length, how many segments have it), by length."""
        return tuple((length, self.lengths.count(length)) for length in sorted(set(self.lengths)))

    @cached_property
    def by_length(self) -> Tensor | None:
        """(total,) int64 on the device: tokens in the order of their segments' lengths; None where they stand so."""
        lengths = torch.tensor(self.lengths)
        order = torch.argsort(lengths, stable=True)
        if bool((order == torch.arange(len(order))).all()):
            return None
        starts = torch.cumsum(lengths, 0) - lengths
        counts = lengths[order]
        within = torch.arange(self.total) - torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
        return _on(self.device, torch.repeat_interleave(starts[order], counts) + within)

    @cached_property
    def back(self) -> Tensor | None:
        """The inverse of `by_length`."""
        return None if self.by_length is None else torch.argsort(self.by_length)


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """What one call of `attend` was given, for looking at its weights; see `attention_inputs`."""

    q: Tensor
    k: Tensor
    segments: Segments
    scale: float | None

    def weights(self, token: int) -> Tensor:
        """(heads, length) share of its attention that a token pays to each token of its own segment; they sum to 1."""
        segment = int(self.segments.segment_of[token])
        first, end = (int(bound) for bound in self.segments.bounds[segment : segment + 2])
        scale = self.q.shape[-1] ** -0.5 if self.scale is None else self.scale
        logits = torch.einsum("hd,khd->hk", self.q[token].float(), self.k[first:end].float()) * scale
        return logits.softmax(dim=-1)


@contextmanager
def attention_inputs() -> Iterator[list[AttentionInputs]]:
    """Within it the inputs of every `attend` are added to the list that it gives, in the order of the calls."""
    found: list[AttentionInputs] = []
    token = _seen.set(found)
    try:
        yield found
    finally:
        _seen.reset(token)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | Segments,
    max_seqlen: int | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of each token to the tokens of its own segment.

    Args:
        q, k, v: (total, heads, head_dim), of one floating type.
        cu_seqlens: (S + 1,) integers, the segments' bounds from 0 to total; or `Segments`, which no device waits for.
        max_seqlen: tokens of the longest segment; checked where it is given.
        scale: factor of the logits; default 1 / sqrt(head_dim).

    Returns:
        (total, heads, head_dim) in the type of `q`.

    Raises:
        ValueError: shapes that differ, or bounds that do not fit them.
        DeviceError: a backend was asked for that cannot run here.
    """
    segments = cu_seqlens if isinstance(cu_seqlens, Segments) else Segments.between(cu_seqlens)
    if q.ndim != 3 or not q.shape == k.shape == v.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"q, k and v must all be (total, heads, head_dim), not {shapes}")
    if segments.total != len(q):
        raise ValueError(f"the segments hold {segments.total} tokens, but q has {len(q)}")
    if max_seqlen is not None and max_seqlen != segments.longest:
        raise ValueError(f"max_seqlen is {max_seqlen}, but the longest segment has {segments.longest} tokens")
    seen = _seen.get()
    if seen is not None:
        seen.append(AttentionInputs(q, k, segments, scale))
    return _RUN[chosen_backend(q)](q, k, v, segments, scale)


@contextmanager
def backend(name: Backend | None) -> Iterator[None]:
    """Within it every `attend` runs on this backend; None leaves the choice to `chosen_backend`.

    Raises:
        ValueError: no such backend.
    """
    if name is not None and name not in BACKENDS:
        raise ValueError(f"attention backend {name!r} is unknown (known: {', '.join(BACKENDS)})")
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)


def chosen_backend(q: Tensor) -> Backend:
    """The backend for tokens such as `q`: the one asked for, else the first of xformers, varlen and sdpa that can run.

    Raises:
        DeviceError: the one asked for cannot run here.
    """
    asked = _asked.get()
    if asked is not None:
        if reason := unusable(asked, q.device.type, q.dtype):
            raise DeviceError(f"attention backend {asked}: {reason}; use another, or none to let mvcore choose")
        return asked
    return preferred(q.device.type, q.dtype)


@cache
def preferred(device: str, dtype: torch.dtype) -> Backend:
    """The first of xformers, varlen and sdpa that runs on a kind of device with a floating type."""
    ordered: tuple[Backend, ...] = ("xformers", "varlen", "sdpa")
    return next(name for name in ordered if not unusable(name, device, dtype))


@cache
def unusable(name: Backend, device: str, dtype: torch.dtype) -> str:
    """Why a backend cannot run on a kind of device with a floating type; empty where it can. Tried, not guessed."""
    if name in ("sdpa", "dense"):
        return ""
    if device != "cuda":
        return f"it runs on CUDA devices, not on {device}"
    if not torch.cuda.is_available():
        return "this machine has no CUDA device"
    if name == "varlen" and dtype not in _HALVES:
        return f"it takes float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    tokens = torch.zeros(3, 1, 64, device="cuda", dtype=dtype, requires_grad=True)
    try:
        _RUN[name](tokens, tokens, tokens, Segments.of([1, 2], "cuda"), None).sum().backward()
    except ImportError:
        return f"{name} is not installed"
    except Exception as error:
        said = " ".join(str(error).split())
        return f"it fails on this machine ({type(error).__name__}: {said[:160]})"
    return ""


def _dense(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None) -> Tensor:
    same = segments.segment_of[:, None] == segments.segment_of[None, :]
    logits = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = torch.softmax(logits.masked_fill(~same, float("-inf")), dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None) -> Tensor:
    if segments.by_length is not None:
        q, k, v = (tensor.index_select(0, segments.by_length) for tensor in (q, k, v))
    parts: list[Tensor] = []
    start = 0
    for length, count in segments.buckets:
        stop = start + length * count
        # (count, heads, length, head_dim)
        rows, keys, values = (t[start:stop].unflatten(0, (count, length)).transpose(1, 2) for t in (q, k, v))
        found = F.scaled_dot_product_attention(rows, keys, values, scale=scale)
        parts.append(found.transpose(1, 2).flatten(0, 1))
        start = stop
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out if segments.back is None else out.index_select(0, segments.back)


def _varlen(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = segments.bounds, segments.longest
    out: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale)
    return out


def _xformers(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None) -> Tensor:
    ops, mask = _xformers_parts()
    bias = mask.from_seqlens(list(segments.lengths), device=q.device)
    return ops.memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias, scale=scale)[0]


@cache
def _xformers_parts() -> tuple[Any, Any]:
    """xformers' operators and its mask; imported late, since that takes a second, and without its warnings."""
    logging.getLogger("xformers").setLevel(logging.ERROR)
    import xformers.ops
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    return xformers.ops, BlockDiagonalMask


_RUN: dict[str, Any] = {"xformers": _xformers, "varlen": _varlen, "sdpa": _sdpa, "dense": _dense}


def _on(device: torch.device, host: Tensor) -> Tensor:
    """From page-locked memory, so that the step does not wait for the copy."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
