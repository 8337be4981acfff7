"""A comparison with many figures and few models: figures go down, in groups, models across.

The first line of a cell is the value, with the deviation over pairs where there is one; the second is its 95 %
interval, or in the columns of other models than the baseline the paired difference to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mvcore.config import LEDGER
from mvcore.evaluation.files import write_atomic
from mvcore.evaluation.options import LEDGER_MISSING
from mvcore.evaluation.results import EvalResult, Figure
from mvcore.report.tables import NO_VALUE, Column, Comparison, Results, compare

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table as RichTable

_QUANTITIES = {
    "same_object": "same object",
    "different_object": "different object",
    "separation": "same − different",
    "worst_view": "worst view",
    "text_to_image": "text to image",
    "own_text": "own text R@1",
    "zero_shot": "zero-shot top-1",
    "participation_ratio": "participation ratio",
    "centred_participation_ratio": "– about the mean",
    "effective_rank": "effective rank",
    "angle": "{}° apart",
    "elevation": "elevation {}°",
}
"""The ledger's quantities in their order, and how they are written."""
_BINNED = ("angle", "elevation")
_COUNTED = ("participation_ratio", "centred_participation_ratio", "effective_rank")


@dataclass(frozen=True)
class Line:
    """One figure: its group, how it is written, whether it is a bin of a curve, and whether a number of directions."""

    column: Column
    group: str
    label: str
    binned: bool = False
    counted: bool = False
    place: tuple[int, float] = (0, 0.0)

    @property
    def percent(self) -> bool:
        """It is shown times 100."""
        return self.column.percent


@dataclass(frozen=True)
class LongTable:
    """A comparison laid out with its figures as lines.

    Args:
        comparison: what is shown.
        notes: lines below the table, as what is missing and why.
    """

    comparison: Comparison
    notes: Sequence[str] = ()

    def lines(self) -> list[Line]:
        """All figures, those of one group together; the ledger's in the order of its quantities."""
        lines = [_line(column) for column in self.comparison.columns]
        groups = list(dict.fromkeys(line.group for line in lines))
        return sorted(lines, key=lambda line: (groups.index(line.group), line.place))

    def to_rich(self, *, binned: bool = False) -> Fitted:
        """The table for the console, in as many parts below each other as its width asks for.

        Args:
            binned: with the bins of the curves.
        """
        return Fitted(self, binned)

    def part(self, models: Sequence[str], *, binned: bool) -> RichTable:
        """The columns of some models."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("", no_wrap=True)
        for row in models:
            table.add_column(escape(row), justify="right", no_wrap=True)
        for group, lines in self.groups(binned=binned):
            table.add_row(Text(group, style="bold"), *[""] * len(models))
            for line in lines:
                cells = [
                    Text(value, style="bold" if clear else "").append(f"\n{below}" if below else "", style="dim")
                    for value, below, clear in (self._short(line, row) for row in models)
                ]
                table.add_row(f" {written(line)}", *cells)
        return table

    def to_markdown(self) -> str:
        """The table with its definitions below; differences whose interval excludes zero are bold."""
        comparison = self.comparison
        out = [f"**{comparison.title}**", ""]
        for group, lines in self.groups(binned=True):
            out += [f"| {_escape(group)} | " + " | ".join(map(_escape, comparison.values)) + " |"]
            out += ["|---|" + "---:|" * len(comparison.values)]
            for line in lines:
                cells = [self._full(line, row, "**{}**", "<br>Δ ") for row in comparison.values]
                out.append(f"| {written(line)} | " + " | ".join(cells) + " |")
            out.append("")
        out += [
            f"- {group}, {written(line)}: {line.column.definition}"
            for group, lines in self.groups(binned=False)
            for line in lines
        ]
        out += ["", comparison.note(), *self.notes, ""]
        return "\n".join(out)

    def to_latex(self) -> str:
        """The table for a paper that loads booktabs; differences whose interval excludes zero are bold."""
        comparison = self.comparison
        models = list(comparison.values)
        out = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{'r' * len(models)}}}", "\\toprule"]
        out += [" & " + " & ".join(map(_latex, models)) + " \\\\"]
        for group, lines in self.groups(binned=True):
            out += ["\\midrule", f"\\multicolumn{{{len(models) + 1}}}{{l}}{{\\textit{{{_latex(group)}}}}} \\\\"]
            for line in lines:
                cells = [_latex(self._full(line, row, "\0{}\1", ", Δ ")) for row in models]
                bold = [cell.replace("\0", "\\textbf{").replace("\1", "}") for cell in cells]
                out.append(f"{_latex(written(line))} & " + " & ".join(bold) + " \\\\")
        return "\n".join(
            [*out, "\\bottomrule", "\\end{tabular}", "% " + _latex(f"{comparison.title}. {comparison.note()}"), ""]
        )

    def groups(self, *, binned: bool) -> Iterator[tuple[str, list[Line]]]:
        """The lines by group, with or without the bins of curves."""
        found: dict[str, list[Line]] = {}
        for line in self.lines():
            if binned or not line.binned:
                found.setdefault(line.group, []).append(line)
        yield from found.items()

    def _short(self, line: Line, row: str) -> tuple[str, str, bool]:
        """The value, what stands below it, and whether it differs clearly from the baseline's."""
        figure, gap = self.found(line, row)
        if figure is None or math.isnan(figure.value):
            return NO_VALUE, "", False
        if row == self.comparison.baseline:
            return shown_number(figure.value, line), shown_interval(figure, line), False
        below = "" if gap is None or not shown_interval(gap, line) else f"Δ{shown_interval(gap, line, '+')}"
        return shown_number(figure.value, line), below, is_clear(gap)

    def _full(self, line: Line, row: str, strong: str, before: str) -> str:
        """Value, deviation, interval and difference in one."""
        figure, gap = self.found(line, row)
        if figure is None or math.isnan(figure.value):
            return NO_VALUE
        text = shown_number(figure.value, line)
        if not math.isnan(figure.std):
            text += f" ± {shown_number(figure.std, line)}"
        text = f"{text} {shown_interval(figure, line)}".rstrip()
        if gap is not None and row != self.comparison.baseline and not math.isnan(gap.value):
            value = shown_number(gap.value, line, "+")
            text += (
                f"{before}{strong.format(value) if is_clear(gap) else value} {shown_interval(gap, line, '+')}".rstrip()
            )
        return text

    def found(self, line: Line, row: str) -> tuple[Figure | None, Figure | None]:
        """A model's figure and its difference to the baseline's."""
        comparison, name = self.comparison, line.column.name
        return comparison.values[row].get(name), comparison.differences.get(row, {}).get(name)


@dataclass(frozen=True)
class Fitted:
    """A long table as wide as the console: models that do not fit beside the others stand below them.

    Args:
        table: the table.
        binned: with the bins of the curves.
    """

    table: LongTable
    binned: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        comparison = self.table.comparison
        yield Text(comparison.title, style="italic")
        waiting = list(comparison.values)
        while waiting:
            count = len(waiting)
            while count > 1 and self._width(console, waiting[:count]) > options.max_width:
                count -= 1
            yield self.table.part(waiting[:count], binned=self.binned)
            waiting = waiting[count:]
        yield Text(" ".join([comparison.note(), *self.table.notes]), style="dim italic")

    def _width(self, console: Console, models: Sequence[str]) -> int:
        unbounded = console.options.update(max_width=10_000)
        return console.measure(self.table.part(models, binned=self.binned), options=unbounded).maximum


def table_of(
    rows: Mapping[str, Sequence[Results]], *, title: str, baseline: str | None = None, demo: bool = False
) -> LongTable:
    """All headline figures and the whole ledger of models side by side.

    Args:
        rows: by name, one result a seed and evaluator.
        title: of the table.
        baseline: the row that differences are to; the first by default.
        demo: the title says DEMO.

    Raises:
        ConfigError: no row.
        DataError: rows measured on different objects.
    """
    figures = [f for seeds in rows.values() for seed in seeds for result in seed.values() for f in result.figures]
    names = dict.fromkeys(f.name for f in figures if f.headline or f.name.startswith(f"{LEDGER}/"))
    comparison = compare(rows, title=title, baseline=baseline, columns=list(names), demo=demo)
    return LongTable(comparison, missing_in(rows))


def missing_in(rows: Mapping[str, Sequence[Results]]) -> list[str]:
    """What the ledgers of models lack and why, each once."""
    lacking = [
        f"No {what} on {source}: {why}."
        for seeds in rows.values()
        for seed in seeds
        for table in seed.get(LEDGER, EvalResult()).tables
        if table.title == LEDGER_MISSING
        for source, what, why in table.rows
    ]
    return list(dict.fromkeys(lacking))


def save_long_table(table: LongTable, folder: Path, name: str, *, latex: bool = False) -> list[Path]:
    """Writes `<name>.json`, `.csv`, `.md` and, if asked, `.tex` into `folder`, each whole or not at all.

    Returns:
        The paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        ".json": json.dumps(table.comparison.to_json(), indent=1, allow_nan=False) + "\n",
        ".csv": table.comparison.to_csv(),
        ".md": table.to_markdown(),
    }
    if latex:
        texts[".tex"] = table.to_latex()
    paths = [folder / f"{name}{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomic(path, text.encode())
    return paths


def _line(column: Column) -> Line:
    parts = column.name.split("/")
    if parts[0] != LEDGER or len(parts) < 3 or parts[1] not in _QUANTITIES:
        return Line(column, parts[0], column.heading)
    order = list(_QUANTITIES).index(parts[1])
    bin_ = parts[3] if len(parts) > 3 else ""
    place = (order, float(bin_) if bin_ else 0.0)
    label = _QUANTITIES[parts[1]].format(bin_)
    return Line(column, f"ledger, {parts[2]}", label, parts[1] in _BINNED, parts[1] in _COUNTED, place)


def written(line: Line) -> str:
    """A line's label with its unit."""
    return f"{line.label} %" if line.percent else line.label


def shown_number(value: float, line: Line, sign: str = "") -> str:
    """A value as tables show it; `sign` is `+` where it is a difference."""
    if line.percent:
        return f"{100 * value:{sign}.1f}"
    return f"{value:{sign}.1f}" if line.counted else f"{value:{sign}.3f}"


def shown_interval(figure: Figure, line: Line, sign: str = "") -> str:
    """A figure's interval; nothing where it has none."""
    if math.isnan(figure.low):
        return ""
    return f"[{shown_number(figure.low, line, sign)}, {shown_number(figure.high, line, sign)}]"


def is_clear(gap: Figure | None) -> bool:
    """A difference whose interval excludes zero."""
    return gap is not None and (gap.low > 0 or gap.high < 0)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_LATEX = {
    "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{", "}": "\\}",
    "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$", "Δ": "$\\Delta$", "−": "$-$", "–": "--",
    "°": "$^\\circ$", "[": "{[}",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
