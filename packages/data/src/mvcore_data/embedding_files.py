"""Files of float16 vectors: safetensors, written row by row and read row by row with `os.pread`.

The safetensors library maps a file; one that is truncated while it is mapped kills the process, and a whole array of a
large store does not belong in memory. So the format, which is a length, a JSON header and plain arrays
(https://huggingface.co/docs/safetensors), is read and written here. Beside each array of vectors stands one of CRC-32s,
a row each.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from mvcore.api import DataError
from numpy.typing import ArrayLike, NDArray

from mvcore_data.index import sync_folder

LARGEST = float(np.finfo(np.float16).max)
_MAX_HEADER = 1 << 20
_ROWS = 1 << 12
_ITEM = {"F16": 2, "U32": 4}
_NOT_ARRAYS = {"__metadata__"}


class VectorWriter:
    """Writes a file of vectors that appears whole, when the writer is closed without an error, or not at all.

    Args:
        path: the file.
        shapes: (rows, width) of each kind.
        metadata: texts for the header.
        label: how messages name row i of a kind.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, int]],
        metadata: Mapping[str, str],
        label: Callable[[str, int], str],
    ) -> None:
        self._path, self._partial = path, path.with_name(f"{path.name}.tmp")
        self._shapes, self._label = dict(shapes), label
        self._crc32 = {kind: np.zeros(count, "<u4") for kind, (count, _) in shapes.items()}
        self._written = dict.fromkeys(shapes, 0)
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        end = 0
        # The checksums first: so every array is aligned to its type.
        arrays = [(f"{kind}_crc32", "U32", [count]) for kind, (count, _) in shapes.items()]
        for name, dtype, shape in [*arrays, *((kind, "F16", list(shape)) for kind, shape in shapes.items())]:
            header[name] = _entry(dtype, shape, end)
            end = header[name]["data_offsets"][1]
        text = json.dumps(header).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        self._start = {name: 8 + len(text) + header[name]["data_offsets"][0] for name in header.keys() - _NOT_ARRAYS}
        self._file = self._partial.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, kind: str, vectors: ArrayLike) -> None:
        """Adds the next (k, D) vectors of a kind, rounded to float16.

        Raises:
            DataError: a value that is not finite or that float16 cannot hold, or another width.
        """
        values = np.asarray(vectors)
        count, width = self._shapes[kind]
        start = self._written[kind]
        if values.ndim != 2 or values.shape[1] != width or start + len(values) > count:
            raise DataError(f"{self._label(kind, start)}: vectors of shape {values.shape} where ({count}, {width}) go")
        wrong = np.flatnonzero(~(np.abs(values) <= LARGEST).all(axis=1))
        if len(wrong):
            largest = float(np.abs(values[wrong[0]]).max())
            what = f"reaches {largest:.6g}, but float16 holds {LARGEST:g} at most"
            raise DataError(
                f"{self._label(kind, start + int(wrong[0]))}: its vector "
                f"{what if np.isfinite(largest) else 'is not finite'}"
            )
        half = np.ascontiguousarray(values, "<f2")
        data, step = _bytes_of(half), 2 * width
        self._crc32[kind][start : start + len(half)] = [
            zlib.crc32(data[i * step : (i + 1) * step]) for i in range(len(half))
        ]
        self._file.seek(self._start[kind] + step * start)
        self._file.write(data)
        self._written[kind] += len(half)

    def __enter__(self) -> VectorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def _publish(self) -> None:
        for kind, (count, _) in self._shapes.items():
            if self._written[kind] != count:
                raise ValueError(f"{self._path}: {self._written[kind]} of {count} vectors of {kind} were written")
            self._file.seek(self._start[f"{kind}_crc32"])
            self._file.write(self._crc32[kind].tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._partial.replace(self._path)
        sync_folder(self._path.parent)


class VectorFile:
    """A file of vectors, every size in it checked; its rows are read when they are asked for.

    May be used from threads, forked and spawned workers; it pickles without its descriptor.

    Args:
        path: the file.
        shapes: (rows, width) of each kind.
        metadata: what its header must say.

    Attributes:
        shapes: (rows, width) of each kind.

    Raises:
        DataError: missing, truncated, damaged, or not what is expected.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, int]], metadata: Mapping[str, str]) -> None:
        self.path = path
        self._fd: int | None = None
        self._stamp = (0, 0)
        self.shapes = dict(shapes)
        try:
            header, start = self._header()
            if header.get("__metadata__") != dict(metadata):
                raise self._fault("it was made for other data or with other settings")
            self._start = {kind: start + self._place(header, kind, "F16", shape) for kind, shape in shapes.items()}
            self._crc32 = {
                kind: self._checksums(start + self._place(header, f"{kind}_crc32", "U32", (count,)), count)
                for kind, (count, _) in shapes.items()
            }
        except BaseException:
            self.close()
            raise

    def blocks(self, kind: str) -> Iterator[NDArray[np.int64]]:
        """The numbers of all rows of a kind, as many at a time as are well read at once."""
        count = self.shapes[kind][0]
        for start in range(0, count, _ROWS):
            yield np.arange(start, min(start + _ROWS, count))

    def read(self, kind: str, rows: NDArray[np.int64], label: Callable[[int], str]) -> NDArray[np.float16]:
        """(N, D) float16 vectors of a kind; `label` names a row for messages.

        Raises:
            IndexError: a row that is not there.
            DataError: its bytes are not those that were written, or not finite.
        """
        count, width = self.shapes[kind]
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
            raise IndexError(f"{self.path}: rows {int(rows.min())} to {int(rows.max())} of {count}")
        out = np.empty((len(rows), width), "<f2")
        if not out.size:
            return out
        step, data = 2 * width, _bytes_of(out)
        edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for first, last in pairwise(edges):
            place = self._start[kind] + step * int(rows[first])
            self._fill(data[first * step : last * step], place)
        for i, crc in enumerate(self._crc32[kind][rows].tolist()):
            if zlib.crc32(data[i * step : (i + 1) * step]) != crc:
                raise DataError(
                    f"{label(int(rows[i]))}: its vector is damaged ({self.path}); make the file anew with 'mvcore data "
                    "embed'"
                )
        if (wrong := ((out.view(np.uint16) & 0x7C00) == 0x7C00).any(axis=1)).any():
            raise DataError(f"{label(int(rows[wrong.argmax()]))}: its stored vector is not finite ({self.path})")
        return out

    def close(self) -> None:
        """Closes the file; reading opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fd": None}

    def __del__(self) -> None:
        if getattr(self, "_fd", None) is not None:
            self.close()

    def _fill(self, buffer: memoryview, place: int) -> None:
        try:
            read = os.preadv(self._descriptor(), [buffer], place)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from None
        if read != len(buffer):
            raise self._fault("truncated while it was read")

    def _descriptor(self) -> int:
        if self._fd is None:
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise DataError(f"{self.path}: cannot be read ({error.strerror})") from None
            stat = os.fstat(fd)
            stamp = (stat.st_size, stat.st_mtime_ns)
            if self._stamp not in ((0, 0), stamp):
                os.close(fd)
                raise DataError(f"{self.path}: changed since it was opened; open the source again")
            self._fd, self._stamp = fd, stamp
        return self._fd

    def _header(self) -> tuple[dict[str, Any], int]:
        """The header, and where the arrays begin."""
        fd = self._descriptor()
        size = self._stamp[0]
        length = int.from_bytes(os.pread(fd, 8, 0), "little")
        if not 0 < length <= min(_MAX_HEADER, size - 8):
            raise self._fault("truncated, or no safetensors file")
        try:
            header = json.loads(os.pread(fd, length, 8))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name not in _NOT_ARRAYS]
            whole = 8 + length + max(ends)
        except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
            raise self._fault("its header is damaged") from None
        if whole != size:
            what = "truncated" if size < whole else "longer than it was written"
            raise self._fault(f"{what} ({size} bytes, not {whole})")
        return header, 8 + length

    def _place(self, header: Mapping[str, Any], name: str, dtype: str, shape: tuple[int, ...]) -> int:
        """Where an array begins among the arrays, after its kind, shape and size were checked."""
        entry: Any = header.get(name)
        try:
            begin = entry["data_offsets"][0]
        except (TypeError, KeyError, IndexError):
            begin = None
        if type(begin) is not int or begin < 0 or entry != _entry(dtype, list(shape), begin):
            raise self._fault(f"{name!r} is not {dtype} of shape {list(shape)}")
        return begin

    def _checksums(self, place: int, count: int) -> NDArray[np.uint32]:
        found = np.empty(count, "<u4")
        if count:
            self._fill(_bytes_of(found), place)
        return found

    def _fault(self, text: str) -> DataError:
        return DataError(f"{self.path}: {text}; make it anew with 'mvcore data embed'")


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def _entry(dtype: str, shape: list[int], begin: int) -> dict[str, Any]:
    size = _ITEM[dtype] * int(np.prod(shape, dtype=np.int64))
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
