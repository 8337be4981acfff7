"""A trainer: a Lightning callback that may publish state for losses and is saved with the run."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from mvcore.api import Features, RunHandle, ViewBatch
from torch import Tensor


class Memory(pl.Callback):
    """`mymethod.memory`: publishes `mymethod.memory` (B, D), a moving mean of each object's views; zero = not seen yet.

    Args:
        momentum: share of what is remembered that a step keeps.
    """

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self._objects = 0
        self._table: Tensor | None = None

    def bind(self, run: RunHandle) -> None:
        """Called before training starts."""
        self._objects = run.n_object_ids

    def observe(self, batch: ViewBatch, features: Features) -> None:
        """Each step's features, without gradient, before its losses are computed."""
        views = features.view
        if self._table is None:
            # The last row stands for whatever has no id.
            self._table = views.new_zeros(self._objects + 1, views.shape[1])
        sums = views.new_zeros(batch.n_objects, views.shape[1]).index_add(0, batch.object_of_view, views)
        means = sums / batch.view_counts[:, None]
        before = self._table[batch.object_ids]
        new = ~(before != 0).any(dim=1, keepdim=True)
        kept = torch.where(new, means, self.momentum * before + (1 - self.momentum) * means)
        self._table[batch.object_ids] = torch.where((batch.object_ids >= 0)[:, None], kept, 0)

    def state(self, batch: ViewBatch) -> dict[str, Tensor]:
        """What is published, aligned with the batch; it must not wait for the device."""
        assert self._table is not None, "state is asked for after the first step was observed"
        if self._table.device != batch.device:
            self._table = self._table.to(batch.device)
        return {"mymethod.memory": self._table[batch.object_ids]}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {} if self._table is None else {"table": self._table.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What a resumed run goes on with."""
        self._table = state_dict.get("table")
