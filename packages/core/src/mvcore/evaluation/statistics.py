"""Intervals and comparisons over objects and seeds.

The unit of resampling is the object: its views are not independent. A figure carries one value per object whose mean
is the figure; everything here works on those. Intervals are percentile bootstrap intervals at a fixed seed, so they
repeat.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from mvcore.errors import DataError
from mvcore.evaluation.results import Figure

RESAMPLES = 2000
LEVEL = 0.95
_CELLS = 1 << 21
"""Resampled values held at once, 16 MiB."""


def bootstrap_interval(
    samples: ArrayLike, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over objects (Efron & Tibshirani 1993, section 13.3).

    Args:
        samples: (O,) one value per object; or (S, O), seeds by the same objects, where seeds and objects are resampled
            independently (the pigeonhole bootstrap of Owen 2007). With few seeds their share of the spread is
            underestimated by sqrt((S - 1) / S), as in every bootstrap.
        resamples: how many resamples are drawn.
        level: coverage between 0 and 1.
        seed: of the resampling.

    Returns:
        The lower and upper bound; NaN where there are fewer than two objects or a value is not finite.

    Raises:
        ValueError: samples of another shape, or a level outside (0, 1).
    """
    values = np.atleast_2d(np.asarray(samples, dtype=np.float64))
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"samples must be (O,) or (S, O) and not empty, not {np.shape(samples)}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    seeds, objects = values.shape
    if objects < 2 or not np.isfinite(values).all():
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, _CELLS // objects)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        picked = rng.integers(objects, size=(rows, objects))
        if seeds == 1:
            means[start : start + rows] = values[0][picked].mean(axis=1)
        else:
            weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=rows) / seeds
            means[start : start + rows] = np.take_along_axis(weights @ values, picked, axis=1).mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ratio_samples(sums: ArrayLike, counts: ArrayLike, *, order: int = 1) -> np.ndarray:
    """Per-object values whose mean is the pooled mean sum(sums) / sum(counts), however ragged the objects are.

    With equal counts these are the objects' own means. Otherwise they are the pooled mean plus each object's influence
    on it (the linearised ratio estimator), so that a bootstrap of their mean has the spread of the pooled mean. A
    statistic over pairs of objects depends on each object twice (Hoeffding 1948): `order=2` doubles the influence,
    without which intervals would be half as wide as they should be.

    Args:
        sums: (O,) sum over the pairs or items that an object takes part in.
        counts: (O,) how many they are.
        order: how many objects a term joins: 1, or 2 for pairs of objects.

    Returns:
        (O,) float64; NaN throughout where the counts are all zero.

    Raises:
        ValueError: unequal shapes.
    """
    total, number = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if total.shape != number.shape or total.ndim != 1:
        raise ValueError(f"sums and counts must both be (O,), not {total.shape} and {number.shape}")
    if number.sum() == 0:
        return np.full(total.shape, math.nan)
    pooled = total.sum() / number.sum()
    return pooled + order * len(total) * (total - pooled * number) / number.sum()


def figure_over_objects(
    name: str,
    samples: np.ndarray,
    definition: str,
    *,
    n: int,
    std: float = math.nan,
    items: str = "",
    headline: str = "",
    percent: bool = False,
) -> Figure:
    """A figure from one value per object (O,): its mean with a bootstrap interval."""
    low, high = bootstrap_interval(samples)
    return Figure(name, float(np.mean(samples)), n, definition, low, high, std, samples, items, headline, percent)


def mean_over_seeds(figures: Sequence[Figure]) -> Figure:
    """The mean of one figure over runs that differ in their seed, with an interval over seeds and objects.

    Raises:
        DataError: no figure, or figures of different names or objects.
    """
    first = _same_name(figures)
    if len(figures) == 1:
        return first
    value = float(np.mean([figure.value for figure in figures]))
    definition = f"{first.definition} Mean over {len(figures)} seeds."
    stacked = _stack(figures)
    if stacked is None:
        return replace(
            first, value=value, definition=definition, low=math.nan, high=math.nan, std=math.nan, samples=None
        )
    low, high = bootstrap_interval(stacked)
    std = float(np.mean([figure.std for figure in figures]))
    return replace(first, value=value, definition=definition, low=low, high=high, std=std, samples=stacked.mean(axis=0))


def paired_difference(figures: Figure | Sequence[Figure], baseline: Figure | Sequence[Figure]) -> Figure:
    """`figures` minus `baseline`, object by object and, where there are several, seed by seed.

    Either side may be one figure, which then stands against all seeds of the other. The interval is that of the mean of
    the paired differences; NaN where a figure has no samples.

    Raises:
        DataError: different names, objects or numbers of seeds.
    """
    left = [figures] if isinstance(figures, Figure) else list(figures)
    right = [baseline] if isinstance(baseline, Figure) else list(baseline)
    first = _same_name([*left, *right])
    if len(left) != len(right) and 1 not in (len(left), len(right)):
        raise DataError(f"{first.name}: {len(left)} seeds cannot be paired with {len(right)}; run the same seeds")
    value = float(np.mean([f.value for f in left]) - np.mean([f.value for f in right]))
    a, b = _stack([*left, *right]), len(left)
    definition = f"Paired difference of: {first.definition}"
    if a is None:
        return replace(
            first, value=value, definition=definition, low=math.nan, high=math.nan, std=math.nan, samples=None
        )
    gap = a[:b] - a[b:]
    low, high = bootstrap_interval(gap)
    return replace(
        first, value=value, definition=definition, low=low, high=high, std=math.nan, samples=gap.mean(axis=0)
    )


def group_means(values: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The plain mean of `values` over each group of names, as papers average data sets into clean and shifted ones.

    Raises:
        ValueError: an empty group, or one that names what is not there.
    """
    for group, names in groups.items():
        missing = [name for name in names if name not in values]
        if missing or not names:
            raise ValueError(f"group {group!r}: {'no member' if not names else 'no value for ' + ', '.join(missing)}")
    return {group: float(np.mean([values[name] for name in names])) for group, names in groups.items()}


def _same_name(figures: Sequence[Figure]) -> Figure:
    if not figures:
        raise DataError("no figure to average")
    names = sorted({figure.name for figure in figures})
    if len(names) > 1:
        raise DataError(f"figures of different names cannot be compared: {', '.join(names)}")
    return figures[0]


def _stack(figures: Sequence[Figure]) -> np.ndarray | None:
    """(S, O) samples of figures over the same objects, or None where one has none."""
    samples = [figure.samples for figure in figures if figure.samples is not None]
    if len(samples) < len(figures):
        return None
    items = {figure.items for figure in figures if figure.items}
    if len(items) > 1 or len({len(values) for values in samples}) > 1:
        raise DataError(
            f"{figures[0].name}: measured on different objects, which cannot be paired; evaluate both on the same data"
        )
    return np.stack(samples)
