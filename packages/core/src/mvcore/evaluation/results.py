"""What a measurement returns: figures with their definition, number and interval; tables; pictures; and their files."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mvcore.errors import DataError
from mvcore.evaluation.files import write_atomic

FORMAT = "mvcore.eval_result"
VERSION = 1
_MAX_SAMPLES = 1 << 31
"""Bytes of samples that a result file may hold."""


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Args:
        name: `<evaluator id>/<what>`, as `core.zero_shot/top1/ood`.
        value: the number.
        n: how many items it is over.
        definition: what it is, in one sentence with the unit.
        low, high: 95 % bootstrap interval over objects; NaN where none was made.
        std: deviation over the items; NaN where it has no meaning.
        samples: (O,) per-object values whose mean is `value`, for paired comparisons; or None.
        items: fingerprint of the objects that the samples stand for, so that only equal ones are paired; "" = unknown.
        headline: heading of its column in comparison tables; "" = not shown there.
        percent: shown times 100 in tables.
    """

    name: str
    value: float
    n: int
    definition: str
    low: float = math.nan
    high: float = math.nan
    std: float = math.nan
    samples: np.ndarray | None = field(default=None, compare=False, repr=False)
    items: str = ""
    headline: str = ""
    percent: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values, NaN as None; the samples stand in the file beside it."""
        values = {"value": self.value, "low": self.low, "high": self.high, "std": self.std}
        clean = {key: None if not math.isfinite(value) else value for key, value in values.items()}
        text = {"items": self.items, "headline": self.headline, "percent": self.percent}
        return {"name": self.name, "n": self.n, "definition": self.definition, **clean, **text}

    @staticmethod
    def from_json(values: Mapping[str, Any], samples: np.ndarray | None = None) -> Figure:
        """The figure that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: a value is missing or of the wrong kind.
        """
        value, low, high, std = (
            math.nan if values[key] is None else float(values[key]) for key in ("value", "low", "high", "std")
        )
        name, definition, items, headline = (str(values[key]) for key in ("name", "definition", "items", "headline"))
        percent = bool(values["percent"])
        return Figure(name, value, int(values["n"]), definition, low, high, std, samples, items, headline, percent)


def fingerprint(names: Sequence[str]) -> str:
    """A short digest of object names in order, for `Figure.items`."""
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Table:
    """Rows of cells under a title; the first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class EvalResult:
    """All that one evaluator found."""

    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Path] = ()

    def __getitem__(self, name: str) -> Figure:
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(f"no figure {name!r}; there are: {', '.join(figure.name for figure in self.figures)}")

    def by_name(self) -> Mapping[str, Figure]:
        return {figure.name: figure for figure in self.figures}


def save_result(result: EvalResult, folder: Path) -> Path:
    """Writes `result.json` into `folder` and the samples beside it; whoever reads meanwhile sees all or nothing.

    Pictures inside `folder` are noted relative to it.

    Returns:
        The path of `result.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    payload = _packed_samples(result.figures)
    digest = hashlib.sha256(payload).hexdigest()
    # The digest is part of the name: a result.json always refers to the samples that were written with it.
    samples_name = f"samples-{digest[:12]}.npz"
    write_atomic(folder / samples_name, payload)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "figures": [figure.to_json() for figure in result.figures],
        "tables": [
            {"title": table.title, "columns": list(table.columns), "rows": [list(row) for row in table.rows]}
            for table in result.tables
        ],
        "pictures": [_relative(picture, folder) for picture in result.pictures],
        "samples": {"file": samples_name, "sha256": digest},
    }
    path = folder / "result.json"
    write_atomic(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    return path


def load_result(folder: Path) -> EvalResult:
    """Reads what `save_result` wrote.

    Raises:
        DataError: the files are missing, damaged or of another format.
    """
    path = folder / "result.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise DataError(
                f"{path}: format {document['format']!r} version {document['version']!r}; this mvcore reads"
                f" {FORMAT!r} version {VERSION}: evaluate the run again"
            )
        samples = _load_samples(folder, document["samples"])
        figures = [Figure.from_json(values, samples.get(i)) for i, values in enumerate(document["figures"])]
        tables = [Table(t["title"], tuple(t["columns"]), [tuple(r) for r in t["rows"]]) for t in document["tables"]]
        return EvalResult(figures, tables, [folder / Path(name) for name in document["pictures"]])
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); evaluate the run again") from error
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); evaluate the run again") from error


def _packed_samples(figures: Sequence[Figure]) -> bytes:
    """The samples as an uncompressed npz archive, by the figure's place."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        f"samples_{i}": np.asarray(figure.samples, np.float64)
        for i, figure in enumerate(figures)
        if figure.samples is not None
    }
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _load_samples(folder: Path, entry: Mapping[str, str]) -> dict[int, np.ndarray]:
    name = entry["file"]
    if Path(name).name != name:
        raise ValueError(f"samples file {name!r} is not a plain name")
    path = folder / name
    if path.stat().st_size > _MAX_SAMPLES:
        raise ValueError(f"samples file {name!r} is larger than {_MAX_SAMPLES} bytes")
    payload = path.read_bytes()
    if hashlib.sha256(payload).hexdigest() != entry["sha256"]:
        raise ValueError(f"samples file {name!r} has another SHA-256 than was noted")
    with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
        return {int(key.removeprefix("samples_")): archive[key] for key in archive.files}


def _relative(picture: Path, folder: Path) -> str:
    return picture.relative_to(folder).as_posix() if picture.is_relative_to(folder) else str(picture)
