"""What each step draws from each source, as a pure function of (run seed, source name, global step).

Nothing here has a state that a draw changes, so neither the number of workers nor a resume changes what is drawn.
Global step g (0-based) of a source with E steps per epoch is position g % E of epoch g // E; a source that is shorter
than the run's epoch starts its next epoch by itself.

`batch_size` is that of the whole run. Every rank draws the same global batch and keeps a contiguous part of its
objects, cut so that the ranks hold nearly equal numbers of views; an object is never split.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mvcore.errors import ConfigError, DataError
from mvcore.parts import IndexedDataset

Sampling: TypeAlias = Literal["objects", "views", "pairs"]
Integers: TypeAlias = NDArray[np.int64]

_EPOCH_ORDER, _STEP_VIEWS, _STEP_TRANSFORMS = range(3)
"""Independent random streams of one source."""


@dataclass(frozen=True, kw_only=True)
class SourceSpecification:
    """A data source of a run, as core draws from it.

    Args:
        name: the source's name in the run; part of its random seed.
        dataset: the opened dataset.
        sampling: `objects` draws objects without replacement within an epoch and `views_per_object` views of each;
            `views` draws views without replacement within an epoch, views of one object in a step becoming one
            object; `pairs` draws objects and two different views of each.
        batch_size: objects (`objects`, `pairs`) or views (`views`) of a step, over all ranks. A smaller source gives
            all that it has in every step.
        views_per_object: a number or an inclusive range (lowest, highest), drawn uniformly; for `objects` only.
        views_draw: whether a range is drawn for each `object`, or once for all objects of a `batch`.
        object_offset, view_offset: where the ids of the dataset's store begin among the run's ids.
        index: the source's number in the run.
    """

    name: str
    dataset: IndexedDataset
    sampling: Sampling = "objects"
    batch_size: int
    views_per_object: int | tuple[int, int] = 1
    views_draw: Literal["object", "batch"] = "object"
    object_offset: int = 0
    view_offset: int = 0
    index: int = 0


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


class SourceSampler:
    """Draws the batches of one source.

    Raises:
        ConfigError: a batch size or number of views that cannot be drawn, where the text names the source and the
            object; or a stream.
        DataError: a source without views.
    """

    def __init__(self, source: SourceSpecification, seed: int) -> None:
        _check_indexed(source.dataset, f"data.{source.name}")
        self.source = source
        self._key = (seed % 2**64, zlib.crc32(source.name.encode()))
        views = [_as_array(source.dataset.views_of(i)) for i in range(len(source.dataset))]
        self._view_counts = np.fromiter((len(ids) for ids in views), np.int64, len(views))
        self._offsets = np.concatenate([[0], np.cumsum(self._view_counts)])
        self._views = np.concatenate(views) if views else np.empty(0, np.int64)
        self._epoch: tuple[int, Integers] | None = None
        self._check()

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass, at least 1; what is left over is dropped until the next epoch's order."""
        return max(1, self._population // self.source.batch_size)

    @property
    def _population(self) -> int:
        return len(self._views) if self.source.sampling == "views" else len(self._view_counts)

    def draw(self, step: int) -> Draw:
        """The global batch of a global step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        size = self.source.batch_size
        chosen = self._order(epoch)[position * size : (position + 1) * size]
        if self.source.sampling == "views":
            return self._group(chosen)
        return self._views_of_objects(chosen, self._generator(_STEP_VIEWS, step))

    def transform_generators(self, step: int) -> TransformGenerators:
        """The random generators of a step's transforms, one for each position in the global batch."""
        return TransformGenerators(np.random.SeedSequence([*self._key, _STEP_TRANSFORMS, step]))

    def _generator(self, stream: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([*self._key, stream, number])))

    def _order(self, epoch: int) -> Integers:
        # A memory of the last answer, not a state: it is made again from the epoch's number wherever it is missing.
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._generator(_EPOCH_ORDER, epoch).permutation(self._population))
        return self._epoch[1]

    def _group(self, chosen: Integers) -> Draw:
        """Views drawn over all objects, the views of an object brought together, in order of first appearance."""
        owners = np.searchsorted(self._offsets, chosen, side="right") - 1
        objects, first, inverse, counts = np.unique(owners, return_index=True, return_inverse=True, return_counts=True)
        appearance = np.argsort(first)
        place = np.empty_like(appearance)
        place[appearance] = np.arange(len(objects))
        rows = np.argsort(place[inverse], kind="stable")
        return Draw(objects[appearance], self._views[chosen[rows]], counts[appearance])

    def _views_of_objects(self, objects: Integers, rng: np.random.Generator) -> Draw:
        """A uniform draw without replacement from each object: the lowest of random keys, all objects at once."""
        counts = self._counts(len(objects), rng)
        available = self._view_counts[objects]
        segment = np.repeat(np.arange(len(objects)), available)
        starts = np.concatenate([[0], np.cumsum(available)[:-1]])
        within = np.arange(len(segment)) - starts[segment]
        order = np.lexsort((rng.random(len(segment)), segment))
        kept = order[within < counts[segment]]
        return Draw(objects, self._views[self._offsets[objects][segment[kept]] + within[kept]], counts)

    def _counts(self, objects: int, rng: np.random.Generator) -> Integers:
        low, high = self._range()
        drawn = 1 if self.source.views_draw == "batch" else objects
        return np.broadcast_to(rng.integers(low, high, drawn, endpoint=True), (objects,)).copy()

    def _range(self) -> tuple[int, int]:
        if self.source.sampling == "pairs":
            return 2, 2
        wanted = self.source.views_per_object
        return (wanted, wanted) if isinstance(wanted, int) else wanted

    def _check(self) -> None:
        source = self.source
        if source.batch_size < 1:
            raise ConfigError(f"data.{source.name}.batch_size must be at least 1, not {source.batch_size}")
        if len(self._views) == 0:
            raise DataError(f"data.{source.name}: the source has no views")
        if (self._view_counts == 0).any():
            empty = int(np.argmin(self._view_counts))
            raise DataError(f"data.{source.name}: object {source.dataset.object_name(empty)!r} has no views")
        if source.sampling == "views":
            return
        low, high = self._range()
        if not 1 <= low <= high:
            raise ConfigError(
                f"data.{source.name}.views_per_object must be a number or [lowest, highest] from 1 up, "
                f"not {source.views_per_object!r}"
            )
        if high > self._view_counts.min():
            self._refuse(high)

    def _refuse(self, wanted: int) -> None:
        source = self.source
        fewest = int(np.argmin(self._view_counts))
        short = int((self._view_counts < wanted).sum())
        what = "sampling: pairs" if source.sampling == "pairs" else f"views_per_object: {wanted}"
        raise ConfigError(
            f"data.{source.name}: {what} needs {wanted} views of every object, but object "
            f"{source.dataset.object_name(fewest)!r} has {self._view_counts[fewest]} "
            f"({short} of {len(self._view_counts)} objects have too few); ask for fewer or use sampling: views"
        )


class TransformGenerators:
    """Random generators by position in the global batch, from one seed: `generators(position)`.

    Philox is counter-based, so that a position's stream is made by setting the counter's highest word, without mixing a
    seed for every object.
    """

    def __init__(self, seed: np.random.SeedSequence) -> None:
        self._philox_key = seed.generate_state(2, np.uint64)

    def __call__(self, position: int) -> np.random.Generator:
        counter = np.array([0, 0, 0, position], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(counter=counter, key=self._philox_key))


def _check_indexed(dataset: object, where: str) -> None:
    if not isinstance(dataset, IndexedDataset):
        raise ConfigError(
            f"{where}: {type(dataset).__name__} is a stream or lacks a part of an indexed dataset, and only those can "
            "be trained on yet; pack the data into a store"
        )


def _as_array(ids: Sequence[int]) -> Integers:
    if isinstance(ids, range):  # several times faster than reading its members
        return np.arange(ids.start, ids.stop, ids.step, dtype=np.int64)
    return np.asarray(ids, dtype=np.int64)


def steps_per_epoch(source: SourceSpecification) -> int:
    """Steps of one pass over a source; see `SourceSampler.steps_per_epoch`."""
    return SourceSampler(source, seed=0).steps_per_epoch


def assign_offsets(datasets: Sequence[IndexedDataset]) -> tuple[list[tuple[int, int]], int, int]:
    """Where each dataset's object and view ids begin among the run's; datasets on the same store share theirs.

    Returns:
        `([(object_offset, view_offset), ...], n_object_ids, n_view_ids)`.

    Raises:
        DataError: two datasets name the same store but disagree on its size.
        ConfigError: a dataset is a stream.
    """
    placed: dict[str, tuple[int, int, int, int]] = {}
    n_objects = n_views = 0
    offsets: list[tuple[int, int]] = []
    for dataset in datasets:
        _check_indexed(dataset, "data")
        size = (dataset.n_store_objects, dataset.n_store_views)
        if dataset.store_key not in placed:
            placed[dataset.store_key] = (n_objects, n_views, *size)
            n_objects, n_views = n_objects + size[0], n_views + size[1]
        object_offset, view_offset, *known = placed[dataset.store_key]
        if tuple(known) != size:
            raise DataError(f"store {dataset.store_key!r} changed while it was opened: {tuple(known)} and {size} ids")
        offsets.append((object_offset, view_offset))
    return offsets, n_objects, n_views
