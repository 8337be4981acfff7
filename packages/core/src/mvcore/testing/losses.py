"""What a loss must keep to."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvcore import build
from mvcore.errors import MvcoreError
from mvcore.model import features_in
from mvcore.plugins import Registered
from mvcore.testing.bench import Args, Bench, chosen_args, registered
from mvcore.testing.findings import Examination, Finding, Skip, Unfit, require
from mvcore.testing.global_state import unchanged
from mvcore.testing.toy import Example


@dataclass(frozen=True)
class _Value:
    """What a loss gave: its value (of scope `object`: the sum), the count, and the gradient of each feature."""

    value: float
    count: float
    gradients: Mapping[str, Tensor | None]
    own: float


def check_loss(
    loss: str | Registered,
    *,
    args: Args | None = None,
    encoder: Args | None = None,
    tolerance: float = 1e-4,
    half_tolerance: float = 0.1,
) -> tuple[Finding, ...]:
    """Tries a loss on a small ragged batch with all that its spec needs.

    It is called through the same guards as in a run, so a read of what it does not declare is found. Its value must be
    a finite scalar with a finite gradient, the same for the same input, whatever the order of objects and (except with
    sampling `pairs`) of an object's views; with scope `object`, the sum over objects one by one; close when features
    come from a model in bfloat16. One object, and objects of one view, must work or be refused by a clear error.

    Args:
        loss: its id, as `mymethod.triplet`, of an installed or registered plugin.
        args: its options; for the rest, each field's first example or its default.
        encoder: the backbone, with its options, for features of plugins; None = a small CLIP.
        tolerance: relative, for values that must be equal.
        half_tolerance: relative, for bfloat16 against float32.

    Returns:
        What was looked at; a check that could not be made says why.

    Raises:
        ConformanceError: a fault, one line for each.
        PluginError: no such loss.
    """
    part = registered(loss, "loss")
    exam = Examination(f"loss {part.id}")
    with tempfile.TemporaryDirectory(prefix="mvcore-testing-") as folder:
        _examine(exam, part, Bench(Path(folder), encoder), args, tolerance, half_tolerance)
    return exam.result()


def _examine(
    exam: Examination, part: Registered, bench: Bench, given: Args | None, tolerance: float, half_tolerance: float
) -> None:
    trial: _Trial | None = None
    with exam.check("options"):
        options = build.options(part, chosen_args(part, given), part.id)
        needs = build.needs_of(part, options)
    if not exam.passed("options"):
        return
    with exam.check("needs"):
        example = bench.example(needs, part.plugin, part.spec.sampling)
    if not exam.passed("needs"):
        return
    with exam.check("construction"), unchanged(torch_random=True):
        trial = _Trial(part, build.make(part, options), needs, example)
    if trial is None:
        return
    with exam.check("value and gradient"), unchanged(torch_random=True):  # of the first call, which may set things up
        trial.whole = trial.measured(example)
        _check_gradients(trial)
    if not exam.passed("value and gradient"):
        return
    with exam.check("no global state"), unchanged(torch_random=True):
        trial.measured(example)
    with exam.check("same input, same value"):
        trial.same(trial.measured(example), 1e-6, "called twice with the same seed", "keep no state between calls")
    with exam.check("inputs untouched"):
        trial.check_inputs()
    with exam.check("order of objects"):
        trial.reordered(example.reversed_objects(), tolerance, "when objects come in another order")
    with exam.check("order of views"):
        if part.spec.sampling == "pairs":
            raise Skip("the two views of a pair may have different parts")
        trial.reordered(example.reversed_views(), tolerance, "when an object's views come in another order")
    with exam.check("ragged against a loop over objects"):
        trial.looped(tolerance)
    with exam.check("small batches"):
        trial.small()
    with exam.check("bfloat16 features"):
        rounded = trial.measured(example, rounded_to=torch.bfloat16)
        trial.same(rounded, half_tolerance, "with features of a model in bfloat16", "make it less sensitive")
    with exam.check("serialisation"):
        trial.restored(build.make(part, options))


class _Trial:
    """One loss on one example."""

    def __init__(self, part: Registered, module: nn.Module, needs: frozenset[str], example: Example) -> None:
        self.part = part
        self.module = module
        self.needs = needs
        self.example = example
        self.by_object = part.spec.scope == "object"
        self.whole = _Value(0.0, 0.0, {}, 0.0)

    def measured(self, example: Example, rounded_to: torch.dtype | None = None, seed: int = 0) -> _Value:
        """Value and gradients on an example, called as a run does."""
        owner = f"loss {self.part.id}"
        features = example.leaves(rounded_to)
        self.module.zero_grad(set_to_none=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            result = self.module(
                features.restricted(features_in(self.needs), owner), example.batch.restricted(self.needs, owner)
            )
        total, count = self._scalars(result)
        require(
            bool(torch.isfinite(total)), f"its value is {float(total.detach())}; it must be finite on ordinary features"
        )
        if not total.requires_grad:
            raise Unfit("its value hangs on no feature and no parameter; return features.zero() when there is nothing")
        total.backward()
        own = sum(float(p.grad.abs().sum()) for p in self.module.parameters() if p.grad is not None)
        gradients = {key: features[key].grad for key in features}
        return _Value(float(total.detach()), count, gradients, own)

    def _scalars(self, result: Any) -> tuple[Tensor, float]:
        values = result if isinstance(result, Mapping) else {"loss": result}
        wanted = {"loss", "count"} if self.by_object else {"loss"}
        if missing := sorted(wanted - values.keys()):
            raise Unfit(f"it returns no {missing[0]!r} (scope {self.part.spec.scope!r} wants {sorted(wanted)})")
        for key, value in values.items():
            if not (isinstance(value, Tensor) and value.ndim == 0) and not (
                key != "loss" and isinstance(value, (int, float))
            ):
                shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise Unfit(f"{key!r} is {shape} where a scalar tensor belongs")
        return values["loss"], float(values.get("count", 1))

    def check_inputs(self) -> None:
        """A loss that writes into its features would change them for those after it."""
        before = {key: value.detach().clone() for key, value in self.example.features.items()}
        batch = {key: value.clone() for key, value in self.example.batch.state.items()}
        self.measured(self.example)
        changed = [key for key, value in self.example.features.items() if not torch.equal(value, before[key])]
        changed += [
            f"state:{key}" for key, value in self.example.batch.state.items() if not torch.equal(value, batch[key])
        ]
        require(not changed, f"it writes into its input {', '.join(changed)}; copy what it changes")

    def same(self, other: _Value, tolerance: float, when: str, advice: str) -> None:
        """Refuses another value than that of the whole example."""
        one, two = self.whole.value, other.value
        require(abs(one - two) <= tolerance * (1 + abs(one)), f"its value is {one:.6g}, and {two:.6g} {when}; {advice}")

    def reordered(self, other: Example, tolerance: float, when: str) -> None:
        """Value and gradients must go with the rows."""
        self._refuse_random("in another order")
        found = self.measured(other)
        advice = "it must depend on which rows belong together, not on where they stand"
        self.same(found, tolerance, when, advice)
        moved = Example(other.dataset, self.example.layout, self.example.batch, self._grads(self.whole), other.axes)
        for key, gradient in moved.arranged(other.layout).features.items():
            two = found.gradients[key]
            assert two is not None
            scale = 1e-6 + float(gradient.abs().max())
            if float((gradient - two).abs().max()) > 10 * tolerance * scale:
                raise Unfit(f"the gradient of {key!r} is another {when}; {advice}")

    def _refuse_random(self, how: str) -> None:
        if abs(self.measured(self.example, seed=1).value - self.whole.value) > 1e-6:
            raise Skip(f"it draws random numbers, and {how} draws others")

    @staticmethod
    def _grads(value: _Value) -> dict[str, Tensor]:
        return {key: gradient for key, gradient in value.gradients.items() if gradient is not None}

    def looped(self, tolerance: float) -> None:
        """Scope `object`: the sum over a batch is that over its objects one by one."""
        if not self.by_object:
            raise Skip("scope 'batch' compares objects with each other")
        self._refuse_random("object by object")
        alone = [self.measured(self.example.arranged([entry])) for entry in self.example.layout]
        for what, one, two in (
            ("loss", self.whole.value, sum(v.value for v in alone)),
            ("count", self.whole.count, sum(v.count for v in alone)),
        ):
            require(
                abs(one - two) <= tolerance * (1 + abs(one)),
                f"{what!r} is {one:.6g} for the batch and {two:.6g} summed over its objects; sum over objects, and "
                "divide by nothing",
            )

    def small(self) -> None:
        """One object, and one view of each, are what a run's last batch may hold."""
        layouts = {"one object": self.example.layout[:1]}
        if self.part.spec.sampling != "pairs":
            layouts |= {
                "one view": [(self.example.layout[0][0], self.example.layout[0][1][:1])],
                "objects of one view": [(i, views[:1]) for i, views in self.example.layout],
            }
        for name, layout in layouts.items():
            try:
                self.measured(self.example.arranged(layout))
            except MvcoreError:
                continue
            except Unfit as fault:
                raise Unfit(f"on {name}: {fault}") from None
            except Exception as error:
                raise Unfit(
                    f"on {name} it raised {type(error).__name__}: {error}; return features.zero() where there is "
                    "nothing to compare"
                ) from error

    def restored(self, fresh: nn.Module) -> None:
        """A loss made anew with the saved parameters gives the same value."""
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.add_(0.01)
        expected = self.measured(self.example)
        trained = {name: p.detach().clone() for name, p in self.module.named_parameters() if p.requires_grad}
        own = dict(fresh.named_parameters())
        if missing := sorted(trained.keys() - own.keys()):
            raise Unfit(f"a loss made with the same options has no {missing[0]!r}; make parameters in __init__")
        with torch.no_grad():
            for name, value in trained.items():
                own[name].copy_(value)
        found = _Trial(self.part, fresh, self.needs, self.example).measured(self.example)
        require(
            abs(found.value - expected.value) <= 1e-6 * (1 + abs(expected.value)),
            f"saved and loaded its value is {found.value:.6g}, before {expected.value:.6g}; checkpoints hold "
            "parameters only, so keep what it learns in them",
        )


def _check_gradients(trial: _Trial) -> None:
    gradients = trial.whole.gradients
    for key, gradient in gradients.items():
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            raise Unfit(f"the gradient of {key!r} is not finite; mind square roots and divisions by norms of zero")
    if not trial.whole.own and not any(g is not None and bool(g.any()) for g in gradients.values()):
        read = ", ".join(sorted(gradients)) or "nothing"
        raise Unfit(f"no feature that it reads ({read}) gets a gradient, so it cannot train; do not detach them all")
