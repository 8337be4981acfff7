"""How commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """Plain values as indented JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """A table as wide as the terminal; into a pipe or file, plain columns in which no cell is wrapped."""
    cells = list(rows)
    if sys.stdout.isatty():
        _print_rich(columns, cells, title)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    table = (columns, ["-" * width for width in widths], *cells)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    sys.stdout.write("\n".join([title, *lines] if title else lines) + "\n")


def _print_rich(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title or None, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for row in rows:
        # Text, not markup: brackets as in `losses[ovt.vc]` are to be seen.
        table.add_row(*(Text(cell, style=_STYLES.get(cell.partition(":")[0], "")) for cell in row))
    Console().print(table)


_STYLES = {
    "ok": "green",
    "warning": "yellow",
    "failed": "red",
    "broken": "red",
    "conflict": "red",
    "incompatible": "red",
    "disabled": "dim",
}
"""Colours of cells that hold a status."""
