"""A whole plugin: how it registers, what its specs say, and each of its parts."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mvcore import build
from mvcore.config_layers import Layers, read_yaml
from mvcore.errors import ConfigError, MvcoreError, PluginError
from mvcore.plugin_records import SLOW, PluginRecord
from mvcore.plugins import Registered, load_plugins, recipe_path
from mvcore.specs import BATCH_FIELDS, CORE_AXES, STATE, CheckResult, RecipeSpec
from mvcore.suggest import did_you_mean
from mvcore.testing.bench import Args
from mvcore.testing.datasets import check_dataset
from mvcore.testing.encoders import check_encoder
from mvcore.testing.evaluators import check_evaluator
from mvcore.testing.findings import ConformanceError, Examination, Finding, Skip, Unfit, require, settled
from mvcore.testing.losses import check_loss
from mvcore.testing.trainers import check_trainer

HEAVY = ("torch", "lightning", "torchvision", "open_clip", "timm")
_CHECKS: Mapping[str, Any] = {
    "encoder": check_encoder,
    "loss": check_loss,
    "dataset": check_dataset,
    "trainer": check_trainer,
    "evaluator": check_evaluator,
}

_CHILD = """
import contextlib, io, json, sys, time
import mvcore.api, mvcore.plugin_files, mvcore.plugin_records, mvcore.suggest
said = io.StringIO()
before = set(sys.modules)
start = time.perf_counter()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    from mvcore.discovery import Candidate
    import importlib
    source = sys.argv[1]
    if source.endswith(".py"):
        candidate = mvcore.plugin_files.file_candidate(source)
    else:
        def load():
            module, _, attribute = source.partition(":")
            found = importlib.import_module(module)
            for name in filter(None, attribute.split(".")):
                found = getattr(found, name)
            return found
        candidate = Candidate(sys.argv[3], source, "", "", load)
    record, _ = mvcore.plugin_records.examine(candidate)
seconds = time.perf_counter() - start
heavy = sorted(set(sys.argv[2].split(",")) & (set(sys.modules) - before))
print(json.dumps({"status": record.status, "reason": record.reason, "heavy": heavy, "said": said.getvalue(),
                  "seconds": seconds}))
"""


def assert_plugin_ok(plugin: Any, *, args: Mapping[str, Args] | None = None) -> tuple[Finding, ...]:
    """Tries a plugin as a whole, and then each of its parts.

    Args:
        plugin: the name of an installed plugin, a Python file (`./my_loss.py`), a module's name, or a module.
        args: options to try parts with, by id.

    Returns:
        What was looked at; a check that could not be made says why.

    Raises:
        ConformanceError: a fault, one line for each.
        PluginError: no such plugin, or it cannot be loaded.
    """
    return settled(examine_plugin(plugin, args=args))


def examine_plugin(plugin: Any, *, args: Mapping[str, Args] | None = None) -> list[Finding]:
    """As `assert_plugin_ok`, faults among the findings.

    Raises:
        PluginError: no such plugin, or it cannot be loaded.
    """
    record = plugin_record(plugin)
    _check_args(record, args or {})
    findings = registration(record)
    for spec in record.specs:
        part = Registered(record.name, spec)
        findings += specification(part)
        if spec.part in _CHECKS:
            try:
                findings += _CHECKS[spec.part](part, args=(args or {}).get(part.id))
            except ConformanceError as error:
                findings += error.findings
    return findings


def _check_args(record: PluginRecord, args: Mapping[str, Args]) -> None:
    """Refuses options for parts that are not there, and options that these have not."""
    parts = {f"{record.name}.{spec.name}": Registered(record.name, spec) for spec in record.specs}
    for part_id, given in args.items():
        if part_id not in parts:
            raise ConfigError(f"no part {part_id!r} in {record.name!r}{did_you_mean(part_id, parts)}")
        model = build.options_model(parts[part_id])
        names = [info.alias or name for name, info in model.model_fields.items()] if model else []
        for name in given:
            if name not in names:
                raise ConfigError(f"{part_id} has no option {name!r}{did_you_mean(name, names)}")


def plugin_record(plugin: Any) -> PluginRecord:
    """The record of a plugin named in any of the ways that `assert_plugin_ok` takes.

    Raises:
        PluginError: no such plugin, or it cannot be loaded.
    """
    registry = load_plugins(check_strict=False)
    if not isinstance(plugin, (str, Path)):
        return registry.register(plugin)
    if isinstance(plugin, Path) or plugin.endswith(".py") or "/" in plugin or "." in plugin:
        return registry.load_file(plugin)
    return registry.plugin(plugin)


def registration(record: PluginRecord) -> list[Finding]:
    """How a plugin registers: its hooks are pure and quiet, and in a process of its own nothing heavy is imported."""
    exam = Examination(f"plugin {record.name}")
    with exam.check("hooks are pure"):
        _check_pure(record)
    with exam.check("registers by itself"):
        if not _importable(record.source):
            raise Skip("it is an object of this process; a file or a module could be imported in another")
        found = _in_a_child(record)
    if not exam.passed("registers by itself"):
        return exam.findings
    with exam.check("imports nothing heavy"):
        _skip_files(record)
        require(
            not found["heavy"],
            f"registering imports {', '.join(found['heavy'])}; name parts as 'package.module:Name', and keep such "
            "imports out of the plugin's module and its package's __init__",
        )
    with exam.check("prints nothing"):
        said = found["said"].strip().splitlines()
        require(
            not said, f"it prints {said[0] if said else ''!r} when it is imported or asked; use logging, or nothing"
        )
    with exam.check("registers quickly"):
        _skip_files(record)
        require(
            found["seconds"] <= SLOW,
            f"importing it and asking its hooks takes {found['seconds']:.1f} s, at every call of mvcore; import later",
        )
    return exam.findings


def _skip_files(record: PluginRecord) -> None:
    if record.source.endswith(".py"):
        raise Skip("a file is imported only by a run that names it, and may hold its parts itself")


def _importable(source: str) -> bool:
    from importlib.util import find_spec

    if source.endswith(".py"):
        return Path(source).is_file()
    try:
        return find_spec(source.partition(":")[0]) is not None
    except (ImportError, ValueError):
        return False


def _in_a_child(record: PluginRecord) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MVCORE_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    # Without -P a file of the working folder could stand for a module that the plugin imports.
    command = [sys.executable, "-P", "-c", _CHILD, record.source, ",".join(HEAVY), record.name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    if done.returncode != 0 or not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise Unfit(f"in a process of its own it ends with: {last}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    require(found["status"] == "ok", f"in a process of its own it is {found['status']}: {found['reason']}")
    return found


def _check_pure(record: PluginRecord) -> None:
    registry = load_plugins(check_strict=False)
    before = sorted(sys.modules.keys() & set(HEAVY))
    with _listened() as said:
        start = time.perf_counter()
        again = registry.asked_again(record.name)
        seconds = time.perf_counter() - start
    require(again == record.specs, "its hooks give other specs when they are called again; return the same lists")
    require(not said.getvalue(), f"its hooks print {said.getvalue().strip()[:60]!r}; return specs and do nothing else")
    require(seconds <= SLOW, f"its hooks take {seconds:.1f} s; return specs and do nothing else")
    after = sorted(sys.modules.keys() & set(HEAVY))
    require(before == after, "its hooks import torch; name parts as 'package.module:Name'")


@contextlib.contextmanager
def _listened() -> Iterator[io.StringIO]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


def specification(part: Registered) -> list[Finding]:
    """What one spec says: its references lead somewhere, and its keys are ones that somebody gives."""
    exam = Examination(f"{part.part} {part.id}")
    with exam.check("specification"):
        if isinstance(part.spec, RecipeSpec):
            _check_recipe(part)
        else:
            factory = build.resolve(part.spec.factory, part.id)
            require(callable(factory) or part.part == "command", f"its factory {part.spec.factory!r} is not callable")
            _check_options(part)
            _check_keys(part)
            if part.part == "check":
                _check_check(factory)
    return exam.findings


def _check_recipe(part: Registered) -> None:
    registry, layers = load_plugins(check_strict=False), Layers()
    try:
        layers.merge(*read_yaml(recipe_path(part)))
        config = layers.config()
    except MvcoreError as error:
        raise Unfit(str(error)) from error
    sections = {"encoder": [config.encoder], "dataset": config.data.values(), "loss": config.losses.values()}
    for kind, entries in {**sections, "trainer": config.trainers.values()}.items():
        for entry in entries:
            registry.spec(kind, entry.id)


def _check_options(part: Registered) -> None:
    model = build.options_model(part)
    if model is not None:
        require(
            model.model_config.get("extra") == "forbid",
            f"its options {model.__name__} take unknown keys in silence; subclass mvcore.api.Options",
        )


def _check_keys(part: Registered) -> None:
    registry = load_plugins(check_strict=False)
    given = {*BATCH_FIELDS, *CORE_AXES}
    for kind in ("encoder", "trainer"):
        for other in registry.specs(kind).values():
            with contextlib.suppress(PluginError):
                given |= build.provides_of(other, None)
    try:
        chosen = build.options(part, {}, part.id)
    except MvcoreError:
        chosen = None
    if unknown := sorted(build.needs_of(part, chosen) - given):
        raise Unfit(f"it needs {unknown[0]!r}, which no installed part gives; correct its needs")
    for key in sorted(build.provides_of(part, chosen) - CORE_AXES.keys()):
        name = key.removeprefix(STATE)
        require(name.startswith(f"{part.plugin}."), f"it provides {key!r}; name it {f'{part.plugin}.{name}'!r}")
        require(key in build.axes_of(part, chosen), f"it provides {key!r} and does not say what its rows are; add axes")


def _check_check(factory: Any) -> None:
    for result in factory():
        require(isinstance(result, CheckResult), f"it gives a {type(result).__name__} where CheckResult belongs")
