"""The benchmarks over which the paper averages (table 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

BENCHMARK_GROUPS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "clean": ("IN-100", "IN-1K", "CIFAR-100"),
        "2d-ood": ("IN-V2", "IN-Sketch", "IN-O", "IN-R", "OOD-CV"),
        "viewpoint-ood": ("IN-V", "IN-V+", "OOD-CV-Pose", "MIRO"),
    }
)
"""Benchmarks by group. IN-O holds no image of the ImageNet classes, so its accuracy says nothing about quality."""


def group_averages(accuracy: Mapping[str, float]) -> dict[str, float]:
    """Mean accuracy of each group, and of all twelve benchmarks as `total`.

    Args:
        accuracy: by benchmark, in any unit.

    Raises:
        ValueError: a benchmark is missing.
    """
    names = [name for group in BENCHMARK_GROUPS.values() for name in group]
    missing = [name for name in names if name not in accuracy]
    if missing:
        raise ValueError(f"the group averages need {', '.join(missing)}")
    averages = {key: sum(accuracy[name] for name in group) / len(group) for key, group in BENCHMARK_GROUPS.items()}
    return {**averages, "total": sum(accuracy[name] for name in names) / len(names)}
