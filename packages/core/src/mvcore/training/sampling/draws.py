"""The objects and views of one step, and how ranks share them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mvcore.errors import DataError

Integers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """The objects and views of one step.

    Args:
        objects: (B,) indices into the dataset.
        views: (N,) store ids, views of an object adjacent.
        counts: (B,) views of each object.
        first: position of the first object in the global batch.
    """

    objects: Integers
    views: Integers
    counts: Integers
    first: int = 0

    def requests(self) -> list[tuple[int, list[int]]]:
        """(object, its views) for each object."""
        views = iter(self.views.tolist())
        return [(i, list(islice(views, n))) for i, n in zip(self.objects.tolist(), self.counts.tolist(), strict=True)]

    def shard(self, rank: int, world_size: int) -> Draw:
        """The contiguous part of the objects that a rank takes.

        Raises:
            DataError: there are fewer objects than ranks.
        """
        if world_size == 1:
            return self
        if len(self.objects) < world_size:
            raise DataError(
                f"a step drew {len(self.objects)} objects for {world_size} ranks; raise batch_size or use fewer devices"
            )
        ends = np.cumsum(self.counts)
        targets = ends[-1] * np.arange(1, world_size) / world_size
        cuts = np.searchsorted(ends, targets) + 1
        # Every rank keeps at least one object: cuts strictly increase and leave enough objects for the ranks after.
        steps = np.arange(1, world_size)
        cuts = np.maximum.accumulate(cuts - steps) + steps
        cuts = np.minimum(cuts, len(self.objects) - world_size + steps)
        low, high = np.concatenate([[0], cuts, [len(self.objects)]])[rank : rank + 2]
        rows = np.concatenate([[0], ends])
        return Draw(self.objects[low:high], self.views[rows[low] : rows[high]], self.counts[low:high], int(low))
