"""The evaluator `mvc_heads.reconstruction`: how much of a view the autoencoder gives back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mvcore.api import (
    ConfigError,
    Embedder,
    EvalResult,
    Figure,
    IndexedDataset,
    Model,
    figure_over_objects,
    fingerprint,
    ratio_samples,
)
from numpy.typing import NDArray
from torch import Tensor

ID = "mvc_heads.reconstruction"
KEYS = frozenset({"mvc_heads.original", "mvc_heads.decoded"})
_DEFINITIONS = {
    "mse": "Mean squared difference over views and dimensions of {source}; what the authors call the L2 distance.",
    "mean_l2": "Mean over the views of {source} of the Euclidean distance to the decoded view, as in the loss.",
    "rms_l2": "Root of the mean squared Euclidean distance, which is the root of D times mse, on {source}.",
    "relative": "rms_l2 over the root of the views' mean squared length, on {source}; 1 is what zeros would reach.",
    "cosine": "Mean cosine of a view of {source} and what was decoded of it.",
}


@dataclass(frozen=True)
class Reconstruction:
    """What is left of N vectors of D dimensions after decoding.

    Args:
        squared: (N,) squared Euclidean distances.
        energy: (N,) squared lengths of the originals.
        cosine: (N,) cosines of original and decoded; 0 where one of them is zero.
        dim: D.
    """

    squared: NDArray[np.float64]
    energy: NDArray[np.float64]
    cosine: NDArray[np.float64]
    dim: int

    @property
    def mse(self) -> float:
        return float(self.squared.mean()) / self.dim

    @property
    def mean_l2(self) -> float:
        return float(np.sqrt(self.squared).mean())

    @property
    def rms_l2(self) -> float:
        return rms_distance(self.mse, self.dim)

    @property
    def relative(self) -> float:
        energy = float(self.energy.mean())
        return math.sqrt(float(self.squared.mean()) / energy) if energy else math.nan


def rms_distance(mse: float, dim: int) -> float:
    """The root mean square distance of vectors whose mean squared difference an element is `mse`."""
    return math.sqrt(dim * mse)


def reconstruction(original: Tensor, decoded: Tensor) -> Reconstruction:
    """Compares (N, D) vectors with what was decoded of them, in float64.

    Raises:
        ValueError: shapes that differ or are not (N, D).
    """
    if original.ndim != 2 or original.shape != decoded.shape:
        raise ValueError(
            f"original and decoded must both be (N, D), not {tuple(original.shape)} and {tuple(decoded.shape)}"
        )
    a, b = original.detach().cpu().double(), decoded.detach().cpu().double()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)
    return Reconstruction(
        (a - b).square().sum(dim=1).numpy(), a.square().sum(dim=1).numpy(), cosine.numpy(), a.shape[1]
    )


class ReconstructionReport:
    """`mvc_heads.reconstruction`: `mse`, `mean_l2`, `rms_l2`, `relative` and `cosine` of each source.

    A model without the autoencoder, as the untouched one, has no such figures.

    Args:
        sources: see `ReconstructionOptions`.
    """

    def __init__(self, sources: tuple[str, ...] | None = None) -> None:
        self.sources = sources

    def __call__(self, model: Model | Embedder, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        """Measures every chosen source.

        Raises:
            ConfigError: a chosen source that is not there.
        """
        embedder = Embedder.of(model)
        for name in self.sources or ():
            if name not in sources:
                raise ConfigError(f"{ID}: no source {name!r} to measure on; there are: {', '.join(sources) or 'none'}")
        if not embedder.pipeline.provides >= KEYS:
            return EvalResult()
        figures: list[Figure] = []
        for name in sources if self.sources is None else self.sources:
            figures += _figures(name, sources[name], embedder)
        return EvalResult(figures)


def _figures(name: str, dataset: IndexedDataset, embedder: Embedder) -> list[Figure]:
    embedded = embedder.embed(name, dataset, KEYS)
    found = reconstruction(embedded.features["mvc_heads.original"], embedded.features["mvc_heads.decoded"])
    owner = embedded.object_of_view.numpy()
    counts = np.bincount(owner, minlength=len(dataset)).astype(np.float64)
    items = fingerprint([dataset.object_name(i) for i in range(len(dataset))])

    def over_objects(what: str, values: NDArray[np.float64]) -> Figure:
        samples = ratio_samples(np.bincount(owner, values, len(dataset)), counts)
        definition = _DEFINITIONS[what].format(source=name)
        return figure_over_objects(f"{ID}/{what}/{name}", samples, definition, n=len(values), items=items)

    def whole(what: str, value: float) -> Figure:
        return Figure(f"{ID}/{what}/{name}", value, len(owner), _DEFINITIONS[what].format(source=name), items=items)

    return [
        over_objects("mse", found.squared / found.dim),
        over_objects("mean_l2", np.sqrt(found.squared)),
        whole("rms_l2", found.rms_l2),
        whole("relative", found.relative),
        over_objects("cosine", found.cosine),
    ]
