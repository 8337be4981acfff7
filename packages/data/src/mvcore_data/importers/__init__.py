"""Layouts that `mvcore data pack` reads, each in a module of its own that is imported when it is needed."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

from mvcore.api import ConfigError, DataError

from mvcore_data.importers.base import Format

FORMATS: tuple[str, ...] = (
    "mvcap",
    "image_text",
    "zero123",
    "duoduo",
    "mvimgnet",
    "correnhance",
    "mvc",
    "colmap",
    "co3d",
    "transforms",
    "video",
    "table",
    "folders",
)
"""The modules, in the order in which they are asked whether a path is theirs; a format's name has dashes for `_`."""


def load_format(module: str) -> Format:
    """The format of a module of this package."""
    found: Format = importlib.import_module(f"{__name__}.{module}").FORMAT
    return found


def find_format(name: str) -> Format:
    """The format of that name.

    Raises:
        ConfigError: there is none.
    """
    known = [module.replace("_", "-") for module in FORMATS]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown format {name!r}{hint} (known: {', '.join(known)})")
    return load_format(name.replace("-", "_"))


def detect_format(src: Path) -> tuple[Format, str]:
    """The one format whose marks a path has, and which marks.

    Raises:
        DataError: nothing is there, no format claims it, or several do.
    """
    if not src.exists():
        raise DataError(f"{src}: no such file or folder")
    claims = [(found, mark) for found in map(load_format, FORMATS) if (mark := found.detect(src)) is not None]
    claims = [claim for claim in claims if claim[0].strict_marks] or claims
    if not claims:
        names = ", ".join(module.replace("_", "-") for module in FORMATS)
        raise DataError(f"{src}: has the marks of no format; name one with --format: {names} ('mvcore data formats')")
    if len(claims) > 1:
        names = ", ".join(f"{found.name} ({mark})" for found, mark in claims)
        raise DataError(f"{src}: may be of several formats; choose one with --format: {names}")
    return claims[0]
