"""What an evaluator must keep to."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from mvcore import build
from mvcore.evaluation.embedder import Embedder
from mvcore.evaluation.results import EvalResult, load_result, save_result
from mvcore.evaluation.runner import evaluate
from mvcore.plugins import Registered
from mvcore.testing.bench import PROBE, Args, Bench, chosen_args, registered
from mvcore.testing.findings import Examination, Finding, Skip, Unfit, require
from mvcore.testing.global_state import unchanged
from mvcore.testing.toy import ToyViews


def check_evaluator(
    evaluator: str | Registered, *, args: Args | None = None, encoder: Args | None = None
) -> tuple[Finding, ...]:
    """Lets an evaluator measure a small model on the toy data.

    It must return an `EvalResult` whose figures are named after it, say what they are and over how many items, lie in
    their intervals, survive saving and loading, and are the same the second time; and leave model and process as found.

    Args:
        evaluator: its id, as `mymethod.spread`, of an installed or registered plugin.
        args: its options; for the rest, each field's first example or its default.
        encoder: the backbone of the model, with its options; None = a small CLIP.

    Returns:
        What was looked at; a check that could not be made says why.

    Raises:
        ConformanceError: a fault, one line for each.
        PluginError: no such evaluator.
    """
    part = registered(evaluator, "evaluator")
    exam = Examination(f"evaluator {part.id}")
    with tempfile.TemporaryDirectory(prefix="mvcore-testing-") as folder:
        _examine(exam, part, Bench(Path(folder), encoder), args)
    return exam.result()


def _examine(exam: Examination, part: Registered, bench: Bench, given: Args | None) -> None:
    trial: _Trial | None = None
    with exam.check("options"):
        trial = _Trial(part, bench, chosen_args(part, given))
    if trial is None:
        return
    with exam.check("measures"):
        trial.first = trial.measured("first")
    if trial.first is None:
        return
    weights = {name: value.clone() for name, value in trial.model.pipeline.state_dict().items()}
    training = [p.requires_grad for p in trial.model.pipeline.parameters()]
    again: EvalResult | None = None
    with exam.check("no global state"), unchanged(torch_random=True):
        again = trial.evaluator(Embedder(trial.model), trial.sources, trial.folder("again"))
    with exam.check("figures"):
        _check_figures(part.id, trial.first)
    with exam.check("leaves the model alone"):
        state = trial.model.pipeline.state_dict()
        changed = [name for name in weights if not torch.equal(weights[name], state[name])]
        require(not changed, f"it changes the model's weight {', '.join(changed[:1])}; measure a copy")
        now = [p.requires_grad for p in trial.model.pipeline.parameters()]
        require(training == now, "it changes which weights train")
    with exam.check("same input, same figures"):
        if again is None:
            raise Skip("it could not be asked a second time")
        _check_again(trial.first, again)
    with exam.check("serialisation"):
        trial.check_saved()


class _Trial:
    """One evaluator and a small model."""

    def __init__(self, part: Registered, bench: Bench, args: dict[str, Any]) -> None:
        self.part = part
        options = build.options(part, args, part.id)
        needs = build.needs_of(part, options) | bench.own_features(part.plugin)
        sections = bench.suppliers(needs, part.plugin)
        reading = {"probe": {"id": PROBE, "args": {"reads": sorted(needs) or ["view"]}}}
        values = bench.values(losses=reading, **sections)
        self.model = bench.prepared(values).model
        self.sources = {"toy": ToyViews(values["data"]["toy"]["image_size"])}
        self.evaluator = build.make(part, options)
        self.bench = bench
        self.first: EvalResult | None = None

    def folder(self, name: str) -> Path:
        """A new folder for results."""
        folder = self.bench.folder / name
        folder.mkdir(parents=True)
        return folder

    def measured(self, name: str) -> EvalResult:
        """The result, by the way that a run takes."""
        folder = self.folder(name)
        found = evaluate(self.model, {self.part.id: self.evaluator}, self.sources, folder)[self.part.id]
        for picture in found.pictures:
            require(
                picture.is_relative_to(folder) and picture.is_file(),
                f"the picture {picture.name} is not in the output folder that it was given",
            )
        return found

    def check_saved(self) -> None:
        """What is written is what was found."""
        assert self.first is not None
        folder = self.folder("saved")
        save_result(self.first, folder)
        loaded = load_result(folder)
        require(
            [figure.name for figure in loaded.figures] == [figure.name for figure in self.first.figures],
            "its figures are others after saving and loading",
        )


def _check_again(first: EvalResult, second: EvalResult) -> None:
    """Two results of the same model."""
    again = second.by_name()
    for name, figure in first.by_name().items():
        if name not in again:
            raise Unfit(f"the figure {name} is missing the second time")
        one, two = figure.value, again[name].value
        if one != two and not (math.isnan(one) and math.isnan(two)):
            raise Unfit(f"{name} is {one} the first and {two} the second time; seed what it draws")


def _check_figures(part_id: str, result: EvalResult) -> None:
    if not result.figures and not result.tables:
        raise Skip("it found nothing to measure on the toy data")
    names = [figure.name for figure in result.figures]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Unfit(f"the figure {twice[0]} is there twice")
    for figure in result.figures:
        if not figure.name.startswith(f"{part_id}/"):
            raise Unfit(f"the figure {figure.name!r} must be named {part_id + '/...'!r}")
        require(bool(figure.definition.strip()), f"{figure.name} has no definition; say what it is, with its unit")
        require(
            figure.n >= 1 or math.isnan(figure.value),
            f"{figure.name} is {figure.value} over {figure.n} items; what was not measured is NaN",
        )
        require(not math.isinf(figure.value), f"{figure.name} is infinite")
        if not (math.isnan(figure.low) or math.isnan(figure.value)) and not (
            figure.low - 1e-9 <= figure.value <= figure.high + 1e-9
        ):
            raise Unfit(f"{figure.name} is {figure.value}, outside of its interval {figure.low} to {figure.high}")
