"""What is to be rendered: a manifest of objects, or a folder of meshes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvcore.api import DataError

_SUFFIXES = (".glb", ".obj", ".ply")
_MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class MeshEntry:
    """One mesh: its file and what is known about it."""

    id: str
    path: Path
    category: str | None = None
    captions: tuple[str, ...] = ()
    licence: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The meshes, and how many entries of each other kind were left out."""

    meshes: tuple[MeshEntry, ...]
    skipped: dict[str, int]

    def with_populous_categories(self, least: int) -> Manifest:
        """Only the meshes of categories that have at least ``least`` meshes."""
        count = Counter(entry.category for entry in self.meshes)
        kept = (entry for entry in self.meshes if entry.category is not None and count[entry.category] >= least)
        return Manifest(tuple(kept), self.skipped)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest, or list a folder.

    A folder gives every GLB, OBJ and PLY file below it: the id is its path without the suffix, the category the name of
    the folder it lies in (none at the top). A folder with a ``manifest.json`` is read by that.

    Raises:
        DataError: The manifest is missing, damaged, empty or reaches outside its folder.
    """
    if path.is_dir():
        return read_manifest(path / "manifest.json") if (path / "manifest.json").is_file() else _list_folder(path)
    entries = _objects(path)
    root = path.resolve().parent
    skipped: Counter[str] = Counter()
    meshes: dict[str, MeshEntry] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: objects[{number}]"
        if not isinstance(entry, dict):
            raise DataError(f"{where} is not a mapping")
        kind = _text(entry, "kind", where) or "mesh"
        if kind != "mesh":
            skipped[kind] += 1
            continue
        mesh = _mesh(entry, root, where)
        if mesh.id in meshes:
            raise DataError(f"{where}: the id {mesh.id!r} stands there twice; ids must be unique")
        meshes[mesh.id] = mesh
    if not meshes:
        raise DataError(f"{path}: no mesh in it ({sum(skipped.values())} entries of other kinds)")
    return Manifest(tuple(meshes.values()), dict(skipped))


def _list_folder(folder: Path) -> Manifest:
    root = folder.resolve()
    meshes = []
    skipped: Counter[str] = Counter()
    for file in sorted(folder.rglob("*")):
        if file.is_dir() and not file.is_symlink():
            continue
        if not file.is_file():
            skipped["broken link" if not file.exists() else "linked folder" if file.is_dir() else "special file"] += 1
            continue
        if file.suffix.lower() not in _SUFFIXES:
            skipped[file.suffix.lower() or "no suffix"] += 1
            continue
        relative = file.relative_to(folder)
        category = relative.parent.name or None
        meshes.append(
            MeshEntry(relative.with_suffix("").as_posix(), _inside(root, str(relative), str(folder)), category)
        )
    twice = [id for id, number in Counter(mesh.id for mesh in meshes).items() if number > 1]
    if twice:
        raise DataError(f"{folder}: {twice[0]!r} is there in several formats; keep one of them")
    if not meshes:
        raise DataError(f"{folder}: no mesh in it ({', '.join(_SUFFIXES)})")
    return Manifest(tuple(meshes), dict(skipped))


def _objects(path: Path) -> list[Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: larger than {_MAX_BYTES >> 20} MiB; this is not a manifest")
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({str(error)[:120]})") from None
    objects = content.get("objects") if isinstance(content, dict) else None
    if not isinstance(objects, list):
        raise DataError(f'{path}: not a manifest: it must be {{"objects": [{{"id", "kind", "files", ...}}]}}')
    return objects


def _mesh(entry: dict[str, Any], root: Path, where: str) -> MeshEntry:
    id = _text(entry, "id", where)
    if not id:
        raise DataError(f"{where}: has no id")
    where = f"{where} ({id!r})"
    files = entry.get("files")
    if not isinstance(files, list) or not files or not all(isinstance(name, str) for name in files):
        raise DataError(f"{where}: 'files' must be a list of paths")
    paths = [_inside(root, name, where) for name in files]
    meshes = [path for path in paths if path.suffix.lower() in _SUFFIXES]
    if len(meshes) != 1:
        raise DataError(f"{where}: 'files' must name one mesh ({', '.join(_SUFFIXES)}), it names {len(meshes)}")
    return MeshEntry(
        id,
        meshes[0],
        _text(entry, "category", where),
        _captions(entry, where),
        _text(entry, "licence", where) or _text(entry, "license", where),
        _text(entry, "source", where) or _text(entry, "source_repo", where),
    )


def _captions(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    captions = entry.get("captions", entry.get("caption"))
    if captions is None:
        return ()
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise DataError(f"{where}: 'captions' must be texts")
    return tuple(captions)


def _text(entry: dict[str, Any], name: str, where: str) -> str | None:
    value = entry.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {name!r} must be a text, not {type(value).__name__}")
    return value


def _inside(root: Path, name: str, where: str) -> Path:
    """The path of a file, which must lie below the root even after links are followed."""
    try:
        path = (root / name).resolve()
    except (OSError, ValueError, RuntimeError):
        raise DataError(f"{where}: {name!r} is not a path") from None
    if not path.is_relative_to(root):
        raise DataError(f"{where}: the file {name!r} lies outside the folder {root}; copy it there")
    return path
