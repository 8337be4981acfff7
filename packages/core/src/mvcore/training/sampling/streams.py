"""The batches of a stream: objects in the stream's own order, which nothing here can repeat or skip.

A stream is read in the training process, one batch a step. What a run resumes from is the stream's state as it was
before the step that comes next; the loader may be a few batches ahead of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mvcore.errors import ConfigError, DataError
from mvcore.packing import concatenate
from mvcore.training.sampling.specification import SourceSpecification
from mvcore.types import ViewBatch

_REMEMBERED = 16
"""Steps whose states are kept: more than anything fetches ahead."""


class StreamSampler:
    """Takes the batches of one stream.

    Raises:
        ConfigError: settings that only a dataset with an index can follow.
    """

    def __init__(self, source: SourceSpecification) -> None:
        self.source = source
        self._iterator: Iterator[ViewBatch] | None = None
        self._states: dict[int, dict[str, Any]] = {}
        default = SourceSpecification(name="", dataset=source.dataset)
        for key in ("sampling", "views_per_object", "views_draw", "views_per_batch", "balance", "outlier_share"):
            if getattr(source, key) != getattr(default, key):
                raise ConfigError(
                    f"data.{source.name}: {key} needs a dataset with an index, and {type(source.dataset).__name__} is "
                    "a stream, which gives objects with their views as they come; leave it out"
                )

    @property
    def stream(self) -> Any:
        """The dataset, a `StreamDataset`."""
        return self.source.dataset

    @property
    def steps_per_epoch(self) -> int:
        """Never known.

        Raises:
            ConfigError: always; the run must say it.
        """
        raise ConfigError(f"data.{self.source.name}: a stream has no length; say what an epoch is with run.epoch_steps")

    def check_ranks(self, world_size: int) -> None:
        """Refuses several ranks.

        Raises:
            ConfigError: nothing says which objects of a stream are whose.
        """
        if world_size > 1:
            raise ConfigError(
                f"data.{self.source.name}: a stream would give each of {world_size} processes the same objects; pack "
                "it into a store ('mvcore data pack'), or set run.devices to 1"
            )

    def batch(self, step: int) -> ViewBatch:
        """The next objects; at its end the stream begins again.

        Raises:
            DataError: the stream holds nothing.
        """
        self._states[step] = self.stream.state_dict()
        for old in [known for known in self._states if known <= step - _REMEMBERED]:
            del self._states[old]
        return concatenate([self._next() for _ in range(self.source.batch_size or 1)])

    def _next(self) -> ViewBatch:
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self.stream)
            batch = next(self._iterator, None)
            if batch is not None:
                return batch
            self._iterator = None
        raise DataError(f"data.{self.source.name}: the stream holds no object")

    def state_before(self, step: int) -> dict[str, Any]:
        """The stream's state before a step that was taken lately, or now."""
        return self._states[step] if step in self._states else self.stream.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self._iterator = None
        self.stream.load_state_dict(state)
