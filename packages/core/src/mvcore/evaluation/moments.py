"""Sums over pairs of views that are gathered block by block, so that any number of objects fits into bounded memory.

Everything is in float64. Two passes over the views are made: `WithinObjects` gathers what pairs of one object give and
the moments of all views, D and D x D; `AcrossObjects` then looks at each object against those moments. Nothing of size
N x N or O x D is held, and the results do not hang on the size of the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Moments:
    """Mean and standard deviation of values that come in pieces (Chan, Golub & LeVeque 1983)."""

    def __init__(self) -> None:
        self.n = 0
        self._mean = 0.0
        self._squares = 0.0

    def add(self, values: Tensor) -> None:
        """Adds values of any shape."""
        mean = float(values.mean())
        self.merge(values.numel(), mean, float((values - mean).square().sum()))

    def merge(self, n: int, mean: float, squares: float) -> None:
        """Adds `n` values by their mean and their squared deviations from it."""
        if n == 0:
            return
        gap, total = mean - self._mean, self.n + n
        self._squares += squares + gap * gap * (self.n * n / total)
        self._mean += gap * (n / total)
        self.n = total

    @property
    def mean(self) -> float:
        """NaN where there is no value."""
        return self._mean if self.n else math.nan

    @property
    def std(self) -> float:
        """With ddof 1; NaN below two values."""
        return math.sqrt(self._squares / (self.n - 1)) if self.n > 1 else math.nan


def unit_rows(vectors: Tensor, rows: Tensor | slice, name: str) -> Tensor:
    """The rows of (N, D) `vectors` at unit length in float64.

    Raises:
        ValueError: a row whose length is zero or not finite, by its number.
    """
    chosen = vectors[rows].to(torch.float64)
    length = torch.linalg.vector_norm(chosen, dim=-1, keepdim=True)
    bad = ~(torch.isfinite(length) & (length > 0)).squeeze(-1)
    if bool(bad.any()):
        at = int(bad.nonzero()[0, 0])
        row = int(torch.arange(len(vectors), device=vectors.device)[rows][at])
        raise ValueError(f"{name}: row {row} has length {float(length[at, 0])}, so no cosine is defined")
    return chosen / length


@dataclass(frozen=True)
class ObjectBlock:
    """The views of some objects that have equally many.

    Args:
        objects: (G,) their numbers.
        rows: (G, V) the numbers of their views.
        unit: (G, V, D) float64 at unit length.
    """

    objects: Tensor
    rows: Tensor
    unit: Tensor


def object_blocks(views: Tensor, counts: Tensor, rows_per_block: int) -> Iterator[ObjectBlock]:
    """The objects of packed (N, D) views with (O,) view counts, about `rows_per_block` views at a time.

    Raises:
        ValueError: a vector without a direction, by its row.
    """
    starts = torch.cumsum(counts, 0) - counts
    for count in torch.unique(counts).tolist():
        members = (counts == count).nonzero().squeeze(1)
        for objects in members.split(max(1, rows_per_block // count)):
            rows = starts[objects][:, None] + torch.arange(count, device=counts.device)
            unit = unit_rows(views, rows.reshape(-1), "views").view(*rows.shape, views.shape[1])
            yield ObjectBlock(objects, rows, unit)


class PairObserver(Protocol):
    """Is shown the cosines of all pairs of views of each object, some rows at a time."""

    def add(self, block: ObjectBlock, cosines: Tensor, start: int) -> None:
        """`cosines` (G, R, V): views `start` to `start + R` of the block's objects against all V; a view's cosine to
        itself is NaN.
        """
        ...


class WithinObjects:
    """The first pass: pairs of views of one object, and the moments of all views.

    Args:
        n_objects: O.
        dim: D.
        device: where the views are.
        rows_at_once: views of one object compared with its others at once.
        observers: who is shown the cosines beside.

    Attributes:
        counts, same_sums: (O,) views of each object, and the sum of cosines over its ordered pairs.
        center_mean, center_min: (O,) mean and smallest cosine of an object's views to the direction of their mean.
        worst_view: (O,) smallest, over an object's views, of the mean cosine to its other views; NaN with one view.
        same: moments of the cosines of all ordered pairs of two views of one object.
        total, second_moment: (D,) and (D, D) sums of u and of u u' over all unit views u.
        own_squares: sum of squared cosines over all ordered pairs within objects, a view with itself included.
    """

    def __init__(
        self,
        n_objects: int,
        dim: int,
        device: torch.device,
        *,
        rows_at_once: int = 4096,
        observers: Sequence[PairObserver] = (),
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.counts, self.same_sums = zeros(n_objects), zeros(n_objects)
        self.center_mean, self.center_min = zeros(n_objects), zeros(n_objects)
        self.worst_view = zeros(n_objects)
        self.same = Moments()
        self.total, self.second_moment = zeros(dim), zeros(dim, dim)
        self.own_squares = 0.0
        self._rows_at_once = rows_at_once
        self._observers = observers

    @property
    def n_views(self) -> int:
        """N so far."""
        return int(self.counts.sum())

    def add(self, block: ObjectBlock) -> None:
        """Takes in the objects of a block; each object belongs to exactly one."""
        unit, objects = block.unit, block.objects
        flat = unit.reshape(-1, unit.shape[2])
        self.second_moment.addmm_(flat.T, flat)
        sums = unit.sum(1)
        self.total += sums.sum(0)
        self.counts[objects] = float(unit.shape[1])
        center = sums / torch.linalg.vector_norm(sums, dim=1, keepdim=True).clamp_min(1e-300)
        to_center = (unit @ center[:, :, None]).squeeze(2)
        self.center_mean[objects] = to_center.mean(1)
        self.center_min[objects] = to_center.amin(1)
        self._add_pairs(block)

    def _add_pairs(self, block: ObjectBlock) -> None:
        unit, others = block.unit, block.unit.shape[1] - 1
        pair_sums = torch.zeros(len(unit), dtype=torch.float64, device=unit.device)
        worst = torch.full_like(pair_sums, math.inf)
        # Once, unless an object has thousands of views.
        for start in range(0, others + 1, self._rows_at_once):
            cosines = unit[:, start : start + self._rows_at_once] @ unit.mT
            itself = cosines.diagonal(offset=start, dim1=1, dim2=2)
            self.own_squares += float(cosines.square().sum())
            if not others:
                continue
            row_sums = cosines.sum(2) - itself
            n, total = row_sums.numel() * others, float(row_sums.sum())
            deviations = cosines - total / n
            deviations.diagonal(offset=start, dim1=1, dim2=2).zero_()
            self.same.merge(n, total / n, float(deviations.square().sum()))
            pair_sums += row_sums.sum(1)
            worst = torch.minimum(worst, row_sums.amin(1) / others)
            if self._observers:
                itself.fill_(math.nan)
                for observer in self._observers:
                    observer.add(block, cosines, start)
        self.same_sums[block.objects] = pair_sums
        self.worst_view[block.objects] = torch.where(worst.isfinite(), worst, math.nan)


class AcrossObjects:
    """The second pass: each object against all others.

    Args:
        within: the first pass, finished.

    Attributes:
        different_sums: (O,) sum of cosines over the pairs of a view of the object and a view of another.
    """

    def __init__(self, within: WithinObjects) -> None:
        self._total = within.total
        self.different_sums = torch.zeros_like(within.counts)

    def add(self, block: ObjectBlock) -> None:
        """Takes in the objects of a block of the same views as in the first pass."""
        sums = block.unit.sum(1)
        self.different_sums[block.objects] = sums @ self._total - sums.square().sum(1)
