"""The evaluator `duoduo.text_to_shape`: does a text find its shape among all shapes? (Text2Shape's measures.)"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mvcore.api import (
    ConfigError,
    DataError,
    Embedder,
    EvalResult,
    Figure,
    IndexedDataset,
    Model,
    Table,
    figure_over_objects,
    fingerprint,
    ratio_samples,
)
from torch import Tensor

from mvcore_duoduo.evaluation.encoding import SubsetEncoder
from mvcore_duoduo.evaluation.files import plain_id, read_captions
from mvcore_duoduo.evaluation.leaks import overlap_of, training_ids
from mvcore_duoduo.evaluation.metrics import cosine_ranks, discounted_gains, recalled, reciprocal_ranks
from mvcore_duoduo.evaluation.options import TextToShapeOptions
from mvcore_duoduo.evaluation.subsets import Subset, view_subset
from mvcore_duoduo.evaluation.view_count import chosen_sources

ID = "duoduo.text_to_shape"


class TextToShape:
    """Recall rates `duoduo.text_to_shape/rr<k>/<source>`, `ndcg<k>` and `mrr`; a query is one text of one shape."""

    def __init__(self, **options: Any) -> None:
        self.options = TextToShapeOptions(**options)

    def __call__(self, model: Model | Embedder, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        """Measures every chosen source.

        Raises:
            ConfigError: the model encodes no text, or an unknown source is chosen.
            DataError: a source without texts, texts of objects that it lacks, or objects of the training set.
        """
        model = Embedder.of(model)
        if not model.has_text:
            raise ConfigError(f"{ID}: this model encodes no text; leave the evaluator out")
        trained = training_ids(model, self.options)
        figures: list[Figure] = []
        tables: list[Table] = []
        for name in chosen_sources(self.options.sources, sources, ID):
            dataset = sources[name]
            names = [dataset.object_name(i) for i in range(len(dataset))]
            leaked = overlap_of(names, trained, self.options, ID, name)
            texts, target, left_out = self._queries(model, name, dataset, names)
            shapes = self._shapes(model, name, dataset, names)
            words = sorted(set(texts))
            place = {text: row for row, text in enumerate(words)}
            vectors = model.encode_texts(words, self.options.texts_per_batch)[[place[text] for text in texts]]
            try:
                ranks = cosine_ranks(vectors, shapes, target)
            except ValueError as error:
                raise DataError(f"{ID} on source {name!r}: {error}; the model gives broken features") from error
            figures += self._figures(name, names, ranks, target)
            rows = [
                ("shapes", str(len(names))),
                ("texts", str(len(texts))),
                ("texts of shapes that the source lacks, left out", str(left_out)),
                ("shapes of the training set", leaked),
            ]
            tables.append(Table(f"Text to shape, {name}", ("what", "number"), rows))
        return EvalResult(figures, tables)

    def _queries(
        self, model: Embedder, source: str, dataset: IndexedDataset, names: list[str]
    ) -> tuple[list[str], Tensor, int]:
        """The texts, (Q,) each one's shape, and how many texts have none."""
        if self.options.captions is not None:
            number = {plain_id(name): i for i, name in enumerate(names)}
            rows = read_captions(self.options.captions)
            pairs = [(text, number[owner]) for owner, text in rows if owner in number]
            if not pairs:
                raise DataError(f"{ID}: source {source!r} holds no shape that {self.options.captions} describes")
            return [text for text, _ in pairs], torch.tensor([owner for _, owner in pairs]), len(rows) - len(pairs)
        embedded, captions = model.embed(source, dataset), model.captions(source, dataset)
        if not captions.texts:
            raise DataError(f"{ID}: source {source!r} has no caption; name a file of texts with captions")
        # A text of several views of a shape asks once.
        both = torch.stack([captions.text_index, embedded.object_of_view[captions.view_index]], dim=1)
        pairs_of = torch.unique(both, dim=0)
        return [captions.texts[text] for text in pairs_of[:, 0].tolist()], pairs_of[:, 1], 0

    def _shapes(self, model: Embedder, source: str, dataset: IndexedDataset, names: list[str]) -> Tensor:
        """(O, D) vectors of all shapes."""
        count, seed = self.options.count, self.options.seed
        wanted: dict[int, list[Subset]] = {
            i: [view_subset(seed, name, count, len(dataset.views_of(i)))] for i, name in enumerate(names)
        }
        parts = {
            i: vector
            for jobs, vectors in SubsetEncoder(model, self.options).encode(source, dataset, wanted, whole=True)
            for (i, _), vector in zip(jobs, vectors, strict=True)
        }
        return torch.stack([parts[i] for i in range(len(names))])

    def _figures(self, source: str, names: list[str], ranks: Tensor, target: Tensor) -> list[Figure]:
        items = fingerprint(names)
        among = f"among the {len(names)} shapes of {source}, each from at most {self.options.count} views"
        measures = {
            f"rr{k}": (
                recalled(ranks, k),
                f"Share of texts whose shape is one of the {k} most similar {among}, 0 to 1.",
            )
            for k in self.options.topk
        }
        k = self.options.ndcg
        measures[f"ndcg{k}"] = (
            discounted_gains(ranks, k),
            f"Mean over texts of 1 / log2(rank + 2) where the rank of its shape is below {k}, else 0, {among}, 0 to 1.",
        )
        measures["mrr"] = (
            reciprocal_ranks(ranks),
            f"Mean over texts of 1 / (rank + 1) of its shape {among}, 0 to 1.",
        )
        return [
            figure_over_objects(
                f"{ID}/{name}/{source}",
                pooled_samples(values, target, len(names)),
                definition,
                n=len(values),
                items=items,
                headline=f"text to shape RR@{min(self.options.topk)} {source}"
                if name == f"rr{min(self.options.topk)}"
                else "",
                percent=True,
            )
            for name, (values, definition) in measures.items()
        ]


def pooled_samples(values: Tensor, owners: Tensor, n_objects: int) -> np.ndarray:
    """(O,) values whose mean is the mean over queries: that mean plus each object's influence on it.

    Args:
        values: (Q,) one a query.
        owners: (Q,) the object that a query belongs to; an object may have none.
        n_objects: O.
    """
    sums = torch.bincount(owners, weights=values, minlength=n_objects)
    return ratio_samples(sums.numpy(), torch.bincount(owners, minlength=n_objects).numpy())
