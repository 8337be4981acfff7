"""The evaluator `core.ledger`: consistency gained against meaning lost, from one pass over each source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvcore.config import LEDGER
from mvcore.errors import ConfigError, DataError
from mvcore.evaluation.embedder import Embedder, naming_source
from mvcore.evaluation.ledger_maps import save_maps
from mvcore.evaluation.ledger_views import measure_views
from mvcore.evaluation.moments import object_blocks
from mvcore.evaluation.options import LEDGER_MISSING, LedgerOptions, check_names
from mvcore.evaluation.results import EvalResult, Figure, Table, fingerprint
from mvcore.evaluation.retrieval import own_text_ranks
from mvcore.evaluation.similarity import Similarity, packed_views, pair_similarity
from mvcore.evaluation.statistics import figure_over_objects, ratio_samples
from mvcore.evaluation.texts import ViewTexts, texts_of_views
from mvcore.evaluation.zero_shot import ID as ZERO_SHOT
from mvcore.evaluation.zero_shot import ZeroShot
from mvcore.model import Model
from mvcore.parts import IndexedDataset

ID = LEDGER
_ROWS = 4096
"""Views held in float64 at once."""
_ORDERED = "over all ordered pairs; deviation over pairs, ddof 1."
_DEFINITIONS = {
    "same_object": f"Mean cosine of two different views of one object of {{source}}, {_ORDERED}",
    "different_object": f"Mean cosine of views of two objects of {{source}}, {_ORDERED}",
    "separation": "same_object less different_object, in {source}.",
    "worst_view": "Mean cosine of a view to the other views of its object, of each object's worst view; mean over the"
    " objects of {source}.",
    "participation_ratio": "1 / mean squared cosine of all ordered pairs of views of {source}, each with itself"
    " included; 1 (one direction) to the width.",
    "centred_participation_ratio": "tr(C)^2 / tr(C^2) of the covariance C of the unit vectors of {source}: in how many"
    " directions they differ.",
    "effective_rank": "exp of the entropy of the singular values of the unit vectors of {source} over their sum.",
    "angle": "Mean cosine of two views of one object of {source} whose cameras' optical axes are nearest to {bin}"
    " degrees apart (steps of {step:g}), over all ordered pairs.",
    "elevation": "Mean cosine of a view whose camera's elevation is nearest to {bin} degrees (steps of {step:g}) to the"
    " other views of its object, in {source}.",
    "text_to_image": "Mean cosine of {text} and each view that it describes, in {source}; deviation over pairs,"
    " ddof 1.",
    "own_text": "Share of views of {source} to which a text of their own is the most similar of {among} texts ({text});"
    " ties count as misses; 0 to 1.",
}


class Ledger:
    """What a method gains in consistency and what it pays for it, `core.ledger/<quantity>/<source>`.

    Quantities: `same_object`, `different_object`, `separation`, `worst_view`, `participation_ratio`,
    `centred_participation_ratio`, `effective_rank`; `angle` and `elevation`, each with a bin in degrees behind the
    source, where cameras are known; `text_to_image`, `own_text` and `zero_shot` where the model has texts.
    """

    def __init__(self, **options: Any) -> None:
        self.options = LedgerOptions(**options)

    def __call__(self, model: Model | Embedder, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        """Measures every chosen source.

        Raises:
            ConfigError: texts are demanded of a source or a model that has none.
            DataError: a feature without a direction.
        """
        embedder = Embedder.of(model)
        chosen = {name: sources[name] for name in check_names(self.options.sources, list(sources), ID)}
        figures: list[Figure] = []
        missing: list[tuple[str, str, str]] = []
        for name, dataset in chosen.items():
            with naming_source(ID, name):
                figures += self._views(embedder, name, dataset)
                figures += self._texts(embedder, name, dataset, missing)
            if self.options.maps:
                save_maps(embedder, name, dataset, output)
        figures += self._zero_shot(embedder, chosen, output, missing)
        tables = [Table(LEDGER_MISSING, ("source", "rows", "why"), missing)] if missing else []
        return EvalResult(figures, tables)

    def _views(self, embedder: Embedder, name: str, dataset: IndexedDataset) -> list[Figure]:
        embedded, viewpoints = embedder.embed(name, dataset), embedder.viewpoints(name, dataset)
        views, counts = packed_views(
            embedded.features["view"], torch.bincount(embedded.object_of_view, minlength=len(dataset))
        )
        options = self.options
        found = measure_views(
            lambda: object_blocks(views, counts, _ROWS),
            len(counts),
            views.shape[1],
            axes=_known(viewpoints.axes),
            elevations=_known(viewpoints.elevations),
            angle_step=options.angle_step,
            elevation_step=options.elevation_step,
        )
        steps = {"angle": options.angle_step, "elevation": options.elevation_step}
        return [
            _figure(what, name, dataset, value, step=steps.get(what.partition("/")[0])) for what, value in found.items()
        ]

    def _texts(
        self, embedder: Embedder, name: str, dataset: IndexedDataset, missing: list[tuple[str, str, str]]
    ) -> list[Figure]:
        options = self.options
        if options.text == "none":
            return []
        views = embedder.embed(name, dataset).features["view"]
        try:
            texts = texts_of_views(embedder, name, dataset, options.text, options.template, options.texts_per_batch, ID)
            reason = _no_text(embedder, texts, views)
        except (ConfigError, DataError) as error:
            if options.text != "auto":
                raise
            texts, reason = None, str(error)
        if texts is None or reason:
            missing.append((name, "text_to_image, own_text", reason))
            return []
        owners = embedder.embed(name, dataset).object_of_view
        pairs = pair_similarity(views, texts.vectors, texts.view_index, texts.text_index, owners, len(dataset))
        return [
            _figure("text_to_image", name, dataset, pairs, text=texts.what),
            self._own_text(name, dataset, views, owners, texts),
        ]

    def _own_text(self, name: str, dataset: IndexedDataset, views: Tensor, owners: Tensor, texts: ViewTexts) -> Figure:
        """Of the texts of so many objects at most, since every view is compared with every text."""
        limit = self.options.retrieval_objects
        chosen = np.unique(np.linspace(0, len(dataset) - 1, min(limit, len(dataset))).round().astype(np.int64))
        place = torch.full((len(dataset),), -1)
        place[chosen] = torch.arange(len(chosen))
        rows = (place[owners] >= 0).nonzero().squeeze(1)
        new_row = torch.full((len(views),), -1)
        new_row[rows] = torch.arange(len(rows))
        kept = new_row[texts.view_index] >= 0
        used, columns = torch.unique(texts.text_index[kept], return_inverse=True)
        ranks = own_text_ranks(views[rows], texts.vectors[used], new_row[texts.view_index[kept]], columns)
        asked = ranks >= 0
        objects = place[owners[rows]]
        counts = torch.bincount(objects[asked], minlength=len(chosen)).double().numpy()
        hits = torch.bincount(objects[asked & (ranks == 0)], minlength=len(chosen)).double().numpy()
        definition = _DEFINITIONS["own_text"].format(source=name, text=texts.what, among=len(used))
        if len(chosen) < len(dataset):
            definition += f" {len(chosen)} of {len(dataset)} objects, evenly spaced."
        items = fingerprint([dataset.object_name(int(i)) for i in chosen])
        return figure_over_objects(
            f"{ID}/own_text/{name}",
            ratio_samples(hits, counts),
            definition,
            n=int(asked.sum()),
            items=items,
            percent=True,
        )

    def _zero_shot(
        self,
        embedder: Embedder,
        sources: Mapping[str, IndexedDataset],
        output: Path,
        missing: list[tuple[str, str, str]],
    ) -> list[Figure]:
        options = self.options.zero_shot
        if options is None or self.options.text == "none":
            return []
        everywhere = ", ".join(sources)
        if not embedder.has_text:
            missing.append((everywhere, "zero_shot", "the model encodes no text"))
            return []
        try:
            found = ZeroShot(**dict(options))(embedder, sources, output)
        except (ConfigError, DataError) as error:
            missing.append((everywhere, "zero_shot", str(error)))
            return []
        prompts = "the 80 of OpenAI" if options.templates == "openai" else ", ".join(map(repr, options.templates))
        best = f"{ZERO_SHOT}/top{min(options.topk)}/"
        return [
            replace(
                figure,
                name=f"{ID}/zero_shot/{figure.name.removeprefix(best)}",
                definition=f"{figure.definition} Prompts: {prompts}.",
                headline="",
            )
            for figure in found.figures
            if figure.name.startswith(best) and figure.name.removeprefix(best) in sources
        ]


def _known(values: Tensor) -> Tensor | None:
    return None if bool(values.isnan().all()) else values


def _no_text(embedder: Embedder, texts: ViewTexts | None, views: Tensor) -> str:
    """Why texts and views cannot be compared; nothing where they can."""
    if not embedder.has_text:
        return "the model encodes no text"
    if texts is None:
        return "the source has neither captions nor a category for every object"
    if texts.vectors.shape[1] != views.shape[1]:
        return f"views are {views.shape[1]} wide and texts {texts.vectors.shape[1]}"
    return ""


def _figure(
    what: str, source: str, dataset: IndexedDataset, value: Similarity, *, text: str = "", step: float | None = None
) -> Figure:
    quantity, _, place = what.partition("/")
    return figure_over_objects(
        f"{ID}/{quantity}/{source}{'/' * bool(place)}{place}",
        value.samples,
        _DEFINITIONS[quantity].format(source=source, text=text, bin=place, step=step),
        n=value.n,
        std=value.std,
        items=fingerprint([dataset.object_name(i) for i in range(len(dataset))]),
    )
