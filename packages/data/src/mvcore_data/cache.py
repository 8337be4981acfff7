"""Decoded images in memory that forked workers share, each decoded once by whoever first needs it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray

_LARGEST_PART_OF_MEMORY = 0.8


def check_memory(needed: int, what: str, owner: object) -> None:
    """Refuses a cache that would not fit.

    Raises:
        DataError: it would not leave a fifth of this machine's memory; names `owner` and what it holds.
    """
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > _LARGEST_PART_OF_MEMORY * available:
        raise DataError(
            f"{owner}: cache: memory needs {needed / 2**30:.1f} GiB for {what}, but this machine has "
            f"{available / 2**30:.1f} GiB; use cache: none"
        )


class ImageCache:
    """(3, side, side) uint8 images of a fixed set of views.

    Two workers may fill the same place at the same time: both write the same bytes, and mark it only afterwards. A copy
    that is pickled for a spawned worker starts empty.

    Args:
        views: (n,) ids of the views, ascending.
        side: of the images.
        owner: how messages name the source.

    Raises:
        DataError: the images would not fit into this machine's memory.
    """

    def __init__(self, views: NDArray[np.int64], side: int, owner: str) -> None:
        self._views = views
        self._shape = (len(views), 3, side, side)
        check_memory(int(np.prod(self._shape, dtype=np.int64)), f"{len(views)} views", owner)
        self._allocate()

    def images(self, views: NDArray[np.int64], make: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """(N, 3, S, S) images of views; `make(view)` gives a missing one as (S, S, 3)."""
        slots = np.searchsorted(self._views, views)
        for slot in np.unique(slots[~self._filled[slots]]).tolist():
            self._images[slot] = make(int(self._views[slot])).transpose(2, 0, 1)
            self._filled[slot] = True
        return self._images[slots]

    def _allocate(self) -> None:
        # Anonymous maps are shared with forked children and take memory only where they are written.
        images = mmap.mmap(-1, int(np.prod(self._shape, dtype=np.int64)))
        self._images = np.frombuffer(images, np.uint8).reshape(self._shape)
        self._filled = np.frombuffer(mmap.mmap(-1, self._shape[0]), np.bool_)

    def __getstate__(self) -> dict[str, Any]:
        return {"_views": self._views, "_shape": self._shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()
