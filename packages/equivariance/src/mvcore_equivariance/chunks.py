"""Losses over points and their positives, a few at a time: value and gradient without ever holding all similarities.

Nothing that a positive adds to a loss needs another chunk, so that its gradient is made with it: forward sums gradients
up chunk by chunk, and backward scales the sum. Sources without a positive are not multiplied at all.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

_AT_ONCE = 1 << 19
"""Elements that are evaluated at a time: what a processor holds in its cache, or nearly."""

_AT_ONCE_ON_DEVICE = 1 << 21
"""The same on an accelerator: what hides the time to start a kernel."""


class Points(NamedTuple):
    """Descriptors and places of one view's points, for B pairs of views.

    Args:
        features: (B, P, C).
        xyz: (B, P, 3).
        valid: (B, P) bool, which points there are.
    """

    features: Tensor
    xyz: Tensor
    valid: Tensor


class Bounds(NamedTuple):
    """What counts as the same point and as another one.

    Args:
        positive, negative: () or, by source, (B, S): distances in space. Below the first a target is positive, above
            the second negative, between them neither.
    """

    positive: Tensor
    negative: Tensor


class Ranked(NamedTuple):
    """A few positives and the similarities of their sources to all targets.

    Args:
        similar: (b, R, T) similarities of R sources.
        negative: (b, R, T) bool, which targets are negatives.
        near: gives (b, R, T) bool, which targets are within the positive distance.
        weight: (b, K) share of each positive in the loss.
        row: (K,) the source of each among the R; None = positive k is of source k.
        column: (K,) the target of each, or a slice.
    """

    similar: Tensor
    negative: Tensor
    near: Callable[[], Tensor]
    weight: Tensor
    row: Tensor | None
    column: Tensor | slice

    @property
    def positive(self) -> Tensor:
        """(b, K) similarities of the positives."""
        return self._at(self.similar)

    def of_rows(self, values: Tensor) -> Tensor:
        """What (b, R, ...) says of each positive's source, (b, K, ...)."""
        return values if self.row is None else values.index_select(1, self.row)

    def add_at_positives(self, matrix: Tensor, values: Tensor) -> None:
        """Adds (b, K) to the places of the positives in (b, R, T); no two have the same place."""
        if isinstance(self.column, slice):
            self._at(matrix).add_(values)
        else:
            matrix[:, self._rows(), self.column] += values

    def _rows(self) -> Tensor:
        assert isinstance(self.column, Tensor)
        return torch.arange(len(self.column), device=self.column.device) if self.row is None else self.row

    def _at(self, matrix: Tensor) -> Tensor:
        if isinstance(self.column, slice):
            return torch.diagonal(matrix[..., self.column], dim1=-2, dim2=-1)
        return matrix[:, self._rows(), self.column]


Term: TypeAlias = Callable[[Ranked], tuple[Tensor, Tensor]]
"""The loss () of a few positives, and its gradient (b, R, T) in the similarities."""


def by_autograd(value: Callable[[Ranked], Tensor]) -> Term:
    """A term whose gradient torch finds."""

    def term(ranked: Ranked) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            similar = ranked.similar.detach().requires_grad_()
            loss = value(ranked._replace(similar=similar))
        return loss.detach(), torch.autograd.grad(loss, similar)[0]

    return term


def over_near(
    source: Points, target: Points, bounds: Bounds, term: Term, mean: Literal["positives", "sources"] = "positives"
) -> tuple[Tensor, Tensor]:
    """The loss of one pair of views, whose positives are all targets within the distance.

    How many they are is waited for, once for every few million distances.

    Args:
        source, target: with B = 1.
        term: what is summed.
        mean: whether all positives have the same weight, or all sources that have any; the weights' sum is 1.

    Returns:
        () loss, and () int64 how many positives there are.
    """
    with torch.no_grad():
        positives = torch.cat(list(_near(source, target, bounds)))
    blocks = _Listed(source, target, bounds, positives, mean)
    loss = _InBlocks.apply(source.features, target.features, blocks, term)
    return loss, torch.full((), len(positives), device=loss.device)


def over_own(source: Points, target: Points, bounds: Bounds, own: Tensor, term: Term) -> tuple[Tensor, Tensor]:
    """The sum of several pairs' losses, where target k is the positive of source k and no other is.

    Nothing waits for the device: no shape depends on data.

    Args:
        source: (B, S, ...).
        target: (B, T, ...) with T >= S.
        own: (B, S) bool, which sources have their positive.
        term: what is summed, with weights of 1 over the number of the pair's positives.

    Returns:
        () sum of the pairs' losses, and (B,) int64 how many positives each has.
    """
    blocks = _Own(source, target, bounds, own)
    return _InBlocks.apply(source.features, target.features, blocks, term), own.sum(1)


class _Part(NamedTuple):
    """Some positives of a block: sources `rows` of the block, and the rest as in `Ranked`, rows counted from there."""

    rows: slice
    weight: Tensor
    row: Tensor | None
    column: Tensor | slice


class _Block(NamedTuple):
    """Some pairs of views, R sources of each by index or slice, and their positives in parts."""

    pairs: slice
    sources: Tensor | slice
    parts: Iterable[_Part]


class _Blocks:
    """Points of pairs of views, cut into blocks of sources."""

    def __init__(self, source: Points, target: Points, bounds: Bounds) -> None:
        self._source, self._target = (_place(points) for points in (source, target))
        self._bounds = bounds

    def blocks(self) -> Iterable[_Block]:
        raise NotImplementedError

    def ranked(self, block: _Block, ours: Tensor, theirs: Tensor) -> Iterator[tuple[slice, Ranked]]:
        """A block's parts with their similarities, and which of its rows each has."""
        pairs, sources = block.pairs, block.sources
        squared = squared_distances(self._source[pairs, sources], self._target[pairs])
        near, far = (limit if limit.ndim == 0 else limit[pairs, sources][..., None] for limit in self._bounds)
        similar, negative = ours @ theirs.mT, squared > far.square()

        for rows, weight, row, column in block.parts:
            yield (
                rows,
                Ranked(
                    similar=similar[:, rows],
                    negative=negative[:, rows],
                    near=lambda rows=rows: (squared < near.square())[:, rows],
                    weight=weight,
                    row=row,
                    column=column,
                ),
            )


class _Listed(_Blocks):
    """Positives are (K, 2) source and target, sorted by source, of one pair of views."""

    def __init__(self, source: Points, target: Points, bounds: Bounds, positives: Tensor, mean: str) -> None:
        super().__init__(source, target, bounds)
        of_source = torch.bincount(positives[:, 0], minlength=source.xyz.shape[1])
        weight = of_source.to(source.features.dtype).reciprocal() / (of_source > 0).sum()
        if mean == "positives":
            weight = torch.full_like(weight, 1 / max(1, len(positives)))
        self._weight, self._column = weight[positives[:, 0]][None], positives[:, 1]
        self._sources = of_source.nonzero()[:, 0]
        self._begin = [0, *of_source[self._sources].cumsum(0).tolist()]
        self._row = torch.arange(len(self._sources), device=of_source.device).repeat_interleave(
            of_source[self._sources]
        )

    def blocks(self) -> Iterator[_Block]:
        size = max(1, _at_once(self._row) // max(1, self._target.shape[1]))
        for first in range(0, len(self._sources), size):
            last = min(first + size, len(self._sources))
            yield _Block(slice(0, 1), self._sources[first:last], self._parts(first, last, size))

    def _parts(self, first: int, last: int, size: int) -> Iterator[_Part]:
        """The positives of sources `first` to `last`, so many at a time."""
        edges = self._begin
        for begin in range(edges[first], edges[last], size):
            end = min(begin + size, edges[last])
            rows = slice(bisect_right(edges, begin) - 1, bisect_left(edges, end))
            some = slice(begin, end)
            one_each = rows.stop - rows.start == end - begin
            row = None if one_each else self._row[some] - rows.start
            yield _Part(slice(rows.start - first, rows.stop - first), self._weight[:, some], row, self._column[some])


class _Own(_Blocks):
    """Positive k is target k of source k."""

    def __init__(self, source: Points, target: Points, bounds: Bounds, own: Tensor) -> None:
        super().__init__(source, target, bounds)
        weight = own.to(source.features.dtype)
        self._weight = weight / weight.sum(1, keepdim=True).clamp(min=1)

    def blocks(self) -> Iterator[_Block]:
        pairs, sources = self._weight.shape
        targets = max(1, self._target.shape[1])
        at_once = _at_once(self._weight)
        several = max(1, at_once // (targets * max(1, sources)))
        size = max(1, at_once // (targets * several))
        for first in range(0, pairs, several):
            some = slice(first, first + several)
            for begin in range(0, sources, size):
                rows = slice(begin, min(begin + size, sources))
                yield _Block(some, rows, [_Part(slice(None), self._weight[some, rows], None, rows)])


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f1: Tensor, f2: Tensor, blocks: _Blocks, term: Term) -> Tensor:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        first, second = (torch.zeros_like(f) if wanted else None for f in (f1, f2))
        total = f1.new_zeros(())
        with _exact_products(f1.device):
            for block in blocks.blocks():
                ours, theirs = f1[block.pairs, block.sources], f2[block.pairs]
                slope = f1.new_zeros(*ours.shape[:2], theirs.shape[1])
                for rows, ranked in blocks.ranked(block, ours, theirs):
                    loss, found = term(ranked)
                    total += loss
                    slope[:, rows] += found
                if first is not None and second is not None:
                    first[block.pairs, block.sources] += slope @ theirs
                    second[block.pairs].baddbmm_(slope.mT, ours)
        ctx.save_for_backward(first, second)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, second = ctx.saved_tensors
        return grads[0] * first, grads[0] * second, None, None


def _place(points: Points) -> Tensor:
    """(B, P, 3) with NaN for points that are not there, which are at no distance from any."""
    return torch.where(points.valid[..., None], points.xyz, torch.nan)


def squared_distances(x1: Tensor, x2: Tensor) -> Tensor:
    """(b, R, T) squared distances of (b, R, 3) from (b, T, 3), by differences of coordinates."""
    total: Tensor | None = None
    for one, other in zip(x1.unbind(-1), x2.unbind(-1), strict=True):
        difference = one[..., :, None] - other[..., None, :]
        total = difference.square_() if total is None else total.addcmul_(difference, difference)
    assert total is not None
    return total


def _near(source: Points, target: Points, bounds: Bounds) -> Iterator[Tensor]:
    """(K, 2) source and target of all pairs within the positive distance, by source."""
    ours, theirs = _place(source), _place(target)
    limit = bounds.positive.square()
    size = max(1, _at_once(ours) // max(1, theirs.shape[1]))
    for begin in range(0, max(1, ours.shape[1]), size):
        rows = slice(begin, begin + size)
        near = squared_distances(ours[:, rows], theirs) < (limit if limit.ndim == 0 else limit[:, rows, None])
        found = near[0].nonzero()
        found[:, 0] += begin
        yield found


def _at_once(tensor: Tensor) -> int:
    return _AT_ONCE if tensor.device.type == "cpu" else _AT_ONCE_ON_DEVICE


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Single precision in matrix products, whatever autocast or the precision of the process say.

    At a temperature of 0.01 the three digits of TF32 would decide which of two neighbours is nearer.
    """
    backends: Any = torch.backends
    backend = backends.mkldnn.matmul if device.type == "cpu" else backends.cuda.matmul
    before = backend.fp32_precision
    with torch.autocast(device.type, enabled=False):
        backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            backend.fp32_precision = before
