"""What a backbone or an adapter must keep to."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvcore import build
from mvcore.errors import ConfigError, WeightsError
from mvcore.model import evaluating, features_in
from mvcore.parts import Backbone
from mvcore.plugins import Registered
from mvcore.specs import CORE_AXES, STATE, Axis
from mvcore.testing.bench import PROBE, TINY, Args, Bench, chosen_args, registered
from mvcore.testing.findings import Examination, Finding, Skip, Unfit, require
from mvcore.testing.global_state import unchanged
from mvcore.testing.toy import RAGGED, Example, ToyViews, batch_of
from mvcore.training.assembly import make_pipeline
from mvcore.training.fit import Training
from mvcore.types import ViewBatch


def check_encoder(
    encoder: str | Registered,
    *,
    args: Args | None = None,
    backbone: Args | None = None,
    tolerance: float = 1e-4,
    half_tolerance: float = 0.1,
) -> tuple[Finding, ...]:
    """Tries a backbone, or an adapter on a backbone, on a small ragged batch.

    It must give exactly what its spec provides, with the rows that its axes say and the widths that the backbone's
    `dims` say; finite values and gradients; the same vectors for an object whatever stands beside it, in whatever
    order; the same after saving and loading; close vectors in bfloat16. An adapter freezes nothing. Two steps train.

    Args:
        encoder: its id, as `mymethod.whiten`, of an installed or registered plugin.
        args: its options; for the rest, each field's first example or its default.
        backbone: for an adapter, the backbone with its options that it is tried on; None = a small CLIP.
        tolerance: relative to the largest value, for vectors that must be equal.
        half_tolerance: relative to the norm, for bfloat16 against float32.

    Returns:
        What was looked at; a check that could not be made says why.

    Raises:
        ConformanceError: a fault, one line for each.
        PluginError: no such encoder.
    """
    part = registered(encoder, "encoder")
    exam = Examination(f"{part.spec.kind} {part.id}")
    with tempfile.TemporaryDirectory(prefix="mvcore-testing-") as folder:
        _examine(exam, part, Path(folder), args, backbone, tolerance, half_tolerance)
    return exam.result()


def _examine(
    exam: Examination,
    part: Registered,
    folder: Path,
    given: Args | None,
    backbone: Args | None,
    tolerance: float,
    half_tolerance: float,
) -> None:
    trial: _Trial | None = None
    with exam.check("construction"):
        trial = _Trial(part, folder, _trainable(part, chosen_args(part, given)), backbone)
    if trial is None:
        return
    with exam.check("no global state in construction"), unchanged(torch_random=True):
        trial.made_again()
    with exam.check("features"):
        trial.check_features()
    if not exam.passed("features"):
        return
    example = trial.example()
    with exam.check("no global state"), unchanged():
        trial.features(example.batch)
    with exam.check("same input, same features"):
        trial.same(example, 1e-6, "called twice in eval mode", "keep no state between calls")
    advice = "a vector may depend on its own object alone"
    with exam.check("order of objects"):
        trial.same(example.reversed_objects(), tolerance, "when objects come in another order", advice)
    with exam.check("order of views"):
        trial.same(example.reversed_views(), tolerance, "when an object's views come in another order", advice)
    with exam.check("ragged against a loop over objects"):
        for entry in example.layout:
            trial.same(example.arranged([entry]), tolerance, "when its object is encoded by itself", advice)
    with exam.check("bfloat16"):
        trial.check_half(example, half_tolerance)
    with exam.check("gradient"):
        trial.check_gradient(example)
    if part.spec.kind == "adapter":
        with exam.check("freezes nothing"):
            trial.check_frozen()
        with exam.check("merging"):
            trial.check_merge(example, tolerance)
    else:
        with exam.check("what trains"):
            trial.check_modes()
    with exam.check("serialisation"):
        trial.check_saved(example)
    with exam.check("trains in a run"):
        trial.check_run()


def _trainable(part: Registered, args: dict[str, Any]) -> dict[str, Any]:
    """A backbone trains where its options let it, so that gradients and checkpoints can be looked at."""
    model = build.options_model(part)
    if part.spec.kind == "backbone" and model is not None and "train" in model.model_fields and "train" not in args:
        with contextlib.suppress(ConfigError):
            build.options(part, {**args, "train": "all"}, part.id)
            return {**args, "train": "all"}
    return args


class _Trial:
    """One encoder in a small model."""

    def __init__(self, part: Registered, folder: Path, args: dict[str, Any], backbone: Args | None) -> None:
        self.part = part
        self.is_adapter = part.spec.kind == "adapter"
        options = build.options(part, args, part.id)
        self.provides = build.provides_of(part, options)
        self.axes = build.axes_of(part, options)
        needs = build.needs_of(part, options)
        sections: dict[str, Any] = {"adapters": {}, "trainers": {}}
        if self.is_adapter:
            self.bench = Bench(folder, backbone)
            sections = self.bench.suppliers(needs, part.plugin)
            sections["adapters"][part.id] = {"id": part.id, "args": args}
        else:
            self.bench = Bench(folder, {"id": part.id, **args})
        gives = self.provides if self.is_adapter else self.provides & self._made(args).provides
        self.keys = features_in(gives) or frozenset({"view"})
        state = {key for key in needs if key.startswith(STATE)}
        reading = {"probe": {"id": PROBE, "args": {"reads": sorted(self.keys | state | {"view"})}}}
        self.values = self.bench.values(losses=reading, **sections)
        self.training: Training = self.bench.prepared(self.values)
        self.pipeline = self.training.pipeline

    def _made(self, args: Args) -> Backbone:
        return build.build({"id": self.part.id, "args": args}, "encoder")

    @property
    def link(self) -> Any:
        """The adapter's place in the model."""
        return next(link for link in self.pipeline.links if link.name == self.part.id)

    def made_again(self) -> Any:
        """Another model of the same parts."""
        return make_pipeline(self.training.plan.blueprint.encoder, self.training.plan.adapters, 0)

    def _given(self, batch: ViewBatch) -> ViewBatch:
        publishers = self.training.module.objective.publishers
        for key in {key for link in self.pipeline.links for key in link.needs if key in publishers}:
            batch = batch.with_state(publishers[key](batch))
        return batch

    def features(self, batch: ViewBatch, pipeline: Any = None) -> dict[str, Tensor]:
        """What the model gives in eval mode."""
        pipeline = pipeline or self.pipeline
        with evaluating(pipeline):
            return dict(pipeline(self._given(batch), self.keys))

    def example(self) -> Example:
        """The toy's batch with the model's features."""
        dataset = ToyViews(self.values["data"]["toy"]["image_size"])
        batch = batch_of(dataset, RAGGED)
        features = self.features(batch)
        axes: dict[str, Axis] = {key: self.pipeline.axes.get(key) or CORE_AXES[key] for key in features}
        return Example(dataset, RAGGED, batch, features, axes)

    def check_features(self) -> None:
        """Keys, rows, widths and values."""
        dataset = ToyViews(self.values["data"]["toy"]["image_size"])
        batch = batch_of(dataset, RAGGED)
        given = self.features(batch)
        for key, value in sorted(given.items()):
            axis = self.axes.get(key) or CORE_AXES.get(key)
            if axis is None:
                raise Unfit(f"it gives {key!r} without saying what its rows are; add it to the spec's axes")
            if axis != "none" and (value.ndim == 0 or value.shape[0] != batch.sizes[axis]):
                raise Unfit(
                    f"{key!r} is {tuple(value.shape)}, but its axis {axis!r} has {batch.sizes[axis]} rows; give a row "
                    "for each, or correct the spec's axes"
                )
            width = self.pipeline.backbone.dims.get(key)
            if width is not None and value.ndim in (2, 4) and value.shape[1] != width:
                raise Unfit(
                    f"{key!r} is {value.shape[1]} wide, but the backbone's dims say {width}; set dims[{key!r}] to what "
                    "it gives, for the parts that read it"
                )
            require(bool(torch.isfinite(value).all()), f"{key!r} is not finite on ordinary images")

    def same(self, other: Example, tolerance: float, when: str, advice: str) -> None:
        """Refuses features of an arranged batch that are not the arranged features."""
        found = self.features(other.batch)
        for key, expected in other.features.items():
            _equal(key, expected, found[key], tolerance, f"{when}; {advice}")

    def check_half(self, example: Example, tolerance: float) -> None:
        """Under autocast, as `run.precision: bf16-mixed` has it."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = self.features(example.batch)
        for key, expected in example.features.items():
            if not expected.is_floating_point():
                continue
            one, two = expected.detach().float(), found[key].detach().float()
            difference = float((two - one).norm() / (one.norm() + 1e-6))
            if not difference <= tolerance:
                raise Unfit(
                    f"{key!r} differs by {difference:.2g} of its norm under bfloat16 autocast; compute what is "
                    "sensitive in float32"
                )

    def _own(self, training: Training) -> dict[str, nn.Parameter]:
        """What training changes in the part."""
        prefix = f"adapters/{self.part.id}/" if self.is_adapter else "backbone/"
        try:
            return {name: p for name, p in training.module.trained().items() if name.startswith(prefix)}
        except ConfigError:
            return {}

    def check_gradient(self, example: Example) -> None:
        """Every gradient is finite, and something of the part gets one."""
        own = self._own(self.training)
        if not own:
            raise Skip("nothing of it trains")
        self.pipeline.train()
        self.pipeline.zero_grad(set_to_none=True)
        with torch.random.fork_rng(devices=[]):
            features = self.pipeline(self._given(example.batch), self.keys)
            generator = torch.Generator().manual_seed(0)
            total = features.zero()
            for key in sorted(features):
                if features[key].is_floating_point():
                    total = (
                        total + (features[key].float() * torch.randn(features[key].shape, generator=generator)).sum()
                    )
            require(total.requires_grad, "its features hang on no parameter; it trains nothing")
            total.backward()
        self.pipeline.eval()
        grads = {name: p.grad for name, p in own.items() if p.grad is not None}
        for name, gradient in grads.items():
            require(bool(torch.isfinite(gradient).all()), f"the gradient of {name} is not finite")
        require(bool(grads), f"none of {', '.join(sorted(own)[:3])} gets a gradient; do not detach what trains")

    def check_frozen(self) -> None:
        """Every weight that trained before the adapter was attached still does."""
        encoder = self.training.plan.blueprint.encoder
        before = make_pipeline(encoder, [a for a in self.training.plan.adapters if a.name != self.part.id], 0)
        trained = {name for name, p in before.backbone_parameters() if p.requires_grad}
        after = {name for name, p in self.pipeline.backbone_parameters() if p.requires_grad}
        if frozen := sorted(trained - after):
            raise Unfit(f"it freezes {frozen[0]} and {len(frozen) - 1} more; what trains is the run's to say, in train")

    def check_merge(self, example: Example, tolerance: float) -> None:
        """What is folded into the library's weights gives the same features."""
        again = self.bench.prepared(self.values)
        _shaken(self._own(again).values())
        module = next(link.module for link in again.pipeline.links if link.name == self.part.id)
        expected = self.features(example.batch, again.pipeline)
        merge = getattr(module, "merge", None)
        if merge is None or not merge():
            raise Skip("it stays beside the model when that is exported")
        for key, value in self.features(example.batch, again.pipeline).items():
            _equal(key, expected[key], value, 10 * tolerance, "after merge(); fold exactly, or return False")

    def check_modes(self) -> None:
        """`set_trainable` does what its modes say."""
        backbone = self._made({key: value for key, value in self.values["encoder"].items() if key != "id"})
        backbone.set_trainable("none")
        training = [name for name, p in backbone.model.named_parameters() if p.requires_grad]
        require(not training, f"set_trainable('none') leaves {', '.join(training[:2])} training")
        try:
            backbone.set_trainable("some of it")
        except ConfigError:
            return
        raise Unfit("set_trainable accepts the mode 'some of it'; raise ConfigError for what it does not know")

    def check_saved(self, example: Example) -> None:
        """Checkpoints hold what trains, and restore it."""
        again, fresh = self.bench.prepared(self.values), self.bench.prepared(self.values)
        if not self._own(again):
            raise Skip("nothing of it trains")
        _shaken(self._own(again).values())
        expected = self.features(example.batch, again.pipeline)
        state = {name: value.clone() for name, value in again.module.state_dict().items()}
        fresh.module.load_state_dict(state)
        for key, value in self.features(example.batch, fresh.pipeline).items():
            _equal(key, expected[key], value, 1e-6, "after saving and loading; name all that trains in trained_state()")
        prefix = f"adapters/{self.part.id}/" if self.is_adapter else "backbone/"
        try:
            fresh.module.load_state_dict({**state, f"{prefix}not.there": torch.zeros(1)})
        except WeightsError:
            return
        raise Unfit("it takes a checkpoint with a key that it has not; raise WeightsError in load_trained_state")

    def check_run(self) -> None:
        """Two steps, through all that a run does."""
        if not self._own(self.training) and self.values["encoder"] != dict(TINY):
            raise Skip("nothing of it trains")
        self.bench.trained(self.values)


def _shaken(parameters: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def _equal(key: str, expected: Tensor, found: Tensor, tolerance: float, when: str) -> None:
    if expected.shape != found.shape:
        raise Unfit(f"{key!r} is {tuple(found.shape)}, not {tuple(expected.shape)}, {when}")
    if not expected.numel():
        return
    expected, found = expected.detach().float(), found.detach().float()
    difference = float((expected - found).abs().max())
    if not difference <= tolerance * (1e-6 + float(expected.abs().max())):
        raise Unfit(f"{key!r} differs by {difference:.2g} {when}")
