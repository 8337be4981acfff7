"""Near pairs of 64-bit hashes without comparing all with all.

Multi-index hashing (Norouzi, Punjani, Fleet, Fast Search in Hamming Space with Multi-Index Hashing, CVPR 2012): two
hashes that differ in at most 11 of 64 bits differ in at most 2 of the 16 bits of one of four bands, so only hashes
whose band is one of 137 values are compared whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

LARGEST_RADIUS = 11
_BANDS = 4
_WIDTH = 16
_AT_ONCE = 1 << 22


def near_pairs(
    first: NDArray[np.uint64], second: NDArray[np.uint64], radius: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """All pairs of hashes within a Hamming distance.

    Args:
        first: (N,).
        second: (M,).
        radius: most bits that may differ, 0 to 11.

    Returns:
        Rows of `first`, rows of `second` and distances, each (P,), by row of `first` and then of `second`.
    """
    if not 0 <= radius <= LARGEST_RADIUS:
        raise ValueError(f"radius {radius}: the bands find pairs up to {LARGEST_RADIUS}")
    found = [np.zeros(0, np.int64)]
    for band in range(_BANDS):
        found += _of_band(first, second, band, radius)
    keys = np.unique(np.concatenate(found))
    rows, others = keys // max(len(second), 1), keys % max(len(second), 1)
    return rows, others, distance(first[rows], second[others])


def distance(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """(P,) bits that differ."""
    words = np.ascontiguousarray(first ^ second).view(np.uint16).reshape(-1, _BANDS)
    return _POPCOUNT[words].sum(1, dtype=np.uint8)


def _of_band(
    first: NDArray[np.uint64], second: NDArray[np.uint64], band: int, radius: int
) -> Iterator[NDArray[np.int64]]:
    """Pairs, as row * M + other, that this band finds."""
    words = _band(second, band)
    order = np.argsort(words, kind="stable")
    start = np.zeros((1 << _WIDTH) + 1, np.int64)
    np.cumsum(np.bincount(words, minlength=1 << _WIDTH), out=start[1:])
    own = _band(first, band)
    for flip in _FLIPS[: _UP_TO[radius // _BANDS]]:
        wanted = own ^ flip
        begin = start[wanted]
        count = start[wanted.astype(np.int64) + 1] - begin
        for rows in _chunks(count):
            n = count[rows]
            left = np.repeat(np.arange(rows.start, rows.stop), n)
            within = np.arange(len(left)) - np.repeat(np.cumsum(n) - n, n)
            right = order[np.repeat(begin[rows], n) + within]
            near = distance(first[left], second[right]) <= radius
            yield left[near] * len(second) + right[near]


def _chunks(count: NDArray[np.int64]) -> Iterator[slice]:
    """Runs of rows with a bounded number of candidates together, never less than a row."""
    ends = np.cumsum(count)
    begin = 0
    while begin < len(count):
        done = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + _AT_ONCE, "right")))
        if ends[end - 1] > done:
            yield slice(begin, end)
        begin = end


def _band(hashes: NDArray[np.uint64], band: int) -> NDArray[np.uint16]:
    return (hashes >> np.uint64(band * _WIDTH)).astype(np.uint16)


_POPCOUNT = np.unpackbits(np.arange(1 << _WIDTH, dtype=np.uint16).view(np.uint8)).reshape(-1, _WIDTH).sum(1, np.uint8)
_FLIPS = np.array(
    [sum(1 << bit for bit in bits) for n in range(3) for bits in combinations(range(_WIDTH), n)], np.uint16
)
_UP_TO = (1, 17, 137)
