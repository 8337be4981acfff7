"""The rows that a step's losses see: of a source, of a chunk, or of several joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mvcore.packing import concatenate
from mvcore.specs import Axis
from mvcore.types import Features, ViewBatch


@dataclass(frozen=True)
class Rows:
    """A source's features and batch, on the device."""

    features: Features
    batch: ViewBatch


def as_float32(value: Tensor) -> Tensor:
    """Half precision becomes float32; a model in float64 keeps it."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def joined(rows: Sequence[Rows]) -> Rows:
    """The rows of several sources or chunks as one, in order; a feature without rows is the same in all."""
    if len(rows) == 1:
        return rows[0]
    features = rows[0].features
    shared = set(features).intersection(*(set(other.features) for other in rows[1:]))
    values = {
        key: features[key] if features.axes[key] == "none" else torch.cat([other.features[key] for other in rows])
        for key in features
        if key in shared
    }
    return Rows(Features(values, axes=features.axes), concatenate([other.batch for other in rows]))


def no_rows() -> dict[Axis, int]:
    """Where the first rows begin."""
    return {"view": 0, "object": 0, "caption": 0}


def sliced(features: Features, starts: Mapping[Axis, int], sizes: Mapping[Axis, int]) -> Features:
    """The rows of a source or chunk out of those of several."""
    values: dict[str, Tensor] = {}
    for key, value in features.items():
        axis = features.axes[key]
        values[key] = value if axis == "none" else value[starts[axis] : starts[axis] + sizes[axis]]
    return Features(values, axes=features.axes)


def leaf(rows: Rows) -> Rows:
    """The same values cut off from the graph, ready to collect a gradient."""
    values = {key: as_float32(value).detach() for key, value in rows.features.items()}
    for value in values.values():
        if value.is_floating_point():
            value.requires_grad_()
    return Rows(Features(values, axes=rows.features.axes), rows.batch)
