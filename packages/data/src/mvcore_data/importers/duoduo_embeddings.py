"""Duoduo CLIP's embedding files as vectors by object: `img_feat`, `text_feat` in HDF5, and pickled text features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray

from mvcore_data.importers.base import Skipped
from mvcore_data.importers.duoduo_files import index_of, read_dictionary, read_rows
from mvcore_data.importers.h5_arrays import RowArray
from mvcore_data.source_images import UnusableError

TEXT_FEATURES = ("text_feat", "msft_caption_feat", "blip_caption_feat", "retrieval_text_feat")
"""Features of an entry of the text dictionary, in the order of `duoduo_files.TEXT_KEYS`."""


class DuoduoEmbeddings:
    """The vectors of an HDF5 file, object by object; nothing but one object's is held in memory.

    Args:
        path: the HDF5 file.
        dataset: `img_feat` (one vector a view), or MVImgNet's `text_feat` (one a view's caption): (N, V, D) or (N, D),
            float16 or float32.
        index: the JSON of rows by object id; by default the one beside the file.

    Attributes:
        dim: D.
        views: V; 1 where the array has one vector an object.
        ids: object ids, in the order of the rows.

    Raises:
        DataError: no such file or dataset, or the index does not fit it.
    """

    def __init__(self, path: Path, dataset: str = "img_feat", index: Path | None = None) -> None:
        ndim = 3 if dataset != "shape_feat" else 2
        self._array = RowArray(path, dataset, ("<f2", "<f4"), ndim)
        self.dim = self._array.shape[-1]
        self.views = self._array.shape[1] if ndim == 3 else 1
        self._rows = read_rows(index or index_of(path), self._array.shape[0])
        self.ids = list(self._rows.values())
        self._row_of = {name: row for row, name in self._rows.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, name: str) -> NDArray[np.float16]:
        """(V, D) vectors of an object.

        Raises:
            UnusableError: they were never written, or float16 cannot hold them.
        """
        return _half(self._array.row(self._row_of[name]).reshape(self.views, self.dim))

    def read(self, skipped: Skipped) -> Iterator[tuple[str, NDArray[np.float16]]]:
        """(object id, (V, D) float16) in the order of the rows.

        Rows that are all zero were never written; they are left out, as are rows that float16 cannot hold.
        """
        for row, name in self._rows.items():
            where = f"{self._array.path}: {self._array.name}[{row}]"
            try:
                yield name, self.of(name)
            except UnusableError as error:
                skipped.add(str(error), where)


def text_features(path: Path, *, allow_pickle: bool) -> Iterator[tuple[str, dict[str, NDArray[np.float16]]]]:
    """The features of a text dictionary: for each object (n, D) float16 by the names of `TEXT_FEATURES`.

    An entry holds arrays, lists of them, or OpenShape's dictionaries, of which `original` counts.

    Raises:
        ConfigError: it is a pickle, and pickles were not allowed.
        DataError: it cannot be read, or a feature is no vector.
    """
    for name, entry in read_dictionary(path, allow_pickle=allow_pickle).items():
        if not isinstance(entry, dict):
            continue
        found = {key: _vectors(entry[key], f"{path}: {name!r}: {key}") for key in TEXT_FEATURES if key in entry}
        yield name, {key: vectors for key, vectors in found.items() if len(vectors)}


def _half(vectors: NDArray[Any]) -> NDArray[np.float16]:
    if not vectors.any():
        raise UnusableError("never written: the vectors are zero")
    with np.errstate(over="ignore"):
        half = vectors.astype(np.float16)
    if not np.isfinite(half).all():
        raise UnusableError("the vectors are not finite in float16")
    return half


def _vectors(value: Any, owner: str) -> NDArray[np.float16]:
    parts = value if isinstance(value, (list, tuple)) else [value]
    try:
        arrays = [np.asarray(part["original"] if isinstance(part, dict) else part, np.float32) for part in parts]
        rows = [array.reshape(-1, array.shape[-1]) for array in arrays]
        stacked = np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)
        return _half(stacked) if stacked.size else stacked.astype(np.float16)
    except (KeyError, IndexError, TypeError, ValueError, UnusableError) as error:
        raise DataError(f"{owner}: no vectors ({(str(error).splitlines() or [type(error).__name__])[0]})") from None
