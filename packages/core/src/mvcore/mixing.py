"""Several recipes as one: what each has stays its own, and what they disagree about is for the user to settle."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mvcore.config import listed_entries
from mvcore.config_layers import Layers, read_yaml, section_of, shown_value
from mvcore.errors import ConfigError
from mvcore.key_path import KeyPath, show_path
from mvcore.plugins import Registered, recipe_path


@dataclass(frozen=True)
class Contradiction:
    """A key to which two recipes give different values; the first one's stands until a later layer sets it."""

    path: KeyPath
    first: Any
    first_source: str
    second: Any
    second_source: str

    def __str__(self) -> str:
        first, second = shown_value(self.first), shown_value(self.second)
        return f"{show_path(self.path)} is {first} in {self.first_source} and {second} in {self.second_source}"

    def settled(self, layers: Layers) -> bool:
        """Whether a file, a flag or `--set` gave the key a value, or took away what it belongs to."""
        found, there = _at(layers.values, self.path)
        return not there or found != self.first or layers.source_of(self.path) != self.first_source


@dataclass
class Merged:
    """What came of merging recipes: each one's first source, and what they disagree about."""

    firsts: list[str] = field(default_factory=list[str])
    contradictions: list[Contradiction] = field(default_factory=list[Contradiction])

    def check(self, layers: Layers) -> None:
        """Refuses what no later layer has settled.

        Raises:
            ConfigError: every key with both values and both recipes, and how to settle it.
        """
        left = [found for found in self.contradictions if not found.settled(layers)]
        if left:
            key = f"'{show_path(left[0].path)}={shown_value(left[0].first)}'"
            raise ConfigError(
                f"{'; '.join(map(str, left))}; settle each with --set, as --set {key}, or in a YAML file, or run one "
                "recipe and add the other's losses with --loss"
            )


def merge_recipes(layers: Layers, recipes: Sequence[Registered], notes: list[str]) -> Merged:
    """Lays recipes over each other; what they give different values is kept from the first and noted.

    The losses and trainers of each recipe keep to that recipe's sources. A source that has the name of another recipe's
    and is not the same goes by its plugin's name and its own.
    """
    merged = Merged()
    for recipe in recipes:
        values = copy.deepcopy(read_yaml(recipe_path(recipe))[0])
        source = f"recipe {recipe.id}"
        notes.append(source)
        if len(recipes) > 1:
            _keep_sources_apart(layers, values, recipe, notes)
        measured = section_of(values, "validate")
        if "on" in measured:
            measured["on"] = listed_entries(measured["on"])
        for path, value in _leaves(values):
            before, there = _at(layers.values, path)
            if there and before != value:
                merged.contradictions.append(Contradiction(path, before, layers.source_of(path), value, source))
                _drop(values, path)
        merged.firsts += [name for name in [*section_of(values, "data")][:1] if name not in merged.firsts]
        layers.merge(values, source)
    return merged


def _keep_sources_apart(layers: Layers, values: dict[str, Any], recipe: Registered, notes: list[str]) -> None:
    present, sources = section_of(layers.values, "data"), section_of(values, "data")
    names: dict[str, str] = {}
    readers = [*section_of(values, "losses"), *section_of(values, "trainers")]
    for name, entry in sources.items():
        before = present.get(name)
        same = isinstance(before, Mapping) and {k: v for k, v in before.items() if k != "readers"} == entry
        names[name] = name if before is None or same else f"{recipe.plugin}.{name}"
        if names[name] != name:
            notes.append(f"source {name} of recipe {recipe.id} is called {names[name]}, beside another of its name")
        if same and isinstance(before, dict):
            before["readers"] = list(dict.fromkeys([*before.get("readers", []), *readers]))
        if isinstance(entry, dict):
            entry["readers"] = before["readers"] if same and isinstance(before, Mapping) else list(readers)
    if sources:
        values["data"] = {names[name]: entry for name, entry in sources.items()}
    for section in ("losses", "trainers"):
        for entry in section_of(values, section).values():
            if isinstance(entry, dict) and isinstance(entry.get("on"), list):
                entry["on"] = [names.get(name, name) for name in entry["on"]]


def _leaves(values: Mapping[str, Any], path: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    found: list[tuple[KeyPath, Any]] = []
    for key, value in values.items():
        here = (*path, str(key))
        found += _leaves(value, here) if isinstance(value, Mapping) else [(here, value)]
    return found


def _at(values: Any, path: Sequence[str]) -> tuple[Any, bool]:
    """The value at a path, and whether there is one."""
    for key in path:
        if not isinstance(values, Mapping) or key not in values:
            return None, False
        values = values[key]
    return values, True


def _drop(values: dict[str, Any], path: KeyPath) -> None:
    for key in path[:-1]:
        values = values[key]
    del values[path[-1]]
