"""Several recipes as one: what each has stays its own, and what they disagree about is for the user to settle."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mvcore.config import listed_entries
from mvcore.config_layers import Layers, read_yaml, section_of, shown_value
from mvcore.errors import ConfigError
from mvcore.key_path import KeyPath, show_path
from mvcore.plugins import Registered, Registry, recipe_path
from mvcore.pull_in import keys_of
from mvcore.suggest import listed

BACKBONE: KeyPath = ("encoder", "id")


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
    """What came of merging recipes.

    Attributes:
        recipes: each one's id and what it has.
        firsts: each one's first source.
        contradictions: what they disagree about.
    """

    recipes: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    firsts: list[str] = field(default_factory=list[str])
    contradictions: list[Contradiction] = field(default_factory=list[Contradiction])

    def check(self, layers: Layers, registry: Registry) -> None:
        """Refuses what no later layer has settled.

        Raises:
            ConfigError: every key with both values and both recipes, and how to settle it.
        """
        left = [found for found in self.contradictions if not found.settled(layers)]
        backbones = [found for found in left if found.path == BACKBONE]
        if backbones:
            raise ConfigError(
                f"{'; '.join(map(str, backbones))}, and the sources of each are made for its own; run one recipe and "
                f"add the other's losses, as {self._one_and_the_others_losses(registry)}"
            )
        if left:
            settings = " ".join(f"--set '{show_path(each.path)}={shown_value(each.first)}'" for each in left)
            raise ConfigError(
                f"{'; '.join(map(str, left))}; settle each, as {settings}, or in a YAML file; or run one recipe and "
                f"add the other's losses, as {self._one_and_the_others_losses(registry)}"
            )

    def _one_and_the_others_losses(self, registry: Registry) -> str:
        """The flags of a run of one recipe: that whose backbone gives most of what all losses read, from images."""
        losses = {name: e for values in self.recipes.values() for name, e in section_of(values, "losses").items()}
        read = frozenset[str]().union(*(keys_of(registry, "needs", "losses", *item) for item in losses.items()))

        def given(recipe: str) -> tuple[int, bool]:
            encoder = section_of(self.recipes[recipe], "encoder")
            keys = read & keys_of(registry, "provides", "encoder", "encoder", encoder)
            return len(keys), not keys_of(registry, "needs", "encoder", "encoder", encoder)

        base = max(self.recipes, key=given)
        own = section_of(self.recipes[base], "losses")
        flags = [f"--loss {_with_weight(name, entry)}" for name, entry in losses.items() if name not in own]
        return " ".join([f"--recipe {base}", *flags])

    def replacements(self, layers: Layers, registry: Registry) -> Iterator[str]:
        """What one recipe's adapters change for another's losses, which nobody asked about."""
        brought = {loss for values in self.recipes.values() for loss in section_of(values, "losses")}
        encoder = section_of(layers.values, "encoder")
        given = keys_of(registry, "provides", "encoder", "encoder", encoder) if encoder else frozenset[str]()
        for name, entry in section_of(layers.values, "adapters").items():
            provides = keys_of(registry, "provides", "adapters", name, entry)
            bringers = [recipe for recipe, values in self.recipes.items() if name in section_of(values, "adapters")]
            own = {loss for recipe in bringers for loss in section_of(self.recipes[recipe], "losses")}
            replaced = {
                loss: keys_of(registry, "needs", "losses", loss, part) & provides & given
                for loss, part in section_of(layers.values, "losses").items()
                if bringers and loss in brought - own
            }
            keys = frozenset[str]().union(*replaced.values())
            if keys:
                readers = listed(loss for loss, found in replaced.items() if found)
                without = f"--set '{show_path(('adapters', name))}=null'"
                yield (
                    f"adapter {name} of recipe {bringers[0]} replaces {listed(keys)} for {readers} too (without it: "
                    f"{without})"
                )
            given |= provides


def _with_weight(name: str, entry: Any) -> str:
    weight = entry.get("weight") if isinstance(entry, Mapping) else None
    return f"{name}={weight:g}" if isinstance(weight, (int, float)) else name


def merge_recipes(layers: Layers, recipes: Sequence[Registered], notes: list[str]) -> Merged:
    """Lays recipes over each other; what they give different values is kept from the first and noted.

    The losses and trainers of each recipe keep to that recipe's sources, and one that two recipes have works on what
    either gives it. A source that has the name of another recipe's and is not the same goes by its plugin's name and
    its own.
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
        merged.recipes[recipe.id] = copy.deepcopy(values)
        merged.contradictions += _take_out(values, layers, source)
        merged.firsts += [name for name in [*section_of(values, "data")][:1] if name not in merged.firsts]
        layers.merge(values, source)
    return merged


def _take_out(values: dict[str, Any], layers: Layers, source: str) -> list[Contradiction]:
    """Takes out of a recipe what the ones before it say otherwise; of another backbone, all of its options."""
    found: list[Contradiction] = []
    for path, value in _leaves(values):
        before, there = _at(layers.values, path)
        if there and before != value:
            found.append(Contradiction(path, before, layers.source_of(path), value, source))
    other = [each for each in found if each.path == BACKBONE]
    if other:
        del values["encoder"]
        found = [*other, *[each for each in found if each.path[0] != "encoder"]]
    for each in found:
        if each.path != BACKBONE:
            _drop(values, each.path)
    return found


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
        for name, entry in section_of(values, section).items():
            if isinstance(entry, dict) and isinstance(entry.get("on"), list):
                entry["on"] = [names.get(source, source) for source in entry["on"]]
            if name in section_of(layers.values, section):
                _read_both(layers, values, section, name, list(names.values()))


def _read_both(layers: Layers, values: dict[str, Any], section: str, name: str, sources: Sequence[str]) -> None:
    """Lets a part that two recipes have read what either gives it: among the sources' readers, not in its `on`."""
    before, after = section_of(layers.values, section, name), section_of(values, section, name)
    if "on" not in before and "on" not in after:
        return
    present = section_of(layers.values, "data")
    own = [source for source, entry in present.items() if name in (entry or {}).get("readers", ())]
    allowed = {*(before.pop("on", None) or own), *(after.pop("on", None) or sources)}
    for source, entry in [*present.items(), *section_of(values, "data").items()]:
        if isinstance(entry, dict) and source not in allowed and name in entry.get("readers", ()):
            entry["readers"] = [reader for reader in entry["readers"] if reader != name]


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
