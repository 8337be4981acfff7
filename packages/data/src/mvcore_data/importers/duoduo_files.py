"""The files of Duoduo CLIP's data: which object stands in which row, texts and categories by object.

An index (`model_to_idx.json`) maps an object's id to its row in arrays that stand beside it. Texts are a dictionary by
id: OpenShape's, pickled in a .npy file, or the same as JSON.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from mvcore.api import ConfigError, DataError

TEXT_KEYS = ("text", "msft_caption", "blip_caption", "retrieval_text")
"""An entry's texts by OpenShape's names: the raw name, captions of two models, texts of similar images found."""

_MAX_JSON_BYTES = 1 << 32
_SUFFIX = "model_to_idx.json"


def arrays_in(folder: Path, *, embeddings: bool) -> list[Path]:
    """HDF5 files of a folder that hold embeddings by their name, or that do not."""
    return sorted(path for path in folder.glob("*.h5") if path.is_file() and _is_embeddings(path) == embeddings)


def index_of(array: Path, given: str | None = None) -> Path:
    """The index of an HDF5 file, which decides whose pixels a row is: so it is never guessed between two.

    The one given; else the one of the same name (`lvis_model_to_idx.json` for `lvis_images.h5`, `model_to_idx.json` for
    `mv_images.h5` and `image_embeddings.h5`); else the only index beside the only such array.

    Raises:
        DataError: there is none, or several could be it.
    """
    if given is not None:
        return array.parent / given
    stem = re.sub(r"(?:(?:^|_)mv)?(?:^|_)(?:images?|img)?_?(?:embeddings?)?$", "", array.stem)
    named = array.parent / (f"{stem}_{_SUFFIX}" if stem else _SUFFIX)
    there = sorted(array.parent.glob(f"*{_SUFFIX}"))
    if named in there:
        return named
    alone = arrays_in(array.parent, embeddings=_is_embeddings(array)) == [array]
    if alone and len(there) == 1:
        return there[0]
    found = ", ".join(path.name for path in there) or "none is there"
    raise DataError(f"{array}: which {_SUFFIX} is its index ({found})? Name it with index=FILE")


def read_rows(path: Path, rows: int) -> dict[int, str]:
    """An index as ids by row, in the order of the rows.

    Args:
        path: the JSON file, ids to rows.
        rows: how many there are in the array.

    Raises:
        DataError: no such index, or it does not fit the array: a row that is not there, or one of two objects.
    """
    ids: dict[int, str] = {}
    for name, row in _read_json(path):
        if type(row) is not int or not 0 <= row < rows:
            raise DataError(f"{path}: object {name!r} is in row {row!r}, but the array has rows 0 to {rows - 1}")
        if row in ids:
            raise DataError(f"{path}: row {row} is of two objects, {ids[row]!r} and {name!r}")
        ids[row] = name
    if not ids:
        raise DataError(f"{path}: names no object")
    if len(set(ids.values())) < len(ids):
        raise DataError(f"{path}: names an object twice")
    return dict(sorted(ids.items()))


def read_dictionary(path: Path, *, allow_pickle: bool) -> dict[str, Any]:
    """A dictionary by object id, from .json, .json.gz or a pickled .npy.

    Raises:
        ConfigError: it is a pickle, and pickles were not allowed.
        DataError: it cannot be read, or holds something else.
    """
    if path.suffix != ".npy":
        return dict(_read_json(path))
    if not allow_pickle:
        raise ConfigError(
            f"{path}: is a pickle, which can run any code when it is read; if you trust its maker, pass --allow-pickle"
            " (option allow_pickle=true)"
        )
    try:
        value = np.load(path, allow_pickle=True)
        found = value.item() if value.shape == () else value
    except Exception as error:  # unpickling runs code of others, which raises what it likes
        raise DataError(f"{path}: cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{path}: holds no dictionary by object id")
    return found


def texts_in(entry: object) -> list[str]:
    """The texts of an object's entry: a text, several, or a dictionary that holds them under `TEXT_KEYS`."""
    if isinstance(entry, dict):
        return list(dict.fromkeys(text for key in TEXT_KEYS for text in texts_in(entry.get(key))))
    if isinstance(entry, str):
        return [entry.strip()] if entry.strip() else []
    if isinstance(entry, np.ndarray) and entry.dtype.kind in "OU":
        entry = entry.ravel().tolist()
    if isinstance(entry, (list, tuple)):
        return list(dict.fromkeys(text for part in entry for text in texts_in(part)))
    return []


def read_categories(path: Path) -> dict[str, str]:
    """Category names by object id, from a CSV with the columns of `lvis.csv` or `mvpnet_val.csv`.

    Raises:
        DataError: no such file, or it has no such columns.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None
    for name, category in (("uid", "class_name"), ("id", "name")):
        if rows and {name, category} <= set(rows[0]):
            return {row[name]: row[category] for row in rows if row[name] and row[category]}
    raise DataError(f"{path}: has no columns 'uid' and 'class_name', nor 'id' and 'name'")


def _is_embeddings(path: Path) -> bool:
    return "emb" in path.name.lower()


def _read_json(path: Path) -> Iterable[tuple[str, Any]]:
    """The (key, value) pairs of a JSON object, also where a key stands twice."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(_MAX_JSON_BYTES + 1)
        if len(data) > _MAX_JSON_BYTES:
            raise DataError(f"{path}: larger than {_MAX_JSON_BYTES} bytes")
        value = json.loads(data, object_pairs_hook=_Pairs)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, ValueError, RecursionError):
        raise DataError(f"{path}: cannot be read as JSON") from None
    if not isinstance(value, _Pairs):
        raise DataError(f"{path}: holds no JSON object")
    return [(name, part.plain() if isinstance(part, _Pairs) else part) for name, part in value]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object that forgets no key."""

    def plain(self) -> dict[str, Any]:
        """As a dictionary, the last of two equal keys winning."""
        return {name: part.plain() if isinstance(part, _Pairs) else part for name, part in self}
