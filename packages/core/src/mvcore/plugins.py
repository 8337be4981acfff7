"""The plugins of this process: each one is tried alone, and a broken one is a row in a table, never a crash.

`load_plugins()` gives the registry; nothing is imported before it is called. The id of a part is `<plugin>.<name>`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from mvcore import hookspecs
from mvcore.discovery import ENV_PLUGINS, PLUGIN_NAME, RESERVED, Candidate, Status, bad_name, discover
from mvcore.errors import PluginError
from mvcore.hookspecs import REGISTRATION_HOOKS
from mvcore.specs import MVCORE_API, SPEC_TYPES, Problem, RecipeSpec, Section, Spec
from mvcore.suggest import did_you_mean, listed

ENV_STRICT = "MVCORE_STRICT_PLUGINS"
SUPPORTED_API = frozenset({MVCORE_API})

KNOWN_PACKAGES = {
    "data": "mvcore-data",
    "ovt": "mvcore-ovt",
    "duoduo": "mvcore-duoduo",
    "equivariance": "mvcore-equivariance",
    "mvc_heads": "mvcore-mvc-heads",
}
"""Our own plugins by name and the distribution to install where one is absent."""

BUILTIN_COMMANDS: Mapping[str, str] = {
    "train": "Tunes a model with one or more methods.",
    "eval": "Measures runs, exported models and library models.",
    "export": "Writes a run's model for a plain library.",
    "plugins": "Lists the installed plugins and shows their parts.",
    "recipes": "Lists the recipes that plugins bring and shows them.",
    "doctor": "Checks versions, devices, disk space and plugins.",
}
"""Commands of the program itself and their summaries; a plugin may not take one of these names."""

_SPEC_OF_PART: Mapping[str, type[Spec]] = {spec.part: spec for spec in SPEC_TYPES}
_ANSWERS: Mapping[str, type] = {"mvcore_check_run": Problem, "mvcore_report_sections": Section}
_LOOK = "see 'mvcore plugins list -v'"


@dataclass(frozen=True)
class PluginRecord:
    """One row of `mvcore plugins list`.

    Args:
        name: the plugin's name, which begins its ids.
        status: `ok`, `broken`, `conflict`, `incompatible` or `disabled`.
        reason: why it is not ok, in one line; empty where it is.
        source: the module or file that it is.
        distribution, version: who brings it; empty for a module or file named by the user.
        error: the exception in one line, where one was raised.
        traceback: its traceback.
        specs: what it registers.
    """

    name: str
    status: Status
    source: str
    distribution: str = ""
    version: str = ""
    reason: str = ""
    error: str = ""
    traceback: str = ""
    specs: tuple[Spec, ...] = ()

    @property
    def provider(self) -> str:
        """Distribution and version, or the module or file."""
        return f"{self.distribution} {self.version}".strip() or self.source

    @property
    def unusable(self) -> str:
        """The line that says why it cannot be used and where to look."""
        return f"plugin {self.name!r} ({self.provider}) is {self.status}: {self.reason}; {_LOOK}"


@dataclass(frozen=True)
class Registered:
    """A spec and the plugin that it belongs to."""

    plugin: str
    spec: Any

    @property
    def id(self) -> str:
        return f"{self.plugin}.{self.spec.name}"

    @property
    def part(self) -> str:
        """`encoder`, `loss`, `dataset`, `trainer`, `evaluator`, `recipe`, `command` or `check`."""
        return self.spec.part


@dataclass(frozen=True)
class Answer:
    """What one plugin gave to a hook: its items, or the error that it raised."""

    plugin: str
    items: tuple[Any, ...] = ()
    error: PluginError | None = None


class _Refused(Exception):
    """A plugin that does not keep its part of the contract, with the status that this means."""

    def __init__(self, reason: str, status: Status = "broken") -> None:
        super().__init__(reason)
        self.status: Status = status


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("mvcore")
    manager.add_hookspecs(hookspecs)
    return manager


def examine(candidate: Candidate) -> tuple[PluginRecord, Any]:
    """Imports a plugin and validates it in a manager of its own, so that its faults stay its own.

    Returns:
        The record, and the plugin itself where its status is `ok`, else None.
    """
    record = PluginRecord(
        candidate.name, "ok", candidate.source, distribution=candidate.distribution, version=candidate.version
    )
    if candidate.verdict is not None:
        status, reason = candidate.verdict
        return replace(record, status=status, reason=reason), None
    try:
        # What a plugin prints while it is imported must not get into the output of `--json`.
        with contextlib.redirect_stdout(sys.stderr):
            plugin = candidate.load()
            specs = _validated_specs(candidate.name, plugin)
    except _Refused as exc:
        return replace(record, status=exc.status, reason=str(exc), traceback=traceback.format_exc()), None
    except (Exception, SystemExit) as exc:
        error = f"{type(exc).__name__}: {exc}".strip().replace("\n", " ")
        return replace(record, status="broken", reason=error, error=error, traceback=traceback.format_exc()), None
    return replace(record, specs=specs), plugin


def _validated_specs(name: str, plugin: Any) -> tuple[Spec, ...]:
    api = getattr(plugin, "MVCORE_API", None)
    if type(api) is not int:
        raise _Refused(f"{_name_of(plugin)} must say which plugin interface it was written for: MVCORE_API = 1")
    if api not in SUPPORTED_API:
        speaks = ", ".join(str(number) for number in sorted(SUPPORTED_API))
        raise _Refused(f"written for plugin interface {api}, this mvcore speaks {speaks}", "incompatible")
    manager = _new_manager()
    manager.register(plugin, name)
    manager.check_pending()
    for hook in (*REGISTRATION_HOOKS, *_ANSWERS):
        function = getattr(plugin, hook, None)
        if callable(function) and not hasattr(function, "mvcore_impl"):
            raise _Refused(f"{hook} is not marked with @hookimpl, so it would never be called")
    specs: list[Spec] = []
    for hook, part in REGISTRATION_HOOKS.items():
        specs += _specs_of_hook(manager, hook, part)
    _check_together(name, specs)
    return tuple(specs)


def _specs_of_hook(manager: pluggy.PluginManager, hook: str, part: str) -> list[Spec]:
    caller = getattr(manager.hook, hook)
    if not caller.get_hookimpls():
        return []
    wanted = _SPEC_OF_PART[part]
    results = caller()
    if len(results) != 1:  # pluggy leaves None out
        raise _Refused(f"{hook} returns None; return a list of {wanted.__name__}")
    if isinstance(results[0], (Spec, str, bytes, Mapping)) or not isinstance(results[0], Iterable):
        raise _Refused(f"{hook} returns {_kind_of(results[0])}, not a list of {wanted.__name__}")
    specs: list[Spec] = []
    for item in results[0]:
        if not isinstance(item, wanted):
            raise _Refused(f"{hook} gives {_kind_of(item)} where {wanted.__name__} belongs")
        if any(spec.name == item.name for spec in specs):
            raise _Refused(f"{hook} gives the name {item.name!r} twice")
        specs.append(item)
    return specs


def _check_together(name: str, specs: Iterable[Spec]) -> None:
    defaults = [spec.name for spec in specs if isinstance(spec, RecipeSpec) and spec.default]
    if len(defaults) > 1:
        raise _Refused(f"more than one recipe is the default: {', '.join(defaults)}")
    for spec in specs:
        if spec.part == "command" and spec.name in BUILTIN_COMMANDS:
            raise _Refused(f"the command {spec.name!r} is mvcore's own; give the plugin's another name")
        if spec.part == "command" and spec.name in RESERVED and spec.name != name:
            raise _Refused(f"the command {spec.name!r} is reserved for the plugin {spec.name!r}")


def _name_of(plugin: Any) -> str:
    return getattr(plugin, "__name__", None) or type(plugin).__name__


def _kind_of(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


class Registry:
    """The plugins of this process and what they registered.

    Args:
        candidates: what to load; `load_plugins()` gives those that are installed.
    """

    def __init__(self, candidates: Iterable[Candidate] = ()) -> None:
        self._records: list[PluginRecord] = []
        self._manager = _new_manager()
        for candidate in candidates:
            self._admit(*examine(candidate))

    def _admit(self, record: PluginRecord, plugin: Any) -> None:
        self._records.append(record)
        if record.status == "ok":
            self._manager.register(plugin, record.name)

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
        return [found[part_id] for part in _SPEC_OF_PART if part_id in (found := self.specs(part))]

    def plugin(self, name: str) -> PluginRecord:
        """The record of a plugin that can be used.

        Raises:
            PluginError: it is unknown, not installed, or not ok.
        """
        rows = [record for record in self._records if record.name == name]
        usable = [record for record in rows if record.status == "ok"]
        if usable:
            return usable[0]
        if rows:
            raise PluginError(rows[0].unusable)
        names = {record.name for record in self._records if record.status == "ok"}
        hint = f"; install it with 'pip install {KNOWN_PACKAGES[name]}'" if name in KNOWN_PACKAGES else ""
        near = did_you_mean(name, names | KNOWN_PACKAGES.keys()) if not hint else ""
        raise PluginError(f"unknown plugin {name!r}{near or ''}{hint} (installed: {listed(names)})")

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
        names = {record.name for record in self._records}
        if dot and (name in KNOWN_PACKAGES or name in names):
            try:
                self.plugin(name)
            except PluginError as exc:
                raise PluginError(f"{part} {part_id!r}: {exc}") from None
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
        given = name or _name_of(module).removesuffix(".plugin").rpartition(".")[2].lower()
        return self._add(Candidate(given, _name_of(module), "", "", lambda: module))

    def load_file(self, path_or_module: str | Path) -> PluginRecord:
        """Adds the plugin in a Python file (named by the file's stem) or an importable module.

        Raises:
            PluginError: no such file or module, or it is not a valid plugin.
        """
        from mvcore.plugin_files import file_candidate

        return self._add(file_candidate(path_or_module))

    def _add(self, candidate: Candidate) -> PluginRecord:
        name = candidate.name
        if not PLUGIN_NAME.fullmatch(name):
            raise PluginError(f"{candidate.source}: {bad_name(name)}")
        if name in RESERVED:
            raise PluginError(f"{candidate.source}: the name {name!r} is reserved for {RESERVED[name]}; rename it")
        for other in self._records:
            if other.name == name and other.distribution and other.status != "disabled":
                raise PluginError(f"{candidate.source}: the name {name!r} is taken by {other.provider}; rename it")
        record, plugin = examine(candidate)
        if record.status != "ok":
            raise PluginError(f"{candidate.source} is no valid plugin: {record.reason}") from None
        self._records = [other for other in self._records if other.name != name or other.distribution]
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)
        self._admit(record, plugin)
        return record

    def call(self, hook: str, plugins: Iterable[str], **arguments: Any) -> list[Answer]:
        """Asks the named plugins, each alone, a hook with arguments (`mvcore_check_run`, `mvcore_report_sections`).

        Returns:
            One answer for each named plugin that implements the hook; one that raised carries the error by name.
        """
        wanted, answers = _ANSWERS[hook], list[Answer]()
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
                        raise TypeError(f"it gives {_kind_of(item)} where {wanted.__name__} belongs")
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


def register(module: ModuleType | Any, name: str | None = None) -> PluginRecord:
    """Adds a module as a plugin, as in a notebook; see `Registry.register`."""
    return load_plugins().register(module, name)


def warn_about_broken(used: Iterable[str]) -> None:
    """One line on stderr for each broken plugin that a run does not use; see `Registry.warn_about_broken`."""
    load_plugins().warn_about_broken(used)
