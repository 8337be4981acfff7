"""One plugin: imported and validated alone, with a record of what it brings or of what is wrong with it."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pluggy

from mvcore import hookspecs
from mvcore.discovery import RESERVED, Candidate, Status
from mvcore.errors import PluginError
from mvcore.hookspecs import REGISTRATION_HOOKS
from mvcore.specs import MVCORE_API, SPEC_TYPES, Problem, RecipeSpec, Section, Spec
from mvcore.suggest import did_you_mean, listed

SLOW = 2.0
"""Seconds to load a plugin from which on `mvcore doctor` names it: every call of the program waits for them."""

SUPPORTED_API = frozenset({MVCORE_API})

BUILTIN_COMMANDS: Mapping[str, str] = {
    "train": "Tunes a model with one or more methods.",
    "eval": "Measures runs, exported models and library models.",
    "compare": "Sets runs side by side, paired over the same objects.",
    "report": "Writes an HTML report of runs.",
    "export": "Writes a run's model for a plain library.",
    "index": "Builds indexes of objects and searches them.",
    "search": "Searches an index, as 'index search' does.",
    "import": "Reads a checkpoint that a method's authors released.",
    "plugins": "Lists the installed plugins and shows their parts.",
    "recipes": "Lists the recipes of the plugins and shows them.",
    "doctor": "Checks versions, devices, disk space and plugins.",
}
"""Commands of the program itself and their summaries; a plugin may not take one of these names."""

SPEC_OF_PART: Mapping[str, type[Spec]] = {spec.part: spec for spec in SPEC_TYPES}
ANSWERS: Mapping[str, type] = {"mvcore_check_run": Problem, "mvcore_report_sections": Section}
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
        seconds: how long it took to be imported and asked.
        said: the first line that it printed meanwhile; it belongs nowhere, so it is kept here.
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
    seconds: float = 0.0
    said: str = ""

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


class _Kept(io.StringIO):
    """What was written to it; closing it, as a plugin may, loses nothing."""

    def close(self) -> None:
        """Nothing: others write there too."""


class _RefusedError(Exception):
    """A plugin that does not keep its part of the contract, with the status that this means."""

    def __init__(self, reason: str, status: Status = "broken") -> None:
        super().__init__(reason)
        self.status: Status = status


def new_manager() -> pluggy.PluginManager:
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
    start, said = time.perf_counter(), _Kept()
    try:
        # What a plugin prints while it is imported must not get into the output of `--json`.
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), _same_working_folder():
            plugin = candidate.load()
            specs = validated_specs(candidate.name, plugin)
    except KeyboardInterrupt:
        raise
    except _RefusedError as exc:
        return replace(record, status=exc.status, reason=str(exc), traceback=traceback.format_exc()), None
    except BaseException as exc:  # SystemExit, and what test frameworks raise to skip
        error = f"{type(exc).__name__}: {exc}".strip().replace("\n", " ")
        return replace(record, status="broken", reason=error, error=error, traceback=traceback.format_exc()), None
    first = next(iter(said.getvalue().strip().splitlines()), "")
    return replace(record, specs=specs, seconds=time.perf_counter() - start, said=first), plugin


def registers(plugin: Any, record: PluginRecord) -> bool:
    """Whether a plugin brings anything: a part, or an answer about runs."""
    return bool(record.specs) or any(hasattr(getattr(plugin, hook, None), "mvcore_impl") for hook in ANSWERS)


def validated_specs(name: str, plugin: Any) -> tuple[Spec, ...]:
    """What a plugin registers, asked in a manager of its own."""
    api = getattr(plugin, "MVCORE_API", None)
    if type(api) is not int:
        raise _RefusedError(f"{name_of(plugin)} must say which plugin interface it was written for: MVCORE_API = 1")
    if api not in SUPPORTED_API:
        speaks = ", ".join(str(number) for number in sorted(SUPPORTED_API))
        raise _RefusedError(f"written for plugin interface {api}, this mvcore speaks {speaks}", "incompatible")
    manager = new_manager()
    try:
        manager.register(plugin, name)
        manager.check_pending()
    except pluggy.PluginValidationError as exc:
        raise _RefusedError(_what_pluggy_means(str(exc))) from exc
    for hook in (*REGISTRATION_HOOKS, *ANSWERS):
        function = getattr(plugin, hook, None)
        if callable(function) and not hasattr(function, "mvcore_impl"):
            raise _RefusedError(f"{hook} is not marked with @hookimpl, so it would never be called")
    specs: list[Spec] = []
    for hook, part in REGISTRATION_HOOKS.items():
        specs += _specs_of_hook(manager, hook, part)
    _check_together(name, specs)
    return tuple(specs)


@contextlib.contextmanager
def _same_working_folder() -> Iterator[None]:
    """Paths of the command line are relative to it, whatever a plugin does."""
    try:
        before = Path.cwd()
    except FileNotFoundError:
        yield
        return
    try:
        yield
        if Path.cwd() != before:
            raise _RefusedError("it changes the working folder when it is loaded")
    finally:
        os.chdir(before)


def _what_pluggy_means(text: str) -> str:
    unknown = re.search(r"unknown hook '(\w+)'", text)
    if unknown is not None:
        hooks = [*REGISTRATION_HOOKS, *ANSWERS]
        return f"there is no hook {unknown[1]!r}{did_you_mean(unknown[1], hooks)} (there are: {listed(hooks)})"
    hook, arguments = re.search(r"for hook '(\w+)'", text), re.search(r"Argument\(s\) \{(.*?)\}", text)
    if hook is None or arguments is None:
        return " ".join(text.split())
    parameters = inspect.signature(getattr(hookspecs, hook[1])).parameters
    return f"{hook[1]} asks for {arguments[1]}, which the hook has not (it has: {listed(parameters)})"


def _specs_of_hook(manager: pluggy.PluginManager, hook: str, part: str) -> list[Spec]:
    caller = getattr(manager.hook, hook)
    if not caller.get_hookimpls():
        return []
    wanted = SPEC_OF_PART[part]
    results = caller()
    if inspect.iscoroutine(next(iter(results), None)):
        results[0].close()
        raise _RefusedError(f"{hook} is asynchronous; write a plain function that returns a list of {wanted.__name__}")
    if len(results) != 1:  # pluggy leaves None out
        raise _RefusedError(f"{hook} returns None; return a list of {wanted.__name__}")
    if isinstance(results[0], (Spec, str, bytes, Mapping)) or not isinstance(results[0], Iterable):
        raise _RefusedError(f"{hook} returns {kind_of(results[0])}, not a list of {wanted.__name__}")
    specs: list[Spec] = []
    for item in results[0]:
        if not isinstance(item, wanted):
            raise _RefusedError(f"{hook} gives {kind_of(item)} where {wanted.__name__} belongs")
        if any(spec.name == item.name for spec in specs):
            raise _RefusedError(f"{hook} gives the name {item.name!r} twice")
        specs.append(item)
    return specs


def _check_together(name: str, specs: Iterable[Spec]) -> None:
    defaults = [spec.name for spec in specs if isinstance(spec, RecipeSpec) and spec.default]
    if len(defaults) > 1:
        raise _RefusedError(f"more than one recipe is the default: {', '.join(defaults)}")
    for spec in specs:
        if spec.part == "command" and spec.name in BUILTIN_COMMANDS:
            raise _RefusedError(f"the command {spec.name!r} is mvcore's own; give the plugin's another name")
        if spec.part == "command" and spec.name in RESERVED and spec.name != name:
            raise _RefusedError(f"the command {spec.name!r} is reserved for the plugin {spec.name!r}")


def name_of(plugin: Any) -> str:
    return getattr(plugin, "__name__", None) or type(plugin).__name__


def kind_of(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
