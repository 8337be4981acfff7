"""`equivariance.smooth_ap`: points of two views that show the same place find each other by their dense features."""

from __future__ import annotations

from typing import Any

import torch
from mvcore.api import DataError, Features, ViewBatch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mvcore_equivariance.average_precision import info_nce, one_positive, several_positives
from mvcore_equivariance.chunks import Bounds, Points, over_near, over_own
from mvcore_equivariance.correspondences import Correspondences, Spots, extent, pairs_of, projected, released
from mvcore_equivariance.loss_options import SmoothAPOptions
from mvcore_equivariance.procrustes import procrustes
from mvcore_equivariance.sampling import sample_features
from mvcore_equivariance.tracks import shared, tracked_pairs_of

_TRIED = 32
"""Pairs of views after which a run that found nothing in any of them is stopped."""

_TERMS = {"one_positive": one_positive, "several_positives": several_positives, "info_nce": info_nce}


class SmoothAPLoss(nn.Module):
    """The loss of pairs of views of objects, from points that are drawn anew in each step.

    Args:
        options: the fields of `SmoothAPOptions`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = SmoothAPOptions(**options)
        form = self.options.form
        self.tau = self.options.tau or (0.07 if form in ("info_nce", "procrustes") else 0.01)
        self._tried = 0
        self._found: Tensor | None = None

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """The sum over pairs of their losses, beside what was found.

        Returns:
            `loss` and `count`, the number of pairs with a positive: others add nothing; `positives` of all pairs, and
            `pairs_without_positive`. All are () tensors.

        Raises:
            DataError: an object with other than two views, or no positive in any of the first 32 pairs of a run.
        """
        try:
            with torch.no_grad():
                found, size = self._draw(batch)
        except ValueError as error:
            raise DataError(f"equivariance.smooth_ap: {error}") from None
        source, target = (
            _points(features.dense[k::2], spots, size) for k, spots in ((0, found.source), (1, found.target))
        )
        loss, positives = self._loss(source, target, found)
        with_positive = positives > 0
        if self._tried < _TRIED:
            self._watch(positives.detach())
        return {
            "loss": loss,
            "count": with_positive.sum(),
            "positives": positives.sum(),
            "pairs_without_positive": (~with_positive).sum(),
        }

    def _watch(self, positives: Tensor) -> None:
        """Stops a run that would train on nothing: it looks like one whose loss is 0. Waits for the device once.

        Raises:
            DataError: none of the first pairs has a positive.
        """
        self._tried += len(positives)
        self._found = positives.sum() + (0 if self._found is None else self._found)
        if self._tried < _TRIED:
            return
        if not int(self._found):
            tracks = self.options.sampling == "tracks"
            hint = (
                "draw nearer views (pair_angle), and see that the store was packed with its tracks"
                if tracks
                else "draw nearer views (pair_angle), and see that depth is z-depth in the unit of the cameras' places "
                "and world_to_camera has OpenCV's axes (x right, y down, z forward)"
            )
            raise DataError(
                f"equivariance.smooth_ap: in none of the first {self._tried} pairs of views does one show a "
                f"{'track' if tracks else 'point'} of the other, so there is nothing to learn from; {hint}"
            )
        self._found = None

    def _draw(self, batch: ViewBatch) -> tuple[Correspondences, tuple[int, int]]:
        """Points of both views, and the (W, H) of the images that they are in."""
        options = self.options
        further = options.points if options.further is None else options.further
        if options.sampling == "tracks":
            first, second, size = tracked_pairs_of(batch, masks=options.masks, cameras=options.unit == "footprint")
            return shared(first, second, options.points, further), size
        first, second = pairs_of(batch, masks=options.masks)
        size = (first.depth.shape[2], first.depth.shape[1])
        if options.sampling == "released":
            return released(first, second, options.points), size
        return projected(first, second, options.points, further), size

    def _loss(self, source: Points, target: Points, found: Correspondences) -> tuple[Tensor, Tensor]:
        """The sum over pairs, and (B,) how many positives each has."""
        there, back = (self._bounds(found, spots) for spots in found[:2])
        if self.options.form == "procrustes" and found.own is not None:
            return self._motion(source, target, found)
        if self.options.form == "several_positives" or found.own is None:
            loss, positives = self._over_near(source, target, there)
            if self.options.symmetric:
                loss = (loss + self._over_near(target, source, back)[0]) / 2
            return loss, positives
        term = _TERMS[self.options.form](self.tau)
        loss, positives = over_own(source, target, there, found.own, term)
        if self.options.symmetric:
            number = found.own.shape[1]
            own = Points(*(part[:, :number] for part in target))
            back = Bounds(*(limit if limit.ndim == 0 else limit[:, :number] for limit in back))
            loss = (loss + over_own(own, source, back, found.own, term)[0]) / 2
        return loss, positives

    def _over_near(self, source: Points, target: Points, bounds: Bounds) -> tuple[Tensor, Tensor]:
        """Pair after pair: each has another number of positives."""
        term = _TERMS[self.options.form](self.tau)
        mean = "sources" if self.options.form == "several_positives" else "positives"
        losses, numbers = list[Tensor](), list[Tensor]()
        for b in range(len(source.xyz)):
            one, other = (Points(*(part[b : b + 1] for part in points)) for points in (source, target))
            limits = Bounds(*(limit if limit.ndim == 0 else limit[b : b + 1] for limit in bounds))
            loss, positives = over_near(one, other, limits, term, mean)
            losses.append(loss)
            numbers.append(positives)
        return torch.stack(losses).sum(), torch.stack(numbers)

    def _motion(self, source: Points, target: Points, found: Correspondences) -> tuple[Tensor, Tensor]:
        assert found.own is not None
        size = extent(found)
        scale = torch.where(size > 0, size, 1)
        loss = procrustes(source, target, found.own, scale, self.tau)
        number = found.own.sum(1)
        if self.options.symmetric:
            own = Points(*(part[:, : found.own.shape[1]] for part in target))
            loss = (loss + procrustes(own, source, found.own, scale, self.tau)) / 2
        return loss.sum(), number * (number >= 3)

    def _bounds(self, found: Correspondences, spots: Spots) -> Bounds:
        options = self.options
        units = {
            "store": lambda: spots.xyz.new_ones(()),
            "extent": lambda: extent(found).expand(spots.footprint.shape),
            "footprint": lambda: spots.footprint,
        }
        unit = units[options.unit]()
        return Bounds(options.positive * unit, options.negative * unit)


def _points(dense: Tensor, spots: Spots, image_size: tuple[int, int]) -> Points:
    """Descriptors of unit length: normalised after the interpolation, as the authors do."""
    return Points(normalize(sample_features(dense, spots.points, image_size), dim=-1), spots.xyz, spots.valid)
