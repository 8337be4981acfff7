"""The checks of `mvcore doctor`: each looks at one thing and says what it found and what to do about it."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from mvcore.build import resolve
from mvcore.errors import MvcoreError
from mvcore.plugin_records import SLOW
from mvcore.plugins import Registered, load_plugins
from mvcore.specs import CheckResult

SHOWN = ("torch", "open-clip-torch", "timm", "lightning")
"""Libraries whose versions are always listed; the others only where they do not fit."""

GB = 10**9


def run_checks() -> list[tuple[str, CheckResult]]:
    """Every registered check with its results; one that raises is a failed check, not the end of the others."""
    registry = load_plugins(check_strict=False)
    return [(name, result) for name, found in registry.specs("check").items() for result in _run(found)]


def _run(check: Registered) -> list[CheckResult]:
    try:
        results = list(resolve(check.spec.factory, check.id)())
        for result in results:
            if not isinstance(result, CheckResult):
                raise TypeError(f"it gives a {type(result).__name__} where CheckResult belongs")
    except MvcoreError as exc:
        return [CheckResult("failed", str(exc))]
    except (Exception, SystemExit) as exc:
        return [CheckResult("failed", f"the check itself failed: {type(exc).__name__}: {exc}")]
    return results


def check_versions() -> Iterable[CheckResult]:
    """Python, and every library that mvcore requires, against the versions that it requires."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    yield CheckResult("ok", f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for line in metadata.requires("mvcore") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = f"{requirement.name} {requirement.specifier}"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield CheckResult("failed", f"{wanted} is not installed", f"pip install '{requirement}'")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield CheckResult(
                "failed", f"{requirement.name} {version}, needed {wanted}", f"pip install '{requirement}'"
            )
        elif canonicalize_name(requirement.name) in SHOWN:
            yield CheckResult("ok", f"{requirement.name} {version}")


def check_device() -> Iterable[CheckResult]:
    """The devices that torch can use, and bfloat16 on them."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / GB:.0f} GB"
            if properties.major >= 8:
                yield CheckResult("ok", f"CUDA {index}: {properties.name}, {memory}, bfloat16")
            else:
                text = f"CUDA {index}: {properties.name}, {memory}, no fast bfloat16"
                yield CheckResult("warning", text, "train with run.precision 16-mixed or 32")
    elif torch.version.cuda is not None and shutil.which("nvidia-smi"):
        text = f"torch is built for CUDA {torch.version.cuda} but finds no device"
        yield CheckResult("warning", text, "look at the output of nvidia-smi and at CUDA_VISIBLE_DEVICES")
    else:
        yield CheckResult("ok", f"no CUDA device; runs use the CPU with {torch.get_num_threads()} threads")


def check_attention() -> Iterable[CheckResult]:
    """Which backend packed attention takes on each device, and why not another."""
    import torch

    from mvcore.attention import BACKENDS, preferred, unusable

    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        if device == "cuda" and not torch.cuda.is_available():
            continue
        taken = preferred(device, dtype)
        others = [f"{name}: {reason}" for name in BACKENDS if (reason := unusable(name, device, dtype))]
        text = f"packed attention on {device} in {str(dtype).removeprefix('torch.')}: {taken}"
        yield CheckResult("ok", text + (f" ({'; '.join(others)})" if others else ""))


def check_disk() -> Iterable[CheckResult]:
    """Free space where runs are written by default."""
    free = shutil.disk_usage(Path.cwd()).free / GB
    text = f"{free:.1f} GB free in the working folder"
    advice = "free some space, or set run.output to a folder on another disk"
    if free < 1:
        yield CheckResult("failed", text, advice)
    elif free < 10:
        yield CheckResult("warning", text, advice)
    else:
        yield CheckResult("ok", text)


def check_plugins() -> Iterable[CheckResult]:
    """Plugins that were found but not loaded, and those that are slow or print."""
    registry = load_plugins(check_strict=False)
    for record in registry.troubled:
        text = f"{record.name} ({record.provider}) is {record.status}: {record.reason}"
        yield CheckResult("failed", text, "see 'mvcore plugins list -v'; update or uninstall it")
    for record in registry.records:
        if record.seconds >= SLOW:
            text = f"{record.name} ({record.provider}) takes {record.seconds:.1f} s to load, at every call of mvcore"
            yield CheckResult("warning", text, "its plugin module should import nothing but mvcore.api")
        if record.said:
            text = f"{record.name} ({record.provider}) prints {record.said[:60]!r} when it is loaded"
            yield CheckResult("warning", text, "a plugin module should print nothing")
    loaded = sum(record.status == "ok" for record in registry.records)
    yield CheckResult("ok", f"{loaded} plugins loaded")
