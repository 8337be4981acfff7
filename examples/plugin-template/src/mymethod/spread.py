"""An evaluator: a measurement with its definition, number and interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from mvcore.api import Embedder, EvalResult, Figure, IndexedDataset, Model, figure_over_objects, fingerprint
from torch.nn import functional as F

ID = "mymethod.spread"


class Spread:
    """`mymethod.spread`: mean cosine distance of an object's views to their mean direction."""

    def __call__(self, model: Model | Embedder, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        """Measures every source; pictures would go into `output`."""
        embedder = Embedder.of(model)
        figures: list[Figure] = []
        for name, dataset in sources.items():
            embedded = embedder.embed(name, dataset)
            views, owners = F.normalize(embedded.features["view"], dim=1), embedded.object_of_view
            means = torch.zeros(len(dataset), views.shape[1]).index_add(0, owners, views)
            distance = 1 - (views * F.normalize(means, dim=1)[owners]).sum(dim=1)
            samples = torch.zeros(len(dataset)).index_add(0, owners, distance) / torch.bincount(owners)
            figures.append(
                figure_over_objects(
                    f"{ID}/{name}",
                    samples.double().numpy(),
                    f"Mean cosine distance of a view to its object's mean direction, over the objects of {name}.",
                    n=len(dataset),
                    items=fingerprint([dataset.object_name(i) for i in range(len(dataset))]),
                    headline="spread",
                )
            )
        return EvalResult(figures)
