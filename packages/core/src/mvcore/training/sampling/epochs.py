"""Which members of a source each step takes: every member once an epoch, or groups of members equally often."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mvcore.training.sampling.draws import Integers
from mvcore.training.sampling.randomness import Randomness, Stream


class Epochs(Protocol):
    """Chooses the members of each global step; global step g stands in epoch g // steps."""

    steps: int

    def chosen(self, step: int) -> Integers:
        """Numbers of the members that a step takes, all different."""
        ...


class ShuffledEpochs:
    """Every member once an epoch, in an order of the epoch's own; what is left over after full steps is dropped.

    Args:
        population: how many members there are.
        size: members of a step; a smaller population is taken whole in every step.
    """

    def __init__(self, random: Randomness, population: int, size: int) -> None:
        self.steps = max(1, population // size)
        self._random = random
        self._population = population
        self._size = size
        self._epoch: tuple[int, Integers] | None = None

    def chosen(self, step: int) -> Integers:
        """See `Epochs.chosen`."""
        epoch, position = divmod(step, self.steps)
        # A memory of the last answer, not a state: it is made again from the epoch's number wherever it is missing.
        if self._epoch is None or self._epoch[0] != epoch:
            order = self._random.generator(Stream.EPOCH_ORDER, epoch).permutation(self._population)
            self._epoch = (epoch, order)
        return self._epoch[1][position * self._size : (position + 1) * self._size]


class BalancedEpochs:
    """Groups equally often, whatever their sizes; as many steps an epoch as without balance.

    In each step the groups' counts differ by at most one, except that a group with fewer members gives all of them:
    group g gives min(size_g, L) members, with the largest L that fits into the step, and the members still missing come
    one each from groups that have more. Over an epoch those turns go round in rounds of random order, so that they too
    differ by at most one between groups. Within a group the members come in a random order of the epoch, round and
    round, and no member is taken twice before all of its group were. No step takes a member twice.

    Args:
        group: (P,) the group of each member, from 0 up, none empty.
        size: members of a step; a smaller population is taken whole in every step.
    """

    def __init__(self, random: Randomness, group: Integers, size: int) -> None:
        self.steps = max(1, len(group) // size)
        self._random = random
        self._group = group
        self._sizes = np.bincount(group)
        self._begins = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        wanted = min(size, len(group))
        self._level = _level(self._sizes, wanted)
        self._base = np.minimum(self._sizes, self._level)
        self._turns = wanted - int(self._base.sum())
        self._open = np.flatnonzero(self._sizes > self._level)
        self._epoch: tuple[int, Integers, Integers] | None = None

    def chosen(self, step: int) -> Integers:
        """See `Epochs.chosen`."""
        epoch, position = divmod(step, self.steps)
        members, turns = self._plan(epoch)
        numbers = np.arange(position * self._turns, (position + 1) * self._turns)
        groups = self._open[turns[numbers]]
        if self._level == 0:
            # The n-th turn of a group comes in round n.
            rows = self._begins[groups] + numbers // len(self._open) % self._sizes[groups]
            return members[rows]
        quotas = self._base.copy()
        quotas[groups] += 1
        before = position * self._base + self._turns_before(turns, position * self._turns)
        owners = np.repeat(np.arange(len(quotas)), quotas)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(quotas) - quotas, quotas)
        rows = self._begins[owners] + (before[owners] + within) % self._sizes[owners]
        return members[self._random.generator(Stream.STEP_ORDER, step).permutation(rows)]

    def _turns_before(self, turns: Integers, number: int) -> Integers:
        """How often each group had its turn before a turn's number."""
        counts = np.zeros(len(self._sizes), np.int64)
        if self._turns:
            rounds = number // len(self._open)
            counts[self._open] = rounds
            counts[self._open[turns[rounds * len(self._open) : number]]] += 1
        return counts

    def _plan(self, epoch: int) -> tuple[Integers, Integers]:
        """The epoch's members, group by group, each in random order; and whose turns it are, by number in `_open`."""
        if self._epoch is None or self._epoch[0] != epoch:
            rng = self._random.generator(Stream.EPOCH_ORDER, epoch)
            order = rng.permutation(len(self._group))
            members = order[np.argsort(self._group[order], kind="stable")]
            self._epoch = (epoch, members, _rounds(rng, len(self._open), self._turns, self.steps))
        return self._epoch[1:]


def _level(sizes: Integers, wanted: int) -> int:
    """The largest L with sum(min(sizes, L)) <= wanted, not above the largest size."""
    low, high = 0, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= wanted else (low, middle - 1)
    return low


def _rounds(rng: np.random.Generator, members: int, per_step: int, steps: int) -> Integers:
    """(steps * per_step,) random orders of all members one after another, with no member twice in a step.

    Where a step takes the end of one round and the beginning of the next, what it took is moved behind what it takes.
    """
    rounds: list[Integers] = []
    length = 0
    while length < steps * per_step:
        order = rng.permutation(members)
        taken = length % per_step
        if taken:
            used = np.zeros(members, np.bool_)
            used[rounds[-1][-taken:]] = True
            front = np.flatnonzero(~used[order])[: per_step - taken]
            order = np.concatenate([order[front], np.delete(order, front)])
        rounds.append(order)
        length += members
    return np.concatenate(rounds)[: steps * per_step] if rounds else np.empty(0, np.int64)
