"""`--data` of a command takes a folder of images: it is packed once, and the next command finds it."""

from __future__ import annotations

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
