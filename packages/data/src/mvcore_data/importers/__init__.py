"""Layouts that `mvcore data pack` reads, each in a module of its own that is imported when it is needed."""

from __future__ import annotations

import importlib

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
