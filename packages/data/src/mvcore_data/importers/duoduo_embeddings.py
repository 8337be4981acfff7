"""Duoduo CLIP's embedding files as vectors by object: `img_feat`, and MVImgNet's `text_feat`, in HDF5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvcore_data.importers.duoduo_files import index_of, read_rows
from mvcore_data.importers.h5_arrays import RowArray
from mvcore_data.source_images import UnusableError


class DuoduoEmbeddings:
    """The vectors of an HDF5 file, (N, V, D) float16 or float32; nothing but one object's is held in memory.

    Args:
        path: the HDF5 file.
        dataset: `img_feat` (a vector a view), or `text_feat` (a vector for the caption of each view).
        index: the JSON of rows by object id; by default the one beside the file.

    Attributes:
        dim: D.
        views: V.
        ids: object ids, in the order of the rows.

    Raises:
        DataError: no such file or dataset, or the index does not fit it.
    """

    def __init__(self, path: Path, dataset: str = "img_feat", index: Path | None = None) -> None:
        self._array = RowArray(path, dataset, ("<f2", "<f4"), 3)
        _, self.views, self.dim = self._array.shape
        rows = read_rows(index or index_of(path), self._array.shape[0])
        self.ids = list(rows.values())
        self._row_of = {name: row for row, name in rows.items()}

    def of(self, name: str) -> NDArray[np.float16]:
        """(V, D) vectors of an object.

        Raises:
            UnusableError: they were never written (all zero), or float16 cannot hold them.
        """
        vectors = self._array.row(self._row_of[name])
        if not vectors.any():
            raise UnusableError("never written: the vectors are zero")
        with np.errstate(over="ignore"):
            half = vectors.astype(np.float16)
        if not np.isfinite(half).all():
            raise UnusableError("the vectors are not finite in float16")
        return half
