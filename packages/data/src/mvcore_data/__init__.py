"""The multi-view image store of mvcore, its data tools and its demonstration data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvcore_data.store import ViewStore
    from mvcore_data.writer import ViewStoreWriter

_LAZY = {"ViewStore": "mvcore_data.store", "ViewStoreWriter": "mvcore_data.writer"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mvcore_data' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = ["ViewStore", "ViewStoreWriter"]
