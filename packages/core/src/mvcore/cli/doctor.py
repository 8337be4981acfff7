"""`mvcore doctor`: runs every check, core's and the plugins'."""

from __future__ import annotations

from typing import Annotated

import typer

from mvcore.cli.output import print_json, print_table
from mvcore.doctor import run_checks


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Checks versions, devices, disk space and plugins; exit code 1 if a check failed."""
    findings = run_checks()
    if json:
        print_json(
            [
                {"check": check, "status": result.status, "text": result.text, "advice": result.advice}
                for check, result in findings
            ]
        )
    else:
        rows = [(check, result.status, result.text, result.advice) for check, result in findings]
        print_table(("check", "status", "found", "what to do"), rows)
    if any(result.status == "failed" for _, result in findings):
        raise typer.Exit(1)
