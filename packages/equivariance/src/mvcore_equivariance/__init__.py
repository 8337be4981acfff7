"""Multiview equivariance fine-tuning (ICLR 2025) as a plugin of mvcore: dense features that find the same 3D point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvcore_equivariance.average_precision import smooth_ap
    from mvcore_equivariance.encoder import DenseEncoder
    from mvcore_equivariance.geometry import lift_depth, project
    from mvcore_equivariance.metrics import ape_pcdp, pck, pose_error, tap_vid_metrics
    from mvcore_equivariance.sampling import released_resolution, sample_features

_LAZY = {
    "DenseEncoder": "mvcore_equivariance.encoder",
    "ape_pcdp": "mvcore_equivariance.metrics",
    "lift_depth": "mvcore_equivariance.geometry",
    "pck": "mvcore_equivariance.metrics",
    "pose_error": "mvcore_equivariance.metrics",
    "project": "mvcore_equivariance.geometry",
    "released_resolution": "mvcore_equivariance.sampling",
    "sample_features": "mvcore_equivariance.sampling",
    "smooth_ap": "mvcore_equivariance.average_precision",
    "tap_vid_metrics": "mvcore_equivariance.metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mvcore_equivariance' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = [
    "DenseEncoder",
    "ape_pcdp",
    "lift_depth",
    "pck",
    "pose_error",
    "project",
    "released_resolution",
    "sample_features",
    "smooth_ap",
    "tap_vid_metrics",
]
