"""The demonstration set's vectors: made on first use, kept in the user's cache, those of the demonstration model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mvcore.api import load_encoder, model_key
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.demo import store_path, vectors
from mvcore_data.embeddings import EmbeddingCache, folder_of
from mvcore_data.views import Views

MODEL = {"model": "package:mvcore_data/demo/clip.json", "pretrained": "package:mvcore_data/demo/clip.safetensors"}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three objects of the demonstration set in its place; whose vectors are made in a moment."""
    with ViewStore(store_path()) as demo, ViewStoreWriter(tmp_path / "views") as writer:
        for i in range(3):
            views = [demo.image(v) for v in demo.views_of(i)][:4]
            writer.add_object(demo.object_ids[i], views, captions=demo.captions(i))
    monkeypatch.setattr(vectors, "STORE", tmp_path / "views")
    monkeypatch.setattr("mvcore_data.demo.store_path", lambda: tmp_path / "views")
    monkeypatch.setenv("MVCORE_CACHE", str(tmp_path / "cache"))
    vectors._digest.cache_clear()
    return tmp_path


def test_they_are_made_once_in_the_users_cache(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in (small / "views").iterdir())
    source = Views(path="demo", embeddings=["clip"], images=False)
    assert capsys.readouterr().err == f"embedding the demo set once, into {vectors.folder()}\n"
    assert folder_of(small / "views", "clip").is_relative_to(small / "cache")
    assert sorted(path.name for path in (small / "views").iterdir()) == before
    written = {path: path.stat().st_mtime_ns for path in vectors.folder().rglob("*.safetensors")}
    assert len(written) == 1
    again = Views(path="demo", embeddings={"teacher": "clip"})
    assert not capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in vectors.folder().rglob("*.safetensors")} == written
    model = load_encoder("core.open_clip", MODEL)
    batch = again.load(1, [6, 4], None)
    found = source.load(1, [6, 4], None).embeddings["clip/image"]
    assert torch.equal(found, batch.embeddings["teacher/image"])
    torch.testing.assert_close(found, model.features(batch, frozenset({"view"})).view, rtol=2e-3, atol=2e-3)
    source.check_stored("clip", model_key(model))


def test_an_unfinished_or_damaged_folder_is_made_anew(small: Path) -> None:
    Views(path="demo", embeddings=["clip"])
    (file,) = vectors.folder().rglob("*.safetensors")
    file.unlink()
    (vectors.folder() / "clip/key.json").write_text("{")
    Views(path="demo", embeddings=["clip"])
    with ViewStore(small / "views") as store:
        assert EmbeddingCache(store, "clip").widths == {"image": 128, "text": 128}


def test_without_the_tag_nothing_is_made(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Views(path="demo")
    assert not capsys.readouterr().err
    assert not vectors.folder().exists()
