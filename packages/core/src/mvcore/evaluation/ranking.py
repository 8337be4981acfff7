"""Measures of ranked answers: recall, discounted gain and reciprocal rank, one value a query."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Relevance = NDArray[np.bool_]
"""(Q, K): whether the answer at a rank is right, the best rank first."""


def recalled(relevant: Relevance, k: int) -> NDArray[np.float64]:
    """(Q,) 1 where one of the first k answers is right, else 0: R@k, which others call the recall rate."""
    return np.any(relevant[:, :k], axis=1).astype(np.float64)


def discounted_gain(relevant: Relevance, right: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """(Q,) NDCG@k with gain 1 for a right answer (Jarvelin & Kekalainen 2002, with the discount log2(1 + rank)).

    Args:
        relevant: the first answers, k or more of them where there are so many.
        right: (Q,) how many right answers there are in all, at least 1.
        k: how many answers count.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gains = relevant[:, :k] @ discounts[: relevant.shape[1]]
    best = np.cumsum(discounts)[np.minimum(right, k) - 1]
    return gains / best


def reciprocal_rank(relevant: Relevance) -> NDArray[np.float64]:
    """(Q,) 1 / rank of the first right answer, 0 where none is among these."""
    return np.where(relevant.any(axis=1), 1 / (1 + relevant.argmax(axis=1)), 0.0)
