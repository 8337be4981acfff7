"""An index on disk: a folder with `index.json` and the vectors as safetensors, written whole or not at all.

The file of vectors carries the digest of its content in its name, and `index.json` is written last: it always names
vectors that are there, and until it is replaced the folder is the index that was there before.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from mvcore.checkpoint import load_weights, save_weights
from mvcore.errors import ConfigError, DataError, WeightsError
from mvcore.evaluation.files import write_atomic
from mvcore.index.catalogue import FORMAT, VERSION, Catalogue

CATALOGUE = "index.json"
Tables = dict[str, NDArray[Any]]
"""`vectors` (N, D) float32; `object` (N,) int64, places in the catalogue; `view` (N,) int64, -1 = the whole object."""

_DTYPES = {"vectors": np.float32, "object": np.int64, "view": np.int64}


def digest_of(tables: Tables) -> str:
    """SHA-256 over names, shapes and values."""
    digest = hashlib.sha256()
    for name in _DTYPES:
        digest.update(f"{name}{tables[name].shape}".encode())
        digest.update(np.ascontiguousarray(tables[name]).data)
    return digest.hexdigest()


def vectors_name(digest: str) -> str:
    """The file of the vectors of a digest."""
    return f"vectors-{digest[:12]}.safetensors"


def check_target(folder: Path, *, replace: bool = False) -> None:
    """Refuses a folder that an index cannot be written to.

    Raises:
        ConfigError: something is there that is no index, or an index and `replace` was not said.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a new folder for the index")
    if (folder / CATALOGUE).is_file():
        if not replace:
            raise ConfigError(f"{folder}: is there already; name a new folder, or replace it with --replace")
        if f'"{FORMAT}"' not in (folder / CATALOGUE).read_text(encoding="utf-8", errors="replace")[:200]:
            raise ConfigError(f"{folder}: holds something that is no index; name a new folder")
    elif any(not entry.name.startswith(("vectors-", ".vectors-", ".index.json")) for entry in folder.iterdir()):
        raise ConfigError(f"{folder}: holds something that is no index; name a new folder")


def write(folder: Path, catalogue: Catalogue, tables: Tables, *, replace: bool = False) -> None:
    """Writes an index.

    Raises:
        ConfigError: something else is there.
        DataError: it cannot be written.
    """
    check_target(folder, replace=replace)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / catalogue.vectors, {name: torch.from_numpy(tables[name]) for name in _DTYPES})
        write_atomic(folder / CATALOGUE, (catalogue.model_dump_json(indent=1) + "\n").encode())
        for old in folder.glob("vectors-*.safetensors"):
            if old.name != catalogue.vectors:
                old.unlink()
    except OSError as error:
        raise DataError(f"{folder}: the index cannot be written ({error.strerror or error})") from None


def read(folder: Path) -> tuple[Catalogue, Tables]:
    """Reads what `write` wrote and checks it.

    Raises:
        DataError: no index, of another version, or damaged.
    """
    path = folder / CATALOGUE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder}: no index there (a folder with {CATALOGUE}); make one: mvcore index build") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'damaged'})") from None
    try:
        catalogue = Catalogue.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise DataError(f"{path}: {_fault(text, error)}; build the index again") from None
    try:
        tables = {name: tensor.numpy() for name, tensor in load_weights(folder / catalogue.vectors).items()}
    except WeightsError as error:
        raise DataError(f"{error}; build the index again") from None
    if fault := _mismatch(catalogue, tables):
        raise DataError(f"{folder / catalogue.vectors}: {fault}; build the index again")
    return catalogue, tables


def _fault(text: str, error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    if where == "format":
        return "is no index of mvcore"
    if where == "version":
        return f"is of another version than {VERSION}, which this mvcore reads"
    return f"damaged ({where + ': ' if where else ''}{first['msg']})"


def _mismatch(catalogue: Catalogue, tables: Tables) -> str:
    shapes = {"vectors": (catalogue.rows, catalogue.dim), "object": (catalogue.rows,), "view": (catalogue.rows,)}
    for name, shape in shapes.items():
        found = tables.get(name)
        if found is None or found.shape != shape or found.dtype != _DTYPES[name]:
            return f"damaged: it holds no {name} of {shape}"
    if digest_of(tables) != catalogue.sha256:
        return "damaged: its content is not what was written"
    owners = tables["object"]
    if owners.min() < 0 or owners.max() >= len(catalogue.objects):
        return "damaged: a row belongs to no object"
    return ""
