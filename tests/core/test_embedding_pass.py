"""One pass over a source: in whose order, of which part, and in how much memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mvcore.training.embedding import embed_dataset
from mvcore.types import Features, ViewBatch

VIEW = frozenset({"view"})


class Numbered:
    """Objects of some views without images; view v of the store has the number v."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._first = [sum(counts[:i]) for i in range(len(counts) + 1)]

    def __len__(self) -> int:
        return len(self._first) - 1

    def views_of(self, i: int) -> range:
        return range(self._first[i], self._first[i + 1])

    def load(self, i: int, views: Sequence[int], rng: Any) -> ViewBatch:
        return ViewBatch.make([len(views)], object_ids=torch.tensor([i]), view_ids=torch.tensor(list(views)))


def numbers(width: int) -> Any:
    """Features that tell the view."""
    return lambda batch, keys: Features({"view": batch.view_ids[:, None].double().expand(-1, width)})


@pytest.mark.parametrize("world_size", [1, 2, 9])
def test_ranks_have_their_rows_in_order_in_float32(world_size: int) -> None:
    dataset: Any = Numbered([3, 1, 4, 1, 5])
    parts = [
        embed_dataset(numbers(2), dataset, VIEW, views_per_batch=4, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    if world_size == 9:  # fewer batches than ranks: each has all
        parts = parts[4:5]
    found = torch.cat([part.features["view"] for part in parts])
    assert found.dtype == torch.float32
    assert found[:, 1].tolist() == list(range(14))
    assert torch.cat([part.view_ids for part in parts]).tolist() == list(range(14))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_vectors_are_in_memory_once() -> None:
    views, width = 48_000, 512

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

    dataset: Any = Numbered([1000] * 48)
    embed_dataset(numbers(width), Numbered([1000]), VIEW)  # pyright: ignore[reportArgumentType]
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    found = embed_dataset(numbers(width), dataset, VIEW, views_per_batch=1000)
    grown = resident("VmHWM") - before
    size = found.features["view"].nbytes
    assert size == 4 * views * width
    assert grown < 1.4 * size  # 2 where parts are joined at the end
