"""The terms of a run's objective, and what a step finds of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from mvcore.model import features_in
from mvcore.training.weights import WeightAt


@dataclass(frozen=True)
class Term:
    """A loss in a run: its module, what it may read, its sources, its weight by step, and whose rows it sees."""

    name: str
    module: nn.Module
    needs: frozenset[str]
    sources: tuple[str, ...]
    weight: float | WeightAt = 1.0
    scope: str = "batch"

    @property
    def reads(self) -> frozenset[str]:
        return features_in(self.needs)

    def weight_at(self, step: int) -> float:
        """What it counts for in a step."""
        return self.weight(step) if callable(self.weight) else self.weight


@dataclass
class Outcome:
    """What a step found: the weighted sum, each term raw, and what losses logged beside; detached, on the device.

    A term whose weight is 0 in the step was not computed and is not among `terms`; `weights` holds it all the same.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    logged: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    weights: dict[str, float] = field(default_factory=dict[str, float])
