"""Batches of workers come through shared memory that is used again, and are never written over."""

from __future__ import annotations

import os
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


def batch_of(number: int, views: int = 8) -> ViewBatch:
    images = torch.full((views, 3, SIZE, SIZE), number, dtype=torch.uint8)
    return ViewBatch.make([views], images=images, depth=torch.full((views, SIZE, SIZE), float(number)))


def shown(batch: ViewBatch) -> set[float]:
    """The numbers that stand anywhere in its images and depth."""
    assert batch.images is not None
    assert batch.depth is not None
    return {*batch.images.flatten().tolist(), *batch.depth.flatten().tolist()}


def carried(slots: Slots, batch: ViewBatch) -> dict[str, Parcel]:
    return slots.hold({"s": batch})


def test_a_slot_is_written_to_again_when_the_last_tensor_on_it_is_gone() -> None:
    slots, received = Slots(2), Received()
    first = received.own(carried(slots, batch_of(1)))["s"]
    assert first.images is not None
    place = first.images.data_ptr()
    part = first.images[1:2, :, 3:]  # a view of a view keeps the memory
    del first
    second = received.own(carried(slots, batch_of(2)))["s"]
    assert second.images is not None
    assert second.images.data_ptr() != place
    assert set(part.flatten().tolist()) == {1}
    del part
    third = received.own(carried(slots, batch_of(3)))["s"]
    assert third.images is not None
    assert third.images.data_ptr() == place
    assert shown(second) == {2.0}
    assert shown(third) == {3.0}


def test_who_keeps_many_batches_gets_copies_and_no_slot_runs_out() -> None:
    slots, received = Slots(2), Received()
    kept = [received.own(carried(slots, batch_of(k)))["s"] for k in range(40)]
    assert [shown(batch) for batch in kept] == [{float(k)} for k in range(40)]
    sent = [carried(slots, batch_of(k)) for k in range(3)]  # as many as a worker may be ahead, and one in the making
    assert [shown(received.own(parcels)["s"]) for parcels in sent] == [{0.0}, {1.0}, {2.0}]


def test_a_slot_is_sent_once_and_grows() -> None:
    slots, received = Slots(2), Received()
    sizes = [8, 8, 6, 9, 9, 8]
    sent: list[bool] = []
    for k, views in enumerate(sizes):
        parcels = carried(slots, batch_of(k, views))
        sent.append(parcels["s"].memory is not None)
        batch = received.own(parcels)["s"]
        assert batch.n_views == views
        assert shown(batch) == {float(k)}
        del batch
    assert sent == [True, False, False, True, False, False]


def test_a_forked_process_gives_nothing_back() -> None:
    slots, received = Slots(2), Received()
    kept = received.own(carried(slots, batch_of(1)))["s"]
    child = os.fork()
    if child == 0:
        del kept
        os._exit(0)
    os.waitpid(child, 0)
    assert received.own(carried(slots, batch_of(2)))["s"].images is not None
    assert shown(kept) == {1.0}


def test_a_receiver_that_keeps_no_slots_is_sent_each() -> None:
    slots = Slots(2, always_send=True)
    for k in range(9):
        parcel = carried(slots, batch_of(k))["s"]
        assert parcel.memory is not None
        assert shown(parcel.unpacked(parcel.memory)) == {float(k)}
        parcel.memory[0] = 0  # what pin_memory does once it has copied


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
    parcel = pickle.loads(pickle.dumps(carried(Slots(2), batch)["s"]))
    assert isinstance(parcel.batch.view_ids, np.ndarray)
    assert not isinstance(parcel.batch.depth, np.ndarray)  # too large for a pipe
    back = Received().own({"s": parcel})["s"]
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
