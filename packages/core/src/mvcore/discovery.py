"""Where plugins come from: entry points of installed distributions, and the variable MVCORE_PLUGINS.

Nothing of a plugin is imported here. What the variable or the metadata say wrongly becomes a candidate with a verdict,
so that it is listed as a row and never stops the program.
"""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, Literal, TypeAlias

from mvcore.specs import NAME
from mvcore.suggest import did_you_mean

GROUP = "mvcore"
ENV_PLUGINS = "MVCORE_PLUGINS"

RESERVED = {"core": "mvcore", "data": "mvcore-data"}
"""Plugin names that only the named distribution may use."""

Status: TypeAlias = Literal["ok", "broken", "conflict", "incompatible", "disabled"]


@dataclass(frozen=True)
class Candidate:
    """A plugin before it is imported.

    Args:
        name: the name of its entry point.
        source: what it points at, as `mymethod.plugin`.
        distribution, version: who brings it; empty for a module named by the user.
        load: imports it.
        verdict: why it must not be loaded, as a status and a reason; or None.
    """

    name: str
    source: str
    distribution: str
    version: str
    load: Callable[[], Any]
    verdict: tuple[Status, str] | None = None

    @property
    def provider(self) -> str:
        return f"{self.distribution} {self.version}".strip() or self.source


def discover(environment: str | None) -> list[Candidate]:
    """Every plugin there is, sorted by name and distribution, with a verdict on those that must not be loaded.

    Args:
        environment: the value of MVCORE_PLUGINS, as `ovt,my=my_module`: plain names restrict the installed plugins to
            those named (and `core`), `name=module` adds one or stands in for an installed one. None or empty: all.
    """
    found = _judge_names(_installed())
    if environment and environment.strip():
        found = _apply_environment(found, environment)
    return sorted(found, key=lambda candidate: (candidate.name, candidate.distribution))


def _installed() -> list[Candidate]:
    """The entry points of the group. One distribution with unreadable metadata must not hide the others."""
    found: list[Candidate] = []
    seen: set[str] = set()
    for distribution in metadata.distributions():
        try:
            # Reading the text first spares the slow parsing of the metadata of everything else that is installed.
            text = distribution.read_text("entry_points.txt") or ""
            if not re.search(rf"^\s*\[{GROUP}\]", text, re.MULTILINE):
                continue
        except Exception:
            continue
        label, version = _identity(distribution)
        key = re.sub(r"[-_.]+", "-", label).lower()
        if key in seen:
            continue  # a second copy further down sys.path, which Python would not import either
        seen.add(key)
        try:
            points = [point for point in distribution.entry_points if point.group == GROUP]
        except Exception as exc:
            reason = f"entry_points.txt cannot be read: {type(exc).__name__}: {exc}"
            found.append(Candidate(key, "entry_points.txt", label, version, _nothing, ("broken", reason)))
            continue
        found += [Candidate(point.name, point.value, label, version, point.load) for point in points]
    return found


def _identity(distribution: metadata.Distribution) -> tuple[str, str]:
    """Name and version, as far as the metadata can be read."""
    try:
        label, version = distribution.metadata["Name"], distribution.metadata["Version"]
    except Exception:
        label = version = None
    folder = str(getattr(distribution, "_path", "unknown distribution")).replace("\\", "/").rpartition("/")[2]
    return label or folder.partition("-")[0], version or ""


def _judge_names(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Reserved names, names that cannot begin an id, and names that are taken twice."""
    judged: list[Candidate] = []
    by_name: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        owner = RESERVED.get(candidate.name)
        if candidate.verdict is not None:
            judged.append(candidate)
        elif not NAME.fullmatch(candidate.name):
            judged.append(replace(candidate, verdict=("broken", bad_name(candidate.name))))
        elif owner is not None and re.sub(r"[-_.]+", "-", candidate.distribution).lower() != owner:
            reason = f"the name {candidate.name!r} is reserved for the distribution {owner}"
            judged.append(replace(candidate, verdict=("broken", reason)))
        else:
            by_name[candidate.name].append(candidate)
    for name, group in by_name.items():
        if len(group) > 1:
            providers = " and ".join(sorted(candidate.provider for candidate in group))
            reason = f"the name {name!r} is claimed by {providers}; none is loaded, uninstall all but one"
            group = [replace(candidate, verdict=("conflict", reason)) for candidate in group]
        judged += group
    return judged


def bad_name(name: str) -> str:
    return f"{name!r} is no plugin name: lower-case letters, digits, '_' and '-', starting with a letter"


def _apply_environment(found: list[Candidate], environment: str) -> list[Candidate]:
    only: set[str] = set()
    added: dict[str, Candidate] = {}
    problems: list[Candidate] = []
    for item in filter(None, (part.strip() for part in environment.split(","))):
        name, equals, module = (part.strip() for part in item.partition("="))
        if not equals:
            only.add(name)
        elif name in RESERVED:
            reason = f"the name {name!r} is reserved for the distribution {RESERVED[name]}"
            problems.append(_from_environment(name, module, ("broken", reason)))
        elif not module or not NAME.fullmatch(name):
            reason = f"{ENV_PLUGINS} has {item!r}, which is neither a plugin's name nor name=module"
            problems.append(_from_environment(name or item, module, ("broken", reason)))
        else:
            added[name] = _from_environment(name, module)
    installed = {candidate.name for candidate in found}
    for name in sorted(only - installed - added.keys()):
        reason = f"{ENV_PLUGINS} names {name!r}, which is not installed{did_you_mean(name, installed)}"
        problems.append(_from_environment(name, "", ("broken", reason)))
    kept = [_restrict(candidate, only, added) for candidate in found]
    return [*kept, *added.values(), *problems]


def _restrict(candidate: Candidate, only: set[str], added: dict[str, Candidate]) -> Candidate:
    if candidate.name in added:
        stand_in = added[candidate.name].source
        return replace(candidate, verdict=("disabled", f"{ENV_PLUGINS} puts {stand_in} in its place"))
    if only and candidate.name != "core" and candidate.name not in only:
        return replace(candidate, verdict=("disabled", f"not named in {ENV_PLUGINS}"))
    return candidate


def _from_environment(name: str, module: str, verdict: tuple[Status, str] | None = None) -> Candidate:
    return Candidate(name, module or ENV_PLUGINS, "", "", lambda: importlib.import_module(module), verdict)


def _nothing() -> None:
    """What a candidate with a verdict loads."""
