"""The evaluator `core.retrieval`: does a view, or a text, find the views of its own object among all views?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvcore.evaluation.embedder import Embedder, naming_source
from mvcore.evaluation.moments import unit_rows
from mvcore.evaluation.options import RetrievalOptions, check_names
from mvcore.evaluation.results import EvalResult, Figure, fingerprint
from mvcore.evaluation.statistics import figure_over_objects, ratio_samples
from mvcore.evaluation.texts import texts_of_views
from mvcore.model import Model
from mvcore.parts import IndexedDataset

ID = "core.retrieval"
_CELLS = 1 << 23
"""Cosines held at once, 64 MiB."""


def best_ranks(
    queries: Tensor, views: Tensor, query_object: Tensor, object_of_view: Tensor, *, own_row: Tensor | None = None
) -> Tensor:
    """(Q,) how many views of other objects are at least as similar to a query as the best view of its own object.

    Recall at k is the share below k. Ties count against the query, so a model that maps everything to one vector finds
    nothing.

    Args:
        queries: (Q, D).
        views: (N, D).
        query_object: (Q,) the object that a query belongs to.
        object_of_view: (N,).
        own_row: (Q,) the row of `views` that is the query itself and cannot be its own answer; or None.

    Returns:
        (Q,) int64; -1 where the object has no view to be found.

    Raises:
        ValueError: a vector without a direction.
    """
    unit = unit_rows(views, slice(None), "views")
    ranks = torch.empty(len(queries), dtype=torch.int64)
    step = max(1, _CELLS // max(1, len(views)))
    for start in range(0, len(queries), step):
        rows = torch.arange(start, min(start + step, len(queries)))
        cosines = unit_rows(queries, rows, "queries") @ unit.T
        own = query_object[rows, None] == object_of_view
        candidates = own.clone()
        if own_row is not None:
            candidates[torch.arange(len(rows)), own_row[rows]] = False
        best = cosines.masked_fill(~candidates, -torch.inf).amax(dim=1, keepdim=True)
        found = ((cosines >= best) & ~own).sum(dim=1)
        ranks[rows] = torch.where(candidates.any(dim=1), found, -1)
    return ranks


def own_text_ranks(views: Tensor, texts: Tensor, view_index: Tensor, text_index: Tensor) -> Tensor:
    """(N,) how many other texts are at least as similar to a view as the best of its own.

    Ties count against the view, so a model that maps everything to one vector finds nothing.

    Args:
        views: (N, D).
        texts: (T, D).
        view_index, text_index: (P,) rows of both that belong together.

    Returns:
        (N,) int64; -1 where a view has no text.

    Raises:
        ValueError: a vector without a direction.
    """
    unit = unit_rows(texts, slice(None), "texts")
    view_index, order = view_index.sort()
    text_index = text_index[order]
    ranks = torch.empty(len(views), dtype=torch.int64)
    step = max(1, _CELLS // max(1, len(texts)))
    for start in range(0, len(views), step):
        rows = torch.arange(start, min(start + step, len(views)))
        cosines = unit_rows(views, rows, "views") @ unit.T
        low, high = torch.searchsorted(view_index, torch.tensor([start, start + len(rows)])).tolist()
        own = torch.zeros(cosines.shape, dtype=torch.bool)
        own[view_index[low:high] - start, text_index[low:high]] = True
        best = cosines.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        others = ((cosines >= best) & ~own).sum(dim=1)
        ranks[rows] = torch.where(own.any(dim=1), others, -1)
    return ranks


class Retrieval:
    """Recall of an object's other views from a view, `core.retrieval/view_r1/<source>`; from a text, `text_r1`."""

    def __init__(self, **options: Any) -> None:
        self.options = RetrievalOptions(**options)

    def __call__(self, model: Model | Embedder, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        """Measures every chosen source.

        Raises:
            ConfigError: texts are demanded of a source that has none.
            DataError: a feature without a direction.
        """
        embedder = Embedder.of(model)
        figures: list[Figure] = []
        for name in check_names(self.options.sources, list(sources), ID):
            with naming_source(ID, name):
                figures += self._source(embedder, name, sources[name])
        return EvalResult(figures)

    def _source(self, embedder: Embedder, name: str, dataset: IndexedDataset) -> list[Figure]:
        options = self.options
        embedded = embedder.embed(name, dataset)
        views, owners = embedded.features["view"], embedded.object_of_view
        ranks = best_ranks(views, views, owners, owners, own_row=torch.arange(len(views)))
        figures = self._recalls("view", name, dataset, ranks, owners)
        texts = texts_of_views(embedder, name, dataset, options.text, options.template, options.texts_per_batch, ID)
        if texts is not None:
            # One query per text and object: a caption of several views asks once.
            pairs = torch.unique(torch.stack([texts.text_index, owners[texts.view_index]], dim=1), dim=0)
            queries, asked = texts.vectors[pairs[:, 0]], pairs[:, 1]
            figures += self._recalls("text", name, dataset, best_ranks(queries, views, asked, owners), asked)
        return figures

    def _recalls(self, kind: str, name: str, dataset: IndexedDataset, ranks: Tensor, objects: Tensor) -> list[Figure]:
        asked = ranks >= 0
        if not bool(asked.any()):
            return []
        items = fingerprint([dataset.object_name(i) for i in range(len(dataset))])
        counts = torch.bincount(objects[asked], minlength=len(dataset)).double()
        figures: list[Figure] = []
        for k in self.options.topk:
            hits = torch.bincount(objects[asked & (ranks < k)], minlength=len(dataset)).double()
            query = "a view" if kind == "view" else "a text"
            figures.append(
                figure_over_objects(
                    f"{ID}/{kind}_r{k}/{name}",
                    ratio_samples(hits.numpy(), counts.numpy()),
                    f"Share of queries of {name} in which {query} has a view of its own object among the"
                    f" {k} most similar views, 0 to 1.",
                    n=int(asked.sum()),
                    items=items,
                    headline=f"{kind} R@{k} {name}" if k == min(self.options.topk) else "",
                    percent=True,
                )
            )
        return figures
