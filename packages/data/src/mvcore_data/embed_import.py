"""Vectors that others made, as those of a store: Duoduo CLIP's embedding files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from mvcore.api import DataError
from numpy.typing import NDArray

from mvcore_data.importers.duoduo_embeddings import DuoduoEmbeddings
from mvcore_data.source_images import UnusableError
from mvcore_data.store import ViewStore

_DATASETS = {"image": "img_feat", "text": "text_feat"}


class DuoduoVectors:
    """The vectors of an HDF5 file by object id: `img_feat`, and `text_feat` where each view has one caption.

    The file does not say what made them, so they fit no model's key: a source gives them, but they never stand in the
    place of a model that is at hand.

    Args:
        store: the opened store.
        path: the file; the index of its rows stands beside it.
        on: `image`, `text` or both; None = views.

    Raises:
        DataError: the file is damaged, or lacks an object of the store or has it with another number of views; or text
            is asked for and a view has no or several captions.
    """

    def __init__(self, store: ViewStore, path: Path, on: Sequence[str] | None = None) -> None:
        self._store, self._path = store, path
        self._files = {kind: DuoduoEmbeddings(path, _DATASETS[kind]) for kind in on or ("image",)}
        self._first_object = [0, *accumulate(shard.n_objects for shard in store.shards)]
        features = {kind: {"feature": _DATASETS[kind], "width": file.dim} for kind, file in self._files.items()}
        self.key: dict[str, Any] = {
            "model": {"id": "import", "format": "duoduo", "file": path.name},
            "features": features,
        }
        for kind, file in self._files.items():
            self._check(kind, file)

    def rows(self, kind: str, n: int) -> Iterator[NDArray[Any]]:
        """The (V, D) vectors of each object of shard n."""
        for i in range(self._first_object[n], self._first_object[n + 1]):
            name = self._store.object_ids[i]
            try:
                yield self._files[kind].of(name)
            except UnusableError as error:
                raise DataError(f"{self._path}: object {name!r}: {error}; leave it out of the store") from None

    def _check(self, kind: str, file: DuoduoEmbeddings) -> None:
        known = set(file.ids)
        missing = [name for name in self._store.object_ids if name not in known]
        if missing:
            raise DataError(
                f"{self._path}: has no vectors of {len(missing)} of {len(self._store)} objects of {self._store.path}, "
                f"first {missing[0]!r}"
            )
        for i, name in enumerate(self._store.object_ids):
            views = self._store.views_of(i)
            if len(views) != file.views:
                raise DataError(
                    f"{self._path}: {file.views} vectors an object, but {name!r} of {self._store.path} has "
                    f"{len(views)} views"
                )
            if kind == "text" and (
                self._store.captions(i) or any(len(self._store.view_captions(v)) != 1 for v in views)
            ):
                raise DataError(
                    f"{self._path}: text_feat is a vector for the one caption of each view, but object {name!r} of "
                    f"{self._store.path} has others; leave out --on text"
                )
