"""`mvcore data pack` and `mvcore data formats`: what they say, and that faults are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mvcore.cli.main import run
from mvcore_data import ViewStore
from mvcore_data.importers import FORMATS, load_format
from mvcore_data.pack_cli import _meanings
from PIL import Image


def photo(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, len(mode)), dtype=np.uint8)).save(path)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of two images of one object, one that is missing, and the folder that holds them."""
    monkeypatch.chdir(tmp_path)
    photo(Path("src/views/a.png"), "RGBA")
    photo(Path("src/views/b.png"))
    entries = [{"path": f"views/{k}.png", "caption": k, "obj_id": 7} for k in "abc"]
    Path("src/metadata.json").write_text(json.dumps(entries))
    return tmp_path / "src"


def test_what_a_pack_says(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "pack", "src", "out", "--background", "white", "--creator", "Ada", "--licence", "MIT"]) == 0
    out, err = capsys.readouterr()
    assert out == "out: 1 objects, 2 views\n"
    assert err.splitlines() == [
        "format: mvcap (metadata.json with obj_id)",
        "encoded anew: 1 (alpha channel)",
        "skipped: 1 (no such file), first views/c.png",
    ]
    store = ViewStore("out")
    assert (store.creator(0), store.licence(0)) == ("Ada", "MIT")


def test_options_of_a_format(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "pack", "src/metadata.json", "out", "--format", "mvcap", "--background", "white"]
    assert run([*arguments, "--option", "root=src/views", "--option", "anywhere=yes", "--resize", "4"]) == 2
    assert "none of its images can be used (skipped: 3 no such file" in capsys.readouterr().err
    assert run([*arguments, "--option", "root=src", "--resize", "4", "--verify", "decode"]) == 0
    assert "format:" not in capsys.readouterr().err
    assert ViewStore("out").size(0) == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "mvcup"], "unknown format 'mvcup', did you mean 'mvcap'? (known: mvcap, image-text,"),
        (["--option", "rot=x"], "format 'mvcap' has no option 'rot', did you mean 'root'? (options: root, anywhere)"),
        (["--option", "anywhere=perhaps"], "format 'mvcap': option anywhere: input should be a valid boolean"),
        (["--option", "root"], "--option 'root': give KEY=VALUE"),
        (["--option", "root=a", "--option", "root=b"], "--option root: given twice"),
        (["--background", "octarine"], "no colour 'octarine'"),
        (["--resize", "0"], "--resize"),
        (["--verify", "hope"], "--verify"),
        ([], "views/a.png: has transparent pixels"),
        (["--strict", "--background", "white"], "views/c.png: no such file (--strict: nothing is left out)"),
    ],
)
def test_faults_are_one_line(
    source: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "pack", "src", "out", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err.splitlines()[-1]
    assert err.count("\n") <= 2  # the format may stand before it
    assert sorted(path.name for path in source.parent.iterdir()) == ["src"]


def test_a_source_of_two_formats_is_asked_about(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = source / "u1"
    photo(folder / "000.png")
    np.save(folder / "000.npy", np.eye(4)[:3])
    assert run(["data", "pack", "src", "out"]) == 2
    err = capsys.readouterr().err
    assert "src: may be of several formats; choose one with --format: " in err
    assert "mvcap (metadata.json with obj_id), zero123 (u1/000.png with 000.npy)" in err


def test_the_table_of_formats_and_that_of_ones_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["data", "formats"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["format", *(load_format(module).name for module in FORMATS)]
    assert run(["data", "formats", "zero123"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("zero123: ")
    assert any(line.startswith("field_of_view  49.13") for line in out.splitlines())
    assert run(["data", "formats", "zero12"]) == 2
    assert "did you mean 'zero123'?" in capsys.readouterr().err


@pytest.mark.parametrize("module", FORMATS)
def test_each_format_is_described(module: str) -> None:
    found = load_format(module)
    assert found.name == module.replace("_", "-")
    assert found.summary
    assert "\n" not in found.summary
    meanings = _meanings(found.options)
    assert set(meanings) == set(found.options.model_fields)
    assert all(meanings.values())
