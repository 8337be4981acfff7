"""`mvcore data` as its users call it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mvcore.cli.main import run
from mvcore_data import ViewStore
from PIL import Image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Folders of images: four objects in two categories, and a file to leave out."""
    src = tmp_path / "src"
    for k, name in enumerate(("cup/one", "cup/two", "jug/one", "jug/two")):
        (src / name).mkdir(parents=True)
        for view in range(3):
            pixels = np.random.default_rng(10 * k + view).integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(src / name / f"{view}.jpg")
    (src / "cup/one/notes.txt").write_text("x")
    return src


def test_pack_check_info_and_split(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, sheet = str(tmp_path / "store"), tmp_path / "sheet.png"
    assert run(["data", "pack", str(images), store]) == 0
    out, err = capsys.readouterr()
    assert "4 objects, 12 views" in out
    assert "skipped: 1 (not a JPEG, PNG or WebP file (.txt))" in err
    assert run(["data", "check", store]) == 0
    assert "sound, 4 objects, 12 views" in capsys.readouterr().out
    assert run(["data", "split", store, "train=0.5", "test=0.5"]) == 0
    assert capsys.readouterr().out == "train: 2 objects\ntest: 2 objects\n"
    assert run(["data", "info", store, "--sheet", str(sheet), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["objects"], found["views"], found["splits"]) == (4, 12, {"train": 2, "test": 2})
    assert Image.open(sheet).size[0] > 30
    assert run(["data", "info", store]) == 0
    assert "12 (3 to 3 an object, mean 3.0)" in capsys.readouterr().out


def test_split_by_files_of_ids(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path / "store")
    run(["data", "pack", str(images), store])
    (tmp_path / "held-out.txt").write_text("cup/one\njug/two\n")
    assert run(["data", "split", store, f"test={tmp_path / 'held-out.txt'}", "train=1.0"]) == 0
    assert ViewStore(store).splits() == {"test": ["cup/one", "jug/two"], "train": ["cup/two", "jug/one"]}
    capsys.readouterr()
    for part, words in (("train", "no split"), ("train=x", "neither a fraction nor a file")):
        assert run(["data", "split", store, "--replace", part]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("untrusted", [[], ["--untrusted"]])
def test_check_of_a_damaged_store(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], untrusted: list[str]
) -> None:
    store = tmp_path / "store"
    run(["data", "pack", str(images), str(store)])
    shard = store / "shard-00000.h5"
    data = bytearray(shard.read_bytes())
    start = data.find(ViewStore(store).encoded(4))
    data[start + 300] ^= 1
    shard.write_bytes(data)
    capsys.readouterr()
    assert run(["data", "check", str(store), *untrusted]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "view 1 of object 'cup/two'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data", "chek", "x"], "unknown command 'data chek', did you mean 'check'"),
        (["data", "check", "nothing"], "nothing: no such file or folder"),
        (["data", "info", "nothing"], "nothing: no such file or folder"),
        (["data", "split", "nothing", "train=1"], "nothing"),
        (["data", "pack", "nothing", "out"], "nothing: no such file or folder"),
        (["data", "pack", ".", "out", "--background", "octarine"], "octarine"),
        (["data", "check"], "STORE"),
    ],
)
def test_faults_are_one_line_and_exit_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_ctrl_c_before_the_first_shard_leaves_nothing(tmp_path: Path) -> None:
    folder, out = tmp_path / "src/cup", tmp_path / "out"
    folder.mkdir(parents=True)
    Image.effect_noise((1500, 1500), 50).convert("RGB").save(folder / "0.jpg")
    for k in range(1, 500):  # seconds of work
        (folder / f"{k}.jpg").hardlink_to(folder / "0.jpg")
    command = [sys.executable, "-m", "mvcore.cli.main", "data", "pack", str(folder.parent), str(out)]
    with subprocess.Popen([*command, "--verify", "decode"], stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "out.partial/store").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[:2] == ["format: folders (folders with images)", f"interrupted; {out} was not made"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


@pytest.mark.process
def test_help_lists_all_commands_and_loads_nothing_heavy() -> None:
    script = (
        "import sys; from mvcore.cli.main import run; code = run(['data', '--help']);"
        "heavy = {'torch', 'h5py', 'numpy', 'PIL', 'pyvista', 'vtk', 'trimesh', 'lightning'} & set(sys.modules);"
        "print('heavy:', sorted(heavy)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    for command in ("check", "info", "pack", "render", "split", "synth"):
        assert command in done.stdout


def test_help_of_a_rendering_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "render", "--help"]) == 0
    assert "--rig" in capsys.readouterr().out
