"""Manifests and folders of meshes: what is read, what is left out, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from mvcore.api import DataError
from mvcore_data.render.manifest import read_manifest


def write(folder: Path, *objects: Any) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({"objects": list(objects)}))
    return path


def mesh(id: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "kind": "mesh", "files": [f"meshes/{id}.glb"], **more}


def test_what_is_known_of_a_mesh_is_kept(tmp_path: Path) -> None:
    entry = mesh("cup", category="mug", caption="a cup", licence="CC0-1.0", source_repo="https://example.org")
    (read,) = read_manifest(write(tmp_path, entry)).meshes
    assert read.path == tmp_path.resolve() / "meshes/cup.glb"
    assert (read.id, read.category, read.captions) == ("cup", "mug", ("a cup",))
    assert (read.licence, read.source) == ("CC0-1.0", "https://example.org")


def test_other_kinds_are_counted(tmp_path: Path) -> None:
    photos = {"id": "cat", "kind": "photos", "files": ["a.jpg", "b.jpg"]}
    manifest = read_manifest(write(tmp_path, mesh("a"), photos, {**photos, "id": "dog"}))
    assert [entry.id for entry in manifest.meshes] == ["a"]
    assert manifest.skipped == {"photos": 2}


def test_categories_with_too_few_meshes_are_left_out(tmp_path: Path) -> None:
    entries = [mesh("a", category="mug"), mesh("b", category="mug"), mesh("c", category="car"), mesh("d"), mesh("e")]
    manifest = read_manifest(write(tmp_path, *entries)).with_populous_categories(2)
    assert [entry.id for entry in manifest.meshes] == ["a", "b"]


def test_a_folder_is_listed(tmp_path: Path) -> None:
    for name in ("mug/b.glb", "mug/a.PLY", "car/x.obj", "top.glb", "car/x.mtl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    manifest = read_manifest(tmp_path)
    assert [(entry.id, entry.category) for entry in manifest.meshes] == [
        ("car/x", "car"),
        ("mug/a", "mug"),
        ("mug/b", "mug"),
        ("top", None),
    ]
    assert manifest.skipped == {".mtl": 1}


def test_what_is_no_file_is_counted_too(tmp_path: Path) -> None:
    (tmp_path / "mug").mkdir()
    (tmp_path / "mug/a.glb").touch()
    (tmp_path / "mug/gone.glb").symlink_to(tmp_path / "nowhere.glb")
    (tmp_path / "linked").symlink_to(tmp_path / "mug")
    os.mkfifo(tmp_path / "pipe.glb")
    manifest = read_manifest(tmp_path)
    assert [entry.id for entry in manifest.meshes] == ["mug/a"]
    assert manifest.skipped == {"broken link": 1, "linked folder": 1, "special file": 1}


def test_a_folder_with_a_manifest_is_read_by_it(tmp_path: Path) -> None:
    write(tmp_path, mesh("only"))
    (tmp_path / "other.glb").touch()
    assert [entry.id for entry in read_manifest(tmp_path).meshes] == ["only"]


@pytest.mark.parametrize("name", ["../secret.glb", "/etc/secret.glb", "meshes/../../secret.glb"])
def test_files_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="outside the folder"):
        read_manifest(write(tmp_path, {"id": "a", "files": [name]}))


def test_links_that_lead_outside_are_refused(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.glb").touch()
    (tmp_path / "inside/link.glb").symlink_to(tmp_path / "secret.glb")
    with pytest.raises(DataError, match="outside the folder"):
        read_manifest(write(tmp_path / "inside", {"id": "a", "files": ["link.glb"]}))
    (tmp_path / "inside/manifest.json").unlink()
    with pytest.raises(DataError, match="outside the folder"):
        read_manifest(tmp_path / "inside")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("text", r"objects\[0\] is not a mapping"),
        ({"files": ["a.glb"]}, "has no id"),
        ({"id": "a"}, "'files' must be a list"),
        ({"id": "a", "files": ["a.fbx"]}, "must name one mesh .* names 0"),
        ({"id": "a", "files": ["a.glb", "b.glb"]}, "names 2"),
        ({"id": "a", "files": ["a.glb"], "category": 3}, "'category' must be a text"),
        ({"id": "a", "files": ["a.glb"], "captions": [1]}, "'captions' must be texts"),
        ({"id": "a", "files": ["a\0.glb"]}, "is not a path"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, entry: Any, reason: str) -> None:
    path = write(tmp_path, entry)
    with pytest.raises(DataError, match=reason) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value) or "objects[0]" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'a' stands there twice"):
        read_manifest(write(tmp_path, mesh("a"), mesh("a")))
    for name in ("b.glb", "b.ply"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).touch()
    with pytest.raises(DataError, match="'b' is there in several formats"):
        read_manifest(tmp_path / "folder")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"objects": 3}', "[" * 100_000, '{"objects": []}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json: "):
        read_manifest(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_manifest(tmp_path / "absent.json")
    with pytest.raises(DataError, match="no mesh in it"):
        read_manifest(tmp_path)
