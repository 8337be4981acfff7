"""Similarity of an object's views by the angle between their cameras, and by their elevation."""

from __future__ import annotations

import torch
from torch import Tensor

from mvcore.evaluation.moments import ObjectBlock

_SLACK = 1e-3
"""Degrees by which an angle may fall short of a bin's edge: cameras are stored in single precision."""


class _Binned:
    """Sums and counts of cosines by object and bin, (O, K) each."""

    def __init__(self, n_objects: int, bins: int) -> None:
        self.sums = torch.zeros(n_objects, bins, dtype=torch.float64)
        self.counts = torch.zeros(n_objects, bins, dtype=torch.float64)

    def put(self, objects: Tensor, bins: Tensor, sums: Tensor, counts: Tensor) -> None:
        """Adds values of any equal shape, each to its object and bin."""
        places = (objects * self.sums.shape[1] + bins).reshape(-1)
        self.sums.view(-1).index_add_(0, places, sums.reshape(-1))
        self.counts.view(-1).index_add_(0, places, counts.reshape(-1))


class ByRelativeAngle(_Binned):
    """Cosines of ordered pairs of an object's views by the angle between the optical axes of their cameras.

    Args:
        axes: (N, 3) float64 unit optical axes, NaN where a camera is not known; such views take no part.
        n_objects: O.
        step: degrees between the bins' centres 0, step, ..., the last at or above 180 - step / 2.
    """

    def __init__(self, axes: Tensor, n_objects: int, step: float) -> None:
        self.centres = [step * i for i in range(int((180 + _SLACK) / step + 0.5) + 1)]
        super().__init__(n_objects, len(self.centres))
        self._axes, self._step = axes, step

    def add(self, block: ObjectBlock, cosines: Tensor, start: int) -> None:
        """See `PairObserver`."""
        every = self._axes[block.rows.cpu()]
        some = every[:, start : start + cosines.shape[1]]
        # Half the difference and half the sum of two unit vectors are sine and cosine of half their angle.
        apart = torch.cdist(some, every, compute_mode="donot_use_mm_for_euclid_dist")
        together = torch.cdist(some, -every, compute_mode="donot_use_mm_for_euclid_dist")
        angles = torch.rad2deg(2 * torch.atan2(apart, together))
        values = cosines.cpu()
        known = ~(angles.isnan() | values.isnan())
        bins = ((angles + _SLACK) / self._step + 0.5).nan_to_num().long().clamp_max(len(self.centres) - 1)
        objects = block.objects.cpu()[:, None, None].expand_as(bins)
        self.put(objects, bins, values.where(known, torch.zeros_like(values)), known.double())


class ByElevation(_Binned):
    """Cosines of a view to the other views of its object, by the elevation of its camera.

    Args:
        elevations: (N,) degrees in [-90, 90], NaN where it is not known; such views take part as others only.
        n_objects: O.
        step: degrees between the bins' centres, multiples of `step`.
    """

    def __init__(self, elevations: Tensor, n_objects: int, step: float) -> None:
        half = int((90 + _SLACK) / step + 0.5)
        self.centres = [step * i for i in range(-half, half + 1)]
        super().__init__(n_objects, len(self.centres))
        self._elevations, self._step, self._half = elevations, step, half

    def add(self, block: ObjectBlock, cosines: Tensor, start: int) -> None:
        """See `PairObserver`."""
        at = self._elevations[block.rows.cpu()[:, start : start + cosines.shape[1]]]
        known = ~at.isnan()
        bins = ((at + _SLACK) / self._step + 0.5).floor().nan_to_num().long() + self._half
        sums = cosines.nansum(2).cpu()
        others = float(cosines.shape[2] - 1)
        objects = block.objects.cpu()[:, None].expand_as(bins)
        self.put(
            objects, bins.clamp(0, 2 * self._half), sums.where(known, torch.zeros_like(sums)), others * known.double()
        )
