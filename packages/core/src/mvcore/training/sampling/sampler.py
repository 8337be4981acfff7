"""`SourceSampler`: the global batch of each step of one source."""

from __future__ import annotations

import numpy as np

from mvcore.errors import ConfigError, DataError
from mvcore.training.sampling.budget import BudgetEpochs
from mvcore.training.sampling.draws import Draw, Integers
from mvcore.training.sampling.epochs import BalancedEpochs, Epochs, ShuffledEpochs
from mvcore.training.sampling.preferred import PreferredTable
from mvcore.training.sampling.randomness import Randomness, Stream, TransformGenerators
from mvcore.training.sampling.specification import SourceSpecification, check_indexed
from mvcore.training.sampling.views import ViewTable


class SourceSampler:
    """Draws the batches of one source.

    Raises:
        ConfigError: a batch size or number of views that cannot be drawn, where the text names the source and the
            object; or a stream.
        DataError: a source without views.
    """

    def __init__(self, source: SourceSpecification, seed: int) -> None:
        check_indexed(source.dataset, f"data.{source.name}")
        self.source = source
        self._random = Randomness(seed, source.name)
        self._table = ViewTable.of(source.dataset)
        _check(source, self._table)
        self._pairs = source.pairs
        self._preferred: PreferredTable | None = None
        self._n_preferred = 0
        if source.outlier_share:
            self._preferred = PreferredTable(self._table.ids, source.dataset.n_store_views)
            self._n_preferred = _share_of(source, min(self._size, len(self._table.ids)))
        self._budget: BudgetEpochs | None = None
        if source.views_per_batch is not None:
            self._budget = self._budgeted(source.views_per_batch)
            self.steps_per_epoch = self._budget.steps
            return
        self._epochs = self._of_fixed_size()
        self.steps_per_epoch = self._epochs.steps
        """Full batches in one pass, at least 1; of the first pass, where passes differ."""

    def draw(self, step: int) -> Draw:
        """The global batch of a global step."""
        source, rng = self.source, self._random.generator(Stream.STEP_VIEWS, step)
        if self._budget is not None:
            return self._views_of(*self._budget.chosen(step), rng)
        chosen = self._epochs.chosen(step)
        if source.sampling == "views":
            return self._table.grouped(self._with_preferred(chosen, step))
        if self._pairs is not None:
            return self._pairs.draw(self._pairs.objects[chosen], rng)
        return self._views_of(chosen, self._counts(chosen, rng), rng)

    def transform_generators(self, step: int) -> TransformGenerators:
        """The random generators of a step's transforms, one for each position in the global batch."""
        return self._random.transforms(step)

    def prefer(self, store_ids: Integers) -> None:
        """Draws the share of outliers from these views from now on; for a source with such a share only."""
        if self._preferred is not None:
            self._preferred.set(store_ids)

    def check_ranks(self, world_size: int) -> None:
        """Refuses a source whose steps cannot be split over ranks.

        Raises:
            ConfigError: a step may hold fewer objects than there are ranks.
        """
        source, objects = self.source, self._population
        if source.sampling == "views" or world_size == 1:
            return
        if source.views_per_batch is not None:
            # An epoch's last step takes half of what the one before it would have held, or more.
            full = min(source.batch_size or objects, source.views_per_batch // source.view_range[1])
            objects = objects if objects <= full else full // 2
        elif source.batch_size is not None:
            objects = min(source.batch_size, objects)
        if objects < world_size:
            raise ConfigError(
                f"data.{source.name}: a batch of {objects} objects cannot be split over {world_size} ranks; raise "
                f"{'batch_size' if source.views_per_batch is None else 'views_per_batch'} or use fewer devices"
            )

    @property
    def _population(self) -> int:
        if self.source.sampling == "views":
            return len(self._table.ids)
        return len(self._table.counts) if self._pairs is None else len(self._pairs.objects)

    @property
    def _size(self) -> int:
        assert self.source.batch_size is not None
        return self.source.batch_size

    def _of_fixed_size(self) -> Epochs:
        size = self._size - self._n_preferred
        if self.source.balance == "category":
            return BalancedEpochs(self._random, self._categories(), size)
        if self.source.balance == "object" and self.source.sampling == "views":
            return BalancedEpochs(self._random, self._table.owners, size)
        return ShuffledEpochs(self._random, self._population, size)

    def _categories(self) -> Integers:
        """The category's number of each member."""
        dataset = self.source.dataset
        objects = range(len(dataset)) if self._pairs is None else self._pairs.objects.tolist()
        words = [dataset.category(i) for i in objects]
        if None in words:
            unnamed = dataset.object_name(objects[words.index(None)])
            raise DataError(
                f"data.{self.source.name}: balance: category needs one for every object, and {unnamed!r} has none"
            )
        _, numbers = np.unique(np.array(words), return_inverse=True)
        return numbers[self._table.owners] if self.source.sampling == "views" else numbers

    def _budgeted(self, budget: int) -> BudgetEpochs:
        source = self.source
        return BudgetEpochs(
            self._random,
            self._table.counts,
            source.view_range,
            shared=source.views_draw != "object",
            budget=budget,
            limit=source.batch_size,
        )

    def _counts(self, objects: Integers, rng: np.random.Generator) -> Integers:
        low, high = self.source.view_range
        drawn = len(objects) if self.source.views_draw == "object" else 1
        counts = np.broadcast_to(rng.integers(low, high, drawn, endpoint=True), (len(objects),))
        return np.minimum(counts, self._table.counts[objects])

    def _views_of(self, objects: Integers, counts: Integers, rng: np.random.Generator) -> Draw:
        if self.source.views_draw == "indices":
            return self._table.drawn_alike(objects, counts, rng)
        return self._table.drawn_from_each(objects, counts, rng)

    def _with_preferred(self, chosen: Integers, step: int) -> Integers:
        if self._preferred is None:
            return chosen
        rng = self._random.generator(Stream.STEP_PREFERRED, step)
        return np.concatenate([chosen, self._preferred.draw(self._n_preferred, chosen, rng)])


def steps_per_epoch(source: SourceSpecification) -> int:
    """Steps of one pass over a source; see `SourceSampler.steps_per_epoch`."""
    return SourceSampler(source, seed=0).steps_per_epoch


def _share_of(source: SourceSpecification, size: int) -> int:
    number = round(source.outlier_share * size)
    if not 0 < number < size:
        raise ConfigError(
            f"data.{source.name}.outlier_share: {source.outlier_share:g} of {size} views is {number}; choose a share "
            "that leaves at least one view on either side"
        )
    return number


def _check(source: SourceSpecification, table: ViewTable) -> None:
    where = f"data.{source.name}"
    if source.batch_size is None and source.views_per_batch is None:
        raise ConfigError(f"{where}: give batch_size or views_per_batch")
    if source.batch_size is not None and source.batch_size < 1:
        raise ConfigError(f"{where}.batch_size must be at least 1, not {source.batch_size}")
    if len(table.ids) == 0:
        raise DataError(f"{where}: the source has no views")
    if (table.counts == 0).any():
        empty = int(np.argmin(table.counts))
        raise DataError(f"{where}: object {source.dataset.object_name(empty)!r} has no views")
    if source.sampling == "views":
        return
    low, high = source.view_range
    if not 1 <= low <= high:
        raise ConfigError(
            f"{where}.views_per_object must be a number or [lowest, highest] from 1 up, not {source.views_per_object!r}"
        )
    if source.views_per_batch is not None and source.views_per_batch < high:
        raise ConfigError(
            f"{where}.views_per_batch is {source.views_per_batch}, but an object may have {high} views "
            "(views_per_object); raise it to that at least"
        )
    # With a filter, an object of one view has no pair and is left out with the others that have none.
    may_be_short = source.short_objects == "take_all" or source.pairs_like is not None
    if high > table.counts.min() and not may_be_short:
        _refuse(source, table, high)


def _refuse(source: SourceSpecification, table: ViewTable, wanted: int) -> None:
    fewest = int(np.argmin(table.counts))
    short = int((table.counts < wanted).sum())
    what = "sampling: pairs" if source.sampling == "pairs" else f"views_per_object: {wanted}"
    advice = "use sampling: views" if source.sampling == "pairs" else "use short_objects: take_all or sampling: views"
    raise ConfigError(
        f"data.{source.name}: {what} needs {wanted} views of every object, but object "
        f"{source.dataset.object_name(fewest)!r} has {table.counts[fewest]} "
        f"({short} of {len(table.counts)} objects have too few); ask for fewer or {advice}"
    )
