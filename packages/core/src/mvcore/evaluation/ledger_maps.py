"""The arrays behind the ledger's pictures, in a file of their own: view by view, and all pairs of some objects."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvcore.errors import DataError
from mvcore.evaluation.embedder import Embedder, Viewpoints
from mvcore.evaluation.files import write_atomic
from mvcore.evaluation.moments import unit_rows
from mvcore.evaluation.similarity import view_similarity_map
from mvcore.parts import IndexedDataset

MOST_VIEWS = 144
"""Views of an object beyond which there is no view-by-view map."""
MOST_ROWS = 360
"""Rows of the all-pairs map."""
_VIEWS_OF_EACH = 6
_SAME_PLACE = 1.0
"""Degrees within which view i of every object counts as one viewpoint."""
_MOST_BYTES = 1 << 26


@dataclass(frozen=True)
class Maps:
    """What is drawn of a source.

    Args:
        mean, std: (V, V) mean and deviation (ddof 1) over objects of the cosine of view i and view j; (0, 0) where
            objects have unequally many views, or one.
        elevations, azimuths: (V,) degrees of view i, NaN where it is not the same in all objects.
        pairs: (R, R) cosines of views of some objects, ordered by category and name.
        categories, objects: (R,) of each row.
    """

    mean: NDArray[np.floating]
    std: NDArray[np.floating]
    elevations: NDArray[np.floating]
    azimuths: NDArray[np.floating]
    pairs: NDArray[np.floating]
    categories: NDArray[np.str_]
    objects: NDArray[np.str_]


def save_maps(embedder: Embedder, source: str, dataset: IndexedDataset, output: Path) -> Path:
    """Writes `maps-<source>.npz` into `output`."""
    embedded = embedder.embed(source, dataset)
    views, counts = embedded.features["view"], torch.bincount(embedded.object_of_view, minlength=len(dataset))
    arrays: dict[str, Any] = _view_by_view(views, counts, embedder.viewpoints(source, dataset)) | _all_pairs(
        views, counts, dataset
    )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = output / f"maps-{source}.npz"
    write_atomic(path, buffer.getvalue())
    return path


def load_maps(path: Path) -> Maps:
    """Reads what `save_maps` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES} bytes")
        with np.load(path, allow_pickle=False) as archive:
            found = Maps(**{name: archive[name] for name in Maps.__dataclass_fields__})
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no maps of a ledger ({error}); evaluate the run again") from error
    views, rows = len(found.mean), len(found.pairs)
    shapes = (found.mean.shape, found.std.shape, found.pairs.shape, found.categories.shape, found.objects.shape)
    if shapes != ((views, views), (views, views), (rows, rows), (rows,), (rows,)) or views > MOST_VIEWS:
        raise DataError(f"{path}: damaged: shapes {shapes}; evaluate the run again")
    return found


def _view_by_view(views: Tensor, counts: Tensor, viewpoints: Viewpoints) -> dict[str, Any]:
    count, objects = int(counts[0]), len(counts)
    if bool((counts != count).any()) or not 2 <= count <= MOST_VIEWS:
        none = np.empty(0, np.float32)
        return {"mean": none.reshape(0, 0), "std": none.reshape(0, 0), "elevations": none, "azimuths": none}
    mean, std = view_similarity_map(views.view(objects, count, -1))
    elevations = viewpoints.elevations.view(objects, count).numpy()
    azimuths = viewpoints.azimuths.view(objects, count).numpy()
    return {
        "mean": mean.astype(np.float32),
        "std": std.astype(np.float32),
        "elevations": _common(elevations),
        "azimuths": _common(azimuths),
    }


def _common(angles: NDArray[np.floating]) -> NDArray[np.floating]:
    """(V,) the angle of view i where it is one in all objects (O, V), else NaN."""
    first = angles[0]
    apart = np.abs((angles - first + 180) % 360 - 180).max(axis=0)
    return np.where(apart <= _SAME_PLACE, first, np.nan).astype(np.float32)


def _all_pairs(views: Tensor, counts: Tensor, dataset: IndexedDataset) -> dict[str, Any]:
    order = sorted(range(len(dataset)), key=lambda i: (dataset.category(i) or "", dataset.object_name(i)))
    each = len(views) if len(views) <= MOST_ROWS else _VIEWS_OF_EACH
    most = max(1, MOST_ROWS // min(each, int(counts.max()))) if len(views) > MOST_ROWS else len(order)
    places = np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(np.int64))
    starts = (torch.cumsum(counts, 0) - counts).tolist()
    rows: list[int] = []
    owners: list[int] = []
    for i in (order[int(place)] for place in places):
        count = int(counts[i])
        picked = np.unique(np.linspace(0, count - 1, min(each, count)).round().astype(np.int64))
        rows += [starts[i] + int(view) for view in picked]
        owners += [i] * len(picked)
    unit = unit_rows(views, torch.tensor(rows), "views")
    return {
        "pairs": (unit @ unit.T).numpy().astype(np.float16),
        "categories": np.array([dataset.category(i) or "" for i in owners], np.str_),
        "objects": np.array([dataset.object_name(i) for i in owners], np.str_),
    }
