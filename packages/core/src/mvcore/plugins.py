"""The plugins of this process: each one is tried alone, and a broken one is a row in a table, never a crash.

`load_plugins()` gives the registry; nothing is imported before it is called. The id of a part is `<plugin>.<name>`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvcore.discovery import ENV_PLUGINS, RESERVED, Candidate, bad_name, discover
from mvcore.errors import PluginError
from mvcore.plugin_records import (
    ANSWERS,
    SPEC_OF_PART,
    Answer,
    PluginRecord,
    Registered,
    examine,
    kind_of,
    name_of,
    new_manager,
    registers,
    validated_specs,
)
from mvcore.specs import NAME, RecipeSpec, Spec
from mvcore.suggest import did_you_mean, listed

_EXAMPLE = "@hookimpl def mvcore_register_losses(): return [LossSpec(...)]"

ENV_STRICT = "MVCORE_STRICT_PLUGINS"

__all__ = [
    "Answer",
    "PluginRecord",
    "Registered",
    "Registry",
    "load_plugins",
    "recipe_path",
    "register",
    "reset",
    "warn_about_broken",
]

KNOWN_PACKAGES = {
    "data": "mvcore-data",
    "ovt": "mvcore-ovt",
    "duoduo": "mvcore-duoduo",
    "equivariance": "mvcore-equivariance",
    "mvc_heads": "mvcore-mvc-heads",
}
"""Our own plugins by name and the distribution to install where one is absent."""


class Registry:
    """The plugins of this process and what they registered.

    Args:
        candidates: what to load; `load_plugins()` gives those that are installed.
    """

    def __init__(self, candidates: Iterable[Candidate] = ()) -> None:
        self._records: list[PluginRecord] = []
        self._manager = new_manager()
        for candidate in candidates:
            self._admit(*examine(candidate))

    def _admit(self, record: PluginRecord, plugin: Any) -> PluginRecord:
        if record.status == "ok":
            other = self._manager.get_name(plugin)
            if other is None:
                self._manager.register(plugin, record.name)
            else:
                reason = f"{record.source} is the plugin {other!r} already"
                record = replace(record, status="broken", reason=reason, specs=())
        self._records.append(record)
        return record

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """A row for every plugin found, good or not, sorted by name."""
        return tuple(sorted(self._records, key=lambda record: (record.name, record.provider)))

    @property
    def troubled(self) -> tuple[PluginRecord, ...]:
        """The rows that are broken, in conflict or incompatible."""
        return tuple(record for record in self.records if record.status not in ("ok", "disabled"))

    def specs(self, part: str) -> dict[str, Registered]:
        """The parts of one kind (`encoder`, `loss`, ...) by id."""
        found = (
            Registered(record.name, spec)
            for record in self.records
            if record.status == "ok"
            for spec in record.specs
            if spec.part == part
        )
        return {registered.id: registered for registered in found}

    def all_specs(self, part_id: str) -> list[Registered]:
        """The parts with that id, of every kind."""
        return [found[part_id] for part in SPEC_OF_PART if part_id in (found := self.specs(part))]

    def has(self, name: str) -> bool:
        """Whether a plugin of that name can be used."""
        return any(record.name == name and record.status == "ok" for record in self._records)

    def knows(self, name: str) -> bool:
        """Whether a plugin has that name, be it in order or not, or is one of ours that is not installed."""
        return name in KNOWN_PACKAGES or any(record.name == name for record in self._records)

    def plugin(self, name: str) -> PluginRecord:
        """The record of a plugin that can be used.

        Raises:
            PluginError: it is unknown, not installed, or not ok.
        """
        for record in self._records:
            if record.name == name and record.status == "ok":
                return record
        raise PluginError(self.explain(name))

    def explain(self, name: str) -> str:
        """Why a plugin cannot be used, in one line: what is wrong with it, or how to get it."""
        rows = [record for record in self._records if record.name == name]
        if rows:
            return rows[0].unusable
        names = [record.name for record in self._records if record.status == "ok"]
        if name in KNOWN_PACKAGES:
            return f"plugin {name!r} is not installed; install it with 'pip install {KNOWN_PACKAGES[name]}'"
        near = did_you_mean(name, [*names, *KNOWN_PACKAGES])
        return f"unknown plugin {name!r}{near} (installed: {listed(names)})"

    def spec(self, part: str, part_id: str) -> Registered:
        """A part by kind and id.

        Raises:
            PluginError: no such part; the text has the nearest id and all ids of that kind, or what is wrong with the
                plugin, or what to install.
        """
        known = self.specs(part)
        if part_id in known:
            return known[part_id]
        name, dot, _ = part_id.partition(".")
        if dot and self.knows(name) and not self.has(name):
            raise PluginError(f"{part} {part_id!r}: {self.explain(name)}")
        others = [registered.part for registered in self.all_specs(part_id)]
        if others:
            raise PluginError(f"{part_id!r} is no {part}: it is {_article(others[0])} (known: {listed(known)})")
        near = did_you_mean(part_id, known)
        raise PluginError(f"unknown {part} {part_id!r}{near} (known: {listed(known)})")

    def recipe(self, plugin: str, name: str | None = None) -> Registered:
        """A plugin's recipe by name; None gives its default.

        Raises:
            PluginError: unknown plugin or recipe, or the plugin has no default.
        """
        recipes = [spec for spec in self.plugin(plugin).specs if isinstance(spec, RecipeSpec)]
        for spec in recipes:
            if spec.name == name or (name is None and spec.default):
                return Registered(plugin, spec)
        names = [spec.name for spec in recipes]
        if not names:
            raise PluginError(f"plugin {plugin!r} brings no recipe; name its parts with --loss, or give a YAML file")
        if name is None:
            raise PluginError(f"plugin {plugin!r} has no default recipe; name one of: {listed(names)}")
        near = did_you_mean(name, names)
        raise PluginError(f"plugin {plugin!r} has no recipe {name!r}{near} (it has: {listed(names)})")

    def commands(self) -> dict[str, list[Registered]]:
        """The commands that plugins add, by name; more than one entry is a clash, which only its callers feel."""
        found: dict[str, list[Registered]] = {}
        for registered in self.specs("command").values():
            found.setdefault(registered.spec.name, []).append(registered)
        return found

    def register(self, module: Any, name: str | None = None) -> PluginRecord:
        """Adds a module (or any object with `MVCORE_API` and hooks) as a plugin, as in a notebook.

        Registering a name again replaces what was registered before, so that a cell can be run twice.

        Args:
            name: the plugin's name; by default the module's, without a trailing `.plugin`.

        Raises:
            PluginError: it is not a valid plugin, or an installed plugin has that name.
        """
        given = name or name_of(module).removesuffix(".plugin").rpartition(".")[2].lower()
        return self._add(Candidate(given, name_of(module), "", "", lambda: module))

    def load_file(self, path_or_module: str | Path) -> PluginRecord:
        """Adds the plugin in a Python file (named by the file's stem) or an importable module.

        Raises:
            PluginError: no such file or module, or it is not a valid plugin.
        """
        from mvcore.plugin_files import file_candidate

        return self._add(file_candidate(path_or_module))

    def extended(self, module: Any, name: str) -> Registry:
        """A registry with the same plugins and one more; this one stays as it is.

        Raises:
            PluginError: as `register`.
        """
        other = Registry()
        other._records = list(self._records)
        for known, plugin in self._manager.list_name_plugin():
            other._manager.register(plugin, known)
        other.register(module, name)
        return other

    def asked_again(self, name: str) -> tuple[Spec, ...]:
        """What a plugin's registration hooks give when they are called once more.

        Raises:
            PluginError: it is unknown or not ok.
        """
        self.plugin(name)
        return validated_specs(name, self._manager.get_plugin(name))

    def _add(self, candidate: Candidate) -> PluginRecord:
        name = candidate.name
        if name == "__main__":
            raise PluginError("this is the running program itself; name it, as mvcore.register(module, 'mymethod')")
        if not NAME.fullmatch(name):
            raise PluginError(f"{candidate.source}: {bad_name(name)}")
        if name in RESERVED:
            raise PluginError(f"{candidate.source}: the name {name!r} is reserved for {RESERVED[name]}; rename it")
        for other in self._records:
            if other.name == name and other.distribution and other.status != "disabled":
                raise PluginError(f"{candidate.source}: the name {name!r} is taken by {other.provider}; rename it")
        record, plugin = examine(candidate)
        if record.status == "ok" and not registers(plugin, record):
            raise PluginError(f"{candidate.source} registers nothing: mark its hooks with @hookimpl, as in {_EXAMPLE}")
        if record.status == "ok":
            self._records = [other for other in self._records if other.name != name or other.distribution]
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            record = self._admit(record, plugin)
        if record.status != "ok":
            self._records = [other for other in self._records if other is not record]
            raise PluginError(f"{candidate.source} is no valid plugin: {record.reason}")
        return record

    def call(self, hook: str, plugins: Iterable[str], **arguments: Any) -> list[Answer]:
        """Asks the named plugins, each alone, a hook with arguments (`mvcore_check_run`, `mvcore_report_sections`).

        Returns:
            One answer for each named plugin that implements the hook; one that raised carries the error by name.
        """
        wanted, answers = ANSWERS[hook], list[Answer]()
        for name in sorted(set(plugins)):
            record = self.plugin(name)
            others = [plugin for other, plugin in self._manager.list_name_plugin() if other != name]
            caller = self._manager.subset_hook_caller(hook, others)
            if not caller.get_hookimpls():
                continue
            try:
                items = tuple(item for result in caller(**arguments) for item in result)
                for item in items:
                    if not isinstance(item, wanted):
                        raise TypeError(f"it gives {kind_of(item)} where {wanted.__name__} belongs")
            except (Exception, SystemExit) as exc:
                text = f"plugin {name!r} ({record.provider}) failed in {hook}: {type(exc).__name__}: {exc}"
                error = PluginError(text)
                error.__cause__ = exc
                answers.append(Answer(name, error=error))
            else:
                answers.append(Answer(name, items))
        return answers

    def check_strict(self) -> None:
        """With MVCORE_STRICT_PLUGINS=1, any broken plugin is an error.

        Raises:
            PluginError: it is set and a plugin is broken, in conflict or incompatible.
        """
        if os.environ.get(ENV_STRICT, "") not in ("", "0") and self.troubled:
            raise PluginError(f"{ENV_STRICT} is set and {'; '.join(record.unusable for record in self.troubled)}")

    def warn_about_broken(self, used: Iterable[str]) -> None:
        """One line on stderr for each broken plugin that a run does not use.

        Args:
            used: names of the plugins that the run uses.

        Raises:
            PluginError: a used one is unknown or not ok.
        """
        names = set(used)
        for name in sorted(names):
            self.plugin(name)
        for record in self.troubled:
            if record.name not in names:
                print(f"warning: {record.unusable}", file=sys.stderr)


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def recipe_path(recipe: Registered) -> Path:
    """The file of a registered recipe.

    Raises:
        PluginError: the package does not hold it.
    """
    from mvcore.paths import PACKAGE, resolve_path

    package, _, inside = recipe.spec.path.partition(":")
    text = f"{PACKAGE}{package.replace('.', '/')}/{inside}"
    return resolve_path(text, what=f"recipe {recipe.id}", error=PluginError)


@functools.cache
def _loaded() -> Registry:
    return Registry(discover(os.environ.get(ENV_PLUGINS)))


def load_plugins(*, check_strict: bool = True) -> Registry:
    """The registry of this process; plugins are imported at the first call and never again.

    Raises:
        PluginError: MVCORE_STRICT_PLUGINS is set and a plugin is broken.
    """
    registry = _loaded()
    if check_strict:
        registry.check_strict()
    return registry


def reset() -> None:
    """Forgets the registry, so that the next `load_plugins()` looks again (for tests)."""
    _loaded.cache_clear()


def register(module: Any, name: str | None = None) -> PluginRecord:
    """Adds a module as a plugin, as in a notebook; see `Registry.register`."""
    return load_plugins().register(module, name)


def warn_about_broken(used: Iterable[str]) -> None:
    """One line on stderr for each broken plugin that a run does not use; see `Registry.warn_about_broken`."""
    load_plugins().warn_about_broken(used)
