"""The public files of the protocols: labels, classes, ids, captions, prompts and class vectors."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mvcore.api import DataError, resolve_path

from mvcore_duoduo.evaluation.options import check_template

_MAX_BYTES = 1 << 28
_NUMBERS = ("class_idx", "idx", "index")
_WORDS = ("class_name", "name", "category")
_IDS = ("uid", "id", "object_id", "modelid")


@dataclass(frozen=True)
class Labels:
    """Objects and their classes.

    Args:
        path: the file.
        ids: O different object ids.
        numbers: O class numbers.
        words: the name of each class number that occurs.
    """

    path: Path
    ids: tuple[str, ...]
    numbers: tuple[int, ...]
    words: dict[int, str]


def plain_id(name: str) -> str:
    """An object's id in the form of the public lists: MVImgNet's `7/1a2b` in a store is `7_1a2b` there."""
    return name.replace("/", "_")


def read_labels(text: str) -> Labels:
    """Labels from CSV: `class_idx,class_name,uid` (Objaverse-LVIS) or `idx,name,id` (MVPNet).

    Raises:
        DataError: no such file or columns, a number that is none, a class of two names, an object that stands twice.
    """
    path = resolve_path(text, what="labels")
    rows = _table(path, (_NUMBERS, _WORDS, _IDS))
    ids: dict[str, int] = {}
    words: dict[int, str] = {}
    for line, (number, word, name) in rows:
        if not number.isdecimal():
            raise DataError(f"{path}: line {line}: class number {number!r} is not a number from 0 up")
        if words.setdefault(int(number), word) != word:
            raise DataError(f"{path}: line {line}: class {number} is {word!r} here and {words[int(number)]!r} before")
        if plain_id(name) in ids:
            raise DataError(f"{path}: line {line}: object {name!r} stands twice")
        ids[plain_id(name)] = int(number)
    if not ids:
        raise DataError(f"{path}: names no object")
    return Labels(path, tuple(ids), tuple(ids.values()), words)


def read_classes(text: str) -> list[str]:
    """Class names in the order of their numbers, from CSV with a head, or text with one class a line.

    A line of text may begin with the class's number and a comma; then all must.

    Raises:
        DataError: no such file, no class, or numbers that are not 0, 1, 2 and so on.
    """
    path = resolve_path(text, what="classes")
    lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: names no class")
    head = {cell.strip().lower() for cell in lines[0].split(",")}
    if path.suffix.lower() == ".csv" and head & set(_NUMBERS) and head & set(_WORDS):
        numbered = [(number, word) for _, (number, word) in _table(path, (_NUMBERS, _WORDS))]
    elif all(re.match(r"\d+\s*,\s*\S", line) for line in lines):
        numbered = [(line.partition(",")[0].strip(), line.partition(",")[2].strip()) for line in lines]
    else:
        return lines
    # A list of labelled objects names a class once for each of its objects.
    words: dict[int, str] = {}
    for number, word in numbered:
        if not number.isdecimal() or words.setdefault(int(number), word) != word:
            raise DataError(f"{path}: class {number!r} ({word!r}) has no number of its own")
    if sorted(words) != list(range(len(words))):
        gap = next(i for i in range(len(words)) if i not in words)
        raise DataError(f"{path}: no class has the number {gap}, though {max(words)} is there")
    return [words[i] for i in range(len(words))]


def read_ids(text: str) -> list[str]:
    """Object ids, from text with one a line, CSV with a column `id` or `uid`, or JSON with a list or with ids as keys.

    Raises:
        DataError: no such file, or it names no object.
    """
    path = resolve_path(text, what="ids of objects")
    kind = path.suffix.lower()
    if kind == ".json":
        values = _json(path)
        ids = list(values) if isinstance(values, (list, dict)) else []
        if not all(isinstance(name, str) for name in ids):
            raise DataError(f"{path}: ids must be texts, in a list or as keys")
    elif kind == ".csv":
        ids = [name for _, (name,) in _table(path, (_IDS,))]
    else:
        ids = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not ids:
        raise DataError(f"{path}: names no object")
    return [plain_id(name) for name in ids]


def read_captions(text: str) -> list[tuple[str, str]]:
    """(object id, text) by row of a CSV file with `modelId` and `description`; rows without a text are left out.

    Raises:
        DataError: no such file or columns, or no text in it.
    """
    path = resolve_path(text, what="captions")
    found = [
        (plain_id(name), " ".join(words.split()))
        for _, (name, words) in _table(path, (_IDS[::-1], ("description", "caption", "text")))
        if words
    ]
    if not found:
        raise DataError(f"{path}: holds no text")
    return found


def read_templates(text: str) -> list[str]:
    """Prompts with `{}`, from text with one a line or from JSON: a list, or `FILE.json#KEY` for one list of several.

    Raises:
        DataError: no such file or key, or a line that is no prompt.
    """
    name, mark, key = text.partition("#")
    path = resolve_path(name if mark else text, what="templates")
    if path.suffix.lower() != ".json":
        prompts: Any = [line.strip() for line in _text(path).splitlines() if line.strip()]
    else:
        prompts = _json(path)
        if isinstance(prompts, dict):
            if key not in prompts:
                raise DataError(f"{path}: holds several lists ({', '.join(prompts)}); name one as {path.name}#KEY")
            prompts = prompts[key]
    if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise DataError(f"{path}: must hold a list of prompts with {{}} for the class word")
    for prompt in prompts:
        try:
            check_template(prompt)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
    return prompts


def read_matrix(text: str) -> np.ndarray:
    """(C, D) float32 vectors of classes from a `.npy` file.

    Raises:
        DataError: no such file, no matrix of numbers, or a row without a direction.
    """
    path = resolve_path(text, what="class matrix")
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: no .npy file of plain numbers ({error}); save the matrix with numpy.save") from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind != "f" or not matrix.size:
        shape = getattr(matrix, "shape", None)
        raise DataError(f"{path}: must hold (classes, width) floating numbers, not {shape} {matrix.dtype}")
    if matrix.nbytes > _MAX_BYTES:
        raise DataError(f"{path}: {matrix.nbytes} bytes are more than a class matrix has")
    values = np.array(matrix, np.float32)
    lengths = np.linalg.norm(values.astype(np.float64), axis=1)
    wrong = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(wrong):
        raise DataError(f"{path}: row {wrong[0]} has no direction: its length is {lengths[wrong[0]]:g}")
    return values


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: larger than {_MAX_BYTES} bytes")
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{path}: cannot be read as UTF-8 text") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON ({error})") from None


def _table(path: Path, wanted: Sequence[Sequence[str]]) -> Iterable[tuple[int, list[str]]]:
    """Line number and one cell for each wanted column, which goes by the first of its names that the head has.

    Raises:
        DataError: a column is missing, or a row is shorter than the head.
    """
    try:
        reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
        head = [cell.strip().lower() for cell in next(reader, [])]
        places: list[int] = []
        for names in wanted:
            found = next((head.index(name) for name in names if name in head), None)
            if found is None:
                raise DataError(f"{path}: no column {' or '.join(names)} (it has: {', '.join(head) or 'none'})")
            places.append(found)
        for row in reader:
            if not row:
                continue
            if len(row) <= max(places):
                raise DataError(f"{path}: line {reader.line_num} has {len(row)} columns, the head has {len(head)}")
            yield reader.line_num, [row[place].strip() for place in places]
    except csv.Error as error:
        raise DataError(f"{path}: is no CSV table ({error})") from None
