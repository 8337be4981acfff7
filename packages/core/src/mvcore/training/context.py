"""What trainers may ask of their run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvcore.errors import PluginError
from mvcore.model import Model
from mvcore.parts import Embedded
from mvcore.suggest import listed
from mvcore.training.distributed import join_embedded, rank, world_size
from mvcore.training.embedding import embed_dataset
from mvcore.training.sampling import PreferredViews, SourceSpecification


class RunContext:
    """The `RunHandle` of a run.

    Args:
        model: the model that trains.
        sources: the run's sources with the offsets of their ids.
        trainer_sources: by trainer object, the names of its sources.
        preferred: where `prefer` publishes views.
    """

    def __init__(
        self,
        *,
        seed: int,
        output: Path,
        model: Model,
        sources: Mapping[str, SourceSpecification],
        id_counts: tuple[int, int],
        trainer_sources: Mapping[int, tuple[str, ...]],
        preferred: PreferredViews | None = None,
    ) -> None:
        self.seed = seed
        self.output = output
        self.sources: dict[str, Any] = {name: source.dataset for name, source in sources.items()}
        self.n_object_ids, self.n_view_ids = id_counts
        self.logged: dict[str, float] = {}
        self._model = model
        self._specifications = sources
        self._trainer_sources = trainer_sources
        self._preferred = preferred or PreferredViews()
        self._owner = ""
        self._reads: frozenset[str] | None = None

    def limited(self, owner: str, reads: frozenset[str]) -> RunContext:
        """The same handle for one trainer, which gets the features that it declares and no others.

        Args:
            owner: what the trainer is called in errors.
            reads: the features among its needs.
        """
        other = copy.copy(self)
        other._owner, other._reads = owner, reads
        return other

    @property
    def device(self) -> torch.device:
        return self._model.device

    def sources_of(self, trainer: object) -> tuple[str, ...]:
        """The names of the sources that a trainer works on."""
        return self._trainer_sources[id(trainer)]

    def prefer(self, view_ids: Tensor) -> None:
        """Names the views from which sources with an `outlier_share` draw it from the next epoch on."""
        self._preferred.publish(view_ids)

    def embed(self, source: str, keys: frozenset[str]) -> Embedded:
        """One pass over each view of a source with evaluation transforms, ids global in the run, split over ranks.

        Raises:
            PluginError: a trainer asks for a feature that its spec does not name.
        """
        undeclared = sorted(keys - (keys if self._reads is None else self._reads))
        if undeclared:
            text = f"{self._owner} embeds {undeclared[0]!r} but does not declare it"
            raise PluginError(f"{text} (its needs: {listed(self._reads or ())}); add it to `needs` in its spec")
        specification = self._specifications[source]
        found = embed_dataset(
            self._model.features,
            specification.dataset,
            keys,
            views_per_batch=self._model.views_per_batch,
            rank=rank(),
            world_size=world_size(),
        )
        if len(found.object_ids) < len(specification.dataset):
            found = join_embedded(found, self.device)
        return replace(
            found,
            object_ids=torch.where(found.object_ids >= 0, found.object_ids + specification.object_offset, -1),
            view_ids=torch.where(found.view_ids >= 0, found.view_ids + specification.view_offset, -1),
        )

    def log(self, values: Mapping[str, float]) -> None:
        """Kept until the meter next writes a row."""
        self.logged.update(values)
