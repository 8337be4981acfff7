"""`mvcore compare`: what runs of any method were measured at, side by side, paired over the same objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mvcore.run_results import Measured


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs, RUN:ROW (as RUN:untouched), or results of 'eval'.")
    ],
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN", help="What differences are to; default: the first.")
    ] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Also write a LaTeX table.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables and pictures.")] = Path(
        "comparison"
    ),
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print tracebacks of errors.")] = False,
) -> None:
    """Sets runs side by side, with paired differences and intervals over objects."""
    from rich.console import Console

    from mvcore.report.long_table import save_long_table, table_of
    from mvcore.run_results import check_comparable, labelled, read_model

    console = Console()
    names = list(runs)
    if baseline is not None and not any(_same(name, baseline) for name in names):
        names.insert(0, baseline)
    models = labelled([read_model(name) for name in names])
    at = 0 if baseline is None else next(i for i, name in enumerate(names) if _same(name, baseline))
    base = list(models)[at]
    check_comparable(models, base)
    demo = any(model.demo for model in models.values())
    results = {label: model.results for label, model in models.items()}
    table = table_of(results, title="Comparison", baseline=base, demo=demo)
    save_long_table(table, output, "comparison", latex=latex)
    _draw(models, output, demo=demo)
    console.print(table.to_rich())
    console.print(f"saved in {output}", markup=False, highlight=False)


def _same(one: str, other: str) -> bool:
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _draw(models: Mapping[str, Measured], output: Path, *, demo: bool) -> None:
    """The ledger's pictures, which are drawn with torch's help and so only where there is a ledger."""
    from mvcore.config import LEDGER

    found = {label: model for label, model in models.items() if LEDGER in model.results[0]}
    if found:
        from mvcore.report.ledger import draw_ledger

        folders = {label: model.folders[0] / LEDGER for label, model in found.items()}
        draw_ledger(folders, {label: model.results[0][LEDGER] for label, model in found.items()}, output, demo=demo)
