"""Where a dataset of an HDF5 file of another program lies: what `sandbox` runs in a child, so it imports little."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
from mvcore.api import DataError

MAX_ROW_BYTES = 1 << 30
"""Most bytes of a row, and of a chunk: what a hostile shape can ask of memory."""

_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}


class _Unreadable(Exception):  # noqa: N818 - a reason, made a DataError with the file's name
    """Why a dataset cannot be taken."""


def try_dataset(path: str, name: str) -> dict[str, Any]:
    """The layout of a dataset, in the child.

    Raises:
        DataError: it is not one that can be read safely.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _checked_layout(file, name, Path(path).stat().st_size)
    except _Unreadable as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError, ValueError and more on damage
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: no readable HDF5 file ({reason})") from None


def _checked_layout(file: h5py.File, name: str, file_size: int) -> dict[str, Any]:
    names = list(file)  # not `name in file`, which follows links
    if name not in names:
        there = ", ".join(names[:8]) or "nothing"
        raise _Unreadable(f"has no dataset {name!r} (it has {there})")
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise _Unreadable(f"/{name} is a link to another place; links are not followed")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise _Unreadable(f"/{name} is not a dataset")
    if dataset.is_virtual or dataset.external:
        raise _Unreadable(f"/{name} lies in other files; only data of the file itself is read")
    layout = dataset.id.get_create_plist()
    offset = None
    if layout.get_layout() == h5py.h5d.CHUNKED:
        _check_chunks(dataset, layout)
    else:
        offset = dataset.id.get_offset()
        stored = dataset.id.get_storage_size()
        if offset is None or stored < dataset.nbytes or offset + dataset.nbytes > file_size:
            raise _Unreadable(f"/{name} is not stored in full: the file is truncated or was never written")
    return {"shape": dataset.shape, "dtype": dataset.dtype.str, "offset": offset}


def _check_chunks(dataset: h5py.Dataset, layout: Any) -> None:
    if math.prod(dataset.chunks or ()) * dataset.dtype.itemsize > MAX_ROW_BYTES:
        raise _Unreadable(f"{dataset.name} has chunks of shape {dataset.chunks}, more than {MAX_ROW_BYTES} bytes")
    filters = {layout.get_filter(k)[0] for k in range(layout.get_nfilters())}
    if filters - _FILTERS:
        unknown = ", ".join(map(str, sorted(filters - _FILTERS)))
        raise _Unreadable(f"{dataset.name} is compressed by HDF5's filter {unknown}; gzip and lzf are read")
    dataset.id.get_num_chunks()  # walks the index of the chunks, which may be damaged too
    if dataset.size and dataset.nbytes // dataset.shape[0] <= MAX_ROW_BYTES:
        dataset[0]
