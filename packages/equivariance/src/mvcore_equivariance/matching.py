"""Nearest neighbours of descriptors, in tiles of bounded memory and the same whatever the tiles are.

Descriptors are rounded to multiples of 2^-24 of the longest one and multiplied in float64. Every product and every sum
is then exact (48 bits behind the point of a number that is at most 1), so that a score hangs neither on the order in
which a library sums nor on how the work is cut: equal descriptors have equal scores, and of those the first wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from mvcore.api import DenseGrid, sample_dense
from torch import Tensor
from torch.nn.functional import normalize

CHUNK = 1024
"""Queries in a tile."""
_CANDIDATES = 4096
_BITS = 24


class Descriptors(Protocol):
    """P descriptors, made tile by tile: those of a full-size image would fill gigabytes."""

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """(n, C) float64 descriptors `start` to `stop`, rounded, none longer than 1."""
        ...


class Given:
    """Descriptors that are there already.

    Args:
        values: (P, C).
        normalised: taken at unit length, so that products are cosines; else as they are.

    Raises:
        ValueError: another shape, or values that are not finite.
    """

    def __init__(self, values: Tensor, *, normalised: bool = True) -> None:
        if values.ndim != 2:
            raise ValueError(f"descriptors must be (P, C), not {tuple(values.shape)}")
        self._values, self._scale = values, _scale(values, 1, normalised)

    def __len__(self) -> int:
        return len(self._values)

    def rows(self, start: int, stop: int) -> Tensor:
        return _rounded(self._values[start:stop], self._scale)


class Sampled:
    """Descriptors read from a dense map, bilinearly.

    Args:
        dense: (C, h, w) features of an image.
        points: (P, 2) in continuous pixels of the image.
        grid: where the map's cells lie in it.
        normalised: taken at unit length, so that products are cosines; else as they are.

    Raises:
        ValueError: another shape, or features that are not finite.
    """

    def __init__(self, dense: Tensor, points: Tensor, grid: DenseGrid, *, normalised: bool = True) -> None:
        if dense.ndim != 3 or points.ndim != 2 or points.shape[1] != 2:
            shapes = f"{tuple(dense.shape)} and {tuple(points.shape)}"
            raise ValueError(f"dense must be (C, h, w) and points (P, 2), not {shapes}")
        # In float64 a sample is the same to the last of the rounded bits, however many are taken at once.
        self._dense, self._grid = dense.double(), grid
        self._points = points.to(dense.device, torch.float64)
        # A bilinear sample is no longer than the longest of its corners.
        self._scale = _scale(dense, 0, normalised)

    def __len__(self) -> int:
        return len(self._points)

    def rows(self, start: int, stop: int) -> Tensor:
        points = self._points[start:stop]
        return _rounded(sample_dense(self._dense[None], points[None], self._grid)[0], self._scale)


@dataclass(frozen=True)
class Nearest:
    """The candidate of the largest product with each query.

    Args:
        index: (Q,) int64; of equal candidates the first.
        score: (Q,) float64 the product, a cosine of unit descriptors.
    """

    index: Tensor
    score: Tensor


def nearest(queries: Descriptors, candidates: Descriptors, *, chunk: int = CHUNK) -> Nearest:
    """The nearest candidate of each query, the same for every `chunk`.

    Args:
        queries, candidates: descriptors of one width.
        chunk: queries compared at once; memory is `chunk` times a few thousand candidates.

    Raises:
        ValueError: no query or no candidate.
    """
    return _search(queries, candidates, chunk)[0]


def mutual_nearest(first: Descriptors, second: Descriptors, *, chunk: int = CHUNK) -> Tensor:
    """(M, 2) int64 pairs of which each is the other's nearest, in the order of `first`.

    Raises:
        ValueError: either is empty.
    """
    forward, backward = _search(first, second, chunk)
    own = torch.arange(len(first), device=forward.index.device)
    kept = backward.index[forward.index] == own
    return torch.stack([own[kept], forward.index[kept]], dim=1)


def _search(first: Descriptors, second: Descriptors, chunk: int) -> tuple[Nearest, Nearest]:
    """The nearest in `second` of each of `first`, and the other way round."""
    if not len(first) or not len(second) or chunk < 1:
        raise ValueError(f"needs queries and candidates, not {len(first)} and {len(second)}, and a chunk above 0")
    device = first.rows(0, 1).device
    # Written in place: results that outlive a tile, between tiles that do not, would tear holes into the heap.
    forward, backward = (_nothing(len(side), device) for side in (first, second))
    for start in range(0, len(first), chunk):
        stop = min(start + chunk, len(first))
        rows = first.rows(start, stop)
        for begin in range(0, len(second), _CANDIDATES):
            end = min(begin + _CANDIDATES, len(second))
            scores = rows @ second.rows(begin, end).T
            _improve(forward, slice(start, stop), scores, 1, begin)
            _improve(backward, slice(begin, end), scores, 0, start)
    return forward, backward


def _nothing(count: int, device: torch.device) -> Nearest:
    """No candidate yet."""
    return Nearest(
        torch.zeros(count, dtype=torch.int64, device=device),
        torch.full((count,), -torch.inf, dtype=torch.float64, device=device),
    )


def _improve(seen: Nearest, rows: slice, scores: Tensor, axis: int, first: int) -> None:
    """Puts larger scores in; of equal ones those seen before stay, which have the lower indices."""
    score, index = scores.amax(axis), scores.argmax(axis) + first
    larger = score > seen.score[rows]
    seen.index[rows] = torch.where(larger, index, seen.index[rows])
    seen.score[rows] = torch.where(larger, score, seen.score[rows])


def _scale(values: Tensor, axis: int, normalised: bool) -> float | None:
    """What descriptors are divided by so that none is longer than 1; None where each is divided by its own length."""
    if not bool(values.isfinite().all()):
        raise ValueError("the features hold values that are not finite; the model is broken")
    return None if normalised else max(float(values.double().norm(dim=axis).max()), 1e-30)


def _rounded(values: Tensor, scale: float | None) -> Tensor:
    unit = normalize(values.double(), dim=1) if scale is None else values.double() / scale
    return (unit * 2**_BITS).round_().mul_(2.0**-_BITS)


def pixel_grid(image_size: tuple[int, int], stride: int = 1) -> Tensor:
    """(P, 2) centres of every `stride`-th pixel of each row and column, row by row, as float32.

    With a stride they are the centres of cells of `stride` pixels that lie within the image.
    """
    width, height = image_size
    x, y = (torch.arange(side // stride, dtype=torch.float32) * stride + stride / 2 for side in (width, height))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


def within(points: Tensor, mask: Tensor) -> Tensor:
    """(P,) bool, whether the pixel that a point lies in is in the mask (H, W)."""
    column, row = points.floor().long().unbind(1)
    return mask[row.clamp(0, mask.shape[0] - 1), column.clamp(0, mask.shape[1] - 1)]
