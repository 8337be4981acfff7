"""The conflict report: each term's gradient against a step of its own, and what a run says about its terms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from mvcore.checkpoint import WEIGHTS, load_weights
from mvcore.errors import ConfigError
from mvcore.report.figures import read_metrics
from mvcore.training.fit import Training, fit
from mvcore.training.gradients import TermGradients
from rich.console import Console
from torch import Tensor

if TYPE_CHECKING:
    from conftest import Lab

TUG = """
from mvcore.api import *
from torch import nn
MVCORE_API = 1

class Pull(nn.Module):
    def __init__(self, towards=1.0):
        super().__init__()
        self.towards = towards

    def forward(self, features, batch):
        return self.towards * features.view.sum() + 100.0

class Spread(nn.Module):
    def forward(self, features, batch):
        total, count = features.zero(), 0
        for i in range(batch.n_objects):
            views = features.view[batch.object_of_view == i]
            if len(views) > 1:
                total, count = total + views.var(dim=0).sum(), count + 1
        return {"loss": total, "count": count}

class PullOptions(Options):
    towards: float = 1.0

@hookimpl
def mvcore_register_losses():
    options = "third_tug:PullOptions"
    return [LossSpec(name="pull", summary="P", factory="third_tug:Pull", config=options, needs={"view"}),
            LossSpec(name="spread", summary="S", factory="third_tug:Spread", needs={"view"}, scope="object")]

@hookimpl
def mvcore_register_trainers():
    return [TrainerSpec(name="stepper", summary="S", factory="lightning.pytorch:Callback", replaces_step=True)]
"""


@pytest.fixture(autouse=True)
def tug(install: Any) -> None:
    """A loss that pulls all views one way or the other, and one of scope `object`."""
    install.plugin("tug", TUG)


def mixed(lab: Lab, **changes: Any) -> dict[str, Any]:
    """Four terms over two sources, whose adapters and backbone train."""
    values = lab.values(
        encoder={"train": "all"},
        adapters={"ovt.viformer": {"dropout": 0.0}},
        data={
            "objects": {"batch_size": 13},
            "whole": {"id": "data.views", "path": str(lab.store), "batch_size": 3, "views_per_object": [1, 4]},
        },
        losses={
            "core.itc": {"weight": 0.5},
            "ovt.vc": {"on": ["objects"]},
            "tug.pull": {"weight": 0.01, "on": ["whole"]},
            "tug.spread": {"weight": 2.0},
        },
        trainers={"ovt.outlier_mining": {"on": ["objects"]}},
    )
    return lab.changed(values, changes)


def ready(lab: Lab, folder: Path) -> tuple[Training, Any]:
    """The run in float64 with random weights and mined outliers, and the batches of a step."""
    training = lab.prepare(mixed(lab), folder)
    training.pipeline.double()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in training.pipeline.parameters():
            if parameter.ndim:
                parameter.add_(0.05 * torch.randn_like(parameter))
    miner: Any = training.trainers[0]
    miner.mine()
    assert training.module.make_loader is not None
    return training, next(iter(training.module.make_loader(0, 1, 0)))


def naive(training: Training, batches: Any, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each weighted term's gradient from a step of its own, as one vector."""
    objective, found = training.module.objective, dict[str, Tensor]()
    every = objective.active
    for term in every:
        objective.active = (term,)
        objective.zero_grad(set_to_none=True)
        objective.step(batches, lambda total: total.backward())
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
        found[term.name] = torch.cat([grad.flatten() for grad in grads])
    objective.active = every
    objective.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
def test_each_terms_gradient_is_that_of_a_step_of_its_own(lab: Lab, tmp_path: Path, chunk: int | None) -> None:
    training, batches = ready(lab, tmp_path)
    shared = {name: p for name, p in training.module.trained().items() if not name.startswith("losses/")}
    wanted = naive(training, batches, shared)
    assert len(wanted) == 4
    assert all(float(grad.norm()) > 1e-4 for grad in wanted.values())
    collected, objective = TermGradients(shared.values()), training.module.objective
    if chunk is None:
        objective.step(batches, lambda total: total.backward(), collected)
    else:
        objective.cached_step(batches, lambda total: total.backward(), chunk, lambda number: None, collected)
    found = collected.measured()
    assert set(found.norms) == set(wanted)
    for name, grad in wanted.items():
        assert float(found.norms[name]) == pytest.approx(float(grad.norm()), rel=1e-8), name
    assert len(found.cosines) == 6
    for (one, other), cosine in found.cosines.items():
        expected = torch.nn.functional.cosine_similarity(wanted[one], wanted[other], dim=0)
        assert float(cosine) == pytest.approx(float(expected), abs=1e-8), (one, other)
    # What the step itself leaves is the gradient of the sum.
    total = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared.values()])
    assert torch.allclose(total, sum(wanted.values(), torch.zeros(())), rtol=1e-8, atol=1e-10)


def test_a_term_without_a_gradient_has_no_angle() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    collected = TermGradients([parameter])
    collected.add("some", parameter.sum())
    collected.add("none", torch.tensor(3.0))
    found = collected.measured()
    assert float(found.norms["none"]) == 0
    assert bool(found.cosines["some", "none"].isnan())
    assert TermGradients([parameter], cosines=False).measured().cosines == {}


def opposed(lab: Lab, **run: Any) -> dict[str, Any]:
    losses = {"one": {"id": "tug.pull"}, "other": {"id": "tug.pull", "weight": 0.5, "towards": -1.0}}
    values = lab.values(run={"gradients": {"every": 2}, **run})
    values["losses"] = {"core.itc": {}, **losses}
    values["trainers"] = {}
    return values


def test_a_run_says_which_terms_conflict(lab: Lab, tmp_path: Path) -> None:
    training = lab.prepare(opposed(lab), tmp_path / "run")
    console = Console(record=True, width=120, file=(tmp_path / "out").open("w"))
    fit(training, tmp_path / "run", title="tuned", console=console)
    found = json.loads((tmp_path / "run/gradients.json").read_text())
    assert {name: term["n"] for name, term in found["terms"].items()} == {"core.itc": 5, "one": 5, "other": 5}
    assert found["terms"]["one"]["norm"] == pytest.approx(2 * found["terms"]["other"]["norm"], rel=1e-4)
    assert sum(term["share"] for term in found["terms"].values()) == pytest.approx(1)
    pairs = {tuple(pair["terms"]): pair for pair in found["pairs"]}
    assert list(pairs) == list(combinations(["core.itc", "one", "other"], 2))
    assert pairs["one", "other"]["cosine"] == pytest.approx(-1)
    assert pairs["one", "other"]["conflict"] == 1
    assert pairs["core.itc", "one"]["cosine"] == pytest.approx(-pairs["core.itc", "other"]["cosine"], abs=1e-5)
    lines = console.export_text().splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert [row[0] for row in rows[:3]] == ["core.itc", "one", "other"]
    assert rows[3] == ["one", "other", "-1.000", "-1.000", "100%", "5"]
    metrics = read_metrics(tmp_path / "run/metrics.csv")
    assert list(metrics["train/cosine/one/other"][0]) == [2, 4, 6, 8, 10]
    assert list(metrics["train/one.grad_norm"][0]) == [2, 4, 6, 8, 10]


def test_measuring_changes_no_weight(lab: Lab, tmp_path: Path) -> None:
    weights: list[dict[str, Tensor]] = []
    for name, run in (("with", {"gradients": {"every": 1}}), ("without", {})):
        for micro_batch in ("auto", 5):
            lab.fit(
                mixed(lab, run={**run, "micro_batch": micro_batch, "max_steps": 3}), tmp_path / f"{name}{micro_batch}"
            )
            weights.append(load_weights(tmp_path / f"{name}{micro_batch}/checkpoints/step-00000003" / WEIGHTS))
    for one, other in ((weights[0], weights[2]), (weights[1], weights[3])):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_off_or_between_measurements_nothing_is_computed(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = torch.autograd.grad

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return real(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    lab.fit(mixed(lab, run={"max_steps": 4}), tmp_path / "off")
    assert not calls
    assert not (tmp_path / "off/gradients.json").exists()
    lab.fit(mixed(lab, run={"max_steps": 4, "gradients": {"every": 3, "cosines": False}}), tmp_path / "on")
    assert len(calls) == 4  # one for each term, in one of four steps
    assert json.loads((tmp_path / "on/gradients.json").read_text())["pairs"] == []


def test_a_resumed_run_reports_on_all_its_steps(lab: Lab, tmp_path: Path) -> None:
    values = opposed(lab, checkpoint_every=5)
    lab.fit(values, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/step-00000010")
    (tmp_path / "parts/gradients.json").unlink()
    lab.fit(values, tmp_path / "parts", resume=tmp_path / "parts/checkpoints/step-00000005")
    whole, parts = ((tmp_path / name / "gradients.json").read_text() for name in ("whole", "parts"))
    assert whole == parts


def test_a_trainer_that_steps_itself_leaves_nothing_to_measure(lab: Lab) -> None:
    values = lab.values(trainers={"tug.stepper": {}}, run={"gradients": {"every": 5}})
    with pytest.raises(ConfigError) as caught:
        lab.session(values)
    assert str(caught.value) == (
        "trainers[tug.stepper]: it replaces the training step, so that run.gradients has nothing to measure; "
        "leave one of them out"
    )


@pytest.mark.parametrize(
    ("terms", "columns"),
    [
        (["raw"], {"train/core.itc", "train/ovt.vc"}),
        (["weighted"], {"train/core.itc.weighted", "train/ovt.vc.weighted"}),
        ([], set()),
    ],
)
def test_what_is_logged_of_each_term_can_be_chosen(
    lab: Lab, tmp_path: Path, terms: list[str], columns: set[str]
) -> None:
    lab.fit(lab.values(run={"max_steps": 2, "log_terms": terms}), tmp_path / "run")
    found = set(read_metrics(tmp_path / "run/metrics.csv"))
    assert {
        name for name in found if name.startswith(("train/core.itc", "train/ovt.vc")) and "/acc" not in name
    } == columns
    assert "train/loss" in found
