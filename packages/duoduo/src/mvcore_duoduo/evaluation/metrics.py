"""Ranks of the right answers, and what is counted from them.

A query has one right answer among C candidates; rank 0 is the best. Of equal scores the candidate of the lower index
stands first, so nothing hangs on how a library sorts.
"""

from __future__ import annotations

import numpy as np
import torch
from mvcore.api import label_ranks
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

_CELLS = 1 << 23
"""Scores held at once, 64 MiB."""


def cosine_ranks(queries: Tensor, candidates: Tensor, target: Tensor) -> Tensor:
    """(Q,) how many candidates stand before the right one by cosine, in float64 so that it hangs on no batch size.

    Args:
        queries: (Q, D) of any length.
        candidates: (C, D) of any length.
        target: (Q,).

    Raises:
        ValueError: a vector without a direction.
    """
    for name, vectors in (("query", queries), ("candidate", candidates)):
        lengths = vectors.double().norm(dim=1)
        wrong = (~lengths.isfinite() | (lengths == 0)).nonzero()
        if len(wrong):
            raise ValueError(f"{name} {int(wrong[0])} has no direction: its length is {float(lengths[wrong[0]]):g}")
    unit = normalize(candidates.double(), dim=-1).T
    step = max(1, _CELLS // max(1, len(candidates)))
    parts = [
        label_ranks(normalize(rows.double(), dim=-1) @ unit, own)
        for rows, own in zip(queries.split(step), target.split(step), strict=True)
    ]
    return torch.cat(parts) if parts else target.clone()


def macro_samples(hits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """(O,) values whose mean is the mean over classes of each class's share of right objects.

    Each is the mean over classes plus the object's influence on it, so that a bootstrap of their mean has the spread of
    that mean. Classes without an object do not count.

    Args:
        hits: (O,) share of right answers of each object, 0 to 1.
        labels: (O,) class of each object.
    """
    _, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shares = np.bincount(place, weights=hits, minlength=len(sizes)) / sizes
    influence = (hits - shares[place]) * len(hits) / (len(sizes) * sizes[place])
    return shares.mean() + influence


def recalled(ranks: Tensor, k: int) -> Tensor:
    """(Q,) float64, 1 where the right candidate is among the k best; their mean is the recall rate RR@k."""
    return (ranks < k).double()


def discounted_gains(ranks: Tensor, k: int) -> Tensor:
    """(Q,) float64, 1 / log2(rank + 2) where the rank is below k, else 0; their mean is NDCG@k with one answer each."""
    return torch.where(ranks < k, 1 / torch.log2(ranks.double() + 2), 0.0)


def reciprocal_ranks(ranks: Tensor) -> Tensor:
    """(Q,) float64, 1 / (rank + 1); their mean is the mean reciprocal rank."""
    return 1 / (ranks.double() + 1)
