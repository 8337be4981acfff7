"""`folders`: OBJECT/NNN.ext with what stands beside images in `mvcore data pack --format folders`."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from mvcore_data.exporters.base import ExportObject, number, safe_name, write_file
from mvcore_data.folder_metadata import CAMERAS_FILE, CAPTION_FILES, METADATA_FILE, is_card


class FolderExporter:
    """A folder for each object, whose packing gives the object back.

    Args:
        folder: where to write; exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, item: ExportObject) -> None:
        """Writes one object."""
        folder = self._folder / safe_name(item.id)
        if is_card(folder):
            folder = folder.with_name(f"%{ord(folder.name[0]):X}{folder.name[1:]}")
        folder.mkdir()
        metadata: dict[str, Any] = {} if folder.name == item.id else {"id": item.id}
        metadata |= item.names
        if item.captions and _are_lines(item.captions):
            write_file(folder / CAPTION_FILES[0], "".join(f"{text}\n" for text in item.captions))
        elif item.captions:
            metadata["captions"] = item.captions
        cameras: dict[str, Any] = {}
        for k, view in enumerate(item.views):
            digits = number(k, len(item.views))
            name = f"{digits}.{view.suffix}"
            write_file(folder / name, view.image)
            if view.captions:
                metadata.setdefault("view_captions", {})[name] = view.captions
            if view.camera is not None:
                cameras[name] = view.camera
            if view.mask is not None:
                write_file(folder / f"mask_{digits}.png", view.mask)
                metadata.setdefault("masks", {})[name] = f"mask_{digits}.png"
            if view.depth is not None:
                write_file(folder / f"depth_{digits}.png", view.depth[0])
                metadata.setdefault("depth", {})[name] = {"file": f"depth_{digits}.png", "scale": view.depth[1]}
            if view.tracks is not None:
                write_file(folder / f"tracks_{digits}.npy", view.tracks)
                metadata.setdefault("tracks", {})[name] = f"tracks_{digits}.npy"
        if metadata:
            write_file(folder / METADATA_FILE, json.dumps(metadata, ensure_ascii=False, indent=1))
        if cameras:
            write_file(folder / CAMERAS_FILE, json.dumps(cameras, indent=1))

    def __enter__(self) -> FolderExporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _are_lines(captions: list[str]) -> bool:
    """Whether each caption survives as a line of a text file."""
    return all(text.splitlines() == [text.strip()] and not text.startswith("\ufeff") for text in captions)
