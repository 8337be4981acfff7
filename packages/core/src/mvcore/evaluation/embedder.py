"""A model whose passes over a source are made once and shared by the evaluators of one `evaluate` call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mvcore.errors import DataError, MvcoreError
from mvcore.evaluation.stored import StoredViews
from mvcore.evaluation.viewpoints import azimuths, elevations, optical_axes
from mvcore.model import Model
from mvcore.parts import Embedded, IndexedDataset
from mvcore.training.embedding import embed_dataset
from mvcore.types import Features, ViewBatch

VIEW = frozenset({"view"})


@contextmanager
def naming_source(owner: str, source: str) -> Iterator[None]:
    """Says whose features on which source the pure functions refuse; faults that name themselves pass through.

    Raises:
        DataError: a feature without a direction.
    """
    try:
        yield
    except MvcoreError:
        raise
    except ValueError as error:
        raise DataError(f"{owner} on source {source!r}: {error}; the model gives broken features") from error


@dataclass(frozen=True)
class CaptionPairs:
    """Which captions describe which views: a view's own where it has them, else its object's.

    Args:
        texts: T different captions.
        view_index, text_index: (P,) rows of the source's views and of `texts`.
    """

    texts: tuple[str, ...]
    view_index: Tensor
    text_index: Tensor


@dataclass(frozen=True)
class Viewpoints:
    """Where the cameras of a source's views stand; NaN where it is not known.

    Args:
        azimuths, elevations: (N,) degrees; see `mvcore.evaluation.viewpoints`.
        axes: (N, 3) unit optical axes.
    """

    azimuths: Tensor
    elevations: Tensor
    axes: Tensor


@dataclass
class _Pass:
    """What was seen of a source so far."""

    dataset: IndexedDataset
    embedded: Embedded
    captions: CaptionPairs
    viewpoints: Viewpoints


@dataclass
class _Recorder:
    """Collects captions and viewpoints while a source is embedded, so that no image is decoded twice."""

    texts: dict[str, int] = field(default_factory=dict[str, int])
    views: list[Tensor] = field(default_factory=list[Tensor])
    columns: list[Tensor] = field(default_factory=list[Tensor])
    azimuths: list[Tensor] = field(default_factory=list[Tensor])
    elevations: list[Tensor] = field(default_factory=list[Tensor])
    axes: list[Tensor] = field(default_factory=list[Tensor])
    n_views: int = 0

    def add(self, batch: ViewBatch) -> None:
        if batch.captions:
            numbers = torch.tensor([self.texts.setdefault(text, len(self.texts)) for text in batch.captions])
            rows, columns = batch.positives().nonzero(as_tuple=True)
            self.views.append(rows + self.n_views)
            self.columns.append(numbers[columns])
        self.azimuths.append(azimuths(batch))
        self.elevations.append(elevations(batch))
        self.axes.append(optical_axes(batch))
        self.n_views += batch.n_views

    def pairs(self) -> CaptionPairs:
        none = torch.empty(0, dtype=torch.int64)
        return CaptionPairs(tuple(self.texts), torch.cat([none, *self.views]), torch.cat([none, *self.columns]))

    def viewpoints(self) -> Viewpoints:
        return Viewpoints(torch.cat(self.azimuths), torch.cat(self.elevations), torch.cat(self.axes))


class Embedder:
    """A `Model` with a memory: every feature of a source's views is computed once.

    Everything else that it is asked for is the model's own.

    Args:
        model: what is measured.
        stored: sources whose view vectors of this model are read, not computed.
    """

    def __init__(self, model: Model, stored: StoredViews | None = None) -> None:
        self.model = model
        self.stored = stored
        self._passes: dict[str, _Pass] = {}
        self._texts: dict[tuple[str, ...], Tensor] = {}

    @staticmethod
    def of(model: Model | Embedder) -> Embedder:
        """The model itself if it already remembers, else wrapped."""
        return model if isinstance(model, Embedder) else Embedder(model)

    def __getattr__(self, name: str) -> Any:
        if name in ("model", "stored"):
            raise AttributeError(name)
        return getattr(self.model, name)

    @property
    def has_text(self) -> bool:
        """The model encodes texts."""
        return "text" in self.model.pipeline.provides

    def embed(self, source: str, dataset: IndexedDataset, keys: frozenset[str] = VIEW) -> Embedded:
        """Features of each view of a source, all objects in the dataset's order.

        Raises:
            DataError: the source has no object.
        """
        return self._pass(source, dataset, keys).embedded

    def captions(self, source: str, dataset: IndexedDataset) -> CaptionPairs:
        """The captions of a source's views."""
        return self._pass(source, dataset, VIEW).captions

    def azimuths(self, source: str, dataset: IndexedDataset) -> Tensor:
        """(N,) azimuth of each view's camera in degrees, NaN where it is not known."""
        return self.viewpoints(source, dataset).azimuths

    def viewpoints(self, source: str, dataset: IndexedDataset) -> Viewpoints:
        """Where the cameras of a source's views stand."""
        return self._pass(source, dataset, VIEW).viewpoints

    def encode_texts(self, texts: Sequence[str], per_batch: int) -> Tensor:
        """(T, D) float32 on the CPU, encoded `per_batch` at a time; the same texts are encoded once."""
        key = tuple(texts)
        if key not in self._texts:
            batches = [list(texts[start : start + per_batch]) for start in range(0, len(texts), per_batch)]
            self._texts[key] = torch.cat([self.model.encode_text(batch).float().cpu() for batch in batches])
        return self._texts[key]

    def _pass(self, source: str, dataset: IndexedDataset, keys: frozenset[str]) -> _Pass:
        seen = self._passes.get(source)
        if seen is not None and seen.dataset is not dataset:
            seen = None
        missing = keys if seen is None else keys.difference(seen.embedded.features)
        if seen is not None and not missing:
            return seen
        if len(dataset) == 0:
            raise DataError(f"source {source!r} has no object to measure")
        recorder = _Recorder()
        read, features_of = dataset, self.model.features
        if self.stored is not None and source in self.stored.sources and missing == VIEW:
            read, features_of = self.stored.sources[source], self._stored_features

        def recorded(batch: ViewBatch, wanted: frozenset[str]) -> Features:
            recorder.add(batch)
            return features_of(batch, wanted)

        embedded = embed_dataset(recorded, read, missing, views_per_batch=self.model.views_per_batch)
        if seen is not None:
            embedded = replace(embedded, features={**seen.embedded.features, **embedded.features})
        self._passes[source] = _Pass(dataset, embedded, recorder.pairs(), recorder.viewpoints())
        return self._passes[source]

    def _stored_features(self, batch: ViewBatch, wanted: frozenset[str]) -> Features:
        assert self.stored is not None
        return Features({"view": batch.embeddings[f"{self.stored.tag}/image"]})
