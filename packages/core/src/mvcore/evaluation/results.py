"""What a measurement returns: figures with their definition, number and interval; tables; pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


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
    """

    name: str
    value: float
    n: int
    definition: str
    low: float = math.nan
    high: float = math.nan
    std: float = math.nan
    samples: np.ndarray | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values, NaN as None; the samples are left to the table beside it."""
        values = {"value": self.value, "low": self.low, "high": self.high, "std": self.std}
        clean = {key: None if math.isnan(value) else value for key, value in values.items()}
        return {"name": self.name, "n": self.n, "definition": self.definition, **clean}


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
