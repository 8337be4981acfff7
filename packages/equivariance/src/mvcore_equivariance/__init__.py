"""Multiview equivariance fine-tuning (ICLR 2025) as a plugin of mvcore: dense features that find the same 3D point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvcore_equivariance.sampling import released_resolution, sample_features

_LAZY = {
    "released_resolution": "mvcore_equivariance.sampling",
    "sample_features": "mvcore_equivariance.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mvcore_equivariance' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = [
    "released_resolution",
    "sample_features",
]
