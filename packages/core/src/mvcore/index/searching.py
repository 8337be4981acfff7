"""`Index`: finds the objects or views whose vectors lie nearest to a text, to images or to a vector."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvcore.errors import ConfigError, DataError, MvcoreError
from mvcore.index import folder as files
from mvcore.index.catalogue import Catalogue, Hit, captions_of, differing
from mvcore.index.nearest import Backend, Nearest, Vectors
from mvcore.model import Model, Objects
from mvcore.model_key import model_key
from mvcore.parts import IndexedDataset, TraceableDataset

_NAMED = 3
"""Objects that a warning names of each kind."""


class Index:
    """Vectors of objects or views, with the words that go with them.

    Args:
        catalogue: what the rows are.
        tables: their vectors and owners.
        model: what encodes texts and images; None = the model that the index names, loaded when it is needed.
        backend: `faiss` or `numpy`, which give the same hits; `auto` is faiss where it is installed.
        device: where a model that the index loads runs.

    Raises:
        ConfigError: the index was built with another model; or faiss is asked for and not installed.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        tables: files.Tables,
        *,
        model: Model | None = None,
        backend: Backend = "auto",
        device: str | torch.device = "cpu",
    ) -> None:
        self.catalogue = catalogue
        self._tables = tables
        self._device = device
        self.nearest = Nearest(tables["vectors"], backend)
        self._model = None if model is None else self._checked(model)

    def __len__(self) -> int:
        return self.catalogue.rows

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(N, D) at unit length."""
        return self.nearest.vectors

    @cached_property
    def ids(self) -> list[str]:
        """The object of each row."""
        return [self.catalogue.objects[number].id for number in self._tables["object"]]

    @property
    def model(self) -> Model:
        """What encodes texts and images.

        Raises:
            MvcoreError: the model that the index was built with is gone, or is another by now.
        """
        if self._model is None:
            self._model = self._loaded(self.catalogue.model)
        return self._model

    def save(self, folder: str | Path, *, replace: bool = False) -> Path:
        """Writes the index as a folder, whole or not at all.

        Raises:
            ConfigError: something is there, and it is no index or `replace` was not said.
            DataError: it cannot be written.
        """
        path = Path(folder)
        files.write(path, self.catalogue, self._tables, replace=replace)
        return path

    def search(
        self,
        vectors: Any = None,
        k: int = 10,
        *,
        texts: str | Sequence[str] | None = None,
        images: Objects | None = None,
    ) -> list[list[Hit]]:
        """The k best rows for each query, the best first; rows of equal score in their order.

        Args:
            vectors: (Q, D) or (D,) queries of any length.
            k: how many hits; all rows where there are fewer.
            texts: a text, or Q of them.
            images: Q queries, each the views of one object, as `Model.encode_views` takes them; a single image or
                stack is one query.

        Returns:
            A list of hits for each query.

        Raises:
            ConfigError: not exactly one kind of query, k below 1, no query, or one of another width.
            DataError: a query without a direction.
            MvcoreError: the model cannot be had.
        """
        if isinstance(vectors, str):
            raise ConfigError("a text is searched as search(texts=...)")
        given = [value for value in (vectors, texts, images) if value is not None]
        if len(given) != 1:
            raise ConfigError(f"search takes vectors, texts or images, one of them; {len(given)} are given")
        if k < 1:
            raise ConfigError(f"k must be at least 1, not {k}")
        if texts is not None:
            if "text" not in self.model.pipeline.provides:
                raise ConfigError(f"{self.model.name} encodes no text; search with images or vectors")
            queries: Any = self.model.encode_text([texts] if isinstance(texts, str) else texts)
        else:
            queries = vectors if images is None else self.model.encode_views(images)
        scores, rows = self.nearest.search(self._unit(queries), k)
        return [
            [self._hit(i, score, row) for i, (score, row) in enumerate(zip(*pair, strict=True), 1)]
            for pair in zip(scores.tolist(), rows.tolist(), strict=True)
        ]

    def open_data(self, **changes: Any) -> IndexedDataset:
        """The data that was indexed, with other options where given.

        Raises:
            MvcoreError: it is gone or damaged, or was no store.
        """
        from mvcore.index.building import open_data

        if not self.catalogue.data.id:
            raise DataError("the index was made of an open dataset, so its data cannot be opened again")
        return open_data(self.catalogue.data, **changes)

    def changes(self) -> str:
        """What changed in the store since it was indexed, in one line; empty where nothing did."""
        origin = self.catalogue.data
        if not origin.id:
            return ""
        try:
            data = self.open_data()
        except MvcoreError as error:
            return f"the indexed store cannot be read: {error}"
        now = {data.object_name(i): len(data.views_of(i)) for i in range(len(data))}
        before = {entry.id: entry.views for entry in self.catalogue.objects}
        found = [
            _named("gone", [name for name in before if name not in now]),
            _named("new", [name for name in now if name not in before]),
            _named("other views", [name for name in now if before.get(name, now[name]) != now[name]]),
        ]
        changed = [text for text in found if text]
        if not changed and isinstance(data, TraceableDataset) and data.content_digest() != origin.digest:
            changed = ["images, captions or other content"]
        if not changed:
            return ""
        return f"{origin.path} changed since it was indexed ({'; '.join(changed)}); build the index again"

    def _checked(self, model: Model) -> Model:
        differences = differing(self.catalogue.model_key, model_key(model))
        if differences:
            raise ConfigError(
                f"the index was built with the model {self.catalogue.model}, but {model.name} searches it, which "
                f"differs in {', '.join(differences)}; search with that model, or build the index with this one"
            )
        return model

    def _loaded(self, name: str | Path) -> Model:
        from mvcore.index.building import connect
        from mvcore.loading import load as load_model

        model = self._checked(load_model(name, device=self._device))
        if self.catalogue.data.id and model.backbone.library == "embeddings":
            connect(model, self.open_data())
        return model

    def _unit(self, queries: Any) -> Vectors:
        tensor = queries if isinstance(queries, Tensor) else torch.as_tensor(np.asarray(queries))
        if tensor.ndim == 1:
            tensor = tensor[None]
        if tensor.ndim != 2 or tensor.shape[1] != self.catalogue.dim or not tensor.is_floating_point():
            raise ConfigError(
                f"queries must be floating (Q, {self.catalogue.dim}), not {tuple(tensor.shape)} {tensor.dtype}"
            )
        if len(tensor) == 0:
            raise ConfigError("no query given")
        exact = tensor.detach().double().cpu()
        length = torch.linalg.vector_norm(exact, dim=1, keepdim=True)
        bad = ~(torch.isfinite(length) & (length > 0)).squeeze(1)
        if bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            raise DataError(f"query {row} has length {float(length[row, 0])}, so nothing is near to it")
        return cast(Vectors, (exact / length).float().numpy())

    def _hit(self, rank: int, score: float, row: int) -> Hit:
        entry = self.catalogue.objects[int(self._tables["object"][row])]
        view = int(self._tables["view"][row])
        place = None if view < 0 else view
        return Hit(
            rank=rank,
            score=score,
            id=entry.id,
            view=place,
            category=entry.category,
            licence=entry.licence,
            captions=captions_of(entry, place),
            row=row,
        )


def load(
    folder: str | Path,
    model: str | Path | Model | None = None,
    *,
    backend: Backend = "auto",
    device: str | torch.device = "cpu",
) -> Index:
    """An index from its folder.

    Args:
        folder: what `mvcore index build` or `Index.save` wrote.
        model: what encodes queries: a model, or what `mvcore.load` takes; None = the model that the index names, loaded
            when a text or an image is searched.
        backend: `faiss`, `numpy`, or `auto`: faiss where it is installed.
        device: where a model that is named runs.

    Raises:
        DataError: no index there, or it is damaged.
        ConfigError: the index was built with another model.
    """
    catalogue, tables = files.read(Path(folder))
    if model is None or isinstance(model, Model):
        return Index(catalogue, tables, model=model, backend=backend, device=device)
    index = Index(catalogue, tables, backend=backend, device=device)
    index._model = index._loaded(model)
    return index


def _named(what: str, names: list[str]) -> str:
    """`gone: a, b, c and 4 more`; empty where there is none."""
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{what}: {', '.join(names[:_NAMED])}{more}"
