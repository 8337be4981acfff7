"""A check of `mvcore doctor`: what was found, and what to do about it."""

from __future__ import annotations

from importlib import metadata

from mvcore.api import CheckResult


def version() -> list[CheckResult]:
    """Which version is installed."""
    try:
        found = metadata.version("mymethod")
    except metadata.PackageNotFoundError:
        advice = "pip install -e . in its folder"
        return [CheckResult("warning", "mymethod is not installed", advice)]
    return [CheckResult("ok", f"mymethod {found}")]
