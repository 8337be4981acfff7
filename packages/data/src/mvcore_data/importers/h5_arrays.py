"""One array of an HDF5 file that another program wrote, read a row at a time.

HDF5 can crash or hang on damaged metadata, so a child process with limits opens the file first and tells where the
array lies. A contiguous array is then read from its place in the file, without HDF5; a chunked one by HDF5, one slice
a row: a list of indices on five dimensions takes 40 ms where a slice takes microseconds.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray

from mvcore_data.source_images import UnusableError

MAX_ROW_BYTES = 1 << 30
"""Most bytes of a row, and of a chunk: what a hostile shape can ask of memory."""

PROBE_SECONDS = 120
_MEMORY_BYTES = 8 << 30
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}


class UnreadableError(Exception):
    """Why a dataset cannot be taken."""


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
    command = [sys.executable, "-P", "-m", __name__, str(path), name]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise DataError(f"{path}: HDF5 does not open it in {PROBE_SECONDS} s, so it is damaged; get it again") from None
    if done.returncode < 0:
        raise DataError(f"{path}: opening it kills the HDF5 library, so it is damaged or hostile; do not use it")
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no answer"])[-1]
        raise DataError(f"{path}: HDF5 cannot open it ({reason})") from None
    if isinstance(answer, str):
        raise DataError(f"{path}: {answer}")
    return Layout(tuple(answer["shape"]), answer["dtype"], answer["offset"])


def _describe(path: str, name: str) -> dict[str, Any]:
    """The layout of a dataset, in the child.

    Raises:
        UnreadableError: it is not one that can be read safely.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _checked_layout(file, name, Path(path).stat().st_size)
    except UnreadableError:
        raise
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError, ValueError and more on damage
        raise UnreadableError(
            f"no readable HDF5 file ({(str(error).splitlines() or [type(error).__name__])[0]})"
        ) from None


def _checked_layout(file: h5py.File, name: str, file_size: int) -> dict[str, Any]:
    names = list(file)  # not `name in file`, which follows links
    if name not in names:
        there = ", ".join(names[:8]) or "nothing"
        raise UnreadableError(f"has no dataset {name!r} (it has {there})")
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise UnreadableError(f"/{name} is a link to another place; links are not followed")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise UnreadableError(f"/{name} is not a dataset")
    if dataset.is_virtual or dataset.external:
        raise UnreadableError(f"/{name} lies in other files; only data of the file itself is read")
    layout = dataset.id.get_create_plist()
    offset = None
    if layout.get_layout() == h5py.h5d.CHUNKED:
        _check_chunks(dataset, layout)
    else:
        offset = dataset.id.get_offset()
        stored = dataset.id.get_storage_size()
        if offset is None or stored < dataset.nbytes or offset + dataset.nbytes > file_size:
            raise UnreadableError(f"/{name} is not stored in full: the file is truncated or was never written")
    return {"shape": dataset.shape, "dtype": dataset.dtype.str, "offset": offset}


def _check_chunks(dataset: h5py.Dataset, layout: Any) -> None:
    if math.prod(dataset.chunks or ()) * dataset.dtype.itemsize > MAX_ROW_BYTES:
        raise UnreadableError(f"{dataset.name} has chunks of shape {dataset.chunks}, more than {MAX_ROW_BYTES} bytes")
    filters = {layout.get_filter(k)[0] for k in range(layout.get_nfilters())}
    if filters - _FILTERS:
        unknown = ", ".join(map(str, sorted(filters - _FILTERS)))
        raise UnreadableError(f"{dataset.name} is compressed by HDF5's filter {unknown}; gzip and lzf are read")
    dataset.id.get_num_chunks()  # walks the index of the chunks, which may be damaged too
    if dataset.size and dataset.nbytes // dataset.shape[0] <= MAX_ROW_BYTES:
        dataset[0]


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        sys.stdout.write(json.dumps(_describe(*sys.argv[1:])))
    except UnreadableError as error:
        sys.stdout.write(json.dumps(str(error)))
