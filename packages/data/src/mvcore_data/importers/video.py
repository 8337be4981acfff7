"""`video`: one file an object, its frames the views."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from mvcore.api import ConfigError, DataError, Options
from pydantic import Field

from mvcore_data.importers.base import Format, Skipped, Source, SourceObject, SourceView
from mvcore_data.importers.listing import list_folder
from mvcore_data.importers.scene_files import LEAVES, LazyViews
from mvcore_data.source_images import UnusableError

CONTAINERS = {
    ".mp4": "mov",
    ".m4v": "mov",
    ".mov": "mov",
    ".webm": "matroska",
    ".mkv": "matroska",
    ".avi": "avi",
    ".gif": "gif",
}
"""FFmpeg's demuxer by suffix."""

Mode = Literal["spread", "sharpness"]

_MAX_TEXT_BYTES = 1 << 20
_LOOKED_AT = 50


class VideoOptions(Options):
    """Options of `video`.

    Args:
        views: frames taken of each video, or all of a shorter one.
        mode: `spread`: the first, the last and evenly between; `sharpness`: the sharpest (largest variance of the
            Laplacian) of each of so many equal parts.
    """

    views: int = Field(default=12, ge=1, le=10_000)
    mode: Mode = "spread"


def _detect(path: Path) -> str | None:
    if path.is_file():
        return f"a {path.suffix} file" if _is_video(path) else None
    if not path.is_dir():
        return None
    files, folders, _ = list_folder(path, path)
    for folder in folders[:_LOOKED_AT]:
        files += list_folder(folder, path)[0]
    first = next(filter(_is_video, files), None)
    return None if first is None else f"{first.suffix} files"


def _open(path: Path, options: VideoOptions) -> Source:
    if importlib.util.find_spec("av") is None:
        raise ConfigError("format 'video' needs PyAV: pip install 'mvcore-data[video]'")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    total = len(_videos(path, Skipped()))
    return Source(lambda skipped: _objects(path, options, skipped), total)


def _objects(path: Path, options: VideoOptions, skipped: Skipped) -> Iterator[SourceObject]:
    videos = _videos(path, skipped)
    names = Counter(_name(video, path) for video in videos)
    for video in videos:
        name = _name(video, path)
        yield SourceObject(
            id=name if names[name] == 1 else f"{name}{video.suffix}",
            name=str(video),
            views=LazyViews(lambda video=video: _views(video, options)),
            captions=_captions(video, skipped),
            category=video.parent.name if video.parent != path and path.is_dir() else None,
        )


def _videos(path: Path, skipped: Skipped) -> list[Path]:
    """A file, or `NAME.mp4` and `CATEGORY/NAME.mp4` of a folder."""
    if path.is_file():
        return [path]
    files, folders, outside = list_folder(path, path)
    for folder in folders:
        inner, deeper, out = list_folder(folder, path)
        files += inner
        outside += out
        for far in deeper:
            skipped.add("deeper than CATEGORY/VIDEO", far)
    for link in outside:
        skipped.add(LEAVES, link)
    videos = [file for file in files if _is_video(file)]
    beside = {video.with_suffix(".txt") for video in videos}
    for file in files:
        if not _is_video(file) and file not in beside:
            skipped.add(f"not a video ({file.suffix or 'no suffix'})", file)
    return videos


def _views(video: Path, options: VideoOptions) -> list[SourceView]:
    from mvcore_data.importers.video_frames import read_frames

    try:
        frames = read_frames(video, options.views, options.mode)
    except UnusableError as error:
        return [SourceView(name=str(video), read=_refusal(str(error)))]
    return [SourceView(name=f"{video}: view {k}", read=lambda data=data: data) for k, data in enumerate(frames)]


def _refusal(why: str) -> Callable[[], bytes]:
    def read() -> bytes:
        raise UnusableError(why)

    return read


def _captions(video: Path, skipped: Skipped) -> list[str]:
    """The lines of the text file of the same name."""
    path = video.with_suffix(".txt")
    try:
        if not path.is_file() or not path.resolve().is_relative_to(video.parent.resolve()):
            return []
        with path.open("rb") as file:
            data = file.read(_MAX_TEXT_BYTES + 1)
        if len(data) > _MAX_TEXT_BYTES:
            skipped.add(f"captions of more than {_MAX_TEXT_BYTES} bytes", path)
            return []
        return [line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{path}: cannot be read as UTF-8 text") from None


def _name(video: Path, root: Path) -> str:
    return (video.relative_to(root) if root.is_dir() else Path(video.name)).with_suffix("").as_posix()


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in CONTAINERS


FORMAT = Format(
    name="video",
    summary="a video an object (.mp4, .m4v, .mov, .webm, .mkv, .avi, .gif), captions in a .txt beside it",
    detect=_detect,
    open=_open,
    options=VideoOptions,
    strict_marks=False,
)
