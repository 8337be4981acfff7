"""The evaluator `core.consistency`: how much a model's features hang on the viewpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mvcore.evaluation.embedder import Embedder, naming_source
from mvcore.evaluation.options import ConsistencyOptions, check_names
from mvcore.evaluation.results import EvalResult, Figure, fingerprint
from mvcore.evaluation.similarity import Similarity, consistency, pair_similarity, view_similarity_map
from mvcore.evaluation.statistics import figure_over_objects
from mvcore.evaluation.texts import texts_of_views
from mvcore.model import Model
from mvcore.parts import Embedded, IndexedDataset

ID = "core.consistency"
_DEFINITIONS = {
    "same_object": "Mean cosine of two views of one object of {source}, over all ordered pairs.",
    "different_object": "Mean cosine of views of two objects of {source}, over all ordered pairs.",
    "text_to_image": "Mean cosine of {text} and each view that it describes, in {source}.",
    "center_mean": "Mean cosine of a view to the direction of its object's mean view, in {source}.",
    "center_min": "Smallest cosine of an object's views to the direction of their mean, averaged over {source}.",
}


class Consistency:
    """Same-object, different-object and text-to-image similarity, `core.consistency/same_object/<source>`.

    Also the mean and the smallest cosine of an object's views to their centre. `std` is over pairs with ddof 1, the
    interval over objects.
    """

    def __init__(self, **options: Any) -> None:
        self.options = ConsistencyOptions(**options)

    def __call__(self, model: Model | Embedder, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        """Measures every chosen source.

        Raises:
            ConfigError: texts are demanded of a source that has none.
            DataError: a feature without a direction.
        """
        embedder = Embedder.of(model)
        figures: list[Figure] = []
        pictures: list[Path] = []
        for name in check_names(self.options.sources, list(sources), ID):
            embedded = embedder.embed(name, sources[name])
            with naming_source(ID, name):
                figures += self._source(embedder, name, sources[name], embedded)
                if self.options.picture:
                    pictures += _picture(name, embedded, output)
        return EvalResult(figures, pictures=pictures)

    def _source(self, embedder: Embedder, name: str, dataset: IndexedDataset, embedded: Embedded) -> list[Figure]:
        options = self.options
        views, owners = embedded.features["view"], embedded.object_of_view
        found = consistency(None, views, torch.bincount(owners, minlength=len(dataset)))
        texts = texts_of_views(embedder, name, dataset, options.text, options.template, options.texts_per_batch, ID)
        similarities = {"same_object": found.same_object, "different_object": found.different_object}
        if texts is not None:
            similarities["text_to_image"] = pair_similarity(
                views, texts.vectors, texts.view_index, texts.text_index, owners, len(dataset)
            )
        items = fingerprint([dataset.object_name(i) for i in range(len(dataset))])
        text = "" if texts is None else texts.what
        figures = [
            _figure(what, name, similarity, text, items) for what, similarity in similarities.items() if similarity.n
        ]
        for what, values in (("center_mean", found.center_mean), ("center_min", found.center_min)):
            definition = _DEFINITIONS[what].format(source=name)
            figures.append(figure_over_objects(f"{ID}/{what}/{name}", values, definition, n=len(values), items=items))
        return figures


def _figure(what: str, source: str, similarity: Similarity, text: str, items: str) -> Figure:
    return figure_over_objects(
        f"{ID}/{what}/{source}",
        similarity.samples,
        _DEFINITIONS[what].format(source=source, text=text),
        n=similarity.n,
        std=similarity.std,
        items=items,
        headline=f"{what.replace('_', ' ')} {source}",
    )


def _picture(source: str, embedded: Embedded, output: Path) -> list[Path]:
    """The view-by-view map, where view i can be the same viewpoint in every object."""
    from mvcore.report.figures import draw_similarity_maps

    counts = torch.bincount(embedded.object_of_view)
    count = int(counts[0])
    if count < 2 or bool((counts != count).any()):
        return []
    views = embedded.features["view"]
    mean, _ = view_similarity_map(views.view(len(counts), count, -1))
    return [draw_similarity_maps({source: mean}, output / f"similarity-{source}.png")]
