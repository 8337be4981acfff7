"""The vectors of the demonstration set by the demonstration model, made on first use and kept in the user's cache.

They are a third of the set's size, and made in seconds, so the package does not carry them.
"""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

from mvcore.api import DataError

from mvcore_data.packed_cache import alone, cache_folder

TAG = "clip"
_HERE = Path(__file__).resolve().parent
STORE = _HERE / "views"
_FILES = {"model": "clip.json", "pretrained": "clip.safetensors"}


def folder() -> Path:
    """Where they stand: another folder for another set or model, and for other versions of what encodes."""
    return cache_folder() / "embedded" / f"demo-{_digest()}"


def make_vectors() -> None:
    """Makes those of all views and captions under the tag `clip`, unless they are there.

    Processes that ask at the same time wait for the one that makes them.

    Raises:
        DataError: the cache cannot be written.
    """
    if _are_there():
        return
    with alone(folder().with_name(f"{folder().name}.lock"), "waiting for another process that embeds the demo set"):
        if not _are_there():
            print(f"embedding the demo set once, into {folder()}", file=sys.stderr, flush=True)
            _make()


def _are_there() -> bool:
    from mvcore_data.embeddings import EmbeddingCache
    from mvcore_data.store import ViewStore

    with ViewStore(STORE) as store:
        try:
            EmbeddingCache(store, TAG)
        except DataError:
            return False
    return True


def _make() -> None:
    from mvcore.api import load_encoder

    from mvcore_data.embed import Encoded, embed_store
    from mvcore_data.store import ViewStore

    weights = {name: f"package:mvcore_data/demo/{file}" for name, file in _FILES.items()}
    with ViewStore(STORE) as store:
        embed_store(store, Encoded(store, load_encoder("core.open_clip", weights)), TAG, replace=True)


@cache
def _digest() -> str:
    digest = hashlib.sha256()
    for file in (STORE / "index.json", *(_HERE / name for name in _FILES.values())):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    for package in ("mvcore", "mvcore-data", "open_clip_torch"):
        digest.update(version(package).encode())
    return digest.hexdigest()[:24]
