"""Weights that change with the step: their values, what may be written, and what a step leaves out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from mvcore.checkpoint import WEIGHTS, load_weights
from mvcore.config_layers import Layers, nested, parse_set, parse_yaml, to_yaml
from mvcore.errors import ConfigError
from mvcore.plugins import load_plugins
from mvcore.report.figures import read_metrics
from mvcore.resolution import Request, resolve
from mvcore.training.weights import WeightSchedule, counts, weight_at

if TYPE_CHECKING:
    from conftest import Lab


def schedule(text: str) -> WeightSchedule:
    return WeightSchedule.model_validate(parse_yaml(text, "test")[0])


def config_of(weight: str, run: str = "{max_steps: 1000}") -> Any:
    layers = Layers()
    text = (
        "encoder: {id: core.open_clip}\ndata: {mine: {id: data.views, path: store}}\n"
        f"losses:\n  ovt.vc:\n    weight: {weight}\nrun: {run}\n"
    )
    layers.merge(*parse_yaml(text, "run.yaml"))
    return layers


def refused(weight: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config_of(weight).config()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("{to: 2.0}", {0: 2, 999: 2}),
        ("{to: 0.5, start: 10, end: 12}", {9: 0, 10: 0.5, 11: 0.5, 12: 0, 999: 0}),
        ("{schedule: linear, from: 0, to: 1, start: 100, steps: 400}", {0: 0, 99: 0, 100: 0, 300: 0.5, 500: 1, 999: 1}),
        (
            "{schedule: linear, from: 0.2, to: 0.4, start: 100, end: 300}",
            {99: 0, 100: 0.2, 200: 0.3, 300: 0},
        ),
        ("{schedule: linear, from: 1, to: 0}", {0: 1, 500: 0.5, 999: 0.001}),
        (
            "{schedule: cosine, from: 1, to: 0, steps: 100}",
            {0: 1, 25: 0.8535534, 50: 0.5, 100: 0, 500: 0},
        ),
        ("{to: 3, warmup: 4}", {0: 0.75, 1: 1.5, 2: 2.25, 3: 3, 4: 3}),
        ("{schedule: linear, from: 2, to: 0, steps: 10, warmup: 2, start: 5}", {4: 0, 5: 1, 6: 1.8, 10: 1, 15: 0}),
    ],
)
def test_a_schedule_has_these_weights(text: str, values: dict[int, float]) -> None:
    at = weight_at(schedule(text), 1000)
    assert {step: at(step) for step in values} == pytest.approx(values)


@given(
    kind=st.sampled_from(["linear", "cosine"]),
    ends=st.tuples(st.floats(0, 10), st.floats(0, 10)),
    steps=st.integers(1, 50),
    start=st.integers(0, 20),
    warmup=st.integers(0, 20),
)
def test_a_schedule_stays_between_its_ends_and_reaches_the_last(
    kind: Any, ends: tuple[float, float], steps: int, start: int, warmup: int
) -> None:
    weight = WeightSchedule(**{"schedule": kind, "from": ends[0], "to": ends[1], "steps": steps, "start": start})
    values = [weight.at(step, 100) for step in range(start, 100)]
    assert values[0] == ends[0]
    assert set(values[steps:]) <= {ends[1]}
    assert all(min(ends) - 1e-12 <= value <= max(ends) + 1e-12 for value in values)
    rising = weight.model_copy(update={"warmup": warmup})
    for since, value in enumerate(values):
        assert rising.at(start + since, 100) == pytest.approx(value * min(1, (since + 1) / max(1, warmup)))


def test_a_plain_number_is_the_weight_of_every_step() -> None:
    assert [weight_at(0.5, 10)(step) for step in (0, 9)] == [0.5, 0.5]
    assert counts(0.5, 10)
    assert not counts(0.0, 10)


def test_a_schedule_that_begins_behind_the_run_never_counts() -> None:
    assert not counts(schedule("{to: 1, start: 10}"), 10)
    assert counts(schedule("{to: 1, start: 9}"), 10)
    assert not counts(schedule("{schedule: linear, from: 0, to: 0}"), 10)


# --- what may be written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        ("-1", "weight: input should be greater than or equal to 0, got -1"),
        (".nan", "weight: input should be a finite number, got nan"),
        (".inf", "weight: input should be a finite number, got inf"),
        ("heavy", "weight: input should be a valid number, got 'heavy'"),
        ("[1, 2]", "weight: input should be a valid number, got [1, 2]"),
        ("{to: -1}", "weight.to: input should be greater than or equal to 0, got -1"),
        ("{schedule: linear, from: .inf}", "weight.from: input should be a finite number, got inf"),
        ("{schedule: cosin}", "weight.schedule: input should be 'constant', 'linear' or 'cosine', got 'cosin'"),
        ("{strat: 3}", "weight.strat: unknown key, did you mean 'start'?"),
        ("{start: 5, end: 5}", "weight: end 5 is not behind start 5, so the term would never count"),
        ("{start: -5}", "weight.start: input should be greater than or equal to 0, got -5"),
        ("{from: 1}", "weight: from is for schedule: linear or cosine, and this one is constant"),
        ("{steps: 5}", "weight: steps is for schedule: linear or cosine, and this one is constant"),
    ],
)
def test_what_is_no_weight_is_refused_in_one_line(weight: str, text: str) -> None:
    assert refused(weight) == f"run.yaml:5: losses[ovt.vc].{text}"


def test_a_weight_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"losses\[ovt.vc\].weight stands twice"):
        parse_yaml("losses:\n  ovt.vc:\n    weight: 1\n    weight: 2\n", "run.yaml")


def test_what_is_printed_is_the_same_schedule_again() -> None:
    layers = config_of("{schedule: cosine, from: 1.0, to: 0.1, start: 5, warmup: 3}")
    text = to_yaml(layers, layers.config())
    again = Layers()
    again.merge(*parse_yaml(text, "again.yaml"))
    assert again.config() == layers.config()
    assert "      from: 1.0  # run.yaml:5" in text.splitlines()


def test_keys_laid_over_a_number_keep_it_and_a_number_replaces_a_schedule() -> None:
    layers = config_of("0.5")
    layers.merge(nested(*parse_set("losses[ovt.vc].weight.start=10")), "--set")
    assert layers.config().losses["ovt.vc"].weight == WeightSchedule(to=0.5, start=10)
    assert layers.source_of(("losses", "ovt.vc", "weight", "to")) == "run.yaml:5"
    layers.merge({"losses": {"ovt.vc": {"weight": 0.25}}}, "--loss")
    assert layers.config().losses["ovt.vc"].weight == 0.25


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        (["ovt.vc=-1"], "--loss 'ovt.vc=-1': the weight must not be negative; 0 drops the loss"),
        (["ovt.vc=nan"], "--loss 'ovt.vc=nan': the weight must be a finite number"),
        (["ovt.vc=inf"], "--loss 'ovt.vc=inf': the weight must be a finite number"),
        (["ovt.vc=1", "ovt.vc=2"], "--loss ovt.vc=2: ovt.vc was given the weight 1 before; name it once"),
        (["ovt.vc=0", "ovt.vc"], "--loss ovt.vc: ovt.vc was given the weight 0 before; name it once"),
    ],
)
def test_weights_on_the_command_line(losses: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(Request(plugins=["ovt"], losses=losses), load_plugins())
    assert str(caught.value).startswith(text)


# --- in a run ---------------------------------------------------------------------------------------------------------


def test_a_step_in_which_nothing_weighs_is_refused(lab: Lab) -> None:
    ramp = {"schedule": "linear", "from": 0.0, "to": 1.0, "steps": 5}
    values = lab.values(losses={"core.itc": {"weight": ramp}, "ovt.vc": {"weight": {"start": 3}}})
    with pytest.raises(ConfigError) as caught:
        lab.session(values)
    text = r"at step 0 every loss has weight 0, so there is nothing to train; a warmup begins above 0"
    assert str(caught.value).endswith(text)
    lab.session(lab.changed(values, {"losses": {"core.itc": {"weight": {"from": 0.1}}}}))


def test_a_loss_that_never_counts_is_left_out(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    found = lab.session(lab.values(losses={"ovt.vc": {"weight": {"start": 10}}})).plan
    warned = capsys.readouterr().err
    assert warned == "warning: losses[ovt.vc] is left out: its weight is 0 in all 10 steps (1, from step 10)\n"
    assert [term.part.name for term in found.losses] == ["core.itc"]
    assert found.trainers == ()


class Watch(Callback):
    """What each step computed, and how often the model's towers ran for it."""

    def __init__(self) -> None:
        self.steps: list[tuple[set[str], dict[str, float]]] = []
        self.texts = 0
        self.calls: list[int] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        def count(*_: Any) -> None:
            self.texts += 1

        pl_module.objective.pipeline.backbone.clip.transformer.register_forward_hook(count)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.texts = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append((set(pl_module.outcome.terms), dict(pl_module.outcome.weights)))
        self.calls.append(self.texts)


SCHEDULED: dict[str, Any] = {
    "core.itc": {"weight": {"start": 0, "end": 6, "to": 0.5}},
    "ovt.vc": {"weight": {"schedule": "linear", "from": 0.0, "to": 1.0, "start": 2, "steps": 4}},
}


def test_a_term_is_computed_in_the_steps_in_which_it_counts_and_nothing_that_only_it_reads_in_others(
    lab: Lab, tmp_path: Path
) -> None:
    watch = Watch()
    lab.fit(lab.values(losses=SCHEDULED), tmp_path / "run", callbacks=(watch,))
    both, itc, vc = {"core.itc", "ovt.vc"}, {"core.itc"}, {"ovt.vc"}
    assert [terms for terms, _ in watch.steps] == [itc, itc, itc, both, both, both, vc, vc, vc, vc]
    assert [weights["ovt.vc"] for _, weights in watch.steps] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    # Nobody reads texts once the image-text loss has ended.
    assert watch.calls == [1] * 6 + [0] * 4


def test_raw_and_weighted_terms_are_logged_over_the_steps_in_which_they_count(lab: Lab, tmp_path: Path) -> None:
    lab.fit(lab.values(losses=SCHEDULED, run={"log_every": 5}), tmp_path / "few")
    lab.fit(lab.values(losses=SCHEDULED), tmp_path / "each")
    few, each = (read_metrics(tmp_path / name / "metrics.csv") for name in ("few", "each"))

    def logged(name: str) -> dict[int, float]:
        return dict(zip(each[name][0].tolist(), each[name][1].tolist(), strict=True))

    assert sorted(logged("train/core.itc")) == [1, 2, 3, 4, 5, 6]
    assert sorted(logged("train/ovt.vc")) == [4, 5, 6, 7, 8, 9, 10]
    raw, weighted = logged("train/ovt.vc"), logged("train/ovt.vc.weighted")
    assert [weighted[step] for step in range(1, 11)] == pytest.approx(
        [0, 0, 0, 0.25 * raw[4], 0.5 * raw[5], 0.75 * raw[6], raw[7], raw[8], raw[9], raw[10]], rel=1e-4
    )
    assert list(few["train/ovt.vc"][1]) == pytest.approx(
        [(raw[4] + raw[5]) / 2, sum(raw[step] for step in range(6, 11)) / 5], rel=1e-4
    )
    for found in (few, each):
        parts = found["train/core.itc.weighted"][1] + found["train/ovt.vc.weighted"][1]
        assert list(parts) == pytest.approx(list(found["train/loss"][1]), rel=1e-4)


@pytest.mark.parametrize("micro_batch", ["auto", 5])
def test_a_resumed_run_goes_on_with_the_schedule_exactly(lab: Lab, tmp_path: Path, micro_batch: Any) -> None:
    run = {"checkpoint_every": 5, "micro_batch": micro_batch, "log_every": 3}
    lab.fit(lab.values(losses=SCHEDULED, run=run), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/step-00000010")
    checkpoint = tmp_path / "parts/checkpoints/step-00000005"
    lab.fit(lab.values(losses=SCHEDULED, run=run), tmp_path / "parts", resume=checkpoint)
    whole, parts = (
        load_weights(tmp_path / name / "checkpoints/step-00000010" / WEIGHTS) for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    for name in ("train/core.itc", "train/ovt.vc", "train/ovt.vc.weighted", "train/loss"):
        one, other = (read_metrics(tmp_path / run / "metrics.csv")[name] for run in ("whole", "parts"))
        assert [part.tolist() for part in one] == [part.tolist() for part in other], name
