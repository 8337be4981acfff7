"""Which of an object's views are taken: a pure function of seed, name and number, whatever else is measured."""

from __future__ import annotations

import hashlib

import numpy as np

Subset = tuple[int, ...]
"""Places among an object's views, rising."""


def view_subset(seed: int, name: str, count: int, n_views: int) -> Subset:
    """`count` different views of an object, each set of them equally likely; all views where there are no more.

    Args:
        seed: of the draw.
        name: the object's name.
        count: how many views, at least 1.
        n_views: how many views the object has.
    """
    if n_views <= count:
        return tuple(range(n_views))
    # Keys from a hash, not from a library's generator, whose numbers may change with its version.
    digest = hashlib.shake_256(f"{seed}\0{count}\0{name}".encode()).digest(8 * n_views)
    order = np.argsort(np.frombuffer(digest, "<u8"), kind="stable")
    return tuple(sorted(order[:count].tolist()))
