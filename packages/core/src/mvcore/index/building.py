"""Encodes a store's objects, or their views, into an index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvcore.errors import ConfigError, DataError
from mvcore.index.catalogue import Catalogue, DataOrigin, IndexedObject, Of, plain
from mvcore.index.folder import Tables, digest_of, vectors_name
from mvcore.index.searching import Index
from mvcore.model import Model
from mvcore.model_key import model_key
from mvcore.parts import IndexedDataset, TraceableDataset
from mvcore.paths import PACKAGE, model_and_tag
from mvcore.training.embedding import evaluation_batches
from mvcore.types import ViewBatch

Progress = Callable[[int, int], None]
"""Called with the objects that are done and all of them."""

_VIEWS = "data.views"


def build(
    data: str | Path | IndexedDataset,
    model: str | Path | Model,
    *,
    of: Of = "object",
    split: str | None = None,
    device: str | torch.device = "cpu",
    on_progress: Progress = lambda done, total: None,
) -> Index:
    """An index of a store's objects or views, not yet saved.

    Args:
        data: a store, as the `path` of `data.views`; or an open dataset.
        model: a model, or what `mvcore.load` takes.
        of: a row for each `object`, by the rule of `Model.encode_views`, or for each `view`.
        split: only the objects of this split of the store.
        device: where a model that is named runs.
        on_progress: told how many objects are done.

    Raises:
        ConfigError: an unknown `of` or split, or a split of an open dataset.
        DataError: no such store, a damaged view, or an object whose vector has no direction.
    """
    if of not in ("object", "view"):
        raise ConfigError(f"an index is of object or view, not {of!r}")
    if not isinstance(model, Model):
        from mvcore.loading import load

        model = load(model, device=device)
    origin = DataOrigin()
    if isinstance(data, str | Path):
        args = {"path": _absolute(str(data)), "split": split, **_reading(model)}
        origin = DataOrigin(id=_VIEWS, args={key: value for key, value in args.items() if value is not None})
        data = open_data(origin)
        connect(model, data)
    elif split is not None:
        raise ConfigError(f"split {split!r} goes with a store's path; open the dataset with it")
    if isinstance(data, TraceableDataset):
        origin = origin.model_copy(update={"digest": data.content_digest()})
    tables, objects = _encode(data, model, of, on_progress)
    digest = digest_of(tables)
    catalogue = Catalogue(
        of=of,
        dim=tables["vectors"].shape[1],
        rows=len(tables["vectors"]),
        model=":".join(map(_absolute, filter(None, model_and_tag(model.name)))),
        model_key=plain(model_key(model)),
        data=origin,
        vectors=vectors_name(digest),
        sha256=digest,
        objects=tuple(objects),
    )
    return Index(catalogue, tables, model=model)


def open_data(origin: DataOrigin, **changes: Any) -> IndexedDataset:
    """The dataset that an index was made of, with other options where given.

    Raises:
        MvcoreError: no plugin reads it, or it is gone or damaged.
    """
    from mvcore import build as parts
    from mvcore.plugins import load_plugins

    registered = load_plugins().spec("dataset", origin.id)
    return parts.make(registered, parts.options(registered, {**origin.args, **changes}, "the indexed data"))


def connect(model: Model, data: IndexedDataset) -> None:
    """Lets a model of stored vectors find those of the data's texts; another model needs no data.

    Raises:
        MvcoreError: the vectors do not fit the model.
    """
    if model.backbone.library == "embeddings":
        model.backbone.connect({"indexed": data})


def _reading(model: Model) -> dict[str, Any]:
    """How the data is read for a model: as images of its size, or as vectors for a model of stored ones."""
    backbone: Any = model.backbone
    if backbone.library == "embeddings":
        return {"embeddings": [backbone.tag], "images": False}
    return {"image_size": backbone.image_size}


def _encode(data: IndexedDataset, model: Model, of: Of, on_progress: Progress) -> tuple[Tables, list[IndexedObject]]:
    vectors: list[Tensor] = []
    owners: list[Tensor] = []
    places: list[Tensor] = []
    objects: list[IndexedObject] = []
    for numbers, batch in evaluation_batches(data, views_per_batch=model.views_per_batch):
        found = model.object_vectors(batch) if of == "object" else model.features(batch, frozenset({"view"})).view
        owner = torch.arange(len(numbers)) if of == "object" else batch.object_of_view
        vectors.append(_unit(found, [data.object_name(numbers[int(row)]) for row in owner]))
        owners.append(owner + len(objects))
        places.append(torch.full_like(owner, -1) if of == "object" else _place_in_object(batch))
        objects += [_described(data, i, row, batch) for row, i in enumerate(numbers)]
        on_progress(len(objects), len(data))
    columns = {"vectors": torch.cat(vectors), "object": torch.cat(owners), "view": torch.cat(places)}
    return {name: column.numpy() for name, column in columns.items()}, objects


def _unit(vectors: Tensor, names: list[str]) -> Tensor:
    """Rows at unit length in float32, on the CPU.

    Raises:
        DataError: a row whose length is zero or not finite.
    """
    exact = vectors.double().cpu()
    length = torch.linalg.vector_norm(exact, dim=1, keepdim=True)
    bad = ~(torch.isfinite(length) & (length > 0)).squeeze(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise DataError(f"object {names[row]!r}: the model gives a vector of length {float(length[row, 0])}")
    return (exact / length).float()


def _place_in_object(batch: ViewBatch) -> Tensor:
    starts = torch.cumsum(batch.view_counts, 0) - batch.view_counts
    return torch.arange(batch.n_views) - starts[batch.object_of_view]


def _described(data: IndexedDataset, i: int, row: int, batch: ViewBatch) -> IndexedObject:
    captions: list[str] = []
    of_views: dict[str, tuple[str, ...]] = {}
    start = int(batch.cu_views[row])
    for k in np.flatnonzero((batch.caption_object == row).numpy()):
        view = int(batch.caption_view[k])
        if view < 0:
            captions.append(batch.captions[k])
        else:
            key = str(view - start)
            of_views[key] = (*of_views.get(key, ()), batch.captions[k])
    return IndexedObject(
        id=data.object_name(i),
        category=data.category(i),
        licence=data.licence(i) if isinstance(data, TraceableDataset) else None,
        captions=tuple(captions),
        view_captions=of_views,
        views=int(batch.view_counts[row]),
    )


def _absolute(name: str) -> str:
    """A path that exists made absolute, so that the index can be searched from another folder; names as they are."""
    path = Path(name).expanduser()
    return name if name.startswith(PACKAGE) or name == "demo" or not path.exists() else str(path.resolve())
