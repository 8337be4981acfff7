"""Rows of all ranks as one batch, with gradients.

A loss of scope `batch` sees the same global rows on every rank. The gather's backward adds the gradients that all ranks
have for a row, and data-parallel training averages parameters' gradients over ranks, so parameters get exactly the
gradient of the global loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mvcore.packing import concatenate
from mvcore.parts import Embedded
from mvcore.specs import Axis
from mvcore.types import Features, ViewBatch, embedding_axis

_BUCKET = 1 << 23
"""Numbers of a message in which gradients are averaged."""


def world_size() -> int:
    """Ranks of this run; 1 outside of distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 outside of distributed training."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


_on_the_host: list[Any] = []


def host_group() -> Any:
    """The group through which processes exchange values of the host without a device; None = the default one."""
    return _on_the_host[0] if _on_the_host else None


def use_host_group(group: Any) -> None:
    """Says which group that is."""
    _on_the_host[:] = [] if group is None else [group]


def any_rank(flag: bool) -> bool:
    """Whether it is so on any rank; a collective on the host."""
    if world_size() == 1:
        return flag
    found = torch.tensor(float(flag))
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=host_group())
    return bool(found)


def gather(features: Features, batch: ViewBatch, state_axes: Mapping[str, Axis]) -> tuple[Features, ViewBatch]:
    """The rows of all ranks in rank order; on one rank, what was given.

    Args:
        state_axes: what the rows of each published state stand for, by name without prefix.
    """
    if world_size() == 1:
        return features, batch
    layouts: list[Any] = [None] * world_size()
    # Layouts (counts, ids, captions) are small host values; their pixels stay where they are.
    dist.all_gather_object(layouts, _layout(batch), group=host_group())
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
    dist.all_gather_object(sizes, (len(mine.object_ids), len(mine.view_ids)), group=host_group())
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


def all_rows(value: Tensor, number: int) -> tuple[Tensor, int]:
    """The rows of all ranks in rank order, without gradient, and the sum of their numbers; a collective."""
    if world_size() == 1:
        return value, number
    sizes: list[Any] = [None] * world_size()
    dist.all_gather_object(sizes, (len(value), number), group=host_group())
    with torch.no_grad():
        return _gather_rows(value, [rows for rows, _ in sizes]), sum(found for _, found in sizes)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Gives every parameter the mean over ranks of its gradients; what has none on any rank keeps none."""
    if world_size() == 1:
        return
    parameters = list(parameters)
    averaged = mean_over_ranks([parameter.grad for parameter in parameters], parameters)
    for parameter, grad in zip(parameters, averaged, strict=True):
        parameter.grad = grad


def mean_over_ranks(values: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
    """Each tensor's mean over ranks; None, which counts as 0, only where no rank has it.

    Args:
        values: this rank's; on all ranks in one order.
        like: tensors of the same shapes and types.
    """
    if world_size() == 1:
        return list(values)
    # Which are there is known on the host, and asked there: the device need not be waited for.
    given = torch.tensor([float(value is not None) for value in values])
    dist.all_reduce(given, group=host_group())
    found = [
        None if not ranks else torch.zeros_like(shape) if value is None else value
        for value, shape, ranks in zip(values, like, given.tolist(), strict=True)
    ]
    for places in _buckets(found):
        parts = [part for place in places if (part := found[place]) is not None]
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        flat /= world_size()
        for place, part, mean in zip(places, parts, flat.split([part.numel() for part in parts]), strict=True):
            found[place] = mean.view_as(part)
    return found


def _buckets(values: Sequence[Tensor | None]) -> Iterator[list[int]]:
    """Places of tensors of one type, as many as make up some megabytes: few messages, and little memory beside."""
    by_type: dict[torch.dtype, list[int]] = {}
    sizes: dict[torch.dtype, int] = {}
    for place, value in enumerate(values):
        if value is None:
            continue
        by_type.setdefault(value.dtype, []).append(place)
        sizes[value.dtype] = sizes.get(value.dtype, 0) + value.numel()
        if sizes[value.dtype] >= _BUCKET:
            del sizes[value.dtype]
            yield by_type.pop(value.dtype)
    yield from by_type.values()


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over ranks, without gradient."""
    if world_size() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value
