"""What a caller gives of an object, checked and encoded whole before any of it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from mvcore.api import DataError
from numpy.typing import ArrayLike, NDArray

from mvcore_data import decode
from mvcore_data.schema import MAX_NAME_BYTES
from mvcore_data.tracks import check_same_places, encode_tracks

View: TypeAlias = "bytes | bytearray | memoryview | NDArray[np.uint8]"
Camera: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]
GivenTracks: TypeAlias = tuple[ArrayLike, ArrayLike, ArrayLike]


@dataclass(frozen=True)
class EncodedView:
    """One view as it goes into a shard."""

    data: bytes
    codec: str
    size: tuple[int, int]
    captions: tuple[bytes, ...]
    camera: Camera | None
    depth: tuple[bytes, float] | None
    mask: bytes | None
    tracks: bytes | None = None


@dataclass(frozen=True)
class EncodedObject:
    """One object as it goes into a shard; `names` holds its category, licence, source and creator."""

    id: str
    views: tuple[EncodedView, ...]
    captions: tuple[bytes, ...]
    names: dict[str, str | None]

    @property
    def n_bytes(self) -> int:
        """Bytes of all its images, depth maps, masks and tracks."""
        return sum(
            len(v.data) + len(v.depth[0] if v.depth else b"") + len(v.mask or b"") + len(v.tracks or b"")
            for v in self.views
        )


@dataclass(frozen=True)
class ImageFormat:
    """How pixel arrays are encoded.

    Args:
        codec: `jpeg` (4:4:4), `png` or `webp`.
        quality: 1 to 100; WebP at 100 is lossless.
    """

    codec: str = "jpeg"
    quality: int = 95


def encode_object(
    name: str,
    views: Sequence[View] | NDArray[np.uint8],
    image_format: ImageFormat,
    *,
    captions: Sequence[str] | str,
    view_captions: Sequence[Sequence[str] | str | None] | None,
    names: dict[str, str | None],
    cameras: Sequence[tuple[ArrayLike, ArrayLike] | None] | None,
    depth: Sequence[ArrayLike | None] | None,
    masks: Sequence[ArrayLike | None] | None,
    tracks: Sequence[GivenTracks | None] | None = None,
) -> EncodedObject:
    """Checks and encodes one object.

    Raises:
        DataError: what is wrong, with the object's id and the view's number.
    """
    _check_name("object id", name)
    for what, value in names.items():
        if value is not None:
            _check_name(f"object {name!r}: {what}", value)
    n = len(views)
    if n == 0:
        raise DataError(f"object {name!r} has no views; give at least one image")
    lists: list[Sequence[Any]] = []
    given = {"view_captions": view_captions, "cameras": cameras, "depth": depth, "masks": masks, "tracks": tracks}
    for what, values in given.items():
        if values is not None and len(values) != n:
            raise DataError(f"object {name!r}: {len(values)} {what} for {n} views; give one (or None) for each view")
        lists.append([None] * n if values is None else values)
    encoded = tuple(
        _encode_view(f"object {name!r}, view {k}", view, image_format, *extras)
        for k, (view, *extras) in enumerate(zip(views, *lists, strict=True))
    )
    check_same_places(f"object {name!r}", [view.tracks for view in encoded])
    return EncodedObject(name, encoded, _texts(f"object {name!r}", captions), names)


def _encode_view(
    owner: str,
    view: View,
    image_format: ImageFormat,
    captions: Sequence[str] | str | None,
    camera: tuple[ArrayLike, ArrayLike] | None,
    depth: ArrayLike | None,
    mask: ArrayLike | None,
    tracks: GivenTracks | None,
) -> EncodedView:
    data, codec, size = _encode_image(owner, view, image_format)
    return EncodedView(
        data,
        codec,
        size,
        () if captions is None else _texts(owner, captions),
        None if camera is None else _checked_camera(owner, camera),
        None if depth is None else decode.encode_depth(_of_size(owner, "depth", depth, size)),
        None if mask is None else decode.encode_mask(_of_size(owner, "mask", mask, size) != 0),
        None if tracks is None else encode_tracks(owner, tracks, size),
    )


def _encode_image(owner: str, view: View, image_format: ImageFormat) -> tuple[bytes, str, tuple[int, int]]:
    if isinstance(view, (bytes, bytearray, memoryview)):
        data = bytes(view)
        info = decode.inspect(data, owner)
        if info.alpha:
            raise DataError(
                f"{owner}: has transparency; put it on a background first ('mvcore data pack --background')"
            )
        if info.rotated:
            raise DataError(f"{owner}: EXIF says that it is rotated; turn its pixels upright first")
        return data, info.codec, (info.height, info.width)
    pixels = np.asarray(view)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError(f"{owner}: {pixels.dtype} of shape {pixels.shape}; give encoded bytes or (H, W, 3) uint8 RGB")
    height, width = pixels.shape[:2]
    decode.check_size(height, width, owner)
    return decode.encode_image(pixels, image_format.codec, image_format.quality), image_format.codec, (height, width)


def _check_name(what: str, value: object) -> None:
    if not isinstance(value, str) or not value or any(ord(c) < 32 for c in value):
        raise DataError(f"{what} {value!r}: give a text that is not empty and has no control characters")
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise DataError(f"{what} {value!r} is not valid Unicode") from None
    if length > MAX_NAME_BYTES:
        raise DataError(f"{what} {value[:40]!r}...: {length} bytes, but {MAX_NAME_BYTES} are the most")


def _texts(owner: str, captions: Sequence[str] | str) -> tuple[bytes, ...]:
    texts = [captions] if isinstance(captions, str) else list(captions)
    try:
        if not all(text.strip() for text in texts):
            raise DataError(f"{owner}: has an empty caption; leave it out")
        return tuple(text.encode() for text in texts)
    except (AttributeError, UnicodeEncodeError):
        raise DataError(f"{owner}: captions {texts!r} are not a list of valid Unicode texts") from None


def _checked_camera(owner: str, camera: tuple[ArrayLike, ArrayLike]) -> Camera:
    try:
        intrinsics, world_to_camera = (np.asarray(matrix, np.float64) for matrix in camera)
    except (TypeError, ValueError):
        raise DataError(f"{owner}: a camera is a pair (intrinsics (3, 3), world_to_camera (4, 4))") from None
    if intrinsics.shape != (3, 3) or world_to_camera.shape != (4, 4):
        raise DataError(
            f"{owner}: camera of shapes {intrinsics.shape} and {world_to_camera.shape}, not intrinsics (3, 3) and"
            " world_to_camera (4, 4)"
        )
    pinhole = np.isfinite(intrinsics).all() and intrinsics[0, 0] > 0 and intrinsics[1, 1] > 0
    if not (pinhole and _near(intrinsics[2], np.eye(3)[2], 1e-8) and intrinsics[1, 0] == 0):
        raise DataError(f"{owner}: its intrinsics are not [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in pixels")
    rotation = world_to_camera[:3, :3]
    rigid = np.isfinite(world_to_camera).all() and _near(rotation @ rotation.T, np.eye(3), 1e-3)
    if not (rigid and np.linalg.det(rotation) > 0 and _near(world_to_camera[3], np.eye(4)[3], 1e-8)):
        raise DataError(f"{owner}: its world_to_camera is not a rotation and a translation with last row 0 0 0 1")
    return intrinsics.astype(np.float32), world_to_camera.astype(np.float32)


def _near(matrix: NDArray[np.float64], wanted: NDArray[np.float64], tolerance: float) -> bool:
    """As `np.allclose`, which takes ten times as long for matrices of this size."""
    return bool((np.abs(matrix - wanted) <= tolerance + 1e-5 * np.abs(wanted)).all())


def _of_size(owner: str, what: str, value: ArrayLike, size: tuple[int, int]) -> NDArray[Any]:
    array = np.asarray(value)
    if array.shape != size or array.dtype.kind not in "bfiu":
        raise DataError(f"{owner}: its {what} is {array.dtype} of shape {array.shape}, not numbers of shape {size}")
    return array
