"""What the ledger finds in view vectors alone, from blocks of objects that are gone through twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from mvcore.evaluation.angles import ByElevation, ByRelativeAngle
from mvcore.evaluation.moments import AcrossObjects, ObjectBlock, WithinObjects
from mvcore.evaluation.rank import RankInfluence, Spectrum
from mvcore.evaluation.similarity import Similarity, different_object, same_object
from mvcore.evaluation.statistics import ratio_samples

Blocks = Callable[[], Iterable[ObjectBlock]]
"""Gives the same blocks anew at each call; each object stands in exactly one."""


def measure_views(
    blocks: Blocks,
    n_objects: int,
    dim: int,
    *,
    device: torch.device | str = "cpu",
    axes: Tensor | None = None,
    elevations: Tensor | None = None,
    angle_step: float = 30.0,
    elevation_step: float = 10.0,
) -> dict[str, Similarity]:
    """The ledger's quantities of views, by name; one that no pair has is left out.

    Memory is a few values per object, two D x D matrices and one block, however many objects there are; the results do
    not hang on how the objects are cut into blocks.

    Args:
        blocks: gives the blocks; called twice.
        n_objects, dim: O and D.
        device: where the blocks are.
        axes: (N, 3) unit optical axes of the views on the CPU, NaN where not known; or None.
        elevations: (N,) degrees of the views' cameras on the CPU, NaN where not known; or None.
        angle_step, elevation_step: degrees between the centres of bins.

    Returns:
        `same_object`, `different_object`, `separation`, `worst_view`, `participation_ratio`,
        `centred_participation_ratio`, `effective_rank`, `angle/<degrees>` and `elevation/<degrees>`.
    """
    by_angle = None if axes is None else ByRelativeAngle(axes, n_objects, angle_step)
    by_elevation = None if elevations is None else ByElevation(elevations, n_objects, elevation_step)
    observers = [observer for observer in (by_angle, by_elevation) if observer is not None]
    within = WithinObjects(n_objects, dim, torch.device(device), observers=observers)
    for block in blocks():
        within.add(block)
    across, influence = AcrossObjects(within), RankInfluence(Spectrum.of(within), within)
    for block in blocks():
        across.add(block)
        influence.add(block)
    same, different = same_object(within), different_object(within, across)
    separation = Similarity(
        same.mean - different.mean, math.nan, same.n + different.n, same.samples - different.samples
    )
    found = {"same_object": same, "different_object": different, "separation": separation, "worst_view": _worst(within)}
    for name, figure in influence.figures().items():
        found[name] = Similarity(figure.value, math.nan, within.n_views, figure.samples)
    for kind, binned in (("angle", by_angle), ("elevation", by_elevation)):
        if binned is not None:
            found |= {f"{kind}/{centre:g}": value for centre, value in _bins(binned)}
    return {name: value for name, value in found.items() if value.n and not math.isnan(value.mean)}


def _worst(within: WithinObjects) -> Similarity:
    values = within.worst_view.cpu().numpy()
    there = ~np.isnan(values)
    samples = ratio_samples(np.where(there, values, 0.0), there)
    return Similarity(float(samples.mean()), math.nan, int(there.sum()), samples)


def _bins(binned: ByRelativeAngle | ByElevation) -> Iterable[tuple[float, Similarity]]:
    """Each bin that holds a pair."""
    sums, counts = binned.sums.numpy(), binned.counts.numpy()
    for k, centre in enumerate(binned.centres):
        n = int(counts[:, k].sum())
        if n:
            samples = ratio_samples(sums[:, k], counts[:, k])
            yield centre, Similarity(float(samples.mean()), math.nan, n, samples)
