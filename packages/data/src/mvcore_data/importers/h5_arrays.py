"""One array of an HDF5 file that another program wrote, read a row at a time.

HDF5 can crash or hang on damaged metadata, so a child process with limits opens the file first and tells where the
array lies. A contiguous array is then read from its place in the file, without HDF5; a chunked one by HDF5, one slice
a row: a list of indices on five dimensions takes 40 ms where a slice takes microseconds.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray

from mvcore_data import sandbox
from mvcore_data.h5_layout import MAX_ROW_BYTES
from mvcore_data.source_images import UnusableError

PROBE_SECONDS = 120
_MEMORY_BYTES = 8 << 30
_TRY = "mvcore_data.h5_layout:try_dataset"


@dataclass(frozen=True)
class Layout:
    """Where an array stands in its file; `offset` is None where it is chunked."""

    shape: tuple[int, ...]
    dtype: str
    offset: int | None


class RowArray:
    """An array of a file, row by row; may be used from threads and forked processes.

    Args:
        path: the HDF5 file.
        name: of the dataset at its root.
        dtypes: the types that it may have, as numpy writes them (`|u1`, `<f2`).
        ndim: how many dimensions it must have.

    Attributes:
        shape: of the array.

    Raises:
        DataError: no such file or dataset, of another type or shape, a link, a virtual dataset, one in other files, or
            damaged.
    """

    def __init__(self, path: Path, name: str, dtypes: tuple[str, ...], ndim: int) -> None:
        self.path, self.name = path, name
        layout = _probe(path, name)
        self.shape, self._dtype, self._offset = layout.shape, np.dtype(layout.dtype), layout.offset
        if layout.dtype not in dtypes or len(self.shape) != ndim or 0 in self.shape:
            wanted = " or ".join(np.dtype(dtype).name for dtype in dtypes)
            raise DataError(
                f"{path}: /{name} is {self._dtype.name} of shape {self.shape}, not {wanted} of {ndim} dimensions"
            )
        self._row_bytes = math.prod(self.shape[1:]) * self._dtype.itemsize
        if self._row_bytes > MAX_ROW_BYTES:
            raise DataError(f"{path}: a row of /{name} has {self._row_bytes} bytes, more than {MAX_ROW_BYTES}")
        self._file: tuple[int, h5py.File] | None = None

    def row(self, i: int) -> NDArray[Any]:
        """Row i, read in one go.

        Raises:
            UnusableError: it cannot be read.
        """
        try:
            return self._chunked(i) if self._offset is None else self._contiguous(i, self._offset)
        except OSError as error:
            raise UnusableError(f"the row cannot be read ({(str(error).splitlines() or ['damaged'])[0]})") from None

    def _contiguous(self, i: int, offset: int) -> NDArray[Any]:
        data = bytearray()
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset + i * self._row_bytes)
            while len(data) < self._row_bytes and (part := file.read(self._row_bytes - len(data))):
                data += part
        if len(data) < self._row_bytes:
            raise UnusableError("the file ends before the row does")
        return np.frombuffer(data, self._dtype).reshape(self.shape[1:])

    def _chunked(self, i: int) -> NDArray[Any]:
        if self._file is None or self._file[0] != os.getpid():
            self._file = os.getpid(), h5py.File(self.path, "r", locking=False)
        dataset = self._file[1][self.name]
        if not isinstance(dataset, h5py.Dataset) or dataset.shape != self.shape or dataset.dtype != self._dtype:
            raise UnusableError("the file changed while it was read")
        return dataset[i]


def _probe(path: Path, name: str) -> Layout:
    """What a child process finds out about a dataset."""
    if not path.is_file():
        raise DataError(f"{path}: {'is not a plain file' if path.exists() else 'no such file'}")
    try:
        answer = sandbox.call(_TRY, str(path.absolute()), name, seconds=PROBE_SECONDS, memory=_MEMORY_BYTES)
    except sandbox.SandboxError as error:
        raise DataError(f"{path}: opening it {error}, so it is damaged or hostile; do not use it") from None
    return Layout(tuple(answer["shape"]), answer["dtype"], answer["offset"])
