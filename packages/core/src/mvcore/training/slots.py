"""How workers hand batches over: large tensors in shared memory that is lent and given back, small ones by value.

Fresh shared memory costs more than the pictures in it: each of its pages is made, cleared and mapped when it is first
written to, and its descriptor goes through a socket, which takes as long as decoding a JPEG. So a worker keeps a few
slots. A batch's images, depth and masks are written into a free one; whoever receives the batch works on that very
memory, and the slot is free again when the last tensor on it is gone. A batch's counts, ids and cameras would each
become a shared file of its own; as plain bytes they go through the pipe with the rest.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvcore.types import ViewBatch

_BY_VALUE = 1 << 16
"""Bytes up to which a tensor goes through the pipe."""
_ALIGNED = 64
"""Bytes between starts of tensors in a slot; the first of them hold the mark of use."""
_LENT = 3
"""Slots of a worker and source that a receiver may keep; of further batches it takes a copy."""


@dataclass(frozen=True)
class _Placed:
    """Where in a slot a tensor lies: its dimensions from the outermost in memory to the innermost."""

    at: int
    size: int
    dtype: torch.dtype
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def of(self, slot: Tensor) -> Tensor:
        dense = slot[self.at : self.at + self.size].view(self.dtype).view([self.shape[d] for d in self.order])
        return dense.permute([self.order.index(d) for d in range(len(self.order))])


@dataclass(frozen=True)
class Parcel:
    """A batch on its way.

    Args:
        batch: the batch, with arrays in the place of small tensors and places in the slot in that of large ones.
        slot: who wrote it (worker, source, number of the slot); None where nothing is large.
        used: bytes of the slot that it takes.
        memory: the slot, where the receiver does not have it yet.
    """

    batch: ViewBatch
    slot: tuple[int, str, int] | None = None
    used: int = 0
    memory: Tensor | None = None

    def unpacked(self, slot: Tensor | None) -> ViewBatch:
        """The batch itself, its large tensors in the memory given."""

        def unpack(value: Any) -> Any:
            if isinstance(value, _Placed):
                assert slot is not None, "a parcel with large tensors has a slot"
                return value.of(slot)
            return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

        return self.batch.map_tensors(unpack)

    def pin_memory(self) -> ViewBatch:
        """The batch in page-locked memory (the hook that a DataLoader calls); the slot is free again."""
        pinned = self.unpacked(self.memory).pin_memory()
        if self.memory is not None:
            _set_free(self.memory.numpy())
        return pinned


class Slots:
    """A worker's slots, by source.

    Args:
        fetched_ahead: batches that the worker makes before they are asked for. With those, one in the making and those
            that a receiver may keep, one slot is always free.
        worker: its number.
        always_send: send a slot's memory with each batch, for a receiver that keeps none.
    """

    def __init__(self, fetched_ahead: int, worker: int = 0, *, always_send: bool = False) -> None:
        self._count = fetched_ahead + 2 + _LENT
        self._worker = worker
        self._always_send = always_send
        self._slots: dict[str, list[Tensor | None]] = {}

    def hold(self, batches: Mapping[str, ViewBatch]) -> dict[str, Parcel]:
        """The batches packed."""
        return {name: self._packed(name, batch) for name, batch in batches.items()}

    def _packed(self, name: str, batch: ViewBatch) -> Parcel:
        large: list[tuple[_Placed, Tensor]] = []
        end = _ALIGNED

        def place(tensor: Tensor) -> Any:
            nonlocal end
            size = tensor.numel() * tensor.element_size()
            if size <= _BY_VALUE and tensor.is_contiguous():
                return tensor.numpy()
            # As the source gave them: channels last, or one plane after another.
            order = tuple(sorted(range(tensor.ndim), key=lambda d: -tensor.stride(d)))
            placed = _Placed(end, size, tensor.dtype, order, tuple(tensor.shape))
            large.append((placed, tensor))
            end += -(-size // _ALIGNED) * _ALIGNED
            return placed

        packed = batch.map_tensors(place)
        if not large:
            return Parcel(packed)
        number, slot, fresh = self._free(name, end)
        for placed, tensor in large:
            placed.of(slot).copy_(tensor)
        return Parcel(packed, (self._worker, name, number), end, slot if fresh or self._always_send else None)

    def _free(self, name: str, size: int) -> tuple[int, Tensor, bool]:
        slots = self._slots.setdefault(name, [None] * self._count)
        number = next(number for number, slot in enumerate(slots) if slot is None or not slot[0])
        slot = slots[number]
        fresh = slot is None or slot.numel() < size
        if slot is None or fresh:
            slots[number] = slot = torch.empty(size, dtype=torch.uint8).share_memory_()
        slot[0] = 1
        return number, slot, fresh


class _Loan(np.ndarray):
    """A slot's memory as an array that can be watched: it goes when the last tensor on it goes."""


class Received:
    """The slots that a receiver knows, each mapped once and not with every batch."""

    def __init__(self) -> None:
        self._slots: dict[tuple[int, str, int], Tensor] = {}
        self._lent: dict[tuple[int, str], set[int]] = {}

    def own(self, parcels: Mapping[str, Parcel]) -> dict[str, ViewBatch]:
        """The batches; nobody writes to their memory while a tensor of theirs lives."""
        return {name: self._owned(parcel) for name, parcel in parcels.items()}

    def _owned(self, parcel: Parcel) -> ViewBatch:
        if parcel.slot is None:
            return parcel.unpacked(None)
        if parcel.memory is not None:
            self._slots[parcel.slot] = parcel.memory
        memory, number = self._slots[parcel.slot], parcel.slot[2]
        lent = self._lent.setdefault(parcel.slot[:2], set())
        if len(lent) >= _LENT:
            copied = memory[: parcel.used].clone()
            _set_free(memory.numpy())
            return parcel.unpacked(copied)
        slot = memory.numpy()
        loan = slot.view(_Loan)
        lent.add(number)
        # At the end of the program nobody waits for it.
        weakref.finalize(loan, _give_back, slot, lent, number, os.getpid()).atexit = False
        return parcel.unpacked(torch.from_numpy(loan))


def _give_back(slot: NDArray[np.uint8], lent: set[int], number: int, borrower: int) -> None:
    """Marks a slot as free; not in a process that was forked off the one that has it."""
    if os.getpid() == borrower:
        lent.discard(number)
        _set_free(slot)


def _set_free(slot: NDArray[np.uint8]) -> None:
    slot[0] = 0
