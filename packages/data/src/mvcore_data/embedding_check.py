"""What is wrong with the vectors that stand beside a store."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray

from mvcore_data.embedding_files import VectorFile
from mvcore_data.embeddings import EmbeddingCache, row_label, tags_of
from mvcore_data.shard import Shard
from mvcore_data.store import ViewStore


def embedding_problems(store: ViewStore) -> Iterator[str]:
    """A line for each fault of the store's vectors: keys, sizes, checksums, and vectors that are not finite or zero.

    A store that lost shards is not looked at: which file of vectors belongs to which shard is not known then.
    """
    if store.lost:
        return
    for tag in tags_of(store.path):
        try:
            cache = EmbeddingCache(store, tag)
        except DataError as error:
            yield str(error)
            continue
        for shard, file in zip(store.shards, cache.files, strict=True):
            for kind in file.shapes:
                for rows in file.blocks(kind):
                    yield from _problems_of(file, kind, rows, shard)


def _problems_of(file: VectorFile, kind: str, rows: NDArray[np.int64], shard: Shard) -> Iterator[str]:
    def label(row: int) -> str:
        return row_label(shard, kind, row)

    try:
        vectors = file.read(kind, rows, label)
    except DataError as error:
        if len(rows) == 1:
            yield str(error)
            return
        for row in rows:
            yield from _problems_of(file, kind, np.array([row]), shard)
        return
    for row in rows[~vectors.any(axis=1)].tolist():
        yield f"{label(row)}: its stored vector is zero, which has no direction ({file.path})"
