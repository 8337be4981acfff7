"""`embed_store`: encodes every view and caption of a store and keeps the vectors beside it."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mvcore.api import DataError, ViewBatch
from numpy.typing import NDArray

from mvcore_data import embeddings
from mvcore_data.embedding_files import VectorFile, VectorWriter
from mvcore_data.index import sync_folder
from mvcore_data.lock import store_lock
from mvcore_data.options import RGB
from mvcore_data.store import ViewStore
from mvcore_data.views import Views

if TYPE_CHECKING:
    from mvcore.api import Model

Progress = Callable[[int, int], None]
"""Called with the vectors that are done and all of them."""


@dataclass(frozen=True)
class EmbedReport:
    """What was done.

    Args:
        folder: where the vectors are.
        shards, kept: of the store, and those of them whose vectors were there already.
        views, captions: vectors of each kind that were made now.
    """

    folder: Path
    shards: int
    kept: int
    views: int
    captions: int


class Vectors(Protocol):
    """Where the vectors of a store come from, shard by shard."""

    @property
    def key(self) -> Mapping[str, Any]:
        """What the vectors are made with, and the `features` with their widths."""
        ...

    def rows(self, kind: str, n: int) -> Iterator[NDArray[Any]]:
        """The (k, D) vectors of shard n, in order: of its views, or of its captions in order of their targets."""
        ...


class Encoded:
    """Vectors by a model, of views with the evaluation transforms.

    Args:
        store: the opened store.
        model: what encodes.
        on: `image`, `text` or both; None = all that store and model have.
        views_per_batch: views, or captions, encoded at a time.
        fit, background: as in `data.views`.
        workers: threads that read and decode ahead.

    Raises:
        DataError: the store has no caption, or the model encodes no text, where text was asked for.
    """

    def __init__(
        self,
        store: ViewStore,
        model: Model,
        on: Sequence[str] | None = None,
        *,
        views_per_batch: int = 256,
        fit: str = "crop",
        background: RGB | None = None,
        workers: int = 1,
    ) -> None:
        from mvcore.api import model_key

        model = model.from_images()
        self._store, self._model, self._batch, self._workers = store, model, views_per_batch, workers
        size = model.backbone.image_size
        self._views = Views(path=str(store.path), image_size=size, fit=fit, background=background, captions="none")
        kinds = self._kinds(on)
        self.key = {
            **model_key(model),
            **embeddings.transform_key(self._views.options, self._views.image_size),
            "features": {kind: self._feature(kind) for kind in kinds},
        }

    def rows(self, kind: str, n: int) -> Iterator[NDArray[Any]]:
        """The vectors of shard n, a batch at a time, in float32."""
        shards = self._store.shards
        if kind == "text":
            shard = shards[n]
            for start in range(0, shard.n_captions, self._batch):
                texts = shard.captions(range(start, min(start + self._batch, shard.n_captions)))
                yield _array(self._model.encode_text(texts))
            return
        first = sum(shard.n_views for shard in shards[:n])
        stop = first + shards[n].n_views
        chunks = [range(start, min(start + self._batch, stop)) for start in range(first, stop, self._batch)]
        for batch in _ahead(self._load, chunks, self._workers):
            yield _array(self._model.features(batch, frozenset({"view"})).view)

    def _load(self, views: range) -> ViewBatch:
        requests: dict[int, list[int]] = {}
        for view in views:
            requests.setdefault(self._store.object_of(view), []).append(view)
        return self._views.load_many(list(requests.items()), None)

    def _kinds(self, on: Sequence[str] | None) -> list[str]:
        has_captions = any(shard.n_captions for shard in self._store.shards)
        has_text = "text" in self._model.pipeline.provides
        if on is not None and "text" in on:
            if not has_captions:
                raise DataError(f"{self._store.path}: has no caption to embed; leave out --on text")
            if not has_text:
                raise DataError(f"{self._model.name}: encodes no text; leave out --on text")
        there = ["image", "text"] if has_captions and has_text else ["image"]
        return [kind for kind in there if on is None or kind in on]

    def _feature(self, kind: str) -> dict[str, Any]:
        """The feature behind a kind, and how wide it is, also where an adapter made it another than the backbone's."""
        if kind == "text":
            return {"feature": "text", "width": self._model.encode_text(["a"]).shape[1]}
        features = self._model.features(self._load(range(1)), frozenset({"view"}))
        return {"feature": "view", "width": features.view.shape[1]}


def _array(tensor: Any) -> NDArray[Any]:
    return tensor.float().cpu().numpy()


def _ahead(load: Callable[[range], ViewBatch], chunks: Sequence[range], workers: int) -> Iterator[ViewBatch]:
    """Batches in order, `workers` of them loading while one is used."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting: deque[Future[ViewBatch]] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(load, chunk))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def embed_store(
    store: ViewStore,
    vectors: Vectors,
    tag: str,
    *,
    replace: bool = False,
    on_progress: Progress = lambda done, total: None,
) -> EmbedReport:
    """Writes the vectors of each shard of a store under a tag; shards that are finished are kept.

    An interrupt leaves the finished shards, and the same call goes on behind them.

    Args:
        store: the opened store; it is not changed.
        vectors: where they come from, and the key of what they are made with.
        tag: what they are called.
        replace: drop vectors of that name that were made otherwise.
        on_progress: told how many vectors are done.

    Raises:
        DataError: vectors of that name were made otherwise; or one is not finite, or float16 cannot hold it.
    """
    folder = embeddings.folder_of(store.path, tag)
    shards = store.shards
    key = {
        "schema": embeddings.SCHEMA,
        "version": embeddings.VERSION,
        **vectors.key,
        "dtype": embeddings.DTYPE,
        "store": [embeddings.seal_of(shard) for shard in shards],
        "mvcore": version("mvcore"),
    }
    key = json.loads(json.dumps(key, default=str))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror})") from None
    with store_lock(folder):
        _prepare(folder, key, replace)
        made: dict[str, int] = dict.fromkeys(embeddings.KINDS, 0)
        total = sum(rows for shard in shards for rows, _ in embeddings.shapes_of(key, shard).values())
        kept = done = 0
        for n, shard in enumerate(shards):
            shapes = embeddings.shapes_of(key, shard)
            if _is_finished(embeddings.file_of(folder, n), key, shard):
                kept += 1
                done += sum(rows for rows, _ in shapes.values())
                on_progress(done, total)
                continue
            for kind, count in _write_shard(folder, n, key, shard, vectors):
                made[kind] += count
                done += count
                on_progress(done, total)
    return EmbedReport(folder, len(shards), kept, made["image"], made["text"])


def _write_shard(
    folder: Path, n: int, key: Mapping[str, Any], shard: Any, vectors: Vectors
) -> Iterator[tuple[str, int]]:
    shapes, metadata = embeddings.shapes_of(key, shard), embeddings.file_metadata(key, shard)

    def label(kind: str, row: int) -> str:
        return embeddings.row_label(shard, kind, row)

    try:
        with VectorWriter(embeddings.file_of(folder, n), shapes, metadata, label) as writer:
            for kind in shapes:
                for rows in vectors.rows(kind, n):
                    writer.write(kind, rows)
                    yield kind, len(rows)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from None


def _prepare(folder: Path, key: Mapping[str, Any], replace: bool) -> None:
    """Refuses or drops what was made otherwise, and puts the key in its place."""
    try:
        old = embeddings.read_key(folder)
    except DataError:
        if not replace:
            raise
        old = {}
    if old is not None:
        wanted = {name: value for name, value in key.items() if name != "store"}
        found = embeddings.differences(old, wanted)
        if found and not replace:
            raise DataError(
                f"{folder}: was made otherwise: {found}; give another --tag, or make it anew with --replace"
            )
        if found:
            (folder / embeddings.KEY_NAME).unlink(missing_ok=True)
            for path in folder.glob("shard-*.safetensors"):
                path.unlink()
    for path in folder.glob("*.tmp"):
        path.unlink()
    _write_key(folder, key)


def _write_key(folder: Path, key: Mapping[str, Any]) -> None:
    partial = folder / f"{embeddings.KEY_NAME}.tmp"
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(key, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / embeddings.KEY_NAME)
        sync_folder(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from None


def _is_finished(path: Path, key: Mapping[str, Any], shard: Any) -> bool:
    """Whether a file is there and sound, so that the command that made it also mends it."""
    try:
        file = VectorFile(path, embeddings.shapes_of(key, shard), embeddings.file_metadata(key, shard))
        for kind in file.shapes:
            for rows in file.blocks(kind):
                file.read(kind, rows, str)
    except DataError:
        return False
    file.close()
    return True
