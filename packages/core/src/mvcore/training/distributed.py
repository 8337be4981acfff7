"""Rows of all ranks as one batch, with gradients.

A loss of scope `batch` sees the same global rows on every rank. The gather's backward adds the gradients that all ranks
have for a row, and data-parallel training averages parameters' gradients over ranks, so parameters get exactly the
gradient of the global loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mvcore.packing import concatenate
from mvcore.parts import Embedded
from mvcore.specs import Axis
from mvcore.types import Features, ViewBatch, embedding_axis


def world_size() -> int:
    """Ranks of this run; 1 outside of distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 outside of distributed training."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(features: Features, batch: ViewBatch, state_axes: Mapping[str, Axis]) -> tuple[Features, ViewBatch]:
    """The rows of all ranks in rank order; on one rank, what was given.

    Args:
        state_axes: what the rows of each published state stand for, by name without prefix.
    """
    if world_size() == 1:
        return features, batch
    layouts: list[Any] = [None] * world_size()
    # Layouts (counts, ids, captions) are small host values; their pixels stay where they are.
    dist.all_gather_object(layouts, _layout(batch))
    rows: dict[Axis, list[int]] = {axis: [layout.sizes[axis] for layout in layouts] for axis in batch.sizes}

    def gathered(value: Tensor, axis: Axis) -> Tensor:
        return value if axis == "none" else _gather_rows(value, rows[axis])

    merged = concatenate(layouts).to(batch.device)
    # Sorted, since the order of keys can differ between processes and each gather must meet its own.
    merged = merged.with_state({key: gathered(batch.state[key], state_axes[key]) for key in sorted(batch.state)})
    embeddings = {key: gathered(batch.embeddings[key], embedding_axis(key)) for key in sorted(batch.embeddings)}
    merged = replace(merged, embeddings=embeddings)
    values = {key: gathered(features[key], features.axes[key]) for key in sorted(features)}
    return Features(values, axes=features.axes), merged


def _layout(batch: ViewBatch) -> ViewBatch:
    bare = replace(batch, images=None, depth=None, depth_valid=None, masks=None, tracks=None, embeddings={}, state={})
    return bare.to("cpu")


def _gather_rows(value: Tensor, rows: Sequence[int]) -> Tensor:
    """The ragged rows of all ranks: padded to the longest, gathered with gradient, cut and joined."""
    longest = max(rows)
    if value.shape[0] < longest:
        padding = value.new_zeros(longest - value.shape[0], *value.shape[1:])
        value = torch.cat([value, padding])
    gathered = _Gather.apply(value.contiguous())
    return torch.cat([part[:count] for part, count in zip(gathered, rows, strict=True)])


class _Gather(torch.autograd.Function):
    """Equal shapes from every rank, stacked; what all ranks want of a part comes back to it summed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        # gloo gathers no booleans.
        sent = value.to(torch.uint8) if value.dtype == torch.bool else value
        parts = [torch.empty_like(sent) for _ in range(world_size())]
        dist.all_gather(parts, sent)
        return torch.stack(parts).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad[rank()]


def join_embedded(mine: Embedded, device: torch.device) -> Embedded:
    """The ranks' parts of one pass over a dataset, in rank order; a collective, through `device`."""
    sizes: list[Any] = [None] * world_size()
    dist.all_gather_object(sizes, (len(mine.object_ids), len(mine.view_ids)))
    objects, views = [size[0] for size in sizes], [size[1] for size in sizes]

    def joined(value: Tensor, rows: Sequence[int]) -> Tensor:
        with torch.no_grad():
            return _gather_rows(value.to(device), rows).cpu()

    return Embedded(
        features={key: joined(value, views) for key, value in sorted(mine.features.items())},
        object_of_view=joined(mine.object_of_view + sum(objects[: rank()]), views),
        object_ids=joined(mine.object_ids, objects),
        view_ids=joined(mine.view_ids, views),
    )


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Gives every parameter the mean over ranks of its gradients; what has none on any rank keeps none."""
    if world_size() == 1:
        return
    parameters = list(parameters)
    given = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    dist.all_reduce(given)
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for parameter, ranks in zip(parameters, given.tolist(), strict=True):
        if not ranks:
            continue
        if parameter.grad is None:  # it took part on other ranks only
            parameter.grad = torch.zeros_like(parameter)
        by_type.setdefault(parameter.dtype, []).append(parameter.grad)
    for grads in by_type.values():
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= world_size()
        for grad, value in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(value.view_as(grad))


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over ranks, without gradient."""
    if world_size() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value
