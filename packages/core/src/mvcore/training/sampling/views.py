"""The views of a source, and draws of some of each object's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mvcore.parts import IndexedDataset
from mvcore.training.sampling.draws import Draw, Integers


@dataclass(frozen=True)
class ViewTable:
    """The views of all objects, one object's after the other's.

    Args:
        ids: (V,) the store's ids.
        counts: (O,) views of each object.
        offsets: (O + 1,) where each object's begin.
    """

    ids: Integers
    counts: Integers
    offsets: Integers

    @classmethod
    def of(cls, dataset: IndexedDataset) -> ViewTable:
        """The views that a dataset gives."""
        views = [_as_array(dataset.views_of(i)) for i in range(len(dataset))]
        counts = np.fromiter((len(ids) for ids in views), np.int64, len(views))
        ids = np.concatenate(views) if views else np.empty(0, np.int64)
        return cls(ids, counts, np.concatenate([[0], np.cumsum(counts)]))

    @property
    def owners(self) -> Integers:
        """(V,) the object of each view."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def grouped(self, chosen: Integers) -> Draw:
        """Views of any objects, by their positions: those of an object together, in order of first appearance."""
        owners = np.searchsorted(self.offsets, chosen, side="right") - 1
        objects, first, inverse, counts = np.unique(owners, return_index=True, return_inverse=True, return_counts=True)
        appearance = np.argsort(first)
        place = np.empty_like(appearance)
        place[appearance] = np.arange(len(objects))
        rows = np.argsort(place[inverse], kind="stable")
        return Draw(objects[appearance], self.ids[chosen[rows]], counts[appearance])

    def drawn_from_each(self, objects: Integers, counts: Integers, rng: np.random.Generator) -> Draw:
        """A uniform draw without replacement from each object: the lowest of random keys, all objects at once."""
        available = self.counts[objects]
        segment = np.repeat(np.arange(len(objects)), available)
        starts = np.concatenate([[0], np.cumsum(available)[:-1]])
        within = np.arange(len(segment)) - starts[segment]
        keys = rng.random(len(segment))
        if (available == available[0]).all():  # the same order, several times as fast
            rows = np.argsort(keys.reshape(len(objects), -1), axis=1, kind="stable")
            order = (starts[:, None] + rows).reshape(-1)
        else:
            order = np.lexsort((keys, segment))
        kept = order[within < counts[segment]]
        return Draw(objects, self.ids[self.offsets[objects][segment[kept]] + within[kept]], counts)

    def drawn_alike(self, objects: Integers, counts: Integers, rng: np.random.Generator) -> Draw:
        """The same views of each object, by their places among its views, in ascending order.

        The places are a uniform draw without replacement among those that all of the objects have.
        """
        places = np.sort(rng.choice(int(self.counts[objects].min()), int(counts[0]), replace=False))
        return Draw(objects, self.ids[(self.offsets[objects][:, None] + places).reshape(-1)], counts)


def _as_array(ids: Sequence[int]) -> Integers:
    if isinstance(ids, range):  # several times faster than reading its members
        return np.arange(ids.start, ids.stop, ids.step, dtype=np.int64)
    return np.asarray(ids, dtype=np.int64)
