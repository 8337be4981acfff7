"""`--data` of a command takes a folder of images: it is packed once, and the next command finds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mvcore.cli.main import run
from mvcore_data import ViewStore

if TYPE_CHECKING:
    from conftest import Workshop


@pytest.fixture
def photos(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workshop's store as folders of images with captions."""
    monkeypatch.setenv("MVCORE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    with ViewStore(workshop.store) as store:
        for i, name in enumerate(store.object_ids):
            place = folder / (store.category(i) or "thing") / name.replace("/", "-")
            place.mkdir(parents=True)
            (place / "captions.txt").write_text("\n".join(store.captions(i) or [f"a thing called {name}"]))
            for k, v in enumerate(store.views_of(i)):
                (place / f"{k}.{store.codec(v)}").write_bytes(store.encoded(v))
    return folder


def test_train_and_eval_on_a_folder(
    workshop: Workshop, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(workshop.yaml())
    arguments = ["train", str(tmp_path / "run.yaml"), "--data", str(photos), "-o", str(tmp_path / "run")]
    assert run(arguments) == 0
    assert capsys.readouterr().err.count("packing it once as folders") == 1
    assert run(["eval", str(tmp_path / "run"), "--data", str(photos), "--on", "core.consistency"]) == 0
    out, err = capsys.readouterr()
    assert "packing" not in err
    assert "same" in out


def test_data_commands_take_a_folder(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "info", str(photos)]) == 0
    out, err = capsys.readouterr()
    assert err.count("packing it once as folders") == 1
    assert "objects" in out
    assert run(["data", "overlap", str(photos), str(photos), "--json", "--no-images"]) == 0
    out, err = capsys.readouterr()
    assert "packing" not in err  # found again
    assert len(json.loads(out)["ids"]) == len([*photos.glob("*/*/captions.txt")])
    command = [
        "data",
        "embed",
        str(photos),
        "--encoder",
        "core.open_clip",
        "--model",
        "package:mvcore_data/demo/clip.json",
    ]
    assert run([*command, "--pretrained", "package:mvcore_data/demo/clip.safetensors", "--fit", "pad"]) == 0
    stored, _ = capsys.readouterr()
    assert str(photos.parent / "cache") in stored


def test_a_folder_that_holds_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for command in (["info"], ["embed", "--encoder", "core.open_clip"], ["caption", "--model", str(tmp_path)]):
        assert run(["data", *command, str(tmp_path / "empty")]) == 2
        assert str(tmp_path / "empty") in capsys.readouterr().err


def test_embed_names_a_fit_that_is_none(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "embed", str(workshop.store), "--encoder", "core.open_clip", "--fit", "stretch"]) == 2
    assert "stretch" in capsys.readouterr().err
