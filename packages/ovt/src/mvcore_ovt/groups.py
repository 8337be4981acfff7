"""The benchmarks over which the paper averages (table 2)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_CLEAN = ("IN-100", "IN-1K", "CIFAR-100")
_IMAGE_SHIFT = ("IN-V2", "IN-Sketch", "IN-O", "IN-R", "OOD-CV")
_VIEWPOINT = ("IN-V", "IN-V+", "OOD-CV-Pose", "MIRO")

BENCHMARK_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "clean": _CLEAN,
        "2d-ood": _IMAGE_SHIFT,
        "viewpoint-ood": _VIEWPOINT,
        "total": (*_CLEAN, *_IMAGE_SHIFT, *_VIEWPOINT),
    }
)
"""Benchmarks by group, as `core.zero_shot` takes them in `groups`.

IN-O holds no image of the ImageNet classes, so its accuracy says nothing about quality; it is here because the paper's
averages hold it.
"""
