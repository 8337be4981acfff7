"""Steps that hold as many objects as a budget of views allows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mvcore.training.sampling.draws import Integers
from mvcore.training.sampling.randomness import Randomness, Stream


@dataclass(frozen=True)
class _Plan:
    """An epoch's objects in order, the views of each, and where the steps begin and end among them."""

    objects: Integers
    counts: Integers
    bounds: Integers


class BudgetEpochs:
    """Every object once an epoch, in steps of at most so many views.

    Objects are added in the epoch's order until the next one would not fit. The last step of an epoch takes what is
    left; where that is fewer objects than in the step before it, the two share theirs evenly, as far as the budget
    allows. An epoch's number of steps depends on what was drawn, so epochs differ by a few steps.

    Args:
        available: (O,) views of each object; none is given more than it has.
        view_range: lowest and highest number of views of an object, drawn uniformly.
        shared: one number of views for all objects of a step.
        budget: the most views of a step, not below the highest number.
        limit: the most objects of a step; None = no limit.
    """

    def __init__(
        self,
        random: Randomness,
        available: Integers,
        view_range: tuple[int, int],
        *,
        shared: bool,
        budget: int,
        limit: int | None,
    ) -> None:
        self._random = random
        self._available = available
        self._range = view_range
        self._shared = shared
        self._budget = budget
        self._limit = limit or len(available)
        self._starts = [0]
        self._last: tuple[int, _Plan] | None = None
        self.steps = len(self._plan(0).bounds) - 1

    def chosen(self, step: int) -> tuple[Integers, Integers]:
        """The objects of a global step and the views of each."""
        while self._starts[-1] <= step:
            plan = self._plan(len(self._starts) - 1)
            self._starts.append(self._starts[-1] + len(plan.bounds) - 1)
        epoch = int(np.searchsorted(self._starts, step, side="right")) - 1
        plan = self._plan(epoch)
        low, high = plan.bounds[step - self._starts[epoch] :][:2]
        return plan.objects[low:high], plan.counts[low:high]

    def _plan(self, epoch: int) -> _Plan:
        if self._last is None or self._last[0] != epoch:
            objects = self._random.generator(Stream.EPOCH_ORDER, epoch).permutation(len(self._available))
            # One number for each object, or for each step, of which there are no more than objects.
            low, high = self._range
            drawn = self._random.generator(Stream.EPOCH_COUNTS, epoch).integers(low, high, len(objects), endpoint=True)
            bounds = self._shared_bounds(drawn) if self._shared else self._bounds(self._fitted(drawn, objects))
            if self._shared:
                drawn = np.repeat(drawn[: len(bounds) - 1], np.diff(bounds))
            self._last = (epoch, _Plan(objects, self._fitted(drawn, objects), bounds))
        return self._last[1]

    def _fitted(self, drawn: Integers, objects: Integers) -> Integers:
        return np.minimum(drawn, self._available[objects])

    def _bounds(self, counts: Integers) -> Integers:
        ends = np.concatenate([[0], np.cumsum(counts)])
        bounds = [0]
        while bounds[-1] < len(counts):
            fitting = int(np.searchsorted(ends, ends[bounds[-1]] + self._budget, side="right")) - 1
            bounds.append(min(fitting, bounds[-1] + self._limit))
        fewest_left = int(np.searchsorted(ends, ends[-1] - self._budget))
        return _evened(np.array(bounds), fewest_left)

    def _shared_bounds(self, drawn: Integers) -> Integers:
        ends = np.cumsum(np.minimum(self._budget // drawn, self._limit))
        steps = int(np.searchsorted(ends, len(drawn))) + 1
        bounds = np.concatenate([[0], ends[: steps - 1], [len(drawn)]])
        return _evened(bounds, len(drawn) - self._budget // int(drawn[steps - 1]))


def _evened(bounds: Integers, lowest: int) -> Integers:
    """Moves the beginning of the last step back to the middle of the last two, but not below `lowest`."""
    if len(bounds) > 2:
        middle = int(bounds[-3] + bounds[-1] + 1) // 2
        bounds[-2] = min(int(bounds[-2]), max(middle, lowest))
    return bounds
