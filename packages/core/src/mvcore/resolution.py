"""From what a user asked for (plugins, files, flags) to one merged configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvcore.config_layers import Layers, nested, parse_set, read_yaml
from mvcore.errors import ConfigError
from mvcore.key_path import show_path
from mvcore.plugins import Registered, Registry, recipe_path
from mvcore.specs import STATE
from mvcore.suggest import did_you_mean

DEMO = "demo"


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line or from Python.

    Args:
        file: a YAML run configuration.
        plugins: plugin names, files or modules, whose recipes are merged in order.
        recipe: `name` of the plugin's, or `plugin.name`.
        data: a store for the recipe's first source, `PATH` or `PATH#SPLIT`.
        validate: a store to measure on, `PATH` or `PATH#SPLIT`.
        encoder: an open_clip model, `NAME` or `NAME:PRETRAINED`.
        losses: `id=weight`, or `id`; weight 0 drops it.
        only_losses: keep just the losses named.
        assignments: `--set` texts.
        flags: settings given by flags of their own, as nested values.
    """

    file: Path | None = None
    plugins: Sequence[str] = ()
    recipe: str | None = None
    data: str | None = None
    validate: str | None = None
    encoder: str | None = None
    losses: Sequence[str] = ()
    only_losses: bool = False
    assignments: Sequence[str] = ()
    flags: Mapping[str, Any] = field(default_factory=dict[str, Any])


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
    names = [_plugin_name(plugin, registry) for plugin in request.plugins]
    recipes = _recipes(request, names, registry)
    if not recipes and request.file is None:
        raise ConfigError(
            "nothing to run: name a plugin (--plugin ovt), a recipe (--recipe core.pretrain) or a YAML file"
        )
    for found in recipes:
        _merge_recipe(layers, found)
        notes.append(f"recipe {found.id}")
    if request.file is not None:
        layers.merge(*read_yaml(request.file))
    if names:
        layers.merge({"plugins": sorted({*layers.values.get("plugins", ()), *names})}, "--plugin")
    if request.encoder is not None:
        model, _, tag = request.encoder.partition(":") if "-dir:" not in request.encoder else (request.encoder, "", "")
        layers.merge({"encoder": {"model": model, "pretrained": tag or None}}, "--encoder")
    if request.data is not None:
        _set_data(layers, request.data)
    if request.validate is not None:
        name = request.validate.rpartition("#")[2] if "#" in request.validate else "validation"
        entry = {"id": "data.views", **_place(request.validate)}
        first = next(iter((layers.values.get("data") or {}).values()), {})
        if first.get("image_size") is not None:
            entry["image_size"] = first["image_size"]
        layers.merge({"validate": {"data": {name: entry}}}, "--validate")
    layers.merge(request.flags, "flag")
    _set_losses(layers, request, registry, notes)
    for assignment in request.assignments:
        layers.merge(nested(*parse_set(assignment)), "--set")
    _drop_sources_without_data(layers, notes)
    return Resolved(layers, notes)


def _plugin_name(plugin: str, registry: Registry) -> str:
    """The plugin's name; a file or module is loaded first."""
    if plugin.endswith(".py") or "/" in plugin:
        return registry.load_file(plugin).name
    return registry.plugin(plugin).name


def _recipes(request: Request, names: Sequence[str], registry: Registry) -> list[Registered]:
    if request.recipe is not None:
        plugin, dot, recipe = request.recipe.partition(".")
        if not dot:
            if len(names) != 1:
                raise ConfigError(f"--recipe {request.recipe}: say whose it is, as --recipe ovt.{request.recipe}")
            plugin, recipe = names[0], request.recipe
        return [registry.recipe(plugin, recipe)]
    own = request.data is not None or request.encoder is not None or request.file is not None
    found: list[Registered] = []
    for name in names:
        has_recipes = any(entry.plugin == name for entry in registry.specs("recipe").values())
        if not has_recipes and (request.file is not None or len(names) > 1):
            continue  # a plugin of parts only, used by the file or by the other plugins' recipes
        found.append(registry.recipe(name, None if own else DEMO))
    return found


def _merge_recipe(layers: Layers, recipe: Registered) -> None:
    """Lays a recipe over those before it; where two recipes disagree, the user must say."""
    values, _ = read_yaml(recipe_path(recipe))
    source = f"recipe {recipe.id}"
    for path, value in _leaves(values):
        before = _at(layers.values, path)
        if before is not None and before != value:
            raise ConfigError(
                f"{show_path(path)} is {before!r} in {layers.source_of(path)} and {value!r} in {source}; settle it in "
                "a YAML file that holds both, or run one of them and add the other's losses with --loss"
            )
    layers.merge(values, source)


def _leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in values.items():
        here = (*path, str(key))
        found += _leaves(value, here) if isinstance(value, Mapping) else [(here, value)]
    return found


def _at(values: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(values, Mapping) or key not in values:
            return None
        values = values[key]
    return values


def _place(text: str) -> dict[str, Any]:
    """`PATH#SPLIT` as a source's keys."""
    path, mark, split = text.rpartition("#")
    return {"path": path, "split": split} if mark else {"path": text}


def _set_data(layers: Layers, data: str) -> None:
    """Puts the user's data into the first source, and where a recipe asks for data to measure on."""
    sources = layers.values.get("data") or {}
    if not sources:
        layers.merge({"data": {"data": {"id": "data.views", **_place(data)}}}, "--data")
        return
    layers.merge({"data": {next(iter(sources)): _place(data)}}, "--data")
    measured = (layers.values.get("validate") or {}).get("data") or {}
    asking = {name: _place(data) for name, entry in measured.items() if entry.get("path", "") is None}
    if asking:
        layers.merge({"validate": {"data": asking}}, "--data")


def _drop_sources_without_data(layers: Layers, notes: list[str]) -> None:
    """A recipe marks with `path: null` what the user must bring; the first source is required, the others are not."""
    sources = layers.values.get("data") or {}
    for number, (name, entry) in enumerate(list(sources.items())):
        if isinstance(entry, Mapping) and "path" in entry and entry["path"] is None:
            if number == 0:
                raise ConfigError(
                    f"data[{name}] has no path: name your data with --data, or --set 'data[{name}].path=...'"
                )
            del sources[name]
            for loss in (layers.values.get("losses") or {}).values():
                if isinstance(loss, dict) and name in (loss.get("on") or ()):
                    loss["on"] = [other for other in loss["on"] if other != name]
            notes.append(f"without source {name}, which was given no path (--set 'data[{name}].path=...')")
    validate = layers.values.get("validate") or {}
    for name, entry in list((validate.get("data") or {}).items()):
        if isinstance(entry, Mapping) and "path" in entry and entry["path"] is None:
            del validate["data"][name]
            notes.append(f"without measuring on {name}, which was given no path")


def _set_losses(layers: Layers, request: Request, registry: Registry, notes: list[str]) -> None:
    wanted: dict[str, float] = {}
    for text in request.losses:
        loss, equals, weight = text.partition("=")
        try:
            wanted[loss] = float(weight) if equals else 1.0
        except ValueError:
            raise ConfigError(f"--loss {text!r}: the weight must be a number, as --loss ovt.vc=0.5") from None
    losses = layers.values.setdefault("losses", {})
    if request.only_losses:
        if not wanted:
            raise ConfigError("--only-losses keeps the losses named by --loss, and none is named")
        for loss in [name for name in losses if name not in wanted]:
            layers.merge({"losses": {loss: None}}, "--only-losses")
    for loss, weight in wanted.items():
        present = loss in layers.values["losses"]
        if weight == 0:
            if not present:
                raise ConfigError(f"--loss {loss}=0: there is no such loss to drop{did_you_mean(loss, list(losses))}")
            layers.merge({"losses": {loss: None}}, "--loss")
            notes.append(f"loss {loss} dropped (--loss {loss}=0)")
            continue
        layers.merge({"losses": {loss: {"weight": weight}}}, "--loss")
        if not present:
            _pull_in(layers, registry.spec("loss", loss), registry, notes)


def _pull_in(layers: Layers, loss: Registered, registry: Registry, notes: list[str]) -> None:
    """Takes from an added loss's own plugin what supplies a missing need: trainers and adapters, nothing else."""
    missing = {key for key in loss.spec.needs if key.startswith(STATE)}
    recipes = [entry for entry in registry.specs("recipe").values() if entry.plugin == loss.plugin]
    recipes.sort(key=lambda entry: (not entry.spec.default, entry.spec.name != DEMO))
    for section, part in (("trainers", "trainer"), ("adapters", "encoder")):
        for recipe in recipes[:1]:
            values, _ = read_yaml(recipe_path(recipe))
            for name, entry in (values.get(section) or {}).items():
                spec = registry.spec(part, (entry or {}).get("id", name)).spec
                gives = (
                    missing & set(spec.provides) if section == "trainers" else set(spec.provides) & set(loss.spec.needs)
                )
                own_key = section == "trainers" or all("." in key for key in gives)
                if gives and own_key and name not in (layers.values.get(section) or {}):
                    layers.merge({section: {name: entry or {}}}, f"recipe {recipe.id}")
                    notes.append(
                        f"{section[:-1]} {name} from recipe {recipe.id}: {loss.id} needs {', '.join(sorted(gives))}"
                    )
