"""What a run consists of: parts resolved from the configuration, and which source feeds which loss.

`choose` resolves ids and options and opens nothing; `plan` is given the opened sources and settles who reads what. Both
come before any weight is loaded, so an impossible run is refused in a moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from mvcore import build
from mvcore.config import Part, RunConfig
from mvcore.errors import ConfigError, DataError, MvcoreError, PluginError
from mvcore.key_path import show_path
from mvcore.model import features_in, walk_back
from mvcore.plugins import Registered, Registry
from mvcore.specs import BATCH_FIELDS, STATE, LossSpec, TrainerSpec
from mvcore.suggest import did_you_mean, listed
from mvcore.training.weights import WeightAt, WeightSchedule, counts, weight_at
from mvcore.validation import Place, Written, nowhere

_FIELD_BEHIND = {"text": "captions", "view": "images", "dense": "images", "object": "images"}
"""The batch field that an image-and-text backbone makes a feature from."""


@dataclass(frozen=True)
class Chosen:
    """A part of the run: its name there, its spec, its options, what these say it reads and gives, and its place."""

    name: str
    registered: Registered
    options: BaseModel | None
    needs: frozenset[str]
    provides: frozenset[str]
    place: Place = field(default_factory=Place)

    @property
    def id(self) -> str:
        return self.registered.id

    @property
    def spec(self) -> Any:
        return self.registered.spec

    @property
    def reads(self) -> frozenset[str]:
        """The features among its needs."""
        return features_in(self.needs)

    def make(self) -> Any:
        """The part itself.

        Raises:
            MvcoreError: what is wrong with it; the text begins with its place.
        """
        try:
            return build.make(self.registered, self.options)
        except MvcoreError as error:
            raise type(error)(self.place.line([], str(error))) from error
        except OSError as error:
            raise DataError(self.place.line([], f"cannot be opened: {error}")) from error


@dataclass(frozen=True)
class Blueprint:
    """All parts of a run, resolved; no file was opened and no weight loaded."""

    config: RunConfig
    encoder: Chosen
    adapters: tuple[Chosen, ...]
    sources: Mapping[str, Chosen]
    losses: tuple[Chosen, ...]
    trainers: tuple[Chosen, ...]
    measured: Mapping[str, Chosen]
    evaluators: tuple[Chosen, ...]
    ledger: Chosen | None = None

    @cached_property
    def plugins(self) -> frozenset[str]:
        """The plugins that the run uses."""
        parts = (self.encoder, *self.adapters, *self.losses, *self.trainers, *self.evaluators)
        return frozenset(
            part.id.partition(".")[0] for part in (*parts, *self.sources.values(), *self.measured.values())
        )


@dataclass(frozen=True)
class PlannedTerm:
    """A loss or trainer and the names of the sources that it works on; a loss has a weight too."""

    part: Chosen
    sources: tuple[str, ...]
    weight: float | WeightSchedule = 1.0


@dataclass(frozen=True)
class Plan:
    """Who reads what.

    Args:
        adapters: those that somebody needs, in order.
        losses, trainers: with their sources; a loss of weight 0 in every step and a trainer nobody reads are left out.
        keys: the features that losses read on each source.
    """

    blueprint: Blueprint
    adapters: tuple[Chosen, ...]
    losses: tuple[PlannedTerm, ...]
    trainers: tuple[PlannedTerm, ...]
    keys: Mapping[str, frozenset[str]]

    @property
    def config(self) -> RunConfig:
        return self.blueprint.config


def choose(config: RunConfig, registry: Registry, written: Written = nowhere) -> Blueprint:
    """Resolves every id and validates every part's options.

    Args:
        written: tells where each key was written, for the text of errors.

    Raises:
        PluginError: an unknown id or a broken plugin.
        ConfigError: options that the part refuses, or parts of the wrong kind.
    """

    def chosen(kind: str, name: str, part: Part, *path: str) -> Chosen:
        place = Place(show_path(path), lambda keys: written((*path, *keys)), part.reserved)
        try:
            registered = registry.spec(kind, part.id)
        except PluginError as error:
            raise PluginError(place.line(["id"], str(error))) from error
        options = build.options(registered, part.args, place)
        needs, provides = build.needs_of(registered, options), build.provides_of(registered, options)
        return Chosen(name, registered, options, needs, provides, place)

    def section(kind: str, parts: Mapping[str, Part], *path: str) -> tuple[Chosen, ...]:
        return tuple(chosen(kind, name, part, *path, name) for name, part in parts.items())

    ledger = config.validation.ledger_part()
    blueprint = Blueprint(
        config=config,
        encoder=chosen("encoder", "encoder", config.encoder, "encoder"),
        adapters=section("encoder", config.adapters, "adapters"),
        sources={part.name: part for part in section("dataset", config.data, "data")},
        losses=section("loss", config.losses, "losses"),
        trainers=section("trainer", config.trainers, "trainers"),
        measured={part.name: part for part in section("dataset", config.validation.data, "validate", "data")},
        evaluators=section("evaluator", config.validation.on, "validate", "on"),
        # Not among the evaluators: what it reads must not decide which adapters take part in the training.
        ledger=None if ledger is None else chosen("evaluator", ledger.id, ledger, "validate", "on", ledger.id),
    )
    _check_kinds(blueprint)
    return blueprint


def _check_kinds(blueprint: Blueprint) -> None:
    encoder = blueprint.encoder
    if encoder.spec.kind != "backbone":
        raise ConfigError(encoder.place.line(["id"], f"{encoder.id} is an adapter; name it under adapters"))
    for adapter in blueprint.adapters:
        if adapter.spec.kind != "adapter":
            raise ConfigError(adapter.place.line(["id"], f"{adapter.id} is a backbone; name it under encoder"))
    replacing = [part for part in blueprint.trainers if part.spec.replaces_step]
    if replacing and blueprint.config.run.gradients is not None:
        text = "it replaces the training step, so that run.gradients has nothing to measure; leave one of them out"
        raise ConfigError(replacing[0].place.line([], text))
    if len(replacing) > 1:
        text = f"it replaces the training step, as {replacing[0].place.name} does; keep one"
        raise ConfigError(replacing[1].place.line([], text))


def plan(blueprint: Blueprint, datasets: Mapping[str, Any], registry: Registry) -> Plan:
    """Settles the sources of each loss and trainer, and checks that every need is met.

    Args:
        datasets: the opened sources by name; each says in `provides` which batch fields it has.

    Raises:
        ConfigError: a need that nothing in the run provides; the text names the loss, the key and who provides it.
    """
    active = _weighing(blueprint)
    reading = (*active, *blueprint.adapters)
    wanted_state = frozenset(key for part in reading for key in part.needs if key.startswith(STATE))
    preferring = any(part.outlier_share for part in blueprint.config.data.values())
    trainers = [
        part
        for part in blueprint.trainers
        if not part.provides or part.provides & wanted_state or (preferring and part.spec.prefers_views)
    ]
    planned_trainers = tuple(
        PlannedTerm(part, _sources_for(part, blueprint, datasets, blueprint.config.trainers[part.name].on, {}))
        for part in trainers
    )
    publishers = {key: term for term in planned_trainers for key in term.part.provides}
    _check_state(reading, publishers, registry)
    _check_preferred(blueprint, planned_trainers, registry)

    def term(part: Chosen) -> PlannedTerm:
        settings = blueprint.config.losses[part.name]
        sources = _sources_for(part, blueprint, datasets, settings.on, publishers)
        return PlannedTerm(part, sources, settings.weight)

    terms = [term(part) for part in blueprint.losses]
    losses = tuple(term for term in terms if term.part in active)
    readers = (*active, *trainers, *blueprint.evaluators)
    needed, asked = walk_back(blueprint.adapters, frozenset[str]().union(*(part.reads for part in readers)))
    _check_features(asked - blueprint.encoder.provides, readers, blueprint, registry)
    for name in datasets:
        # A loss of weight 0 counts: the control of a run keeps its data.
        if not any(name in term.sources for term in terms):
            text = f"no loss reads this source; drop it (--set 'data[{name}]=null'), or name it in a loss's `on`"
            raise ConfigError(blueprint.sources[name].place.line([], text))

    adapters = tuple(part for part in blueprint.adapters if not part.provides or part in needed)
    return Plan(blueprint, adapters, losses, planned_trainers, read_by(losses, datasets))


def read_by(terms: Iterable[PlannedTerm], sources: Iterable[str]) -> dict[str, frozenset[str]]:
    """The features that losses or trainers read on each source."""
    readers = tuple(terms)
    return {
        name: frozenset[str]().union(*(term.part.reads for term in readers if name in term.sources)) for name in sources
    }


def _weighing(blueprint: Blueprint) -> list[Chosen]:
    """The losses that have a weight in some step; together they must have one in every step."""
    config = blueprint.config
    max_steps = config.run.max_steps
    weights = {part.name: config.losses[part.name].weight for part in blueprint.losses}
    active = [part for part in blueprint.losses if counts(weights[part.name], max_steps)]
    if not active:
        raise ConfigError("every loss has weight 0, so there is nothing to train")
    if all(isinstance(weights[part.name], WeightSchedule) for part in active):
        at: list[WeightAt] = [weight_at(weights[part.name], max_steps) for part in active]
        idle = next((step for step in range(max_steps) if not any(weight(step) for weight in at)), None)
        if idle is not None:
            text = f"at step {idle} every loss has weight 0, so there is nothing to train"
            raise ConfigError(active[0].place.line(["weight"], f"{text}; a warmup begins above 0"))
    return active


def _lacking(part: Chosen, name: str, blueprint: Blueprint, dataset: Any) -> list[str]:
    """What a source lacks for a part: batch fields, those behind the features that it reads, and the sampling."""
    adapters, asked = walk_back(blueprint.adapters, part.reads)
    fields = {key for reader in (part, *adapters) for key in reader.needs if key in BATCH_FIELDS}
    behind = {_FIELD_BEHIND[key] for key in asked & _FIELD_BEHIND.keys() & blueprint.encoder.provides}
    if behind and blueprint.encoder.needs:
        behind = (behind - {"images"}) | blueprint.encoder.needs
    fields |= behind
    lacking = sorted(fields - dataset.provides)
    spec = part.spec
    if isinstance(spec, TrainerSpec) and spec.indexed and "object_ids" not in {*dataset.provides, *lacking}:
        lacking.append("object_ids")
    if isinstance(spec, LossSpec) and spec.sampling not in ("any", blueprint.config.data[name].sampling):
        lacking.append(f"sampling: {spec.sampling}")
    return lacking


def _sources_for(
    part: Chosen,
    blueprint: Blueprint,
    datasets: Mapping[str, Any],
    on: tuple[str, ...] | None,
    publishers: Mapping[str, PlannedTerm],
) -> tuple[str, ...]:
    """The sources named in `on`, each checked, or all that fit; a loss stays where its published state is."""
    lacking = {name: _lacking(part, name, blueprint, dataset) for name, dataset in datasets.items()}
    for name in datasets:
        readers = blueprint.config.data[name].readers
        if readers is not None and part.name not in readers:
            lacking[name].insert(0, f"{part.name} among its readers ({listed(readers)})")
    for key in sorted(part.needs & publishers.keys()):
        for name in datasets.keys() - set(publishers[key].sources):
            lacking[name].append(f"{key} (trainer {publishers[key].part.name} does not work on it)")
    for name in on or ():
        if name not in datasets:
            near = did_you_mean(name, datasets)
            text = f"{name!r} is no source of this run{near} (there are: {listed(datasets)})"
            raise ConfigError(part.place.line(["on"], text))
        if lacking[name]:
            text = f"source {name!r} lacks {', '.join(lacking[name])}, which {part.id} needs"
            raise ConfigError(part.place.line(["on"], text))
    if on is not None:
        return tuple(dict.fromkeys(on))
    fitting = tuple(name for name in datasets if not lacking[name])
    if not fitting:
        reasons = "; ".join(f"{name} lacks {', '.join(what)}" for name, what in lacking.items())
        raise ConfigError(part.place.line([], f"no source of this run has what {part.id} needs: {reasons}"))
    return fitting


def _check_state(parts: Iterable[Chosen], published: Mapping[str, Any], registry: Registry) -> None:
    for part in parts:
        for key in sorted(key for key in part.needs if key.startswith(STATE) and key not in published):
            givers = [id for id, entry in registry.specs("trainer").items() if key in _spec_provides(entry)]
            advice = f"; {' or '.join(givers)} publishes it: name it under trainers" if givers else ""
            raise ConfigError(
                part.place.line([], f"{part.id} needs {key}, which no trainer of this run publishes{advice}")
            )


def _check_preferred(blueprint: Blueprint, trainers: Iterable[PlannedTerm], registry: Registry) -> None:
    """Exactly one trainer says which views a source with an `outlier_share` prefers."""
    preferring = [term for term in trainers if term.part.spec.prefers_views]
    for name, settings in blueprint.config.data.items():
        working = [term for term in preferring if name in term.sources]
        if not settings.outlier_share or len(working) == 1:
            continue
        place = blueprint.sources[name].place
        if working:
            named = " and ".join(term.part.name for term in working)
            raise ConfigError(place.line(["outlier_share"], f"{named} both name preferred views; keep one of them"))
        givers = [id for id, entry in registry.specs("trainer").items() if entry.spec.prefers_views]
        advice = f"; {' or '.join(givers)} does: name it under trainers" if givers else ""
        text = f"no trainer of this run names the views that this source shall prefer{advice}"
        raise ConfigError(place.line(["outlier_share"], text))
    if len(preferring) > 1:
        text = f"{preferring[0].part.name} names preferred views too, and one would undo the other's; keep one of them"
        raise ConfigError(preferring[1].part.place.line([], text))


def _check_features(missing: frozenset[str], parts: Iterable[Chosen], blueprint: Blueprint, registry: Registry) -> None:
    for key in sorted(missing):
        # The adapters come last: one of them is named where no part reads the key by itself.
        reader = next(part for part in (*parts, *blueprint.adapters) if key in part.reads)
        givers = sorted(id for id, entry in registry.specs("encoder").items() if key in _spec_provides(entry))
        advice = f"it is given by {', '.join(givers)}" if givers else "no installed plugin gives it"
        adapters = [id for id in givers if registry.spec("encoder", id).spec.kind == "adapter"]
        if len(adapters) == 1:
            advice += f": --set 'adapters[{adapters[0]}]={{}}'"
        encoder = blueprint.encoder
        text = f"{reader.id} needs the feature {key!r}, which {encoder.id} lacks (it gives {listed(encoder.provides)})"
        raise ConfigError(reader.place.line([], f"{text}; {advice}"))


def _spec_provides(entry: Registered) -> Iterable[str]:
    return getattr(entry.spec, "provides", ())
