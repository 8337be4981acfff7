"""Loads the batches of all sources, one step at a time, in this process or in workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from mvcore.blame import blamed_on
from mvcore.errors import ConfigError, MvcoreError, PluginError
from mvcore.packing import concatenate
from mvcore.training.sampling import (
    AnySampler,
    Draw,
    PreferredViews,
    SourceSampler,
    SourceSpecification,
    StreamSampler,
    sampler_of,
)
from mvcore.training.slots import Parcel, Received, Slots
from mvcore.types import ViewBatch

_FETCHED_AHEAD = 2
"""Batches that each worker loads before they are asked for."""


@runtime_checkable
class LoadsMany(Protocol):
    """What an indexed dataset may offer beside `load`: the views of many objects in one call."""

    def load_many(
        self, requests: Sequence[tuple[int, Sequence[int]]], rng_of: Callable[[int], np.random.Generator] | None
    ) -> ViewBatch:
        """As `load` for each (object, views), concatenated; `rng_of(k)` gives the generator of request k."""
        ...


class StepLoader:
    """An iterable of `dict[str, ViewBatch]`: each global step's batch of every source, by source name.

    One iteration is one pass of `steps` steps: it begins at global step `start` and ends at the next multiple of
    `steps`. When its last batch has been given, `start` stands at the next pass, so that iterating again goes on. `len`
    is `steps`, also after a resume in the middle of a pass, as Lightning counts.

    The position in a run belongs to the trainer, since workers fetch ahead: it says where it stands through `position`
    before it saves, and `state_dict` hands that back. Views that a trainer prefers come into effect when a pass begins
    and stay until it ends; they are part of the state.

    Args:
        sources: the sources of the run.
        seed: the run's seed.
        workers: processes that load; 0 loads in this one. They are forked where the system can, so that what a dataset
            holds in memory is shared, and each runs torch on one thread.
        rank, world_size: which part of each batch this process takes.
        start: the first global step.
        steps: steps of a pass.
        pin_memory: load into page-locked memory; for CUDA only.
        preferred: where a trainer publishes the views that it prefers.

    Raises:
        ConfigError: a source that cannot be drawn as asked, too few objects for the ranks, or a stream with workers.
    """

    def __init__(
        self,
        sources: Sequence[SourceSpecification],
        *,
        seed: int,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        steps: int,
        pin_memory: bool = False,
        preferred: PreferredViews | None = None,
    ) -> None:
        if steps < 1 or workers < 0 or not 0 <= rank < world_size:
            raise ValueError(f"steps {steps}, workers {workers} or rank {rank} of {world_size} is out of range")
        samplers = [sampler_of(source, seed) for source in sources]
        for sampler in samplers:
            sampler.check_ranks(world_size)
        self._preferring = [s for s in samplers if isinstance(s, SourceSampler) and s.source.outlier_share]
        self._streams = [sampler for sampler in samplers if isinstance(sampler, StreamSampler)]
        if self._streams and workers:
            name = self._streams[0].source.name
            raise ConfigError(f"data.{name}: a stream is read in the training process; set run.workers to 0")
        self._preferred = preferred or PreferredViews()
        self._steps = steps
        self._order = _GlobalSteps(steps)
        self._loader: DataLoader[dict[str, ViewBatch]] = DataLoader(
            _StepBatches(samplers, rank, world_size, pinned=pin_memory),
            batch_size=None,
            sampler=self._order,
            num_workers=workers,
            prefetch_factor=_FETCHED_AHEAD if workers else None,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers and "fork" in multiprocessing.get_all_start_methods() else None,
            pin_memory=pin_memory,
            # Without one of its own, each iteration would draw from the generator that training uses.
            generator=torch.Generator(),
        )
        # Pinning copies the images anyway.
        self._received = Received() if workers and not pin_memory else None
        self.set_start(start)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[dict[str, ViewBatch]]:
        stop = self._order.stop
        self._bring_preferred()
        for step, batches in enumerate(self._loader, self._order.start):
            if isinstance(batches, _Failure):
                raise batches.error
            if step == stop - 1:
                self.set_start(stop)
            yield batches if self._received is None else self._received.own(batches)

    def set_start(self, step: int) -> None:
        """Lets the next iteration begin at a global step."""
        if step < 0:
            raise ValueError(f"a run starts at step 0 or later, not {step}")
        self._order.start = step
        self.position = step

    def state_dict(self) -> dict[str, Any]:
        """The position that the trainer set last, the preferred views where a source draws from them, and streams."""
        preferred = {"preferred": self._preferred.state_dict()} if self._preferring else {}
        streams = {s.source.name: s.state_before(self.position) for s in self._streams}
        return {"position": self.position, **preferred, **({"streams": streams} if streams else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Starts at a saved position."""
        self.set_start(state["position"])
        if "preferred" in state:
            self._preferred.load_state_dict(state["preferred"])
        for sampler in self._streams:
            sampler.restore(state["streams"][sampler.source.name])

    def _bring_preferred(self) -> None:
        """Hands the preferred views to the samplers; before the first step of a pass, those published last."""
        if self._order.start % self._steps == 0:
            self._preferred.begin_pass()
        if self._preferred.in_effect is None:
            return
        for sampler in self._preferring:
            sampler.prefer(self._preferred.in_effect.numpy() - sampler.source.view_offset)


class _GlobalSteps(Sampler[int]):
    """The global steps of the pass that `start` stands in, from `start` on."""

    def __init__(self, steps: int) -> None:
        self.start = 0
        self._steps = steps

    @property
    def stop(self) -> int:
        return (self.start // self._steps + 1) * self._steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop - self.start


class _Failure:
    """A fault that a worker reports: the DataLoader would wrap its one line in a traceback of the worker's."""

    def __init__(self, error: MvcoreError) -> None:
        self.error = error


class _StepBatches(Dataset[Any]):
    """All sources' batches by global step; one item is one call in one worker."""

    def __init__(self, samplers: Sequence[AnySampler], rank: int, world_size: int, *, pinned: bool) -> None:
        self._samplers = samplers
        self._rank = rank
        self._world_size = world_size
        self._pinned = pinned
        self._slots: Slots | None = None

    def __getitem__(self, step: int) -> Mapping[str, ViewBatch | Parcel] | _Failure:
        try:
            batches = {sampler.source.name: self._load(sampler, step) for sampler in self._samplers}
        except MvcoreError as error:
            return _Failure(error)
        worker = get_worker_info()
        if worker is None:
            return batches
        if self._slots is None:
            self._slots = Slots(_FETCHED_AHEAD, worker.id, always_send=self._pinned)
        return self._slots.hold(batches)

    def _load(self, sampler: AnySampler, step: int) -> ViewBatch:
        with blamed_on(f"data.{sampler.source.name}"):
            if isinstance(sampler, StreamSampler):
                batch = globalised(sampler.batch(step), sampler.source)
            else:
                draw = sampler.draw(step).shard(self._rank, self._world_size)
                batch = load_draw(sampler, step, draw)
        _check_given(batch, sampler.source)
        return batch


def _check_given(batch: ViewBatch, source: SourceSpecification) -> None:
    """A field that is promised and not there would be missed by a loss, and look like that one's fault.

    Raises:
        PluginError: names the source and the field.
    """
    for name in ("images", "cameras", "depth", "masks", "tracks"):
        if name in source.dataset.provides and getattr(batch, name) is None:
            raise PluginError(
                f"data.{source.name}: {type(source.dataset).__name__} says that it provides {name}, and gave none (or "
                "of unequal sizes); 'mvcore plugins check' tells more"
            )


def load_draw(sampler: SourceSampler, step: int, draw: Draw) -> ViewBatch:
    """The batch of a draw with training transforms, its ids made global in the run."""
    source = sampler.source
    generators = sampler.transform_generators(step)
    requests = draw.requests()

    def rng_of(request: int) -> np.random.Generator:
        return generators(draw.first + request)

    dataset = source.dataset
    if isinstance(dataset, LoadsMany):
        batch = dataset.load_many(requests, rng_of)
    else:
        batch = concatenate([dataset.load(i, views, rng_of(k)) for k, (i, views) in enumerate(requests)])
    return globalised(batch, source)


def globalised(batch: ViewBatch, source: SourceSpecification) -> ViewBatch:
    """A dataset's batch with its store's ids made the run's, and the source's number."""
    return replace(
        batch,
        source=torch.full_like(batch.source, source.index),
        object_ids=torch.where(batch.object_ids >= 0, batch.object_ids + source.object_offset, -1),
        view_ids=torch.where(batch.view_ids >= 0, batch.view_ids + source.view_offset, -1),
    )
