"""From what a user asked for (plugins, files, flags) to one merged configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from mvcore.config_layers import Layers, nested, parse_set, read_yaml, section_of, shown_value
from mvcore.encoder_names import encoder_named
from mvcore.errors import ConfigError
from mvcore.key_path import show_path
from mvcore.mixing import merge_recipes
from mvcore.plugins import PluginRecord, Registered, Registry
from mvcore.pull_in import PullIn, follow
from mvcore.suggest import did_you_mean, listed

DEMO = "demo"


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line or from Python.

    Args:
        file: a YAML run configuration.
        plugins: plugin names, files or modules, whose recipes are merged in order.
        recipes: each `plugin.name`, or `name`: the recipe of that name of each plugin; none named: the plugins' usual
            ones.
        data: a store for the recipe's first source, `PATH` or `PATH#SPLIT`.
        validate: a store to measure on, `PATH` or `PATH#SPLIT`.
        encoder: an open_clip or timm model, `NAME` or `NAME:PRETRAINED`, or a backbone's id.
        losses: `id=weight`, or `id`; weight 0 drops it.
        only_losses: keep just the losses named.
        assignments: `--set` texts.
        flags: settings given by flags of their own, as nested values.
    """

    file: Path | None = None
    plugins: Sequence[str] = ()
    recipes: Sequence[str] = ()
    data: str | None = None
    validate: str | None = None
    encoder: str | None = None
    losses: Sequence[str] = ()
    only_losses: bool = False
    assignments: Sequence[str] = ()
    flags: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Flags(TypedDict, total=False):
    """The flags of `mvcore train` as Python values.

    Attributes:
        plugins, recipes: names, as `["ovt", "duoduo"]`; a plugin may be a file, a module or one that was registered.
        data, validate, encoder: as on the command line.
        losses: weights of losses to set or add, by id; 0 drops one.
        only_losses: keep just the losses named.
        settings: keys and values of `--set`, as `{"run.max_steps": 50}`.
    """

    plugins: Sequence[str]
    recipes: Sequence[str]
    data: str | Path
    validate: str | Path
    encoder: str
    losses: Mapping[str, float]
    only_losses: bool
    settings: Mapping[str, Any]


def as_request(file: str | Path | None, flags: Flags) -> Request:
    """What is asked for from Python.

    Raises:
        ConfigError: a flag that there is not, or one text where a list belongs.
    """
    for name, value in flags.items():
        if name not in Flags.__annotations__:
            raise ConfigError(f"mvcore.train: unknown {name!r}{did_you_mean(name, Flags.__annotations__)}")
        if name in ("plugins", "recipes") and isinstance(value, str):
            raise ConfigError(f"mvcore.train: {name} must be a list; write [{value!r}]")
        if name in ("losses", "settings") and not isinstance(value, Mapping):
            raise ConfigError(f"mvcore.train: {name} must be a dict of keys and values")
    return Request(
        file=None if file is None else Path(file),
        plugins=flags.get("plugins", ()),
        recipes=flags.get("recipes", ()),
        data=str(flags["data"]) if "data" in flags else None,
        validate=str(flags["validate"]) if "validate" in flags else None,
        encoder=flags.get("encoder"),
        losses=[f"{name}={weight}" for name, weight in flags.get("losses", {}).items()],
        only_losses=flags.get("only_losses", False),
        assignments=[f"{key}={shown_value(value)}" for key, value in flags.get("settings", {}).items()],
    )


@dataclass
class Resolved:
    """The merged layers, and what was decided on the way, to be printed."""

    layers: Layers
    notes: list[str]


def resolve(request: Request, registry: Registry) -> Resolved:
    """Merges recipes, file, flags and assignments, in this order.

    Raises:
        ConfigError: nothing to run, a contradiction between recipes, a source without data, or an unreadable file.
        PluginError: an unknown plugin or recipe.
    """
    layers, notes = Layers(), list[str]()
    named = [use_plugin(plugin, registry) for plugin in request.plugins]
    records = [record for number, record in enumerate(named) if record not in named[:number]]
    recipes = _recipes(request, [record.name for record in records], registry, notes)
    if not recipes and request.file is None:
        raise ConfigError(
            "nothing to run: name a plugin (--plugin ovt), a recipe (--recipe core.pretrain) or a YAML file"
        )
    merged = merge_recipes(layers, recipes, notes)
    if request.file is not None:
        layers.merge(*read_yaml(request.file))
    _set_plugins(layers, records, registry)
    if request.encoder is not None:
        part_id, args = encoder_named(request.encoder, registry)
        layers.merge({"encoder": {"id": part_id, **args}}, "--encoder")
    if request.data is not None:
        _set_data(layers, request.data, merged.firsts)
    if request.validate is not None:
        _set_validation(layers, request.validate)
    layers.merge(request.flags, "flag")
    style = recipes[0].spec.name if recipes else ""
    follows = _set_losses(layers, request, registry, notes, style)
    for assignment in request.assignments:
        layers.merge(nested(*parse_set(assignment)), "--set")
    merged.check(layers, registry)
    notes += merged.replacements(layers, registry)
    follow(layers, follows)
    _drop_sources_without_data(layers, notes)
    return Resolved(layers, notes)


def use_plugin(plugin: str, registry: Registry) -> PluginRecord:
    """The plugin of a name, Python file or module; a file or module is loaded unless it has been.

    Raises:
        PluginError: there is none, or it cannot be used.
    """
    source = str(Path(plugin).expanduser().resolve()) if plugin.endswith(".py") else plugin
    known = [record for record in registry.records if record.source == source and record.status == "ok"]
    if not plugin.endswith(".py") and not set("/.") & set(plugin) and (registry.has(plugin) or not known):
        return registry.plugin(plugin)
    return known[0] if known else registry.load_file(plugin)


def _set_plugins(layers: Layers, records: Sequence[PluginRecord], registry: Registry) -> None:
    """Lists the plugins that were named; a file by its path, so that the run can be told again by its configuration."""
    written = layers.values.get("plugins") or []
    if not isinstance(written, list) or not all(isinstance(name, str) for name in written):
        return  # for the validation to find
    for name in written:
        use_plugin(name, registry)
    named = [record.name if record.distribution else record.source for record in records]
    if named:
        layers.merge({"plugins": list(dict.fromkeys([*written, *named]))}, "--plugin")


def _recipes(request: Request, names: Sequence[str], registry: Registry, notes: list[str]) -> list[Registered]:
    bringing = {entry.plugin for entry in registry.specs("recipe").values()}
    if request.recipes:
        found = [recipe for text in request.recipes for recipe in _named_recipes(text, names, bringing, registry)]
        followed = {recipe.plugin for recipe in found}
        notes += [
            f"plugin {name}: none of its recipes is followed (--recipe names others)"
            for name in names
            if name in bringing - followed
        ]
        return list({recipe.id: recipe for recipe in found}.values())
    own = request.data is not None or request.encoder is not None or request.file is not None
    found = []
    for name in names:
        if name not in bringing and (request.file is not None or len(names) > 1):
            continue  # a plugin of parts only, used by the file or by the other plugins' recipes
        found.append(registry.recipe(name, None if own else _demo(name, registry)))
    return found


def _named_recipes(text: str, names: Sequence[str], bringing: set[str], registry: Registry) -> list[Registered]:
    """What `--recipe` says: `plugin.name`, or a name that each plugin that brings recipes has."""
    plugin, dot, recipe = text.partition(".")
    if dot:
        return [registry.recipe(plugin, recipe)]
    if not names:
        raise ConfigError(f"--recipe {text}: say whose it is, as --recipe ovt.{text}")
    return [registry.recipe(name, text) for name in names if name in bringing or len(names) == 1]


def _demo(plugin: str, registry: Registry) -> str:
    names = [entry.spec.name for entry in registry.specs("recipe").values() if entry.plugin == plugin]
    if names and DEMO not in names:
        raise ConfigError(
            f"plugin {plugin!r} has no demo: name your data with --data STORE, or a recipe with --recipe (it has: "
            f"{listed(names)})"
        )
    return DEMO


def _place(text: str) -> dict[str, Any]:
    """`PATH#SPLIT` as a source's keys."""
    path, mark, split = text.rpartition("#")
    return {"path": path, "split": split} if mark else {"path": text}


def _set_data(layers: Layers, data: str, firsts: Sequence[str]) -> None:
    """Puts the user's data into the first source (of each recipe), and where a recipe asks for data to measure on."""
    sources = section_of(layers.values, "data")
    if not sources:
        layers.merge({"data": {"data": {"id": "data.views", **_place(data)}}}, "--data")
        return
    for name in firsts or [next(iter(sources))]:
        layers.merge({"data": {name: _place(data)}}, "--data")
    asking = [name for name, entry in section_of(layers.values, "validate", "data").items() if _asks_for_data(entry)]
    if asking:
        layers.merge({"validate": {"data": {name: _place(data) for name in asking}}}, "--data")


def _set_validation(layers: Layers, data: str) -> None:
    name = data.rpartition("#")[2] if "#" in data else "validation"
    entry = {"id": "data.views", **_place(data)}
    sources = section_of(layers.values, "data")
    first = section_of(sources, next(iter(sources), ""))
    # Where stored vectors take the place of images, what is measured has them too.
    like = ("image_size", "embeddings", "images") if first.get("images") is False else ("image_size",)
    entry |= {key: first[key] for key in like if first.get(key) is not None}
    layers.merge({"validate": {"data": {name: entry}}}, "--validate")


def _asks_for_data(entry: Any) -> bool:
    """A recipe marks with `path: null` what the user must bring."""
    return isinstance(entry, Mapping) and "path" in entry and entry["path"] is None


def _drop_sources_without_data(layers: Layers, notes: list[str]) -> None:
    """The first source is required, the others are not; nor is what only a source that is left out could feed."""
    sources = section_of(layers.values, "data")
    for number, name in enumerate([*sources]):
        if not _asks_for_data(sources[name]):
            continue
        if number == 0:
            key = f"{show_path(('data', name))}.path"
            raise ConfigError(f"{key} is null: name your data with --data STORE, or --set '{key}=STORE'")
        del sources[name]
        notes.append(f"without source {name}, which was given no path (--set '{show_path(('data', name))}.path=...')")
        for kind in ("losses", "trainers"):
            _drop_readers(section_of(layers.values, kind), name, kind, notes)
    measured = section_of(layers.values, "validate", "data")
    for name in [name for name, entry in measured.items() if _asks_for_data(entry)]:
        del measured[name]
        notes.append(f"without measuring on {name}, which was given no path")


def _drop_readers(parts: dict[str, Any], source: str, kind: str, notes: list[str]) -> None:
    for name, entry in list(parts.items()):
        on = entry.get("on") if isinstance(entry, dict) else None
        if not isinstance(on, list) or source not in on:
            continue
        entry["on"] = [other for other in on if other != source]
        if not entry["on"]:
            del parts[name]
            notes.append(f"without {show_path((kind, name))}, which works on {source} alone")


def _set_losses(layers: Layers, request: Request, registry: Registry, notes: list[str], style: str) -> dict[str, str]:
    """Sets, adds and drops losses; returns the sources that an added one brought, each with whose data it has."""
    follows: dict[str, str] = {}
    losses = section_of(layers.values, "losses")
    before = set(losses)
    wanted: dict[str, float] = {}
    for text in request.losses:
        name, weight = _loss_and_weight(text, losses)
        if name in wanted:
            raise ConfigError(f"--loss {text}: {name} was given the weight {wanted[name]:g} before; name it once")
        wanted[name] = weight
    if request.only_losses:
        if not wanted:
            raise ConfigError("--only-losses keeps the losses named by --loss, and none is named")
        for name in [name for name in losses if name not in wanted]:
            layers.merge({"losses": {name: None}}, "--only-losses")
    for name, weight in wanted.items():
        if weight != 0:
            pulled = None
            if name not in losses:
                pulled = PullIn(layers, registry.spec("loss", name), name, registry, style, follows)
                pulled.take_options()
            layers.merge({"losses": {name: {"weight": weight}}}, "--loss")
            if pulled is not None:
                pulled.take_parts()
                notes += pulled.notes
                follows |= pulled.follows
        elif name in losses:
            layers.merge({"losses": {name: None}}, "--loss")
            notes.append(f"loss {name} dropped (--loss {name}=0)")
        else:
            raise ConfigError(
                f"--loss {name}=0: there is no such loss to drop{did_you_mean(name, losses)} (there are: "
                f"{listed(losses)})"
            )
    if before - set(losses):
        _drop_sources_without_reader(layers, notes)
    return follows


def _drop_sources_without_reader(layers: Layers, notes: list[str]) -> None:
    """A source that only dropped losses named goes with them; a loss without `on` may read any source."""
    losses = section_of(layers.values, "losses").values()
    read: set[str] = set()
    for entry in losses:
        if not isinstance(entry, Mapping) or entry.get("on") is None:
            return
        read.update(entry["on"])
    for name in [name for name in section_of(layers.values, "data") if name not in read]:
        layers.merge({"data": {name: None}}, "--loss")
        notes.append(f"source {name} dropped: no loss that is left reads it")


def _loss_and_weight(text: str, losses: Mapping[str, Any]) -> tuple[str, float]:
    """`id=weight` as the name that the loss has in the run, and its weight."""
    loss, equals, weight = text.partition("=")
    try:
        value = float(weight) if equals else 1.0
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"--loss {text!r}: the weight must be a finite number, as --loss ovt.vc=0.5")
    if value < 0:
        raise ConfigError(f"--loss {text!r}: the weight must not be negative; 0 drops the loss")
    named = [name for name, entry in losses.items() if isinstance(entry, Mapping) and entry.get("id", name) == loss]
    return (named[0] if loss not in losses and len(named) == 1 else loss), value
