"""What a dataset must keep to."""

from __future__ import annotations

import io
import itertools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mvcore import build
from mvcore.packing import concatenate
from mvcore.parts import IndexedDataset, StreamDataset
from mvcore.plugins import Registered
from mvcore.specs import BATCH_FIELDS
from mvcore.testing.bench import Args, chosen_args, registered
from mvcore.testing.findings import Examination, Finding, Skip, Unfit, require
from mvcore.testing.global_state import unchanged
from mvcore.types import ViewBatch

_LOOKED_AT = 4
"""Objects that are loaded."""


def check_dataset(dataset: str | Registered, *, args: Args | None = None) -> tuple[Finding, ...]:
    """Reads a few objects of a dataset, here and in a worker.

    An indexed one must give the views that it is asked for, in that order, with ids that are its own alone and exactly
    the fields that it provides; the same each time without a generator and for the same generator; and be picklable. A
    stream must give one object at a time, go on from its `state_dict`, and begin alike each time.

    Args:
        dataset: its id, as `mymethod.tar`, of an installed or registered plugin.
        args: its options; for the rest, each field's first example or its default.

    Returns:
        What was looked at; a check that could not be made says why.

    Raises:
        ConformanceError: a fault, one line for each.
        PluginError: no such dataset.
    """
    part = registered(dataset, "dataset")
    exam = Examination(f"dataset {part.id}")
    made: Any = None
    with exam.check("construction"):
        options = build.options(part, chosen_args(part, args), part.id)
        build.make(part, options)  # what is imported or written at the first opening is no fault
        with unchanged():
            made = build.make(part, options)
    if made is None:
        return exam.result()
    with exam.check("provides"):
        _check_provides(made)
    if isinstance(made, IndexedDataset):
        _examine_indexed(exam, made)
    elif isinstance(made, StreamDataset):
        _examine_stream(exam, made, lambda: build.make(part, options))
    else:
        with exam.check("interface"):
            lacking = [name for name in _INDEXED if not hasattr(made, name)]
            raise Unfit(f"it lacks {', '.join(lacking)} of mvcore.api.IndexedDataset")
    return exam.result()


_INDEXED = (
    "image_size",
    "store_key",
    "n_store_objects",
    "n_store_views",
    "views_of",
    "load",
    "object_name",
    "category",
)


def _check_provides(made: Any) -> None:
    if unknown := sorted(set(made.provides) - BATCH_FIELDS):
        raise Unfit(
            f"provides has {unknown[0]!r}, which is no field of a batch (known: {', '.join(sorted(BATCH_FIELDS))})"
        )


def _examine_indexed(exam: Examination, made: IndexedDataset) -> None:
    with exam.check("objects and views"):
        _check_ids(made)
    if not exam.passed("objects and views"):
        return
    with exam.check("batches"):
        for i in _some(made):
            _check_batch(made.load(i, made.views_of(i), None), made, made.views_of(i))
            _check_batch(made.load(i, made.views_of(i), np.random.default_rng(0)), made, made.views_of(i))
    if not exam.passed("batches"):
        return
    with exam.check("no global state"), unchanged():
        made.load(0, made.views_of(0), np.random.default_rng(0))
    with exam.check("same input, same batch"):
        for rng in (lambda: None, lambda: np.random.default_rng(7)):
            same_batch(made.load(0, made.views_of(0), rng()), made.load(0, made.views_of(0), rng()), "loaded twice")
    with exam.check("order of views"):
        _check_order(made)
    with exam.check("one view at a time"):
        _check_single(made)
    with exam.check("many objects at once"):
        _check_many(made)
    with exam.check("pickling"):
        copy = _pickled(made)
        for i in _some(made):
            same_batch(made.load(i, made.views_of(i), None), copy.load(i, copy.views_of(i), None), "loaded by a copy")
    with exam.check("in a worker"):
        loader = DataLoader(_Items(made), batch_size=None, num_workers=1)
        for i, batch in enumerate(loader):
            same_batch(made.load(i, made.views_of(i), None), batch, "loaded by a worker")


def _some(made: IndexedDataset) -> range:
    return range(min(_LOOKED_AT, len(made)))


def _check_ids(made: IndexedDataset) -> None:
    require(len(made) >= 1, "it holds no object")
    require(isinstance(made.store_key, str) and bool(made.store_key), "store_key must be a text that names the store")
    owner: dict[int, int] = {}
    names: dict[str, int] = {}
    for i in range(len(made)):
        views = [int(view) for view in made.views_of(i)]
        require(bool(views), f"object {i} has no view; leave it out")
        for view in views if "view_ids" in made.provides else ():
            if view in owner:
                raise Unfit(f"view id {view} is object {owner[view]}'s and object {i}'s; ids are unique in a store")
            require(0 <= view < made.n_store_views, f"view id {view} is outside of 0 .. {made.n_store_views - 1}")
            owner[view] = i
        name = made.object_name(i)
        require(
            isinstance(name, str) and name not in names, f"object {i} is named {name!r}, as object {names.get(name)}"
        )
        names[name] = i
        category = made.category(i)
        require(category is None or isinstance(category, str), f"category({i}) is {category!r}; give a word or None")


def _check_batch(batch: Any, made: Any, views: Sequence[int] | None) -> None:
    require(
        isinstance(batch, ViewBatch), f"it gives a {type(batch).__name__} where a ViewBatch belongs; use ViewBatch.make"
    )
    require(batch.n_objects == 1, f"a batch holds {batch.n_objects} objects; give one at a time")
    if views is not None:
        require(batch.n_views == len(views), f"{len(views)} views were asked for and {batch.n_views} given")
    present = {name for name in BATCH_FIELDS if _holds(batch, name)}
    # Captions may be absent: an object may have none.
    if missing := sorted(set(made.provides) - present - {"captions"}):
        raise Unfit(f"provides says {missing[0]!r}, but a batch has none; leave it out of provides, or give it")
    if beyond := sorted(present - set(made.provides)):
        raise Unfit(f"a batch has {beyond[0]!r}, which provides does not say; add it, or losses cannot ask for it")
    if batch.images is not None:
        size = (batch.n_views, 3, made.image_size, made.image_size)
        require(
            batch.images.dtype == torch.uint8 and tuple(batch.images.shape) == size,
            f"images are {tuple(batch.images.shape)} {batch.images.dtype}; give {size} uint8",
        )
    if views is not None and "view_ids" in made.provides:
        given = batch.view_ids.tolist()
        require(given == [int(view) for view in views], f"views {list(views)} were asked for, and view_ids are {given}")
    if views is not None and "object_ids" in made.provides:
        number = int(batch.object_ids[0])
        require(0 <= number < made.n_store_objects, f"object id {number} is outside of 0 .. {made.n_store_objects - 1}")


def _holds(batch: ViewBatch, name: str) -> bool:
    value = getattr(batch, name)
    if name in ("object_ids", "view_ids"):
        return bool((value >= 0).any())
    return value is not None if name not in ("captions", "embeddings") else bool(value)


def _check_order(made: IndexedDataset) -> None:
    views = list(made.views_of(0))
    if len(views) < 2:
        raise Skip("its first object has a single view")
    forth, back = made.load(0, views, None), made.load(0, views[::-1], None)
    for name, one, two in _by_view(forth, back):
        if not torch.equal(one.flip(0), two):
            raise Unfit(f"{name} does not come in the order of the views that are asked for")


def _check_single(made: IndexedDataset) -> None:
    views = list(made.views_of(0))
    whole, alone = made.load(0, views, None), made.load(0, views[-1:], None)
    for name, one, two in _by_view(whole, alone):
        if not torch.equal(one[-1:], two):
            raise Unfit(f"{name} of a view depends on which views are loaded with it")


def _by_view(one: ViewBatch, other: ViewBatch) -> list[tuple[str, Tensor, Tensor]]:
    names = ("images", "view_ids", "depth", "masks", "camera_valid", "depth_valid")
    pairs = [(name, getattr(one, name), getattr(other, name)) for name in names]
    if one.cameras is not None and other.cameras is not None:
        pairs.append(("cameras", one.cameras.world_to_camera, other.cameras.world_to_camera))
    return [(name, a, b) for name, a, b in pairs if a is not None and b is not None]


def _check_many(made: Any) -> None:
    if not hasattr(made, "load_many"):
        raise Skip("it offers no load_many")
    requests = [(i, list(made.views_of(i))) for i in _some(made)]

    def rng_of(k: int) -> np.random.Generator:
        return np.random.default_rng(k)

    each = [made.load(i, views, rng_of(k)) for k, (i, views) in enumerate(requests)]
    same_batch(concatenate(each), made.load_many(requests, rng_of), "loaded by load_many")


def same_batch(one: ViewBatch, other: ViewBatch, when: str) -> None:
    """Refuses two batches that differ in anything.

    Raises:
        Unfit: the first field that differs.
    """
    found = dict(_tensors(other))
    for name, tensor in _tensors(one):
        two = found.pop(name, None)
        if two is None or tensor.shape != two.shape or not torch.equal(tensor.nan_to_num(), two.nan_to_num()):
            raise Unfit(f"{name} is another {when}; draw from the generator that is given, and from nothing else")
    require(not found, f"{', '.join(found)} is there only {when}")
    require(tuple(one.captions) == tuple(other.captions), f"captions are others {when}")


def _tensors(batch: ViewBatch) -> list[tuple[str, Tensor]]:
    names = ("images", "view_counts", "object_ids", "view_ids", "caption_object", "caption_view", "depth", "masks")
    found: list[tuple[str, Any]] = [(name, getattr(batch, name)) for name in (*names, "camera_valid", "depth_valid")]
    if batch.cameras is not None:
        found += [("intrinsics", batch.cameras.intrinsics), ("world_to_camera", batch.cameras.world_to_camera)]
    if batch.tracks is not None:
        found += [(f"tracks.{name}", value) for name, value in sorted(vars(batch.tracks).items())]
    found += [(f"embeddings[{key}]", value) for key, value in sorted(batch.embeddings.items())]
    return [(name, value) for name, value in found if value is not None]


def _pickled(made: Any) -> Any:
    try:
        return pickle.loads(pickle.dumps(made))
    except Exception as error:
        raise Unfit(
            f"it cannot be pickled, so no worker can be given it ({type(error).__name__}: {error}); open files when "
            "they are first read, and leave them out of __getstate__"
        ) from None


class _Items(Dataset[ViewBatch]):
    """A dataset as torch's loader takes it."""

    def __init__(self, made: IndexedDataset) -> None:
        self._made = made

    def __len__(self) -> int:
        return len(_some(self._made))

    def __getitem__(self, i: int) -> ViewBatch:
        if i >= len(self):
            raise IndexError(i)
        return self._made.load(i, self._made.views_of(i), None)


# --- streams ----------------------------------------------------------------------------------------------------------


def _examine_stream(exam: Examination, made: StreamDataset, again: Callable[[], Any]) -> None:
    first: list[ViewBatch] = []
    with exam.check("batches"):
        first = list(itertools.islice(iter(made), _LOOKED_AT))
        require(bool(first), "it gives no object")
        for batch in first:
            _check_batch(batch, made, None)
    if not exam.passed("batches"):
        return
    with exam.check("no global state"), unchanged():
        next(iter(again()))
    with exam.check("begins alike"):
        for one, other in zip(first, iter(again()), strict=False):
            same_batch(one, other, "from another start")
    with exam.check("resuming"):
        _check_resuming(first, again)
    with exam.check("pickling"):
        for one, other in zip(first, iter(_pickled(again())), strict=False):
            same_batch(one, other, "from a copy")


def _check_resuming(first: list[ViewBatch], again: Callable[[], Any]) -> None:
    if len(first) < 2:
        raise Skip("it holds a single object")
    stream = again()
    iterator = iter(stream)
    for _ in range(len(first) // 2):
        next(iterator)
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    file.seek(0)
    try:
        state = torch.load(file, weights_only=True)
    except Exception:
        raise Unfit("state_dict holds more than tensors and plain values, so no run could resume") from None
    resumed = again()
    resumed.load_state_dict(state)
    for one, other in zip(first[len(first) // 2 :], iter(resumed), strict=False):
        same_batch(one, other, "after load_state_dict(state_dict())")
