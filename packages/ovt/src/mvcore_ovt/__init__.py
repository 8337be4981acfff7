"""Omniview-Tuning (ECCV 2024) as a plugin of mvcore: CLIP made consistent across viewpoints by minimax alignment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvcore_ovt.anchors import outlier_views, viewpoint_anchors
    from mvcore_ovt.captions import caption_prompt
    from mvcore_ovt.consistency import ViewpointConsistency, viewpoint_consistency
    from mvcore_ovt.groups import BENCHMARK_GROUPS
    from mvcore_ovt.viformer import VIFormer, blend

_LAZY = {
    "VIFormer": "mvcore_ovt.viformer",
    "ViewpointConsistency": "mvcore_ovt.consistency",
    "blend": "mvcore_ovt.viformer",
    "caption_prompt": "mvcore_ovt.captions",
    "BENCHMARK_GROUPS": "mvcore_ovt.groups",
    "outlier_views": "mvcore_ovt.anchors",
    "viewpoint_anchors": "mvcore_ovt.anchors",
    "viewpoint_consistency": "mvcore_ovt.consistency",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mvcore_ovt' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = [
    "BENCHMARK_GROUPS",
    "VIFormer",
    "ViewpointConsistency",
    "blend",
    "caption_prompt",
    "outlier_views",
    "viewpoint_anchors",
    "viewpoint_consistency",
]
