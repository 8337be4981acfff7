"""How many directions a model's features use: participation ratios and the effective rank, with a value per object.

They come from the D x D second moment of the unit vectors. None of them is a mean over objects, so their per-object
values are the figure plus each object's first-order influence on it (the delta method; Efron & Tibshirani 1993,
section 22.4): the bootstrap of their mean has the spread of the figure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mvcore.evaluation.moments import ObjectBlock, WithinObjects

_NOTHING = 1e-12
"""Share of the largest eigenvalue below which a direction counts as unused, and of which squares are round-off."""


@dataclass(frozen=True)
class RankFigure:
    """One number about the directions in use, with (O,) per-object values whose mean it is."""

    value: float
    samples: np.ndarray


@dataclass(frozen=True)
class Spectrum:
    """The second moment M of N unit vectors u with mean m, decomposed.

    Args:
        values, basis: (D,) eigenvalues of M, not negative, of sum 1, and (D, D) their vectors as columns.
        mean: (D,) m in that basis.
    """

    values: Tensor
    basis: Tensor
    mean: Tensor

    @staticmethod
    def of(within: WithinObjects) -> Spectrum:
        """Of all views of the first pass."""
        n = within.n_views
        values, basis = torch.linalg.eigh(within.second_moment / n)
        return Spectrum(values.clamp_min(0), basis, basis.T @ (within.total / n))

    @property
    def participation_ratio(self) -> float:
        """tr(M)^2 / tr(M^2) = 1 / E[cos^2] over all ordered pairs of views, each with itself included; 1 to D."""
        return 1 / float(self.values.square().sum())

    @property
    def covariance_traces(self) -> tuple[float, float]:
        """tr(C) and tr(C^2) of the covariance C = M - m m'."""
        length = float(self.mean.square().sum())
        crossed = float((self.values * self.mean.square()).sum())
        return max(1 - length, 0.0), max(1 / self.participation_ratio - 2 * crossed + length * length, 0.0)

    @property
    def centred_participation_ratio(self) -> float:
        """tr(C)^2 / tr(C^2), the participation ratio of what differs from the mean; NaN where all vectors are equal."""
        trace, square = self.covariance_traces
        return trace * trace / square if trace > _NOTHING and square > 0 else math.nan

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the singular values over their sum (Roy & Vetterli 2007), 1 to D."""
        return math.exp(self.entropy)

    @property
    def entropy(self) -> float:
        """Of the singular values over their sum."""
        share = self._shares()
        return -float(torch.special.xlogy(share, share).sum())

    def entropy_slope(self) -> Tensor:
        """(D,) derivative of the entropy by each eigenvalue; 0 where a direction is unused."""
        used = self.values > _NOTHING * self.values.max()
        one = torch.ones_like(self.values)
        singular = self.values.where(used, one).sqrt()
        slope = (-self.entropy - self._shares().where(used, one).log()) / (2 * self.values.sqrt().sum() * singular)
        return slope.where(used, torch.zeros_like(slope))

    def _shares(self) -> Tensor:
        singular = self.values.sqrt()
        return singular / singular.sum()


class RankInfluence:
    """A second pass: how much each object's views have to do with the three numbers of a `Spectrum`."""

    def __init__(self, spectrum: Spectrum, within: WithinObjects) -> None:
        self.spectrum = spectrum
        self._counts = within.counts
        # u'Mu, the entropy's slope, |u - m|^2 and (u - m)'C(u - m), each summed over an object's views.
        self._sums = within.counts.new_zeros(len(within.counts), 4)
        self._slope = spectrum.entropy_slope()

    def add(self, block: ObjectBlock) -> None:
        """Takes in the objects of a block of the same views as in the first pass."""
        values, mean = self.spectrum.values, self.spectrum.mean
        inside = block.unit @ self.spectrum.basis
        squares = inside.square()
        inside -= mean
        along = inside @ mean
        apart = inside.square_()
        terms = (squares @ values, squares @ self._slope, apart.sum(2), apart @ values - along.square())
        self._sums[block.objects] = torch.stack([term.sum(1) for term in terms], dim=1)

    def figures(self) -> dict[str, RankFigure]:
        """`participation_ratio`, `centred_participation_ratio` and `effective_rank`."""
        spectrum, n = self.spectrum, self._counts.sum()
        # Less their mean over all views, so that the influences sum to zero.
        own, slope, trace, square = (self._sums - self._counts[:, None] * (self._sums.sum(0) / n)).T
        ratio, centred, rank = (
            spectrum.participation_ratio,
            spectrum.centred_participation_ratio,
            spectrum.effective_rank,
        )
        whole_trace, whole_square = spectrum.covariance_traces
        influence = {
            "participation_ratio": (ratio, -2 * ratio**2 * own),
            "effective_rank": (rank, rank * slope),
        }
        if not math.isnan(centred):
            influence["centred_participation_ratio"] = (
                centred,
                centred * 2 * (trace / whole_trace - square / whole_square),
            )
        return {
            name: RankFigure(value, (value + len(change) / n * change).cpu().numpy())
            for name, (value, change) in influence.items()
        }
