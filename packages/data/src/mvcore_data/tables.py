"""The datasets of one shard, each handed out only after its kind, type, shape and place in the file were checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5l  # pyright: ignore[reportAttributeAccessIssue]
from mvcore.api import DataError
from numpy.typing import NDArray

from mvcore_data.schema import MAX_NAME_BYTES, SCHEMA, VERSION


@dataclass(frozen=True)
class Blob:
    """Byte strings of variable length, one after another in the file: entry i lies at `start + offset[i]`."""

    start: int
    offset: NDArray[np.int64]
    crc32: NDArray[np.uint32]

    @property
    def length(self) -> int:
        """Bytes in all."""
        return int(self.offset[-1])


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except DataError:
        raise
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError, ValueError and more on damage
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: not a readable shard ({reason})") from None


class Tables:
    """Reads the datasets of one file, each only after its kind, type, shape and place were checked."""

    def __init__(self, file: h5py.File, path: Path, file_size: int) -> None:
        self.file = file
        self.path = path
        self.file_size = file_size

    def require(self, condition: bool, fault: str) -> None:
        """Raises a DataError about this file unless the condition holds."""
        if not condition:
            raise self.fault(fault)

    def fault(self, text: str) -> DataError:
        """What is wrong with this file, as an error."""
        return DataError(f"{self.path}: damaged: {text}; copy the shard again")

    def attribute(self, name: str, kind: type) -> Any:
        """A scalar attribute of the file."""
        value = self.file.attrs.get(name)
        value = value.item() if isinstance(value, np.generic) else value
        self.require(isinstance(value, kind), f"attribute {name!r} is missing or of the wrong type")
        return value

    def counts(self) -> tuple[int, int]:
        """Objects and views, after schema and version were checked."""
        if self.file.attrs.get("schema") != SCHEMA:
            raise DataError(
                f"{self.path}: not a {SCHEMA} shard; make one with 'mvcore data pack' or 'mvcore data render'"
            )
        version = self.attribute("version", int)
        if version != VERSION:
            raise DataError(
                f"{self.path}: {SCHEMA} version {version}, but version {VERSION} is read; upgrade mvcore-data"
            )
        self.require(self.attribute("complete", bool), "it was never finished")
        n_objects, n_views = self.attribute("n_objects", int), self.attribute("n_views", int)
        if n_objects == 0:
            raise DataError(f"{self.path}: empty, it holds no objects")
        self.require(0 < n_objects <= n_views <= self.file_size, "impossible counts of objects and views")
        return n_objects, n_views

    def holds(self, name: str) -> bool:
        """Whether there is a group or dataset of this name, or a link to one."""
        group, _, last = name.rpartition("/")
        return _link_kind(self.file[group] if group else self.file, last) is not None

    def dataset(self, name: str) -> h5py.Dataset:
        """A dataset of this very file: no link leaves it, and its bytes are stored plainly and in full."""
        group: Any = self.file
        for part in name.split("/"):
            self.require(isinstance(group, h5py.Group), f"/{name} is missing")
            kind = _link_kind(group, part)
            self.require(kind is not None, f"/{name} is missing")
            self.require(kind == h5l.TYPE_HARD, f"/{name} is a link, which is not allowed")
            group = group[part]
        self.require(isinstance(group, h5py.Dataset), f"/{name} is not a dataset")
        create = group.id.get_create_plist()
        plain = create.get_layout() in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS) and create.get_external_count() == 0
        self.require(plain and create.get_nfilters() == 0, f"/{name} is chunked, filtered, external or virtual")
        return group

    def array(self, name: str, dtype: str, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        """A whole dataset of the given type and shape (None: any length)."""
        dataset = self.dataset(name)
        self.require(dataset.dtype == np.dtype(dtype), f"/{name} holds {dataset.dtype}, not {np.dtype(dtype)}")
        wanted = (len(dataset),) if shape is None and dataset.ndim == 1 else shape
        self.require(dataset.shape == wanted, f"/{name} has shape {dataset.shape}, not {wanted}")
        self.require(
            dataset.id.get_storage_size() == dataset.nbytes <= self.file_size, f"/{name} is not stored in full"
        )
        return dataset[()]

    def strings(self, name: str, count: int | None = None) -> list[str]:
        """UTF-8 strings of a fixed length."""
        dataset = self.dataset(name)
        kind = h5py.check_string_dtype(dataset.dtype)
        fixed = kind is not None and kind.encoding == "utf-8" and kind.length is not None
        self.require(
            fixed and dataset.dtype.itemsize <= MAX_NAME_BYTES, f"/{name} does not hold UTF-8 of a fixed length"
        )
        raw = self.array(name, dataset.dtype.str, None if count is None else (count,))
        try:
            return [bytes(value).decode() for value in raw]
        except UnicodeDecodeError:
            raise self.fault(f"/{name} is not UTF-8") from None

    def blob(self, group: str, count: int) -> Blob:
        """The blob of a group with its offsets and checksums."""
        dataset = self.dataset(f"{group}/blob")
        start = dataset.id.get_offset()
        contiguous = dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
        right = contiguous and start is not None and dataset.dtype == np.uint8 and dataset.ndim == 1
        if not right or start is None:
            raise self.fault(f"/{group}/blob is not one contiguous run of bytes")
        length = dataset.shape[0]
        self.require(start + length <= self.file_size, f"/{group}/blob goes beyond the end of the file")
        offset = self.array(f"{group}/offset", "i8", (count + 1,))
        self.check_offsets(group, offset, length)
        return Blob(start, offset, self.array(f"{group}/crc32", "u4", (count,)))

    def check_offsets(self, group: str, offset: NDArray[np.int64], length: int) -> None:
        """Offsets must rise from 0 to the blob's length."""
        right = offset[0] == 0 and offset[-1] == length and np.all(offset[1:] >= offset[:-1])
        self.require(bool(right), f"/{group}/offset does not rise from 0 to the {length} bytes of its blob")


def _link_kind(group: Any, name: str) -> int | None:
    """The kind of a link, or None; `in` and `get` of h5py would open the file that an external link names."""
    links: Any = group.id.links
    return links.get_info(name.encode()).type if links.exists(name.encode()) else None
