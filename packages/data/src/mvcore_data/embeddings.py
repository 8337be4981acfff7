"""Vectors that stand beside a store, and the key that says what they were made with.

`STORE/embeddings/<tag>/` (beside a single shard `STORE.h5.embeddings/<tag>/`; of the embedded demo store in the
user's cache) holds `key.json` and, for each shard of the store, a file of float16 vectors: a row a view, and a row a
caption, captions in the order of their targets.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mvcore.api import DataError
from numpy.typing import NDArray
from torch import Tensor

from mvcore_data import seal
from mvcore_data.cache import check_memory
from mvcore_data.demo import vectors as demo_vectors
from mvcore_data.embedding_files import VectorFile
from mvcore_data.options import ImageOptions
from mvcore_data.shard import Shard
from mvcore_data.store import ViewStore

SCHEMA = "mvcore.embeddings"
VERSION = 1
KEY_NAME = "key.json"
KINDS = ("image", "text")
DTYPE = "float16"
INTERPOLATION = "bicubic, antialiased"
_FILE = "shard-{:05d}.safetensors"
_TAG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,98}[A-Za-z0-9])?")
_MAX_KEY_BYTES = 1 << 26
_MAX_WIDTH = 1 << 20
_ROWS = 1 << 14
"""Vectors that are read at once."""
_ANEW = "make it anew with 'mvcore data embed --replace'"
_SHOWN = ("model", "pretrained", "path", "source", "adapters")
_UNCOMPARED = ("model", "store", "mvcore")
"""What is recorded and not compared: names of models, which their weights and configs stand for, and what changes
without changing a vector."""


def check_tag(tag: str) -> str:
    """The tag itself.

    Raises:
        DataError: it cannot be the name of a folder.
    """
    if not _TAG.fullmatch(tag) or ".." in tag:
        raise DataError(f"tag {tag!r}: give letters, digits, '_', '-' and '.', at most 100, as in ViT-B-32_laion2b")
    return tag


def folder_of(store: str | PathLike[str], tag: str) -> Path:
    """The folder of a store's vectors under a tag."""
    return _beside(Path(store)) / check_tag(tag)


def tags_of(store: str | PathLike[str]) -> list[str]:
    """The tags under which a store has vectors."""
    base = _beside(Path(store))
    return sorted(key.parent.name for key in base.glob(f"*/{KEY_NAME}")) if base.is_dir() else []


def _beside(path: Path) -> Path:
    if path.is_file():
        return path.with_name(f"{path.name}.embeddings")
    # Where a package is installed may be nobody's to write.
    return demo_vectors.folder() if path.resolve() == demo_vectors.STORE else path / "embeddings"


def seal_of(shard: Shard) -> str:
    """The digest of a shard: its seal's, or, of one that another program wrote, what a seal would have."""
    if shard.seal is not None:
        return shard.seal.sha256
    blobs = sorted((blob.start, blob.length) for blob in (shard.views, shard.depth, shard.masks) if blob is not None)
    with shard.path.open("rb") as file:
        return seal.compute(file.fileno(), os.fstat(file.fileno()).st_size, tuple(blobs))


def transform_key(options: ImageOptions, image_size: int) -> dict[str, Any]:
    """The part of a key that says how images reach the model."""
    background = None if options.background is None else list(options.background)
    return {"image_size": image_size, "interpolation": INTERPOLATION, "fit": options.fit, "background": background}


def shapes_of(key: Mapping[str, Any], shard: Shard) -> dict[str, tuple[int, int]]:
    """(rows, width) of each kind of vectors of a shard."""
    rows = {"image": shard.n_views, "text": shard.n_captions}
    return {kind: (rows[kind], feature["width"]) for kind, feature in key["features"].items()}


def file_metadata(key: Mapping[str, Any], shard: Shard) -> dict[str, str]:
    """What the header of a shard's file says: of which data the vectors are, and of which key."""
    compared = {name: value for name, value in key.items() if name not in _UNCOMPARED}
    digest = hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()
    return {"schema": SCHEMA, "version": str(VERSION), "shard": seal_of(shard), "key": digest}


def file_of(folder: Path, n: int) -> Path:
    """The file of shard n's vectors."""
    return folder / _FILE.format(n)


def row_label(shard: Shard, kind: str, row: int) -> str:
    """How messages name a vector."""
    if kind == "image":
        return shard.label(row)
    return f"{shard.path}: caption {shard.captions(range(row, row + 1))[0][:60]!r}"


def differences(key: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs between a recorded key and what is wanted of it, with both values; empty where nothing does."""
    plain = json.loads(json.dumps(wanted, default=str))
    fields = [name for name in plain if name not in _UNCOMPARED and key.get(name) != plain[name]]
    if fields and "model" in plain and key.get("model") != plain["model"]:
        fields.insert(0, "model")
    return "; ".join(f"{name} is {_shown(key.get(name))} there and {_shown(plain[name])} here" for name in fields)


def _shown(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return value[:12]
    if isinstance(value, Mapping) and "id" in value:
        options = ", ".join(
            f"{k}={v}" for k, v in value.items() if k in ("model", "pretrained", "path", "source", "adapters")
        )
        return f"{value['id']}({options})"
    return json.dumps(value)


def read_key(folder: Path) -> dict[str, Any] | None:
    """The key of a folder of vectors; None where there is none.

    Raises:
        DataError: it is damaged, or of another version.
    """
    path = folder / KEY_NAME
    try:
        if path.stat().st_size > _MAX_KEY_BYTES:
            raise DataError(f"{path}: larger than {_MAX_KEY_BYTES} bytes; this is no key of embeddings")
        key = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: damaged: not JSON; {_ANEW}") from None
    _check_key(key, path)
    return key


def _check_key(key: Any, path: Path) -> None:
    if not isinstance(key, dict) or key.get("schema") != SCHEMA:
        raise DataError(f"{path}: not the key of {SCHEMA}; {_ANEW}")
    if key.get("version") != VERSION:
        raise DataError(f"{path}: version {key.get('version')!r}, but {VERSION} is read; upgrade mvcore-data")
    features: Any = key.get("features")
    known = isinstance(features, dict) and len(features) > 0 and set(features) <= set(KINDS)
    for feature in features.values() if known else [None]:
        width = feature.get("width") if isinstance(feature, dict) else None
        if type(width) is not int or not 0 < width <= _MAX_WIDTH:
            raise DataError(f"{path}: damaged: no features with widths; {_ANEW}")
    if key.get("dtype") != DTYPE or not isinstance(key.get("store"), list):
        raise DataError(f"{path}: damaged: no dtype {DTYPE} or no store; {_ANEW}")


class EmbeddingCache:
    """The vectors of a store under one tag.

    Every size is checked when it is opened; rows are read when they are asked for. Threads, forked and spawned workers
    may use it.

    Args:
        store: the opened store.
        tag: what the vectors are called.

    Attributes:
        key: what the vectors were made with.
        widths: dimensions by kind, `image` and `text`.
        files: the vectors of each shard.

    Raises:
        DataError: there is none, it is unfinished or damaged, or it was made for other data.
    """

    def __init__(self, store: ViewStore, tag: str) -> None:
        self.store, self.tag = store, tag
        self.folder = folder_of(store.path, tag)
        key = read_key(self.folder)
        if key is None:
            there = ", ".join(tags_of(store.path)) or "none"
            raise DataError(
                f"{store.path}: no embeddings {tag!r} (there are: {there}); make them with "
                f"'mvcore data embed {shlex.quote(str(store.path))} --tag {tag} --encoder ...'"
            )
        self.key = key
        self.widths: dict[str, int] = {kind: feature["width"] for kind, feature in key["features"].items()}
        shards = store.shards
        self._check_store(shards)
        self.files = [
            VectorFile(file_of(self.folder, n), shapes_of(key, shard), file_metadata(key, shard))
            for n, shard in enumerate(shards)
        ]
        self._kept: dict[str, NDArray[np.float16]] = {}
        self._first = {
            "image": np.array([0, *accumulate(shard.n_views for shard in shards)]),
            "text": np.array([0, *accumulate(shard.n_captions for shard in shards)]),
        }

    def read(self, kind: str, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """(N, D) float32 vectors: of the store's views by their numbers, or of captions by `ViewStore.caption_rows`.

        Raises:
            DataError: a vector is damaged.
        """
        if kind in self._kept:
            # torch's conversion is several times as fast as NumPy's.
            return torch.from_numpy(self._kept[kind][np.asarray(rows, np.int64)]).float().numpy()
        wanted, first = np.asarray(rows, np.int64), self._first[kind]
        out = np.empty((len(wanted), self.widths[kind]), np.float32)
        numbers = np.searchsorted(first, wanted, side="right") - 1
        for n in np.unique(numbers).tolist():
            mine = np.flatnonzero(numbers == n)
            shard = self.store.shards[n]
            out[mine] = self.files[n].read(
                kind, wanted[mine] - first[n], lambda row, shard=shard: row_label(shard, kind, row)
            )
        return out

    def keep(self) -> None:
        """Reads all vectors into memory, which forked workers share, so that none is read or checked again.

        Raises:
            DataError: a vector is damaged, or they would not fit into this machine's memory.
        """
        rows = {kind: int(self._first[kind][-1]) for kind in self.widths}
        check_memory(sum(2 * rows[kind] * width for kind, width in self.widths.items()), "stored vectors", self.folder)
        for kind, width in self.widths.items():
            kept = np.empty((rows[kind], width), np.float16)
            for start in range(0, len(kept), _ROWS):
                stop = min(start + _ROWS, len(kept))
                kept[start:stop] = self.read(kind, np.arange(start, stop))
            self._kept[kind] = kept

    def require(self, wanted: Mapping[str, Any]) -> None:
        """Refuses vectors that were made with anything else than `wanted`.

        Raises:
            DataError: says which fields differ, both values, and the command that makes the vectors anew.
        """
        if found := differences(self.key, wanted):
            raise DataError(f"{self.folder}: made otherwise: {found}; make it anew with: {self.command(wanted)}")

    def command(self, wanted: Mapping[str, Any]) -> str:
        """The command that makes the vectors anew for a model."""
        model = wanted.get("model") or self.key.get("model") or {}
        words = ["mvcore", "data", "embed", str(self.store.path), "--encoder", str(model.get("id", "ENCODER"))]
        for option in ("model", "pretrained"):
            if isinstance(model.get(option), str):
                words += [f"--{option}", model[option]]
        if model.get("source") or model.get("adapters"):
            words = [*words[:5], str(model.get("source", "RUN"))]
        return shlex.join([*words, "--tag", self.tag, "--replace"])

    def _check_store(self, shards: Sequence[Shard]) -> None:
        seals = [seal_of(shard) for shard in shards]
        missing = [n for n in range(len(shards)) if not file_of(self.folder, n).is_file()]
        again = "go on with the 'mvcore data embed' command that made them, which keeps what is finished"
        if missing:
            raise DataError(
                f"{self.folder}: unfinished: {len(missing)} of {len(shards)} shards have no vectors yet; {again}"
            )
        if self.key["store"] != seals:
            raise DataError(f"{self.folder}: made for other data than {self.store.path} holds now; {again}")


class CaptionLookup:
    """The stored vectors of a store's captions by their texts, of which equal ones have equal vectors.

    Args:
        cache: where they are; with captions.
    """

    def __init__(self, cache: EmbeddingCache) -> None:
        self._cache = cache
        self._rows: dict[str, int] | None = None

    def __call__(self, captions: Sequence[str]) -> tuple[list[int], Tensor]:
        """The places of those captions that are stored, and their (K, D) float32 vectors."""
        known = self._all_rows()
        places = [place for place, caption in enumerate(captions) if caption in known]
        return places, torch.from_numpy(self._cache.read("text", [known[captions[place]] for place in places]))

    def _all_rows(self) -> dict[str, int]:
        if self._rows is None:
            shards = self._cache.store.shards
            texts = chain.from_iterable(shard.captions(range(shard.n_captions)) for shard in shards)
            self._rows = {}
            for row, text in enumerate(texts):
                self._rows.setdefault(text, row)
        return self._rows
