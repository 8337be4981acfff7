"""The rows of largest inner product with a query, by faiss or NumPy, in one order.

Either library finds candidates in float32, whose last bits depend on how it sums. Candidates are scored again in
float64, more of them where the cut falls among scores that float32 cannot tell apart, so that both give the same rows
in the same order. Rows of equal score stand in the order of their numbers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mvcore.errors import ConfigError

Vectors = NDArray[np.float32]
Backend = Literal["auto", "faiss", "numpy"]
Candidates = Callable[[Vectors, int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""Queries (Q, D) and a number K -> (Q, K) scores and rows, from the largest score down."""

_CELLS = 1 << 24
"""Scores that NumPy holds at once, 64 MiB."""
_QUERIES = 1024
"""Queries at a time."""
_SPARE = 16
"""Candidates beyond those that are asked for."""


class Nearest:
    """Exact search among unit vectors.

    Args:
        vectors: (N, D) float32 at unit length.
        backend: `faiss` or `numpy`; `auto` is faiss where it is installed.

    Raises:
        ConfigError: faiss is asked for and not installed.
    """

    def __init__(self, vectors: Vectors, backend: Backend = "auto") -> None:
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        if backend == "auto":
            backend = "faiss" if importlib.util.find_spec("faiss") is not None else "numpy"
        self.backend = backend
        self._candidates = _faiss(self.vectors) if backend == "faiss" else _numpy(self.vectors)

    def search(self, queries: Vectors, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best rows of each query, the best first.

        Args:
            queries: (Q, D) float32 at unit length.
            k: at least 1; at most N are given.

        Returns:
            (Q, min(k, N)) cosines and rows.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        k = min(k, len(self.vectors))
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), _QUERIES):
            part = slice(start, start + _QUERIES)
            scores[part], rows[part] = self._search(queries[part], k)
        return scores, rows

    def _search(self, queries: Vectors, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        # Both the k-th score and one behind the cut may be off by the rounding error of a sum of D products.
        error = 2 * queries.shape[1] * 2.0**-24
        open_queries, depth = np.arange(len(queries)), k + _SPARE
        while len(open_queries):
            depth = min(depth, len(self.vectors))
            near, found = self._candidates(queries[open_queries], depth)
            clear = (near[:, k - 1] - near[:, -1] > error) | (depth == len(self.vectors))
            for i in np.flatnonzero(clear):
                query = open_queries[i]
                scores[query], rows[query] = self._best(queries[query], found[i], k)
            open_queries, depth = open_queries[~clear], 4 * depth
        return scores, rows

    def _best(self, query: Vectors, rows: NDArray[np.int64], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rows = np.sort(rows)
        # Not a matrix product: that may sum equal rows in unequal ways, and equal scores must tie.
        exact = (self.vectors[rows].astype(np.float64) * query.astype(np.float64)).sum(axis=1)
        order = np.argsort(-exact, kind="stable")[:k]
        return exact[order].astype(np.float32), rows[order]


def _faiss(vectors: Vectors) -> Candidates:
    try:
        import faiss
    except ImportError:
        raise ConfigError("faiss is not installed: pip install 'mvcore[index]', or take the backend numpy") from None
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)  # pyright: ignore[reportCallIssue]
    return lambda queries, k: index.search(queries, k)  # pyright: ignore[reportCallIssue]


def _numpy(vectors: Vectors) -> Candidates:
    def candidates(queries: Vectors, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        found = np.empty((len(queries), 0), np.float32)
        rows = np.empty((len(queries), 0), np.int64)
        step = max(1, _CELLS // max(1, len(queries)))
        for start in range(0, len(vectors), step):
            block = queries @ vectors[start : start + step].T
            numbers = np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape)
            found, rows = np.concatenate([found, block], axis=1), np.concatenate([rows, numbers], axis=1)
            if found.shape[1] > k:
                best = np.argpartition(-found, k - 1, axis=1)[:, :k]
                found, rows = np.take_along_axis(found, best, 1), np.take_along_axis(rows, best, 1)
        order = np.argsort(-found, axis=1, kind="stable")
        return np.take_along_axis(found, order, 1), np.take_along_axis(rows, order, 1)

    return candidates
