"""How workers hand batches over: images in shared memory that is used again and again, small tables by value.

Fresh shared memory costs more than the pictures in it: each of its pages is made, cleared and mapped when it is first
written to, which takes as long as decoding a JPEG. So a worker keeps a few slots and writes its batches into them in
turn; whoever receives a batch copies its images before the worker comes round to that slot again. A batch's counts, ids
and cameras would each become a shared file of its own; as plain bytes they go through the pipe with the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, UntypedStorage

from mvcore.types import ViewBatch

_BY_VALUE = 1 << 16
"""Bytes up to which a tensor goes through the pipe."""


@dataclass(frozen=True)
class Parcel:
    """A batch on its way: small tensors as arrays, which are pickled by value."""

    batch: ViewBatch

    @staticmethod
    def of(batch: ViewBatch) -> Parcel:
        """Packs a batch."""
        bare = replace(batch, images=None).map_tensors(_by_value)
        return Parcel(replace(bare, images=batch.images))

    def unpacked(self) -> ViewBatch:
        """The batch itself."""
        return self.batch.map_tensors(lambda value: torch.from_numpy(value) if isinstance(value, np.ndarray) else value)

    def pin_memory(self) -> ViewBatch:
        """The batch in page-locked memory (the hook that a DataLoader calls)."""
        return self.unpacked().pin_memory()


def _by_value(tensor: Tensor) -> Any:
    return tensor.numpy() if tensor.numel() * tensor.element_size() <= _BY_VALUE else tensor


class Slots:
    """A worker's slots, by source.

    Args:
        count: slots of a source. Batches of one worker that are asked for and not yet received are at most what the
            loader fetches ahead, and one more is asked for before a received one is handed out; two more slots than
            the loader fetches ahead are never in use twice.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._slots: dict[str, list[Tensor]] = {}
        self._turn = 0

    def hold(self, batches: Mapping[str, ViewBatch]) -> dict[str, Parcel]:
        """The batches packed, with their images in this turn's slots."""
        turn = self._turn % self._count
        self._turn += 1
        return {name: Parcel.of(self._held(name, turn, batch)) for name, batch in batches.items()}

    def _held(self, name: str, turn: int, batch: ViewBatch) -> ViewBatch:
        images = batch.images
        if images is None or not images.numel():
            return batch
        slots = self._slots.setdefault(name, [torch.empty(0, dtype=torch.uint8)] * self._count)
        if slots[turn].numel() < images.numel():
            slots[turn] = torch.empty(images.numel(), dtype=images.dtype).share_memory_()
        # As the source gave them: channels last, or one plane after another.
        last = images.is_contiguous(memory_format=torch.channels_last)
        dense = images.permute(0, 2, 3, 1) if last else images
        held = slots[turn][: images.numel()].view(dense.shape)
        held.copy_(dense)
        return replace(batch, images=held.permute(0, 3, 1, 2) if last else held)


class Received:
    """What a receiver keeps of the slots, so that each is mapped once and not with every batch."""

    def __init__(self) -> None:
        self._storages: dict[int, UntypedStorage] = {}

    def own(self, parcels: Mapping[str, Parcel]) -> dict[str, ViewBatch]:
        """The batches with images of their own; to be called before the next are asked for."""
        return {name: self._owned(parcel.unpacked()) for name, parcel in parcels.items()}

    def _owned(self, batch: ViewBatch) -> ViewBatch:
        if batch.images is None or not batch.images.is_shared():
            return batch
        storage = batch.images.untyped_storage()
        self._storages[storage.data_ptr()] = storage
        return replace(batch, images=batch.images.clone())
