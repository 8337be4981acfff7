"""Multiview equivariance fine-tuning (ICLR 2025) as a plugin of mvcore: dense features that find the same 3D point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvcore_equivariance.average_precision import smooth_ap
    from mvcore_equivariance.encoder import DenseEncoder
    from mvcore_equivariance.geometry import lift_depth, project
    from mvcore_equivariance.sampling import released_resolution, sample_features

_LAZY = {
    "DenseEncoder": "mvcore_equivariance.encoder",
    "lift_depth": "mvcore_equivariance.geometry",
    "project": "mvcore_equivariance.geometry",
    "released_resolution": "mvcore_equivariance.sampling",
    "sample_features": "mvcore_equivariance.sampling",
    "smooth_ap": "mvcore_equivariance.average_precision",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mvcore_equivariance' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = [
    "DenseEncoder",
    "lift_depth",
    "project",
    "released_resolution",
    "sample_features",
    "smooth_ap",
]
