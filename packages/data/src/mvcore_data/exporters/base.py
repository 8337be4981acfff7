"""What an exporter gets: one object of a store at a time, its images as they are stored; and the names of its files."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import quote

from mvcore_data.store import ViewStore
from mvcore_data.tracks_file import tracks_file

SUFFIXES = {"jpeg": "jpg", "png": "png", "webp": "webp"}
"""File suffixes by codec."""

_LONGEST = 180


@dataclass(frozen=True, kw_only=True)
class ExportView:
    """One view.

    Args:
        image: the stored file.
        suffix: of such files, without a dot.
        captions: its own.
        camera: `intrinsics` (3, 3) and `world_to_camera` (4, 4) as lists, or None.
        depth: the stored 16-bit PNG and its scale, or None.
        mask: the stored PNG, or None.
        tracks: the points of space that it shows, as a `.npy` file, or None.
    """

    image: bytes
    suffix: str
    captions: list[str]
    camera: dict[str, Any] | None
    depth: tuple[bytes, float] | None
    mask: bytes | None
    tracks: bytes | None


@dataclass(frozen=True, kw_only=True)
class ExportObject:
    """One object; `names` holds those of category, licence, source and creator that it has."""

    id: str
    views: list[ExportView]
    captions: list[str]
    names: dict[str, str]


class Exporter(Protocol):
    """Writes objects into a folder; a context manager, which finishes the last file."""

    def add(self, item: ExportObject) -> None:
        """Writes one object."""
        ...

    def __enter__(self) -> Exporter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def read_object(store: ViewStore, i: int) -> ExportObject:
    """Object i of a store.

    Raises:
        DataError: the stored bytes are damaged.
    """
    names = {
        "category": store.category(i),
        "licence": store.licence(i),
        "source": store.source(i),
        "creator": store.creator(i),
    }
    return ExportObject(
        id=store.object_ids[i],
        views=[_read_view(store, v) for v in store.views_of(i)],
        captions=store.captions(i),
        names={key: value for key, value in names.items() if value is not None},
    )


def _read_view(store: ViewStore, v: int) -> ExportView:
    camera, tracks = store.camera(v), store.encoded_tracks(v)
    return ExportView(
        image=store.encoded(v),
        suffix=SUFFIXES[store.codec(v)],
        captions=store.view_captions(v),
        camera=camera and {"intrinsics": camera[0].tolist(), "world_to_camera": camera[1].tolist()},
        depth=store.encoded_depth(v),
        mask=store.encoded_mask(v),
        tracks=None if tracks is None else tracks_file(tracks),
    )


def safe_name(name: str) -> str:
    """A file name for any id or split: letters, digits, `_`, `-` and inner `.` stay, all else becomes `%XX`.

    `urllib.parse.unquote` gives the id back, except for ids so long that a hash stands for their end, after a `~`.
    """
    safe = quote(name, safe="").replace("~", "%7E")
    if safe.startswith("."):
        safe = "%2E" + safe[1:]
    if len(safe) > _LONGEST:
        begin = re.sub("%.?$", "", safe[:_LONGEST])
        safe = f"{begin}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return safe


def number(k: int, of: int) -> str:
    """View k of so many, with at least three digits, so that names sort as numbers."""
    return f"{k:0{max(3, len(str(of - 1)))}}"


def write_file(path: Path, data: bytes | str) -> None:
    """Writes a file; texts are UTF-8."""
    path.write_bytes(data.encode() if isinstance(data, str) else data)
