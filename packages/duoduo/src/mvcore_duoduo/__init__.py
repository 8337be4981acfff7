"""Duoduo CLIP (ICLR 2025) as a plugin of mvcore: one vector of an object from any number of its views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvcore_duoduo.attention import CrossView, cross_view
    from mvcore_duoduo.losses import contrastive, shape_contrastive

_LAZY = {
    "CrossView": "mvcore_duoduo.attention",
    "contrastive": "mvcore_duoduo.losses",
    "cross_view": "mvcore_duoduo.attention",
    "shape_contrastive": "mvcore_duoduo.losses",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mvcore_duoduo' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = ["CrossView", "contrastive", "cross_view", "shape_contrastive"]
