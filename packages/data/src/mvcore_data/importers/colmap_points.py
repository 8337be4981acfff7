"""Points of a COLMAP sparse model: `points3D`, and what each image observed of them.

Format: https://colmap.github.io/format.html. An observation is a place in the image, in pixels with the first one's
centre at (0.5, 0.5), and the id of a point; -1 for a keypoint that became none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray

from mvcore_data.importers.colmap_files import COUNT, BinaryFile, text_line
from mvcore_data.importers.scenes import Observed

OBSERVATION = np.dtype([("point", "<f8", (2,)), ("id", "<i8")])
_POINT = struct.Struct("<q3d3Bd")
_TRACK_BYTES = 8

Places = dict[int, tuple[float, float, float]]
"""Where in space the points are, by id."""


def read_points(folder: Path, suffix: str) -> Places:
    """The points of a model.

    Args:
        folder: of the model.
        suffix: `.bin` or `.txt`, as its other files have it.

    Raises:
        DataError: missing, damaged, or a point stands there twice.
    """
    path = folder / f"points3D{suffix}"
    if not path.is_file():
        raise DataError(f"{path}: no such file, and tracks need it; leave out the option tracks")
    found: Places = {}
    for number, place in (_binary if suffix == ".bin" else _text)(path):
        if number in found:
            raise DataError(f"{path}: point {number} stands there twice")
        if number < 0 or not all(np.isfinite(place)):
            raise DataError(f"{path}: point {number} at {place} has no id or no place")
        found[number] = place
    return found


def observations_of_text(line: bytes, path: Path) -> NDArray[Any]:
    """The second line of an image in a text model: X, Y and POINT3D_ID again and again."""
    words = line.split()
    try:
        if len(words) % 3:
            raise ValueError
        found = np.empty(len(words) // 3, OBSERVATION)
        found["point"] = np.array(list(map(float, words))).reshape(-1, 3)[:, :2]
        found["id"] = np.array(list(map(int, words[2::3])), np.int64)
    except (ValueError, OverflowError):
        raise DataError(f"{path}: {line[:60]!r} are no points of an image") from None
    return found


def tracks_of(observations: NDArray[Any], places: Places, owner: str) -> Observed:
    """An image's observations of points, by id; of several of one point the first, as in their order.

    Raises:
        DataError: a point that the model does not hold.
    """
    seen = observations[observations["id"] >= 0]
    ids, first = np.unique(seen["id"], return_index=True)
    try:
        xyz = np.array([places[number] for number in ids.tolist()], np.float64).reshape(-1, 3)
    except KeyError as error:
        raise DataError(f"{owner} observes the point {error.args[0]}, which is not in points3D") from None
    return Observed(seen["point"][first], ids, xyz)


def _binary(path: Path) -> Iterator[tuple[int, tuple[float, float, float]]]:
    with path.open("rb") as file:
        data = BinaryFile(file, path)
        for _ in range(data.count("points", _POINT.size + COUNT.size)):
            number, x, y, z, *_ = data.unpack(_POINT, "points")
            data.skip(_TRACK_BYTES * data.count("observations", _TRACK_BYTES))
            yield int(number), (x, y, z)
        data.finish()


def _text(path: Path) -> Iterator[tuple[int, tuple[float, float, float]]]:
    with path.open("rb") as file:
        while line := _start_of_line(file, path):
            words = line.split(maxsplit=4)
            try:
                number, place = int(words[0]), (float(words[1]), float(words[2]), float(words[3]))
            except (ValueError, IndexError):
                raise DataError(f"{path}: {line[:60]!r} is no point") from None
            yield number, place


def _start_of_line(file: BinaryIO, path: Path) -> str:
    return text_line(file, path, whole=False)
