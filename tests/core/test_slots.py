"""Batches of workers come through shared memory that is used again, and are never written over."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Literal

import numpy as np
import pytest
import torch
from mvcore.training.loader import StepLoader
from mvcore.training.sampling import SourceSpecification
from mvcore.training.slots import Parcel, Received, Slots
from mvcore.types import Cameras, ViewBatch

SIZE = 64


class Numbered:
    """Objects of one to five views whose every pixel is the view's number; in the one or the other layout."""

    provides = frozenset({"images", "object_ids", "view_ids"})
    image_size = SIZE
    store_key = "numbered"

    def __init__(self, channels_last: bool, slow: float = 0.0) -> None:
        self.counts = [1 + i % 5 for i in range(30)]
        self.n_store_objects, self.n_store_views = 30, sum(self.counts)
        self.channels_last = channels_last
        self.slow = slow

    def __len__(self) -> int:
        return 30

    def views_of(self, i: int) -> range:
        start = sum(self.counts[:i])
        return range(start, start + self.counts[i])

    def load(self, i: int, views: Sequence[int], rng: np.random.Generator | None) -> ViewBatch:
        time.sleep(self.slow)
        numbers = torch.tensor(list(views), dtype=torch.uint8).view(-1, 1, 1, 1)
        images = numbers.expand(-1, 3, SIZE, SIZE)
        images = images.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        return ViewBatch.make(
            [len(views)], images=images, object_ids=torch.tensor([i]), view_ids=torch.tensor(list(views))
        )

    def object_name(self, i: int) -> str:
        return str(i)

    def category(self, i: int) -> str | None:
        return None


def loader(workers: int, *, channels_last: bool = False, slow: float = 0.0, steps: int = 40) -> StepLoader:
    def source(name: str, sampling: Literal["objects", "views"], size: int) -> SourceSpecification:
        data = Numbered(channels_last, slow)
        return SourceSpecification(name=name, dataset=data, sampling=sampling, batch_size=size)

    sources = [source("a", "views", 17), source("b", "objects", 4)]
    return StepLoader(sources, seed=5, steps=steps, workers=workers)


def numbers(batch: ViewBatch) -> list[int]:
    """The number that the pixels of each view show, all of them the same."""
    assert batch.images is not None
    low, high = batch.images.flatten(1).amin(1), batch.images.flatten(1).amax(1)
    assert torch.equal(low, high)
    return low.tolist()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_that_are_kept_stay_what_they_are(workers: int, channels_last: bool) -> None:
    kept = list(loader(workers, channels_last=channels_last))  # as fast as they come, none let go
    assert len(kept) == 40
    for batches in kept:
        for batch in batches.values():
            assert numbers(batch) == batch.view_ids.tolist()
            assert batch.images is not None
            assert not batch.images.is_shared()
    expected = list(loader(0, channels_last=channels_last))
    for one, other in zip(kept, expected, strict=True):
        for name in ("a", "b"):
            found, wanted = one[name].images, other[name].images
            assert found is not None
            assert wanted is not None
            assert torch.equal(found, wanted)
            assert found.stride() == wanted.stride()


@pytest.mark.parametrize(("slow_worker", "slow_receiver"), [(0.002, 0.0), (0.0, 0.02)])
def test_whoever_is_slower_gets_the_right_pixels(slow_worker: float, slow_receiver: float) -> None:
    for batches in loader(2, slow=slow_worker, steps=25):
        time.sleep(slow_receiver)
        for batch in batches.values():
            assert numbers(batch) == batch.view_ids.tolist()


def test_a_pass_that_is_left_early_leaves_nothing_behind() -> None:
    source = loader(2, steps=12)
    for _ in zip(range(3), source, strict=False):
        pass
    source.set_start(0)
    seen = [{name: numbers(batch) for name, batch in batches.items()} for batches in source]
    assert seen == [{name: numbers(batch) for name, batch in batches.items()} for batches in loader(0, steps=12)]


def test_slots_are_used_in_turn_and_mapped_once() -> None:
    slots, received = Slots(3), Received()
    places: list[int] = []
    for k in range(7):
        images = torch.full((2, 3, 4, 4), k, dtype=torch.uint8)
        held = slots.hold({"s": ViewBatch.make([2], images=images)})
        held_images = held["s"].batch.images
        assert held_images is not None
        places.append(held_images.data_ptr())
        owned = received.own(held)["s"].images
        assert owned is not None
        assert torch.equal(owned, images)
        assert owned.data_ptr() != places[-1]
    assert places[:3] * 2 + places[:1] == places
    assert len(set(places)) == 3
    assert slots.hold({"s": ViewBatch.make([1])})["s"].batch.images is None


def test_a_parcel_is_pickled_by_value_and_gives_the_batch_back() -> None:
    cameras = Cameras(torch.rand(3, 3, 3), torch.rand(3, 4, 4))
    batch = ViewBatch.make(
        [1, 2],
        images=torch.zeros(3, 3, 8, 8, dtype=torch.uint8),
        captions=["a", "b"],
        caption_object=torch.tensor([0, 1]),
        caption_view=torch.tensor([-1, 2]),
        cameras=cameras,
        camera_valid=torch.tensor([True, False, True]),
        depth=torch.rand(3, 100, 100),
        embeddings={"t/image": torch.rand(3, 4)},
    ).with_state({"s": torch.rand(2)})
    parcel = pickle.loads(pickle.dumps(Parcel.of(batch)))
    assert isinstance(parcel.batch.view_ids, np.ndarray)
    assert isinstance(parcel.batch.depth, torch.Tensor)  # too large for a pipe
    back = parcel.unpacked()
    for item in fields(ViewBatch):
        found, wanted = getattr(back, item.name), getattr(batch, item.name)
        if isinstance(wanted, torch.Tensor):
            assert torch.equal(found, wanted)
            assert found.dtype == wanted.dtype
        elif not isinstance(wanted, (Cameras, dict)):
            assert found == wanted
    assert back.cameras is not None
    assert torch.equal(back.cameras.world_to_camera, cameras.world_to_camera)
    assert torch.equal(back.embeddings["t/image"], batch.embeddings["t/image"])
    assert torch.equal(back.state["s"], batch.state["s"])
