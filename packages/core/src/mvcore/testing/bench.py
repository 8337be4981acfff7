"""Tiny real runs around a part: a small CLIP with random weights, the toy data, and whatever else the part reads."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from mvcore import build
from mvcore.config_base import Options
from mvcore.config_layers import Layers, read_yaml
from mvcore.errors import MvcoreError
from mvcore.hookspecs import hookimpl
from mvcore.model import features_in
from mvcore.plugins import Registered, Registry, load_plugins, recipe_path
from mvcore.running import open_session
from mvcore.specs import STATE, Axis, DatasetSpec, LossSpec, RecipeSpec
from mvcore.testing.findings import Skip, Unfit
from mvcore.testing.toy import PAIRS, RAGGED, Example, ToyOptions, ToyViews, batch_of
from mvcore.training.fit import Training, fit, prepare
from mvcore.types import Features, ViewBatch

NAME = "mvcore-testing"
TOY, PROBE = f"{NAME}.toy", f"{NAME}.probe"
CLIP = str(Path(__file__).with_name("clip.json"))
TINY: Mapping[str, Any] = {"id": "core.open_clip", "model": CLIP, "pretrained": None, "train": "all"}

Args = Mapping[str, Any]


class ProbeOptions(Options):
    """Options of the probe: the keys that it reads."""

    reads: tuple[str, ...] = ("view",)

    def needs(self) -> frozenset[str]:
        """What it was told to read."""
        return frozenset(self.reads)


class Probe(nn.Module):
    """A loss that reads what it is told to, so that a run computes it."""

    def __init__(self, reads: tuple[str, ...]) -> None:
        super().__init__()
        self.state = [key.removeprefix(STATE) for key in reads if key.startswith(STATE)]

    def forward(self, features: Features, batch: ViewBatch) -> Tensor:
        """The mean square of all features."""
        for key in self.state:
            batch.state[key]
        return features.zero() + sum(value.square().mean() for value in features.values() if value.is_floating_point())


class _Plugin:
    MVCORE_API = 1

    @hookimpl
    def mvcore_register_datasets(self) -> list[DatasetSpec]:
        return [DatasetSpec(name="toy", summary="Patterned balls", factory=ToyViews, config=ToyOptions)]

    @hookimpl
    def mvcore_register_losses(self) -> list[LossSpec]:
        return [LossSpec(name="probe", summary="Reads what it is told to", factory=Probe, config=ProbeOptions)]


def registered(part: str | Registered, kind: str) -> Registered:
    """A part by id.

    Raises:
        PluginError: there is none of that kind.
    """
    return part if isinstance(part, Registered) else load_plugins().spec(kind, part)


def chosen_args(part: Registered, given: Args | None = None) -> dict[str, Any]:
    """The options to try a part with: those given, and for the rest the first of each field's `examples`.

    Raises:
        Skip: an option has no default, no example and is not given.
        ConfigError: the part refuses them.
    """
    model = build.options_model(part)
    args = dict(given or {})
    if model is not None:
        for name, info in model.model_fields.items():
            key = info.alias or name
            if key not in args and info.examples:
                args[key] = info.examples[0]
            if key not in args and info.is_required():
                raise Skip(
                    f"the option {key!r} has no default; give it an example (Field(..., examples=[...])), or a value: "
                    f"args={{{key!r}: ...}}, on the command line --set '{part.id}.{key}=...'"
                )
    build.options(part, args, part.id)
    return args


@dataclass
class Bench:
    """Makes tiny runs.

    Args:
        folder: where runs are written.
        encoder: the backbone with its options; None = a small CLIP.
    """

    folder: Path
    encoder: Args | None = None
    registry: Registry = field(default_factory=lambda: load_plugins(check_strict=False).extended(_Plugin(), NAME))
    _runs: int = 0

    def suppliers(self, needs: Iterable[str], plugin: str) -> dict[str, Any]:
        """Adapters and trainers that give what a part reads beside what the backbone gives, by section and id.

        Args:
            plugin: whose parts come first where several give the same.

        Raises:
            Unfit: nobody gives one of the needs.
        """
        found: dict[str, Registered] = {}
        args: dict[str, dict[str, Any]] = {}
        given = set(self._backbone_gives())
        queue = [key for key in sorted(needs) if key not in given]
        while queue:
            key = queue.pop()
            if key in given or (key not in features_in({key}) and not key.startswith(STATE)):
                continue
            kind = "trainer" if key.startswith(STATE) else "encoder"
            part = self._giver(key, kind, plugin)
            found[f"{kind} {part.id}"], args[part.id] = part, chosen_args(part)
            given |= self._gives(part)
            chosen = build.options(part, args[part.id], part.id)
            queue += sorted(build.needs_of(part, chosen) - given)
        adapters = _in_recipe_order([part for part in found.values() if part.part == "encoder"], self.registry)
        trainers = [part for part in found.values() if part.part == "trainer"]
        return {
            "adapters": {part.id: {"id": part.id, "args": args[part.id]} for part in adapters},
            "trainers": {part.id: {"id": part.id, "args": args[part.id]} for part in trainers},
        }

    def own_features(self, plugin: str) -> frozenset[str]:
        """The features that a plugin's adapters add, `plugin.name`: its evaluators may want them."""
        adapters = [part for part in self.registry.specs("encoder").values() if part.plugin == plugin]
        keys = frozenset[str]().union(*(build.provides_of(part, None) for part in adapters))
        return frozenset(key for key in keys if key.startswith(f"{plugin}."))

    def _gives(self, part: Registered) -> frozenset[str]:
        return build.provides_of(part, build.options(part, chosen_args(part), part.id))

    def _backbone_gives(self) -> frozenset[str]:
        encoder = dict(self.encoder or TINY)
        part = self.registry.spec("encoder", encoder.pop("id"))
        return build.provides_of(part, build.options(part, encoder, part.id))

    def _giver(self, key: str, kind: str, plugin: str) -> Registered:
        parts = sorted(self.registry.specs(kind).values(), key=lambda part: (part.plugin != plugin, part.id))
        for part in parts:
            if kind == "encoder" and part.spec.kind != "adapter":
                continue
            try:
                gives = self._gives(part)
            except (Skip, MvcoreError):
                gives = build.provides_of(part, None)
            if key in gives:
                return part
        raise Unfit(
            f"it needs {key!r}, which no installed part gives; correct `needs`, or install the plugin that does"
        )

    def values(self, *, sampling: str = "any", steps: int = 2, **sections: Any) -> dict[str, Any]:
        """A run on the toy data as nested values."""
        encoder = dict(self.encoder or TINY)
        sampling = "objects" if sampling == "any" else sampling
        drawn = {"objects": {"batch_size": 4, "views_per_object": [1, 3]}, "views": {"batch_size": 10}}
        source = {"id": TOY, "image_size": self._image_size(), "sampling": sampling}
        return {
            "encoder": encoder,
            "data": {"toy": {**source, **drawn.get(sampling, {"batch_size": 4})}},
            "optimizer": {"lr": 1e-3},
            "run": {
                "max_steps": steps,
                "accelerator": "cpu",
                "devices": 1,
                "workers": 0,
                "log_every": 1,
                "epoch_steps": 2,
            },
            **sections,
        }

    def _image_size(self) -> int:
        if self.encoder is None:
            return 32
        return build.build({"id": self.encoder["id"], "args": _without_id(self.encoder)}, "encoder").image_size or 32

    def prepared(self, values: Mapping[str, Any]) -> Training:
        """All parts of a run, ready to train.

        Raises:
            MvcoreError: the run is refused.
        """
        layers = Layers()
        layers.merge(values, "mvcore.testing")
        with torch.random.fork_rng(devices=[]):
            session = open_session(layers.config(), self.registry)
            self._runs += 1
            return prepare(session.plan, session.sources, self.folder / f"run-{self._runs}")

    def trained(self, values: Mapping[str, Any]) -> Training:
        """The same after its steps."""
        with torch.random.fork_rng(devices=[]):
            training = self.prepared(values)
            console = Console(file=io.StringIO(), force_terminal=False)
            fit(training, self.folder / f"run-{self._runs}", title="testing", console=console)
        return training

    def example(self, needs: frozenset[str], plugin: str, sampling: str = "any") -> Example:
        """A batch with all that a part reads: features of the model where a plugin gives them, random ones of core's.

        Raises:
            Unfit: nobody gives one of the needs.
        """
        reads = features_in(needs)
        state = sorted(key for key in needs if key.startswith(STATE))
        sections = self.suppliers(needs, plugin)
        reading = {"probe": {"id": PROBE, "args": {"reads": sorted({*reads, *state}) or ["view"]}}}
        values = self.values(sampling=sampling, losses=reading, **sections)
        training = self.trained(values) if state else self.prepared(values)
        dataset = ToyViews(self._image_size())
        layout = PAIRS if sampling == "pairs" else RAGGED
        batch = batch_of(dataset, layout)
        objective = training.module.objective
        for key in state:
            batch = batch.with_state(objective.publishers[key](batch))
        features = dict(training.model.features(batch, reads)) if reads else {}
        axes: dict[str, Axis] = {**Features({}).axes, **training.pipeline.axes, **objective.state_axes}
        generator = torch.Generator().manual_seed(0)
        for key in reads & {"view", "object", "text", "dense"}:
            features[key] = torch.randn(features[key].shape, generator=generator)
        for key, value in (("logit_scale", 2.0), ("logit_bias", -2.0)):
            if key in features:
                features[key] = torch.tensor(value)
        return Example(dataset, layout, batch, features, axes)


def _without_id(part: Args) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "id"}


def _in_recipe_order(parts: Sequence[Registered], registry: Registry) -> list[Registered]:
    """Adapters in the order in which a recipe of theirs has them, else as they are registered."""
    order: dict[str, int] = {}
    for plugin in {part.plugin for part in parts}:
        specs = registry.plugin(plugin).specs
        listed = [f"{plugin}.{spec.name}" for spec in specs if spec.part == "encoder"]
        for spec in specs:
            if isinstance(spec, RecipeSpec):
                named = list((_recipe(Registered(plugin, spec)).get("adapters") or {}).keys())
                if len(named) > 1:
                    listed = [*named, *[name for name in listed if name not in named]]
                    break
        order |= {name: place for place, name in enumerate(listed)}
    return sorted(parts, key=lambda part: order.get(part.id, 0))


def _recipe(recipe: Registered) -> dict[str, Any]:
    try:
        return dict(read_yaml(recipe_path(recipe))[0])
    except MvcoreError:
        return {}  # reported where recipes are looked at
