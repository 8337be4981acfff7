"""What a trainer must keep to."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvcore import build
from mvcore.plugins import Registered
from mvcore.specs import STATE, Axis
from mvcore.testing.bench import PROBE, TINY, Args, Bench, chosen_args, registered
from mvcore.testing.findings import Examination, Finding, Skip, Unfit, require
from mvcore.testing.global_state import unchanged
from mvcore.testing.toy import RAGGED, Example, ToyViews, batch_of
from mvcore.training.fit import Training, prepare


def check_trainer(trainer: str | Registered, *, args: Args | None = None) -> tuple[Finding, ...]:
    """Lets a trainer take part in a run of three steps on the toy data.

    What it publishes must be there under the keys of its spec, with the rows that they say, finite and without
    gradient, the same when asked twice, and go with objects and views when these come in another order. Its
    `state_dict` holds tensors and plain values only, and a trainer that is given it publishes the same.

    Args:
        trainer: its id, as `mymethod.bank`, of an installed or registered plugin.
        args: its options; for the rest, each field's first example or its default.

    Returns:
        What was looked at; a check that could not be made says why.

    Raises:
        ConformanceError: a fault, one line for each.
        PluginError: no such trainer.
    """
    part = registered(trainer, "trainer")
    exam = Examination(f"trainer {part.id}")
    with tempfile.TemporaryDirectory(prefix="mvcore-testing-") as folder:
        _examine(exam, part, Bench(Path(folder), {**TINY, "train": "last:1"}), args)
    return exam.result()


def _examine(exam: Examination, part: Registered, bench: Bench, given: Args | None) -> None:
    trial: _Trial | None = None
    with exam.check("options"):
        trial = _Trial(part, bench, chosen_args(part, given))
    if trial is None:
        return
    with exam.check("trains in a run"):
        trial.training = bench.trained(trial.values)
    if not exam.passed("trains in a run"):
        return
    with exam.check("no global state"), unchanged(torch_random=True):
        bench.trained(trial.values)
    if part.spec.provides:
        with exam.check("published state"):
            trial.check_state()
        if exam.passed("published state"):
            with exam.check("order of objects"):
                trial.check_order(lambda example: example.reversed_objects(), "objects")
            with exam.check("order of views"):
                trial.check_order(lambda example: example.reversed_views(), "an object's views")
    with exam.check("serialisation"):
        trial.check_saved()


class _Trial:
    """One trainer in a small run."""

    def __init__(self, part: Registered, bench: Bench, args: dict[str, Any]) -> None:
        self.part = part
        options = build.options(part, args, part.id)
        self.axes = build.axes_of(part, options)
        sections = bench.suppliers(build.needs_of(part, options), part.plugin)
        sections["trainers"][part.id] = {"id": part.id, "args": args}
        reads = build.provides_of(part, options) | {"view"}
        reading = {"probe": {"id": PROBE, "args": {"reads": sorted(reads)}}}
        self.values = bench.values(losses=reading, steps=3, **sections)
        self.training: Training = bench.prepared(self.values)
        self.dataset = ToyViews(self.values["data"]["toy"]["image_size"])
        self.batch = batch_of(self.dataset, RAGGED)

    @staticmethod
    def _trainer(training: Training, part: Registered) -> Any:
        places = [term.part.id for term in training.plan.trainers]
        return training.trainers[places.index(part.id)]

    def published(self, training: Training | None = None, example: Example | None = None) -> dict[str, Tensor]:
        """What it publishes for a batch, by name without `state:`."""
        batch = self.batch if example is None else example.batch
        return dict(self._trainer(training or self.training, self.part).state(batch))

    def check_state(self) -> None:
        """Keys, rows and values."""
        with unchanged():
            given = self.published()
        wanted = {key.removeprefix(STATE) for key in self.axes}
        if missing := sorted(wanted - given.keys()):
            raise Unfit(
                f"state(batch) lacks {missing[0]!r} (it has: {', '.join(sorted(given))}), which its spec provides"
            )
        for key in sorted(wanted):
            value, axis = given[key], self.axes[STATE + key]
            require(isinstance(value, Tensor), f"{key!r} is a {type(value).__name__} where a tensor belongs")
            if axis != "none" and (value.ndim == 0 or value.shape[0] != self.batch.sizes[axis]):
                raise Unfit(
                    f"{key!r} is {tuple(value.shape)}, but the batch has {self.batch.sizes[axis]} rows of its axis "
                    f"{axis!r}; align it with the batch, or correct the spec's provides"
                )
            require(not value.requires_grad, f"{key!r} carries a gradient; detach what is published")
            require(not value.is_floating_point() or bool(value.isfinite().all()), f"{key!r} is not finite")
        again = self.published()
        changed = [key for key in sorted(wanted) if not torch.equal(given[key], again[key])]
        require(not changed, f"{', '.join(changed)} differs when the same batch is asked for twice")

    def check_order(self, change: Any, what: str) -> None:
        """Rows go with what they stand for."""
        axes: dict[str, Axis] = {key.removeprefix(STATE): axis for key, axis in self.axes.items()}
        given = {key: value for key, value in self.published().items() if key in axes}
        other = change(Example(self.dataset, RAGGED, self.batch, given, axes))
        found = self.published(example=other)
        for key, expected in other.features.items():
            if not torch.equal(expected, found[key]):
                raise Unfit(f"{key!r} does not go with its rows when {what} come in another order; look rows up by id")

    def check_saved(self) -> None:
        """What a checkpoint holds is plain, and a trainer that is given it goes on."""
        state = self._trainer(self.training, self.part).state_dict()
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        try:
            loaded = torch.load(file, weights_only=True)
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise Unfit(
                f"state_dict holds more than tensors and plain values, so no run could resume ({reason})"
            ) from None
        if not self.part.spec.provides:
            raise Skip("it publishes nothing that could be compared after loading")
        sources = self.training.context.sources
        again = prepare(self.training.plan, sources, Path(self.training.context.output), self.training.pipeline)
        self._trainer(again, self.part).load_state_dict(loaded)
        for key, value in self.published(again).items():
            if not torch.equal(value, self.published()[key]):
                raise Unfit(f"{key!r} is another after saving and loading; put all that it publishes into state_dict")
