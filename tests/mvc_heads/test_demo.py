"""The demo of the heads, on a few objects of the demonstration set: made vectors, no images, every row and picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from mvcore.cli.main import run
from mvcore.run_folder import read_config
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.demo import store_path, vectors


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six objects of three categories in the place of the whole set."""
    with ViewStore(store_path()) as demo, ViewStoreWriter(tmp_path / "views") as writer:
        chosen = [28 * k + j for k in range(3) for j in (0, 27)]
        for i in chosen:
            views = list(demo.views_of(i))
            writer.add_object(
                demo.object_ids[i],
                [demo.image(v) for v in views],
                captions=demo.captions(i),
                category=demo.category(i),
                cameras=[demo.camera(v) for v in views],
            )
        names = [demo.object_ids[i] for i in chosen]
        writer.set_splits({"train": names[::2], "test": names[1::2]})
    monkeypatch.setattr(vectors, "STORE", tmp_path / "views")
    monkeypatch.setattr("mvcore_data.demo.store_path", lambda: tmp_path / "views")
    monkeypatch.setenv("MVCORE_CACHE", str(tmp_path / "cache"))
    vectors._digest.cache_clear()
    return tmp_path


def test_the_demo_shows_what_the_heads_gain_and_lose(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small / "run"
    few = ["--set", "data[objects].batch_size=3", "--set", "run.max_steps=4", "--set", f"run.output={folder}"]
    assert run(["train", "--plugin", "mvc_heads", *few]) == 0
    said = capsys.readouterr()
    assert "embedding the demo set once" in said.err
    for row in ("untouched", "control", "tuned"):
        assert row in said.out
    for line in ("DEMO: Before and after", "own text R@1 %", "participation ratio", "zero-shot top-1 %"):
        assert line in said.out
    pictures = {path.name for path in (folder / "report").glob("*.png")}
    assert {"ledger-views-ood.png", "ledger-pairs-ood.png", "ledger-angle-ood.png", "viewpoints.png"} <= pictures
    config = read_config(folder)
    assert config.demo
    assert config.data["objects"].args["images"] is False
