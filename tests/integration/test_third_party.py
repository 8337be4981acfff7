"""A method that somebody else wrote and installed: every kind of part, trained through the program."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mvcore.cli.main import run
from mvcore.encoders.open_clip import OpenClip

if TYPE_CHECKING:
    from conftest import Workshop

PLUGIN = """
from mvcore.api import (DatasetSpec, EncoderSpec, EvaluatorSpec, LossSpec, Problem, RecipeSpec, TrainerSpec, hookimpl)

MVCORE_API = 1

@hookimpl
def mvcore_register_losses():
    return [LossSpec(name="spread", summary="Draws the views of an object together", needs={"view"},
                     factory="third_pull.parts:Spread", config="third_pull.config:SpreadOptions"),
            LossSpec(name="bank", summary="Holds views near their last embedding",
                     needs={"pull.unit", "state:pull.last"}, factory="third_pull.parts:Bank"),
            LossSpec(name="broken", summary="Becomes NaN", needs={"view"}, factory="third_pull.parts:Broken"),
            LossSpec(name="nosy", summary="Reads what it does not declare", needs={"view"},
                     factory="third_pull.parts:Nosy")]

@hookimpl
def mvcore_register_encoders():
    return [EncoderSpec(name="unit", summary="Unit vectors of a learned map", kind="adapter", needs={"view"},
                        provides={"pull.unit"}, axes={"pull.unit": "view"}, factory="third_pull.parts:Unit")]

@hookimpl
def mvcore_register_datasets():
    return [DatasetSpec(name="dots", summary="Coloured dots", factory="third_pull.dots:Dots",
                        config="third_pull.config:DotsOptions")]

@hookimpl
def mvcore_register_trainers():
    return [TrainerSpec(name="last", summary="The last embedding of a view", needs={"pull.unit", "view_ids"},
                        provides={"state:pull.last": "view"}, indexed=True, factory="third_pull.parts:Last")]

@hookimpl
def mvcore_register_evaluators():
    return [EvaluatorSpec(name="norm", summary="Mean norm of the views", needs={"view"},
                          factory="third_pull.parts:Norm")]

@hookimpl
def mvcore_register_recipes():
    return [RecipeSpec(name="demo", summary="On dots", path="third_pull:demo.yaml", default=True)]

@hookimpl
def mvcore_check_run(config):
    return [Problem("pull needs two steps or more")] if config.run.max_steps < 2 else []
"""

CONFIG = """
from mvcore.api import Options

class SpreadOptions(Options):
    power: float = 2.0

class DotsOptions(Options):
    objects: int = 5
    image_size: int = 32
"""

PARTS = '''
import torch
from torch import nn
from lightning.pytorch import Callback
from mvcore.api import Adapter, EvalResult, Figure

class Spread(nn.Module):
    """Mean distance of each view to its object's mean, by the batch's layout alone."""
    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, features, batch):
        view = features.view
        sums = view.new_zeros(batch.n_objects, view.shape[1]).index_add(0, batch.object_of_view, view)
        mean = sums / batch.view_counts[:, None]
        distance = (view - mean[batch.object_of_view]).norm(dim=1)
        return {"loss": distance.pow(self.power).mean(), "distance": distance.mean()}

class Unit(Adapter):
    def attach(self, backbone):
        self.map = nn.Linear(backbone.dims["view"], 4)

    def forward(self, features, batch):
        return {"pull.unit": nn.functional.normalize(self.map(features.view), dim=-1)}

class Bank(nn.Module):
    def forward(self, features, batch):
        return (features["pull.unit"] - batch.state["pull.last"]).pow(2).mean()

class Broken(nn.Module):
    def forward(self, features, batch):
        return features.view.sum() * float("nan")

class Nosy(nn.Module):
    def forward(self, features, batch):
        return features.text.sum()

class Last(Callback):
    """A step is observed before its losses are computed, so what they get is what was known at the step before."""
    def bind(self, run):
        self.known = self.before = torch.zeros(run.n_view_ids, 4)

    def state(self, batch):
        return {"pull.last": self.before.to(batch.device)[batch.view_ids]}

    def observe(self, batch, features):
        self.before, self.known = self.known, self.known.clone()
        self.known[batch.view_ids.cpu()] = features["pull.unit"].cpu()

class Norm:
    def __call__(self, model, sources, output):
        figures = []
        for name, source in sources.items():
            rows = []
            for i in range(len(source)):
                batch = source.load(i, source.views_of(i), None)
                rows.append(model.features(batch, frozenset({"view"})).view.norm(dim=1).cpu())
            values = torch.cat(rows).numpy()
            figures.append(Figure(f"pull.norm/mean/{name}", float(values.mean()), len(values), "mean norm"))
        return EvalResult(tuple(figures))
'''

DOTS = """
import torch
from mvcore.api import ViewBatch

class Dots:
    provides = frozenset({"images", "captions", "object_ids", "view_ids"})

    def __init__(self, objects, image_size):
        self.objects, self.image_size = objects, image_size
        self.store_key, self.n_store_objects, self.n_store_views = "dots", objects, 3 * objects

    def __len__(self):
        return self.objects

    def views_of(self, i):
        return range(3 * i, 3 * i + 3)

    def load(self, i, views, rng):
        size = self.image_size
        generator = torch.Generator().manual_seed(i)
        images = torch.randint(0, 256, (len(views), 3, size, size), dtype=torch.uint8, generator=generator)
        return ViewBatch.make([len(views)], images=images, object_ids=torch.tensor([i]),
                              view_ids=torch.tensor(list(views)), captions=[f"dot {i}"],
                              caption_object=torch.tensor([0]), caption_view=torch.tensor([-1]))

    def object_name(self, i):
        return f"dot-{i}"

    def category(self, i):
        return "dot"
"""

RECIPE = """
encoder: {id: core.open_clip, model: CLIP, pretrained: null, train: "last:1"}
adapters: {pull.unit: }
data:
  dots: {id: pull.dots, batch_size: 4, views_per_object: [2, 3]}
losses:
  pull.spread: {weight: 0.5, power: 1.0}
  pull.bank:
trainers: {pull.last: }
run: {max_steps: 3, accelerator: cpu, workers: 0, log_every: 1}
validate: {data: {held: {id: pull.dots, objects: 2}}, on: [pull.norm]}
"""


@pytest.fixture
def third(install, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The distribution `third-pull`, installed."""
    monkeypatch.chdir(tmp_path)
    install(
        "third-pull",
        {"pull": "third_pull.plugin"},
        {
            "third_pull/__init__.py": "",
            "third_pull/plugin.py": PLUGIN,
            "third_pull/config.py": CONFIG,
            "third_pull/parts.py": PARTS,
            "third_pull/dots.py": DOTS,
            "third_pull/demo.yaml": RECIPE.replace("CLIP", str(workshop.clip)),
        },
        version="2.5",
    )
    return install


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_its_recipe_trains_with_every_kind_of_its_parts(third, capsys: pytest.CaptureFixture[str]):
    assert run(["train", "--plugin", "pull", "-o", "run"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "recipe pull.demo" in out
    folder = Path("run")
    rows = metrics(folder)
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    for row in rows:
        raw = float(row["train/pull.spread"])
        assert float(row["train/pull.spread.weighted"]) == pytest.approx(0.5 * raw, rel=1e-4)
        assert float(row["train/pull.spread/distance"]) == pytest.approx(raw, rel=1e-4)
    # At the first step the bank is empty, so a unit vector of 4 numbers is 1/4 away from it in the mean square.
    assert float(rows[0]["train/pull.bank"]) == pytest.approx(0.25, rel=1e-4)
    assert float(rows[2]["train/pull.bank"]) < 0.25
    (figure,) = json.loads((folder / "evaluation" / "tuned" / "pull.norm" / "result.json").read_text())["figures"]
    assert (figure["name"], figure["n"]) == ("pull.norm/mean/held", 6)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_its_loss_goes_with_another_methods_run(third, workshop: Workshop):
    Path("run.yaml").write_text(workshop.yaml(validate=""))
    assert run(["train", "run.yaml", "--loss", "pull.spread=0.1", "-o", "run"]) == 0
    assert {"train/ovt.vc", "train/core.itc", "train/pull.spread"} <= metrics(Path("run"))[0].keys()


def test_its_check_refuses_a_run(third, fault: Callable[..., str]):
    assert fault("train", "--plugin", "pull", "--set", "run.max_steps=1") == "pull: pull needs two steps or more"


def test_a_loss_that_becomes_nan_stops_the_run_by_name(third, capsys: pytest.CaptureFixture[str]):
    assert run(["train", "--plugin", "pull", "--loss", "pull.broken", "-o", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: loss pull.broken became NaN or infinite at step ")
    assert json.loads(Path("run/run.json").read_text())["status"] == "failed"


def test_a_loss_that_reads_what_it_does_not_declare_is_named(third, capsys: pytest.CaptureFixture[str]):
    assert run(["train", "--plugin", "pull", "--loss", "pull.nosy", "-o", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: loss pull.nosy reads 'text', which it does not declare in its needs (it has: view)")


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (
            "def attach(self, backbone):\n        self.map",
            "def attach(self, backbone):\n        {}['x']\n        self.map",
        ),
        ('return {"pull.unit": nn', 'return {"pull.unit": features.view @ 3, "x": nn'),
    ],
)
def test_an_adapter_that_fails_is_named_and_leaves_no_folder(
    third, tmp_path: Path, capsys: pytest.CaptureFixture[str], call: str, what: str
):
    assert PARTS.count(call) == 1
    (parts,) = tmp_path.rglob("third_pull/parts.py")
    parts.write_text(PARTS.replace(call, what))
    assert run(["train", "--plugin", "pull", "-o", "run", "--set", "validate.on={}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: adapter pull.unit failed: ")
    assert "(parts.py:" in line
    assert not Path("run").exists(), list(Path("run").rglob("*"))


# --- a broken one -----------------------------------------------------------------------------------------------


@pytest.fixture
def broken(third, monkeypatch: pytest.MonkeyPatch):
    """Another plugin that cannot be imported; no model may be built."""
    third.plugin("sick", "import a_module_that_is_not_there", version="0.3")

    def built(*_, **__):
        raise AssertionError("a model was built")

    return lambda: monkeypatch.setattr(OpenClip, "__init__", built)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plugin", "sick"],
        ["--plugin", "pull", "--loss", "sick.loss"],
        ["--plugin", "pull", "--set", "losses[sick.loss].weight=1"],
        ["--plugin", "pull", "--set", "plugins=[sick]"],
        ["--recipe", "sick.demo"],
    ],
)
def test_a_run_that_uses_a_broken_plugin_stops_before_anything_is_opened(broken, fault: Callable[..., str], arguments):
    broken()
    line = fault("train", *arguments)
    assert "plugin 'sick' (third-sick 0.3) is broken: ModuleNotFoundError: No module named 'a_module" in line
    assert line.endswith("see 'mvcore plugins list -v'")


def test_a_run_that_does_not_use_it_says_so_in_one_line(broken, capsys: pytest.CaptureFixture[str]):
    assert run(["train", "--plugin", "pull", "-o", "run", "--set", "validate.on={}", "--dry-run"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: plugin 'sick' (third-sick 0.3) is broken: ModuleNotFoundError")
