"""A folder of images in the place of a store: packed once, packed anew when it changes, by one process at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mvcore.api import ConfigError, DataError
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.packed_cache import as_store, cache_folder
from mvcore_data.views import Views
from PIL import Image


def photo(path: Path, seed: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, len(mode)), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two objects of two images, and a cache of their own."""
    monkeypatch.setenv("MVCORE_CACHE", str(tmp_path / "cache"))
    for name in ("cup", "jug"):
        for k in range(2):
            photo(tmp_path / f"photos/{name}/{k}.png", k)
    (tmp_path / "photos/notes.txt").write_text("x")
    return tmp_path / "photos"


def test_a_folder_is_a_source_of_views(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views = Views(path=str(folder))
    assert [views.object_name(i) for i in range(len(views))] == ["cup", "jug"]
    err = capsys.readouterr().err
    assert err.splitlines() == [
        f"{folder} is no store: packing it once as folders (folders with images) into {views.path}",
        f"skipped: 1 (not in the folder of an object), first {folder}/notes.txt",
    ]
    assert views.path.is_relative_to(cache_folder())
    assert Views(path=str(folder)).path == views.path
    assert Views(path=os.path.relpath(folder)).path == views.path
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("change", ["content", "time", "new file", "removed", "renamed"])
def test_a_changed_folder_is_packed_anew(folder: Path, change: str) -> None:
    before = as_store(folder)
    image = folder / "jug/1.png"
    if change == "content":
        photo(image, 9)
    elif change == "time":
        os.utime(image, ns=(1, 1))
    elif change == "new file":
        photo(folder / "jug/2.png", 2)
    elif change == "removed":
        image.unlink()
    else:
        image.rename(folder / "jug/3.png")
    after = as_store(folder)
    assert after != before
    with ViewStore(after) as store:
        assert store.n_views == {"new file": 5, "removed": 3}.get(change, 4)
        last = max((folder / "jug").iterdir())
        assert store.encoded(store.n_views - 1) == last.read_bytes()


def test_settings_are_part_of_the_key(folder: Path) -> None:
    photo(folder / "jug/2.png", 5, "RGBA")
    with pytest.raises(DataError, match=r"2\.png: has transparent pixels.*background: \[255, 255, 255\]"):
        Views(path=str(folder))
    white = Views(path=str(folder), background=(255, 255, 255))
    black = Views(path=str(folder), background=(0, 0, 0))
    assert white.path != black.path
    assert white.store.image(4).mean() > black.store.image(4).mean()
    assert as_store(folder, format="folders", background="#ffffff") == white.path
    with pytest.raises(ConfigError, match="format 'folders' has no option 'side'"):
        Views(path=str(folder), background=(0, 0, 0), format_options={"side": 3})


def test_a_list_is_packed_by_its_format_and_options(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps([{"path": "cup/0.png", "caption": "x"}]))
    views = Views(path=str(tmp_path / "pairs.json"), format="image-text", format_options={"root": str(folder)})
    assert [views.object_name(0), views.store.view_captions(0)] == ["cup/0.png", ["x"]]


def test_stores_are_taken_as_they_are(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("store", "one.h5"):
        with ViewStoreWriter(tmp_path / name) as writer:
            writer.add_object("a", np.zeros((1, 8, 8, 3), np.uint8))
        assert as_store(tmp_path / name) == tmp_path / name
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "cache").exists()


def test_what_is_neither_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.txt").write_text("x")
    with pytest.raises(DataError, match=r"other: has the marks of no format.*or give a store") as caught:
        Views(path=str(tmp_path / "other"))
    assert "\n" not in str(caught.value)
    (tmp_path / "other/shard-00000.h5.tmp").write_text("x")
    with pytest.raises(DataError, match="never finished"):
        Views(path=str(tmp_path / "other"))


def test_a_cache_that_cannot_be_written_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVCORE_CACHE", str(folder / "notes.txt"))
    with pytest.raises(DataError, match=r"the cache cannot be written .*; set MVCORE_CACHE"):
        as_store(folder)


@pytest.mark.process
def test_processes_that_start_together_pack_once(folder: Path, tmp_path: Path) -> None:
    for i in range(40):
        photo(folder / f"more-{i}/0.png", i)
    script = "import sys, pathlib, mvcore_data.packed_cache as c; print(c.as_store(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", script, str(folder)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    answers = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * 4, answers
    (place,) = {out.strip() for out, _ in answers}
    assert sum("packing it once" in err for _, err in answers) == 1
    with ViewStore(place) as store:
        assert len(store) == 42
    assert sorted(path.suffix for path in Path(place).parent.iterdir()) == ["", ".lock"]
