"""mvcore: methods that make vision models consistent across viewpoints, as plugins over one stack.

    import mvcore

    model = mvcore.load("runs/ovt-1")
    vectors = model.encode_views([views_of_a_chair, views_of_a_mug])  # each (F, H, W, 3) uint8

Importing this module is cheap; torch is imported when a name below is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvcore import index
    from mvcore.loading import load
    from mvcore.plugins import register
    from mvcore.stages import train

_LAZY = {"load": "mvcore.loading", "register": "mvcore.plugins", "train": "mvcore.stages"}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("mvcore")
    if name == "index":
        return importlib.import_module("mvcore.index")
    if name not in _LAZY:
        raise AttributeError(f"module 'mvcore' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = ["index", "load", "register", "train"]
