"""`mvcore report`: tables, pictures and curves of runs in one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The HTML file; default: RUN/report/report.html of the first.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print tracebacks of errors.")] = False,
) -> None:
    """Writes an HTML report of runs that stands alone: no other file, and nothing from the network."""
    from mvcore.report.html import NAME, write_report

    path = write_report(runs, output or runs[0] / "report" / NAME)
    typer.echo(f"saved as {path}")
