"""The model card of an export: where the weights come from, what they were trained on, what was measured, their use."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import mvcore
import numpy as np
import pytest
import torch
from mvcore.api import DatasetSpec, EncoderSpec, hookimpl
from mvcore.cli.export import export as export_command
from mvcore.config_layers import Layers, to_yaml
from mvcore.errors import DataError
from mvcore.exporting import Export, export
from mvcore.model_card import TRAINING_DATA
from mvcore.plugins import reset
from mvcore.run_folder import read_config
from mvcore.running import describe_export, run
from mvcore_data import ViewStoreWriter
from mvcore_data.views import Views
from rich.console import Console

if TYPE_CHECKING:
    from conftest import Lab

CREATORS = ("Ada|Byron", "Grace *H*", None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight objects under two licences in three spellings, of two sources and creators."""
    path = tmp_path_factory.mktemp("card") / "cups-and-boats"
    rng = np.random.default_rng(0)
    with ViewStoreWriter(path, codec="png") as writer:
        for i in range(8):
            writer.add_object(
                f"thing-{i}",
                rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
                captions=[f"a cup {i}"],
                category=("cup", "boat")[i % 2],
                licence=("by", "CC-BY-4.0", "cc0", None)[i % 4],
                source=("attic", "cellar")[i % 2],
                creator=CREATORS[i % 3],
            )
    return path


def finished(lab: Lab, store: Path, folder: Path, **changes: Any) -> Path:
    """A run of six steps with all its stages."""
    values = lab.values(data={"objects": {"path": str(store)}}, run={"max_steps": 6})
    measured = {"id": "data.views", "path": str(store)}
    values["validate"] = {"data": {"things": measured}, "on": {"core.consistency": {}}}
    values = lab.changed(values, changes)
    session = lab.session(values)
    layers = Layers()
    layers.merge(values, "test")
    run(session, folder, to_yaml(layers, session.config), Console(quiet=True))
    return folder


@pytest.fixture(scope="module")
def trained(lab: Lab, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return finished(lab, store, tmp_path_factory.mktemp("card") / "run", plugins=["ovt"])


def test_a_run_notes_its_training_data(trained: Path) -> None:
    assert json.loads((trained / TRAINING_DATA).read_text()) == {
        "objects": {
            "id": "data.views",
            "name": "cups-and-boats",
            "objects": 8,
            "views": 32,
            "licences": {"CC-BY-4.0": 4, "CC0-1.0": 2, "": 2},
            "sources": {"attic": 4, "cellar": 4},
            "creators": {"Ada|Byron": 3, "Grace *H*": 3, "": 2},
        }
    }


def test_the_card_of_a_runs_export(trained: Path, store: Path) -> None:
    card = (trained / "export" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: open_clip\n")
    assert "model `clip.json`" in card
    assert "`ovt.vc` x 1" in card
    assert "`ovt.lora` (merged into the weights), `ovt.logit_scale` (merged into the weights)" in card
    assert "`ovt.viformer` (beside the weights)" in card
    assert "6 steps" in card
    assert "cups-and-boats, 8 objects, 32 views" in card
    assert "| licences | CC-BY-4.0 4, CC0-1.0 2, unknown 2 |" in card
    assert "| sources | attic 4, cellar 4 |" in card
    assert r"| creators | Ada\|Byron 3, Grace \*H\* 3, unknown 2 |" in card
    # No path of the machine that it was made on.
    assert str(store.parent) not in card
    assert (trained / "export" / TRAINING_DATA).read_bytes() == (trained / TRAINING_DATA).read_bytes()


def test_the_card_holds_the_figures_of_the_run(trained: Path) -> None:
    card = (trained / "export" / "README.md").read_text()
    result = json.loads((trained / "evaluation/tuned/core.consistency/result.json").read_text())
    shown = [figure for figure in result["figures"] if figure["headline"]]
    tuned = next(line for line in card.splitlines() if line.startswith("| tuned |"))
    assert shown
    for figure in shown:
        assert f"{figure['value'] * (100 if figure['percent'] else 1):.{1 if figure['percent'] else 3}f}" in tuned
    assert [line.split(" | ")[0] for line in card.splitlines() if line.startswith(("| untouched", "| Δ"))] == [
        "| untouched",
        "| Δ tuned",
    ]


@pytest.mark.process
def test_the_code_of_the_card_runs(trained: Path) -> None:
    card = (trained / "export" / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    code = blocks[0] + "import sys\nassert 'mvcore' not in sys.modules\n" + blocks[1] + "print(tuple(vectors.shape))\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=trained, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "(1, 16)"


def test_export_needs_no_store_and_says_when_figures_are_of_other_weights(
    lab: Lab, trained: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = store.with_name("moved")
    store.rename(gone)
    try:
        export_command(trained, output=tmp_path / "full", to="open_clip", which="last", dtype="float32", strength=1.0)
        export_command(trained, output=tmp_path / "half", to="open_clip", which="last", dtype="float32", strength=0.5)
    finally:
        gone.rename(store)
    assert "ovt.viformer" in capsys.readouterr().out
    full, half = ((tmp_path / name / "README.md").read_text() for name in ("full", "half"))
    assert "| licences | CC-BY-4.0 4, CC0-1.0 2, unknown 2 |" in full
    assert "| tuned, as exported |" in full
    assert "not of these weights" in half
    assert "| tuned |" not in half


def test_an_export_of_no_run_has_a_card_too(lab: Lab, tmp_path: Path) -> None:
    export(mvcore.load(str(lab.clip)), tmp_path / "plain")
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "local-dir:plain" in card
    assert "Training data" not in card


def test_a_damaged_note_is_one_line(trained: Path, tmp_path: Path) -> None:
    model = mvcore.load(trained)
    note = trained / TRAINING_DATA
    before = note.read_bytes()
    try:
        for damage in (b"{", b"[1]", b'{"a": 1}'):
            note.write_bytes(damage)
            with pytest.raises(DataError, match=r"training_data\.json: damaged") as caught:
                export(model, tmp_path / "export", run=trained)
            assert "\n" not in str(caught.value)
            assert not (tmp_path / "export").exists()
    finally:
        note.write_bytes(before)


class Unfreezing(torch.nn.Module):
    """An adapter without parameters or features of its own: it lets one of the backbone's weights train."""

    def attach(self, backbone: Any) -> None:
        backbone.model.positional_embedding.requires_grad_(True)


class Silent(Views):
    """A dataset that does not say what it gives."""

    describe = None  # pyright: ignore[reportAssignmentType]


def test_adapters_that_unfreeze_and_data_that_says_nothing(lab: Lab, store: Path, tmp_path: Path) -> None:
    @hookimpl
    def mvcore_register_encoders() -> list[EncoderSpec]:
        return [EncoderSpec(name="bias", kind="adapter", summary="Unfreezes", factory=Unfreezing)]

    @hookimpl
    def mvcore_register_datasets() -> list[DatasetSpec]:
        return [DatasetSpec(name="silent", summary="Silent", factory=Silent, config="mvcore_data.options:ViewsOptions")]

    plugin = ModuleType("small")
    hooks = {f.__name__: f for f in (mvcore_register_encoders, mvcore_register_datasets)}
    vars(plugin).update(MVCORE_API=1, **hooks)
    try:
        mvcore.register(plugin)
        changes: dict[str, Any] = {"adapters": {"small.bias": {}}, "data": {"objects": {"id": "small.silent"}}}
        changes["validate"] = {"data": {"things": {"limit_objects": 4}}}
        folder = finished(lab, store, tmp_path / "run", **changes)
        entries = read_config(folder).adapters
        done = export(mvcore.load(folder), tmp_path / "again", adapters=entries, run=folder)
    finally:
        reset()
    assert isinstance(done, Export)
    assert (done.in_place, done.beside) == (("small.bias",), ("ovt.viformer",))
    said = describe_export(done).splitlines()
    assert "trained in place: small.bias" in said[0]
    assert "small.bias" not in said[1]
    card = (tmp_path / "again" / "README.md").read_text()
    assert "`small.bias` (trained in place)" in card
    assert "its licences are unknown" in card
