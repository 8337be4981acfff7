"""Folders and files of public data sets, read with one clear line for what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from mvcore.api import DataError, resolve_path
from numpy.typing import NDArray

_MAX_BYTES = 1 << 28


def folder(text: str, what: str) -> Path:
    """An existing folder that an option names.

    Raises:
        DataError: there is none.
    """
    path = resolve_path(text, what=what)
    if not path.is_dir():
        raise DataError(f"{what} {text!r} is no folder")
    return path


def listed(path: Path, pattern: str) -> list[Path]:
    """The files of a folder that match, by name; numbers go by their value.

    Raises:
        DataError: no such folder, or no such file in it.
    """
    found = sorted(path.glob(pattern), key=lambda file: (len(file.stem) if file.stem.isdigit() else 0, file.name))
    if not found:
        raise DataError(f"{path}: holds no {pattern}")
    return found


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        DataError: absent, too large, or not UTF-8.
    """
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: cannot be read as UTF-8 text") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: absent, too large, or no JSON.
    """
    try:
        return json.loads(_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON ({error})") from None


def read_matrix(path: Path, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Numbers in rows of text, as `numpy.savetxt` writes them.

    Raises:
        DataError: absent, or not finite numbers of that shape.
    """
    try:
        values = np.array([row.split() for row in _bytes(path).decode().splitlines() if row.strip()], np.float64)
    except ValueError:
        values = np.empty(0)
    if values.shape != shape or not np.isfinite(values).all():
        raise DataError(f"{path}: must hold {shape[0]} x {shape[1]} finite numbers, not {values.shape}")
    return values


def read_array(path: Path, name: str, width: int) -> NDArray[np.float64]:
    """(N, width) finite numbers of an `.npz` archive.

    Raises:
        DataError: absent, damaged, or of another shape.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if name not in archive.files:
                raise DataError(f"{path}: holds no {name!r} (it has: {', '.join(archive.files) or 'nothing'})")
            values = archive[name]
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: is no .npz archive of plain numbers ({error})") from None
    if values.ndim != 2 or values.shape[1] != width or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise DataError(f"{path}: {name} must be (N, {width}) finite numbers, not {values.shape} {values.dtype}")
    return values.astype(np.float64)


def points_of(values: Any, where: str) -> NDArray[np.float64]:
    """(N, 2) finite points from lists of numbers.

    Raises:
        DataError: something else.
    """
    try:
        points: NDArray[np.float64] = np.array(values, np.float64)
    except (ValueError, TypeError):
        points = np.full((1, 1), np.nan)
    if points.size == 0 and isinstance(values, list) and not values:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise DataError(f"{where}: must be a list of points (x, y)")
    return points


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: larger than {_MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
