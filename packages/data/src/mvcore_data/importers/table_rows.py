"""Rows of CSV and Parquet files by number, with no more of a CSV file in memory than where each row lies."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray

Row: TypeAlias = dict[str, str]

_MAX_CELL = 1 << 20
_MAX_LINE = 1 << 22


class Rows(Protocol):
    """A table; cells are texts without spaces around them, and empty where they hold nothing."""

    path: Path

    @property
    def columns(self) -> Sequence[str]:
        """Their names."""
        ...

    def __len__(self) -> int: ...

    def row(self, number: int) -> Row:
        """The cells of a row by their columns."""
        ...

    def keys(self, column: str) -> NDArray[np.int64]:
        """A number for each row; equal texts in the column have equal numbers."""
        ...


class CsvRows:
    """A CSV file with a header, UTF-8; a cell in quotes may span lines.

    Args:
        path: the file.
        delimiter: what stands between cells.

    Raises:
        DataError: it cannot be read, is not UTF-8, or its header is empty or repeats a name.
    """

    def __init__(self, path: Path, delimiter: str) -> None:
        if len(delimiter) != 1:
            raise DataError(f"{path}: the delimiter {delimiter!r} is not one character")
        self.path = path
        self._delimiter = delimiter
        self._offsets: NDArray[np.int64] | None = None
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        header = next((cells for _, _, cells in self._scan()), [])
        self.columns: Sequence[str] = [name.strip() for name in header]
        if not any(self.columns) or len(set(self.columns)) < len(self.columns):
            raise DataError(f"{path}: its first line is no header of distinct column names")

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def __len__(self) -> int:
        return len(self._places()) // 2

    def row(self, number: int) -> Row:
        begin, end = self._places()[2 * number : 2 * number + 2].tolist()
        text = os.pread(self._fd, end - begin, begin).decode()
        return self._named(next(csv.reader(StringIO(text, newline="\n"), delimiter=self._delimiter)))

    def keys(self, column: str) -> NDArray[np.int64]:
        at = self.columns.index(column)
        keys = array("q")
        for _, _, cells in self._body():
            keys.append(_digest(cells[at].strip() if at < len(cells) else ""))
        return np.frombuffer(keys, np.int64)

    def _named(self, cells: list[str]) -> Row:
        return {name: cell.strip() for name, cell in zip(self.columns, cells, strict=False)}

    def _places(self) -> NDArray[np.int64]:
        if self._offsets is None:
            offsets = array("q")
            for begin, end, _ in self._body():
                offsets.extend((begin, end))
            self._offsets = np.frombuffer(offsets, np.int64)
        return self._offsets

    def _body(self) -> Iterator[tuple[int, int, list[str]]]:
        rows = self._scan()
        next(rows)
        yield from rows

    def _scan(self) -> Iterator[tuple[int, int, list[str]]]:
        """(begin, end, cells) of the header and of each row; empty lines left out."""
        csv.field_size_limit(_MAX_CELL)
        lines = _Lines(self.path)
        try:
            reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
            begin = 0
            for cells in reader:
                if cells:
                    yield begin, lines.place, cells
                begin = lines.place
        except UnicodeDecodeError:
            raise DataError(f"{self.path}: line {lines.number} is not UTF-8") from None
        except csv.Error as error:
            raise DataError(f"{self.path}: line {lines.number} is no CSV ({error})") from None


class _Lines:
    """The lines of a file as text, and the byte behind the last one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.place = 0
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(_MAX_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == _MAX_LINE:
            raise csv.Error(f"longer than {_MAX_LINE} bytes")
        first = self.place == 0
        self.place += len(line)
        return line.decode("utf-8-sig" if first else "utf-8")


class ParquetRows:
    """A Parquet file, whose text columns are held in memory as Arrow columns.

    Raises:
        DataError: pyarrow is not installed, or the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise DataError(f"{path}: Parquet needs pyarrow; pip install 'mvcore-data[parquet]'") from None
        try:
            self._table: Any = parquet.read_table(path, memory_map=True)
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path}: no readable Parquet file ({str(error).splitlines()[0]})") from None
        self.columns: Sequence[str] = list(self._table.column_names)

    def __len__(self) -> int:
        return self._table.num_rows

    def row(self, number: int) -> Row:
        cells = self._table.slice(number, 1).to_pylist()[0]
        return {name: _cell(value) for name, value in cells.items()}

    def keys(self, column: str) -> NDArray[np.int64]:
        keys = array("q")
        for chunk in self._table.column(column).chunks:
            keys.extend(_digest(_cell(value)) for value in chunk.to_pylist())
        return np.frombuffer(keys, np.int64)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), signed=True)
