"""One pass over every view of a dataset with the evaluation transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mvcore.errors import DataError
from mvcore.packing import concatenate
from mvcore.parts import Embedded, IndexedDataset
from mvcore.types import Features, ViewBatch

FeaturesOf = Callable[[ViewBatch, frozenset[str]], Features]


def evaluation_batches(
    dataset: IndexedDataset, *, views_per_batch: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[list[int], ViewBatch]]:
    """Batches of whole objects in the dataset's order, about `views_per_batch` views each, with the objects' indices.

    With several ranks each takes a run of consecutive batches, so that theirs joined in rank order are all; with fewer
    batches than ranks each takes all.

    Raises:
        DataError: the dataset has no object.
    """
    if len(dataset) == 0:
        raise DataError("the dataset has no object to embed")
    for group in _groups(dataset, views_per_batch, rank, world_size):
        yield group, concatenate([dataset.load(i, dataset.views_of(i), None) for i in group])


def _groups(dataset: IndexedDataset, views_per_batch: int, rank: int, world_size: int) -> list[list[int]]:
    """The objects of each batch of this rank."""
    groups: list[list[int]] = [[]]
    views = 0
    for i in range(len(dataset)):
        count = len(dataset.views_of(i))
        if groups[-1] and views + count > views_per_batch:
            groups.append([])
            views = 0
        groups[-1].append(i)
        views += count
    if len(groups) >= world_size:
        return groups[len(groups) * rank // world_size : len(groups) * (rank + 1) // world_size]
    return groups


def embed_dataset(
    features_of: FeaturesOf,
    dataset: IndexedDataset,
    keys: frozenset[str],
    *,
    views_per_batch: int = 256,
    rank: int = 0,
    world_size: int = 1,
) -> Embedded:
    """Features of each view of each object (row axis `view` only), on the CPU in float32.

    With several ranks, of this rank's part; see `evaluation_batches`. `features_of` is called on batches on the host;
    it moves them to its device and decides about modes and gradients.

    Raises:
        DataError: the dataset has no object.
    """
    rows: dict[str, Tensor] = {}
    counts: list[Tensor] = []
    objects: list[Tensor] = []
    views: list[Tensor] = []
    groups = _groups(dataset, views_per_batch, rank, world_size) if len(dataset) else []
    total = sum(len(dataset.views_of(i)) for group in groups for i in group)
    part = evaluation_batches(dataset, views_per_batch=views_per_batch, rank=rank, world_size=world_size)
    done = 0
    for _, batch in part:
        features = features_of(batch, keys)
        for key in keys:
            found = features[key]
            # Made once, in full: parts that are joined at the end would be there twice.
            if key not in rows:
                rows[key] = torch.empty(total, *found.shape[1:])
            rows[key][done : done + len(found)] = found
        done += batch.n_views
        counts.append(batch.view_counts)
        objects.append(batch.object_ids)
        views.append(batch.view_ids)
    view_counts = torch.cat(counts)
    return Embedded(
        features=rows,
        object_of_view=torch.repeat_interleave(torch.arange(len(view_counts)), view_counts),
        object_ids=torch.cat(objects),
        view_ids=torch.cat(views),
    )
