"""Tracks of a reconstruction: where a view shows points of space that other views of its object show too.

A view's tracks are stored as one run of records (x f4, y f4, X f4, Y f4, Z f4, id i8), little-endian, in order of their
ids: a view is read without the rest of its object, and an object that loses views needs nothing renumbered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from mvcore.api import DataError
from numpy.typing import ArrayLike, NDArray

RECORD = np.dtype([("point", "<f4", (2,)), ("xyz", "<f4", (3,)), ("id", "<i8")])
_MAX_VALUE = 1e18  # its square is finite in single precision


class Tracks(NamedTuple):
    """M points of space that a view shows.

    Args:
        points: (M, 2) float32, (x, y) in pixels of the stored image, centres at +0.5.
        ids: (M,) int64, which point of the object each is: the same number in each of its views, rising, 0 or more.
        xyz: (M, 3) float32, where it is, in the frame of the cameras.
    """

    points: NDArray[np.float32]
    ids: NDArray[np.int64]
    xyz: NDArray[np.float32]


def encode_tracks(owner: str, given: tuple[ArrayLike, ArrayLike, ArrayLike], size: tuple[int, int]) -> bytes:
    """A view's points, ids and places as they are stored; those without any points are no bytes.

    Raises:
        DataError: wrong shapes, numbers that are not finite, points outside of the image, or an id that is repeated.
    """
    try:
        points, ids, xyz = (np.asarray(part) for part in given)
    except (TypeError, ValueError):
        raise DataError(f"{owner}: tracks are a triple (points (M, 2), ids (M,), xyz (M, 3))") from None
    count = len(ids) if ids.ndim == 1 else -1
    if points.shape != (count, 2) or xyz.shape != (count, 3) or (ids.dtype.kind not in "iu" and count):
        raise DataError(
            f"{owner}: tracks of shapes {points.shape}, {ids.shape} and {xyz.shape} ({ids.dtype}), not points (M, 2), "
            "whole ids (M,) and xyz (M, 3)"
        )
    records = np.empty(count, RECORD)
    order = np.argsort(ids, kind="stable")
    with np.errstate(over="ignore", invalid="ignore"):
        records["point"], records["xyz"], records["id"] = points[order], xyz[order], ids[order]
    if fault := _fault(records, size):
        raise DataError(f"{owner}: {fault}")
    return records.tobytes()


def decode_tracks(data: bytes, size: tuple[int, int], owner: str) -> Tracks:
    """What `encode_tracks` made.

    Raises:
        DataError: it is not that.
    """
    if len(data) % RECORD.itemsize:
        raise DataError(f"{owner}: {len(data)} bytes are no whole number of records; copy the shard again")
    records = np.frombuffer(data, RECORD)
    if fault := _fault(records, size):
        raise DataError(f"{owner}: {fault}; copy the shard again")
    return Tracks(
        np.ascontiguousarray(records["point"]),
        records["id"].astype(np.int64),
        np.ascontiguousarray(records["xyz"]),
    )


def check_same_places(owner: str, views: Sequence[bytes | None]) -> None:
    """Refuses an object in which a point of space stands in different places in two views.

    Raises:
        DataError: names the point.
    """
    given = [np.frombuffer(view, RECORD) for view in views if view]
    if len(given) < 2:
        return
    records = np.concatenate(given)
    records = records[np.argsort(records["id"], kind="stable")]
    same = records["id"][1:] == records["id"][:-1]
    moved = same & (records["xyz"][1:] != records["xyz"][:-1]).any(1)
    if moved.any():
        which = int(records["id"][1:][moved][0])
        raise DataError(f"{owner}: the track {which} has another place in space in one view than in another")


def _fault(records: NDArray, size: tuple[int, int]) -> str:
    """What is wrong with records of an image of this (height, width); empty for none."""
    points, xyz, ids = records["point"], records["xyz"], records["id"]
    if not (np.isfinite(points).all() and (np.abs(xyz) < _MAX_VALUE).all()):
        return "its tracks hold a number that is not finite"
    if not ((points >= 0).all() and (points <= size[::-1]).all()):
        return f"its tracks hold a point outside of the image of {size[1]}x{size[0]} pixels"
    if (ids < 0).any():
        return f"its tracks hold the id {int(ids.min())}; ids are 0 or more"
    if (ids[1:] <= ids[:-1]).any():
        return "its tracks hold an id twice, or not in order"
    return ""
