"""What core knows of a source that it draws from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from mvcore.errors import ConfigError, DataError
from mvcore.parts import IndexedDataset, StreamDataset
from mvcore.training.sampling.pairs import PairFilter, PairTable

Sampling: TypeAlias = Literal["objects", "views", "pairs"]


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
            all that it has in every step. None, with `views_per_batch` only: as many objects as its budget holds.
        views_per_object: a number or an inclusive range (lowest, highest), drawn uniformly; for `objects` only.
        views_draw: whether a range is drawn for each `object`, once for all objects of a `batch`, or once together with
            the `indices` of the views, which are then the same for all objects of the batch.
        views_per_batch: the most views of a step, over all ranks; see `BudgetEpochs`.
        short_objects: whether an object with fewer views than are drawn is refused or gives all that it has.
        balance: see `BalancedEpochs`; the groups are objects or categories.
        outlier_share: part of a step's views that are drawn from those that a trainer prefers; for `views` only.
        pairs_like: which pairs of views `pairs` may draw; None = all.
        object_offset, view_offset: where the ids of the dataset's store begin among the run's ids.
        index: the source's number in the run.
    """

    name: str
    dataset: IndexedDataset
    sampling: Sampling = "objects"
    batch_size: int | None = None
    views_per_object: int | tuple[int, int] = 1
    views_draw: Literal["object", "batch", "indices"] = "object"
    views_per_batch: int | None = None
    short_objects: Literal["refuse", "take_all"] = "refuse"
    balance: Literal["none", "object", "category"] = "none"
    outlier_share: float = 0.0
    pairs_like: PairFilter | None = None
    object_offset: int = 0
    view_offset: int = 0
    index: int = 0

    @property
    def view_range(self) -> tuple[int, int]:
        """The lowest and the highest number of views of an object in a step."""
        if self.sampling == "pairs":
            return 2, 2
        wanted = self.views_per_object
        return (wanted, wanted) if isinstance(wanted, int) else wanted

    @cached_property
    def pairs(self) -> PairTable | None:
        """The pairs of views that may be drawn, where not all may; found once, and shared by all samplers.

        Raises:
            ConfigError: the dataset does not tell what the filter asks for.
            DataError: no object has such a pair.
        """
        if self.sampling != "pairs" or self.pairs_like is None:
            return None
        return PairTable(self.dataset, self.pairs_like, f"data.{self.name}")


def is_stream(dataset: object) -> bool:
    """Whether a dataset is read in an order of its own."""
    return not isinstance(dataset, IndexedDataset) and isinstance(dataset, StreamDataset)


def check_indexed(dataset: object, where: str) -> None:
    """Refuses what cannot be drawn from by index.

    Raises:
        ConfigError: a stream, or a part of `IndexedDataset` is missing.
    """
    if not isinstance(dataset, IndexedDataset):
        raise ConfigError(
            f"{where}: {type(dataset).__name__} is a stream or lacks a part of an indexed dataset, which is needed "
            "here; pack the data into a store"
        )


def assign_offsets(datasets: Sequence[IndexedDataset]) -> tuple[list[tuple[int, int]], int, int]:
    """Where each dataset's object and view ids begin among the run's; datasets on the same store share theirs.

    Returns:
        `([(object_offset, view_offset), ...], n_object_ids, n_view_ids)`.

    Raises:
        DataError: two datasets name the same store but disagree on its size.
        ConfigError: a dataset is neither indexed nor a stream.
    """
    placed: dict[str, tuple[int, int, int, int]] = {}
    n_objects = n_views = 0
    offsets: list[tuple[int, int]] = []
    for dataset in datasets:
        if is_stream(dataset):
            offsets.append((0, 0))  # it gives no ids
            continue
        check_indexed(dataset, "data")
        size = (dataset.n_store_objects, dataset.n_store_views)
        if dataset.store_key not in placed:
            placed[dataset.store_key] = (n_objects, n_views, *size)
            n_objects, n_views = n_objects + size[0], n_views + size[1]
        object_offset, view_offset, *known = placed[dataset.store_key]
        if tuple(known) != size:
            raise DataError(f"store {dataset.store_key!r} changed while it was opened: {tuple(known)} and {size} ids")
        offsets.append((object_offset, view_offset))
    return offsets, n_objects, n_views
