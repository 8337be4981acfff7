"""Frames of a video: the evenly spread ones, or the sharpest of even windows; upright and encoded, with bounds.

FFmpeg (through PyAV) gets an open file and the name of its container, never a path or a free choice: playlists and
other formats that name further files or addresses are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from mvcore.api import DataError
from numpy.typing import NDArray

from mvcore_data import decode
from mvcore_data.importers.base import spread
from mvcore_data.importers.video import CONTAINERS, Mode
from mvcore_data.importers.video_structure import truncated
from mvcore_data.schema import MAX_PIXELS
from mvcore_data.source_images import UnusableError

MAX_FRAMES = 1_000_000
MAX_DECODED_PIXELS = 1 << 42
"""Most pixels of all frames of a video, about five hours of 4K at 30 frames a second."""

QUALITY = 95


def read_frames(path: Path, views: int, mode: Mode) -> list[bytes]:
    """At most `views` frames in their order, each a JPEG, or a PNG where it has an alpha channel that is used.

    Every frame is decoded, so that a damaged one is found and the same frames are chosen whatever the key frames.

    Args:
        path: a file with a suffix of `CONTAINERS`.
        views: how many.
        mode: `spread`: first, last and evenly between; `sharpness`: of each of so many equal parts the frame with the
            largest variance of the Laplacian of its luma, the earliest of equal ones.

    Raises:
        UnusableError: damaged, truncated, too large, or no video.
    """
    packets = _count_packets(path)
    picked, frames = _pick(path, packets, views, mode)
    if frames and frames != packets:  # hidden frames, edit lists: only decoding tells
        picked, _ = _pick(path, frames, views, mode)
    if not picked:
        raise UnusableError("a video without frames")
    return picked


def variance_of_laplacian(luma: NDArray[np.uint8]) -> float:
    """Variance over the inner pixels of an (H, W) image of `up + down + left + right - 4 centre`; larger is sharper."""
    values = luma.astype(np.int16)
    inner = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * values[1:-1, 1:-1]
    if not inner.size:
        return 0.0
    wide = inner.astype(np.int32)
    return float((wide * wide).mean(dtype=np.float64) - wide.mean(dtype=np.float64) ** 2)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A video's container and its main stream; whatever goes wrong while it is used is a reason to leave it out."""
    name = CONTAINERS[path.suffix.lower()]
    try:
        if truncated(path, name):
            raise UnusableError("a truncated video")
        file = path.open("rb")
    except OSError as error:
        raise UnusableError(error.strerror or "cannot be read") from None
    try:
        with (
            file,
            av.open(
                file, mode="r", format=name, options={"protocol_whitelist": ""}, metadata_errors="replace"
            ) as container,
        ):
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream):
                raise UnusableError("a file without a video")
            if stream.codec_context is None:
                raise UnusableError("a video of an unknown codec")
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            stream.thread_type = "AUTO"
            yield container, stream
    except (FFmpegError, OSError) as error:
        raise UnusableError(f"a damaged or truncated video ({error.strerror})") from None


def _count_packets(path: Path) -> int:
    """Packets of the video, after a look at the size of its pictures and whether the file is whole."""
    packets = 0
    with _opened(path) as (container, stream):
        height, width = stream.codec_context.height, stream.codec_context.width
        _check_size(height, width)
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise UnusableError("a truncated video")
            packets += packet.size > 0
            if packets > MAX_FRAMES:
                raise UnusableError(f"a video of more than {MAX_FRAMES} frames")
        if packets * height * width > MAX_DECODED_PIXELS:
            raise UnusableError(f"a video of more than {MAX_DECODED_PIXELS} pixels in all")
        if packets + stream.frames // 50 < stream.frames:  # AVI counts frames that were dropped
            raise UnusableError("a truncated video")
    return packets


def _pick(path: Path, frames: int, views: int, mode: Mode) -> tuple[list[bytes], int]:
    """The chosen frames of a video taken to have so many, and how many it has."""
    picks = _Spread(frames, views) if mode == "spread" else _Sharpest(frames, views)
    found = 0
    with _opened(path) as (container, stream):
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise UnusableError("a damaged or truncated video (a frame is damaged)")
            _check_size(frame.height, frame.width)
            picks.offer(found, frame)
            found += 1
            if found > MAX_FRAMES:
                raise UnusableError(f"a video of more than {MAX_FRAMES} frames")
    return picks.finish(), found


class _Spread:
    """First, last, and evenly between."""

    def __init__(self, frames: int, views: int) -> None:
        self._wanted = set(spread(range(frames), views))
        self._taken: list[bytes] = []

    def offer(self, k: int, frame: VideoFrame) -> None:
        """Frame k, in order."""
        if k in self._wanted:
            self._taken.append(_encode(frame))

    def finish(self) -> list[bytes]:
        """The frames taken."""
        return self._taken


class _Sharpest:
    """The sharpest of each of equal windows; one frame is held at a time."""

    def __init__(self, frames: int, views: int) -> None:
        windows = min(frames, views)
        self._ends = [(k + 1) * frames // windows for k in range(windows)]
        self._taken: list[bytes] = []
        self._best: tuple[float, VideoFrame] | None = None

    def offer(self, k: int, frame: VideoFrame) -> None:
        """Frame k, in order."""
        if len(self._taken) == len(self._ends):
            return
        sharpness = variance_of_laplacian(_pixels(frame, "gray"))
        if self._best is None or sharpness > self._best[0]:
            self._best = sharpness, frame
        if k + 1 == self._ends[len(self._taken)]:
            self._close()

    def finish(self) -> list[bytes]:
        """The frames taken."""
        if self._best is not None:
            self._close()
        return self._taken

    def _close(self) -> None:
        if self._best is not None:
            self._taken.append(_encode(self._best[1]))
        self._best = None


def _encode(frame: VideoFrame) -> bytes:
    alpha = any(component.is_alpha for component in frame.format.components)
    pixels = _upright(_pixels(frame, "rgba" if alpha else "rgb24"), _display_matrix(frame))
    if alpha and int(pixels[..., 3].min()) < 255:
        return decode.encode_image(np.ascontiguousarray(pixels), "png", QUALITY)
    return decode.encode_image(np.ascontiguousarray(pixels[..., :3]), "jpeg", QUALITY)


def _pixels(frame: VideoFrame, kind: str) -> NDArray[np.uint8]:
    return np.asarray(frame.to_ndarray(format=kind), np.uint8)


def _display_matrix(frame: VideoFrame) -> NDArray[np.int32] | None:
    """The (2, 2) linear part of what turns the stored picture into the one to show: (x', y') = (x, y) @ it."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3)[:2, :2]


def _upright(pixels: NDArray[np.uint8], matrix: NDArray[np.int32] | None) -> NDArray[np.uint8]:
    """Pixels (H, W, C) turned and mirrored by the nearest of the eight symmetries of the square."""
    if matrix is None:
        return pixels
    if abs(int(matrix[0, 1])) > abs(int(matrix[0, 0])):
        pixels, right, down = pixels.swapaxes(0, 1), matrix[1, 0], matrix[0, 1]
    else:
        right, down = matrix[0, 0], matrix[1, 1]
    return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def _check_size(height: int, width: int) -> None:
    try:
        decode.check_size(height, width, "video")
    except DataError as error:
        raise UnusableError(f"a video of {str(error).removeprefix('video: ')}") from None
