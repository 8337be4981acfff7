"""The render pipeline: what fails is named, what was interrupted goes on, what is there is left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mvcore.api import DataError
from mvcore_data import ViewStore
from mvcore_data.render import pipeline, pool
from mvcore_data.render.cli import render

trimesh = pytest.importorskip("trimesh", reason="needs mvcore-data[render]")

KILLER = """
import os
from dataclasses import dataclass

@dataclass(frozen=True)
class Killer:
    id: str
    deadly: bool
    category: str | None = None
    licence: str | None = None
    source: str | None = None
    geometry: bool = False

    def build(self, unit):
        if self.deadly:
            os.abort()
        import numpy as np
        from mvcore_data.render.jobs import Drawable
        from mvcore_data.render.surfaces import Surface
        points = np.eye(3, dtype=np.float32)
        return Drawable([Surface(points, np.array([[0, 1, 2]]))], ("a triangle",))

    def fingerprint(self):
        return ""
"""


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    """Three boxes and a damaged file."""
    folder = tmp_path / "meshes"
    folder.mkdir()
    for number in range(3):
        trimesh.creation.box((1, 1 + number, 0.5)).export(folder / f"box{number}.glb")
    (folder / "broken.glb").write_bytes(b"glTF" + bytes(40))
    return folder


def draw(meshes: Path, out: Path, *, strict: bool = False, workers: int = 1, size: int = 24) -> None:
    render(meshes, out, size=size, views=2, rig="ring", workers=workers, strict=strict)


def test_a_damaged_mesh_is_named_and_skipped(
    gl: str, meshes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(meshes, tmp_path / "store")
    with ViewStore(tmp_path / "store") as store:
        assert store.object_ids == ["box0", "box1", "box2"]
    said = capsys.readouterr()
    assert "3 objects, 6 views" in said.out
    assert "skipped broken: " in said.err
    assert "1 failed and were skipped: broken" in said.err
    assert not (tmp_path / "store.partial").exists()
    with pytest.raises(DataError, match="exists already"):
        draw(meshes, tmp_path / "store")


def test_strict_stops_and_the_next_call_goes_on(
    gl: str, meshes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "store"
    with pytest.raises(DataError, match=r"'broken' failed: .*broken\.glb: cannot be read as a mesh"):
        draw(meshes, out, strict=True)
    assert not out.exists()
    assert len(list((tmp_path / "store.partial").glob("*.npz"))) == 3
    trimesh.creation.box((2, 1, 1)).export(meshes / "broken.glb")
    drawn: list[str] = []
    real = pool.render_all

    def watch(jobs, *arguments, **options):
        drawn.extend(job.item.id for job in jobs)
        return real(jobs, *arguments, **options)

    monkeypatch.setattr(pipeline, "render_all", watch)
    draw(meshes, out, strict=True)
    assert drawn == ["broken"]
    with ViewStore(out) as store:
        assert store.object_ids == ["box0", "box1", "box2", "broken"]
    assert not (tmp_path / "store.partial").exists()


@pytest.mark.process
def test_an_interrupted_render_resumes_to_the_same_store(gl: str, meshes: Path, tmp_path: Path) -> None:
    (meshes / "broken.glb").unlink()
    for number in range(3, 7):
        trimesh.creation.icosphere(subdivisions=5, radius=number).export(meshes / f"ball{number}.ply")
    out, work = tmp_path / "store", tmp_path / "store.partial"
    command = ["data", "render", str(meshes), str(out), "--size=24", "--views=2", "--rig=ring", "--workers=1"]
    child = subprocess.Popen(
        [sys.executable, "-c", "from mvcore.cli.main import main; main()", *command], stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not list(work.glob("*.npz")) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "give the same command to go on" in said
    before = {path.name: path.stat().st_mtime_ns for path in work.glob("*.npz")}
    assert before
    assert not out.exists()
    draw(meshes, out)
    draw(meshes, tmp_path / "whole", workers=2)
    with ViewStore(out) as resumed, ViewStore(tmp_path / "whole") as whole:
        assert resumed.object_ids == whole.object_ids
        assert [resumed.encoded(v) for v in range(resumed.n_views)] == [whole.encoded(v) for v in range(whole.n_views)]


def test_other_settings_are_drawn_anew(gl: str, meshes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="broken"):
        draw(meshes, tmp_path / "store", strict=True, size=32)
    draw(meshes, tmp_path / "store", size=24)
    with ViewStore(tmp_path / "store") as store:
        assert {store.size(v) for v in range(store.n_views)} == {(24, 24)}
    assert not (tmp_path / "store.partial").exists()


def test_what_kills_its_process_costs_that_object_only(
    gl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "killer_items.py").write_text(KILLER)
    monkeypatch.syspath_prepend(str(tmp_path))
    from killer_items import Killer  # pyright: ignore[reportMissingImports]
    from mvcore_data.render.backgrounds import Background
    from mvcore_data.render.settings import RenderSettings
    from mvcore_data.rigs import make_rig

    items = [Killer("a", False), Killer("b", True), Killer("c", False)]
    plan = pipeline.RenderPlan(items, make_rig("ring", 2), RenderSettings(16, Background((0, 0, 0)), "webp", 80))
    failed = pipeline.render_store(plan, tmp_path / "store", workers=1)
    assert list(failed) == ["b"]
    assert "killed its process" in failed["b"]
    with ViewStore(tmp_path / "store") as store:
        assert store.object_ids == ["a", "c"]
        assert store.captions(0) == ["a triangle"]
        assert not store.has_depth(0)


def test_nothing_could_be_drawn(gl: str, meshes: Path, tmp_path: Path) -> None:
    for box in meshes.glob("box*.glb"):
        box.unlink()
    with pytest.raises(DataError, match="none of the 1 objects could be rendered; the first, 'broken'"):
        draw(meshes, tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meshes"]


def test_a_manifest_keeps_what_it_says(gl: str, meshes: Path, tmp_path: Path) -> None:
    entry = {"id": "one", "kind": "mesh", "files": ["box1.glb"], "category": "box", "caption": "a tall box"}
    entry |= {"licence": "CC0-1.0", "source": "made here"}
    (meshes / "manifest.json").write_text(json.dumps({"objects": [entry, {"id": "p", "kind": "photos", "files": []}]}))
    draw(meshes / "manifest.json", tmp_path / "store.h5")
    with ViewStore(tmp_path / "store.h5") as store:
        assert (store.category(0), store.captions(0)) == ("box", ["a tall box"])
        assert (store.licence(0), store.source(0)) == ("CC0-1.0", "made here")
        assert store.has_depth(0)
        assert store.has_mask(0)


def test_real_meshes(gl: str, tmp_path: Path) -> None:
    manifest = Path(__file__).resolve().parents[3] / "shared/data/objects/manifest.json"
    if not manifest.is_file():
        pytest.skip(f"{manifest} is not there")
    objects = [entry for entry in json.loads(manifest.read_text())["objects"] if entry["kind"] == "mesh"]
    some = [objects[0], *[entry for entry in objects if entry["textured"]][:2]]
    (tmp_path / "meshes").mkdir()
    for entry in some:
        name = f"{entry['id']}.glb"
        (tmp_path / "meshes" / name).write_bytes((manifest.parent / entry["files"][0]).read_bytes())
    draw(tmp_path / "meshes", tmp_path / "store", size=48, strict=True)
    with ViewStore(tmp_path / "store") as store:
        assert len(store) == 3
        for v in range(store.n_views):
            mask = store.mask(v)
            assert mask is not None
            assert 0.01 < mask.mean() < 0.8
            assert store.image(v)[mask].std() > 2
