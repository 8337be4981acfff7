"""The before/after table of a run: rows are models, columns the headline figures of its evaluators.

Each cell holds a value with its 95 % interval; below stand the paired differences to the first row. Several seeds of a
row are averaged, with intervals over seeds and objects.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvcore.errors import ConfigError
from mvcore.evaluation.files import write_atomic
from mvcore.evaluation.results import EvalResult, Figure
from mvcore.evaluation.statistics import mean_over_seeds, paired_difference

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Results = Mapping[str, EvalResult]
"""What one model was measured at, by evaluator id."""

NO_VALUE = "–"
DEMO = "DEMO"


@dataclass(frozen=True)
class Column:
    """One column: the figure's full name, its heading, what it is, and whether it is shown times 100."""

    name: str
    heading: str
    definition: str
    percent: bool


@dataclass(frozen=True)
class Comparison:
    """Models side by side.

    Args:
        title: what is compared; says DEMO where the embedded demo set was used.
        baseline: the row that differences are to.
        columns: in order.
        values: figure by row and column name; a missing one was not measured.
        differences: paired differences to the baseline, by row and column name; the baseline has none.
        seeds: how many runs each row is the mean of.
    """

    title: str
    baseline: str
    columns: tuple[Column, ...]
    values: Mapping[str, Mapping[str, Figure]]
    differences: Mapping[str, Mapping[str, Figure]]
    seeds: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "title": self.title,
            "baseline": self.baseline,
            "columns": [vars(column) for column in self.columns],
            "rows": [
                {
                    "row": row,
                    "seeds": self.seeds[row],
                    "values": {name: figure.to_json() for name, figure in cells.items()},
                    "differences": {name: f.to_json() for name, f in self.differences.get(row, {}).items()},
                }
                for row, cells in self.values.items()
            ],
        }

    def to_csv(self) -> str:
        """One line a cell, for other programs; empty = not measured."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        head = ["row", "figure", "value", "low", "high", "std", "n", "seeds"]
        writer.writerow([*head, "difference", "difference_low", "difference_high", "baseline"])
        for row, cells in self.values.items():
            for column in self.columns:
                figure, gap = cells.get(column.name), self.differences.get(row, {}).get(column.name)
                if figure is not None:
                    own = [figure.value, figure.low, figure.high, figure.std]
                    against = [math.nan] * 3 if gap is None else [gap.value, gap.low, gap.high]
                    line = [row, column.name, *map(_plain, own), figure.n, self.seeds[row], *map(_plain, against)]
                    writer.writerow([*line, "" if gap is None else self.baseline])
        return buffer.getvalue()

    def to_markdown(self) -> str:
        """The table with its definitions below; differences whose interval excludes zero are bold."""
        lines = [f"**{self.title}**", ""]
        lines += ["| | " + " | ".join(_escape(_heading(column)) for column in self.columns) + " |"]
        lines += ["|---|" + "---:|" * len(self.columns)]
        for row, cells, signed in self._lines():
            shown = [_value_and_interval(cells.get(c.name), c, signed) for c in self.columns]
            texts = [
                " ".join([f"**{value}**" if signed and _clear(cells.get(c.name)) else value, interval]).strip()
                for (value, interval), c in zip(shown, self.columns, strict=True)
            ]
            lines.append(f"| {_escape(row)} | " + " | ".join(texts) + " |")
        lines += ["", *(f"- {_heading(column)}: {column.definition}" for column in self.columns), "", self.note(), ""]
        return "\n".join(lines)

    def to_rich(self) -> RichTable:
        """The table for the console, an interval under each value so that it fits into 80 columns."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        table = Table(title=escape(self.title), caption=escape(self.note()), title_justify="left", box=SIMPLE_HEAD)
        table.caption_justify = "left"
        table.add_column("", min_width=max(len(word) for row in self.values for word in f"Δ {row}".split()))
        for column in self.columns:
            heading = _heading(column)
            # Headings wrap between words, never inside one.
            longest = max(len(word) for word in heading.split())
            table.add_column(escape(heading), justify="right", vertical="top", min_width=longest)
        last = len(self.values) - 1
        for i, (row, cells, signed) in enumerate(self._lines()):
            shown: list[Text] = []
            for column in self.columns:
                value, interval = _value_and_interval(cells.get(column.name), column, signed)
                text = Text(value, style="bold" if not signed or _clear(cells.get(column.name)) else "")
                shown.append(text.append(f"\n{interval}", style="dim") if interval else text)
            table.add_row(escape(row), *shown, end_section=i == last)
        return table

    def note(self) -> str:
        """How to read intervals and differences."""
        averaged = max(self.seeds.values(), default=1)
        over = "objects" if averaged == 1 else f"objects and {averaged} seeds"
        return f"In brackets: 95 % bootstrap interval over {over}. Δ: paired difference to {self.baseline}."

    def _lines(self) -> list[tuple[str, Mapping[str, Figure], bool]]:
        """Each printed line: its name, its cells, and whether they are differences."""
        values = [(row, cells, False) for row, cells in self.values.items()]
        return values + [(f"Δ {row}", cells, True) for row, cells in self.differences.items()]


def compare(
    results: Mapping[str, Results | Sequence[Results]],
    *,
    title: str = "Before and after",
    baseline: str | None = None,
    columns: Sequence[str] | None = None,
    demo: bool = False,
) -> Comparison:
    """Puts models side by side.

    Args:
        results: by row name, in order: what the model was measured at, or a list of that, one a seed.
        title: of the table.
        baseline: the row that differences are to; the first by default.
        columns: full names of the figures to show; by default all that have a headline.
        demo: the title says DEMO.

    Raises:
        ConfigError: no row, an unknown baseline, or a figure that no row has.
        DataError: rows measured on different objects.
    """
    seeded = {row: [found] if isinstance(found, Mapping) else list(found) for row, found in results.items()}
    if not seeded or not all(seeded.values()):
        raise ConfigError("a comparison needs at least one row, each with at least one result")
    base = next(iter(seeded)) if baseline is None else baseline
    if base not in seeded:
        raise ConfigError(f"no row {base!r} to compare with; there are: {', '.join(seeded)}")
    figures = {row: [_figures(found) for found in runs] for row, runs in seeded.items()}
    chosen = _columns([found for runs in figures.values() for found in runs], columns)
    by_row = {
        row: {c.name: [found[c.name] for found in runs] for c in chosen if all(c.name in found for found in runs)}
        for row, runs in figures.items()
    }
    values = {row: {name: mean_over_seeds(list_) for name, list_ in cells.items()} for row, cells in by_row.items()}
    differences = {
        row: {
            name: paired_difference(list_, by_row[base][name]) for name, list_ in cells.items() if name in by_row[base]
        }
        for row, cells in by_row.items()
        if row != base
    }
    full_title = f"{DEMO}: {title}" if demo else title
    return Comparison(full_title, base, chosen, values, differences, {row: len(runs) for row, runs in seeded.items()})


def save_comparison(comparison: Comparison, folder: Path, name: str = "comparison") -> list[Path]:
    """Writes `<name>.json`, `.csv` and `.md` into `folder`, each whole or not at all.

    Returns:
        The three paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        ".json": json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n",
        ".csv": comparison.to_csv(),
        ".md": comparison.to_markdown(),
    }
    paths = [folder / f"{name}{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomic(path, text.encode())
    return paths


def _figures(results: Results) -> dict[str, Figure]:
    return {figure.name: figure for result in results.values() for figure in result.figures}


def _columns(found: Sequence[Mapping[str, Figure]], chosen: Sequence[str] | None) -> tuple[Column, ...]:
    there: dict[str, Figure] = {}
    for figures in found:
        there = {**figures, **there}
    names = [name for name, figure in there.items() if figure.headline] if chosen is None else list(chosen)
    for name in names:
        if name not in there:
            raise ConfigError(f"no figure {name!r} for a column; there are: {', '.join(there) or 'none'}")
    return tuple(Column(n, there[n].headline or n, there[n].definition, there[n].percent) for n in names)


def _heading(column: Column) -> str:
    return f"{column.heading} %" if column.percent else column.heading


def _value_and_interval(figure: Figure | None, column: Column, signed: bool) -> tuple[str, str]:
    if figure is None or math.isnan(figure.value):
        return NO_VALUE, ""
    sign = "+" if signed else ""

    def number(value: float) -> str:
        return f"{100 * value:{sign}.1f}" if column.percent else f"{value:{sign}.3f}"

    interval = "" if math.isnan(figure.low) else f"[{number(figure.low)}, {number(figure.high)}]"
    return number(figure.value), interval


def _clear(figure: Figure | None) -> bool:
    """The interval excludes zero."""
    return figure is not None and (figure.low > 0 or figure.high < 0)


def _plain(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
