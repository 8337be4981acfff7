"""A command: a function with typed options, or a typer app; imported when it is called."""

from __future__ import annotations


def cite(bibtex: bool = False) -> None:
    """Prints what to cite.

    Args:
        bibtex: as BibTeX.
    """
    authors, title, year = "Your Name", "Your Method", 2026
    if bibtex:
        fields = f"author = {{{authors}}}, title = {{{title}}}, year = {{{year}}}"
        print(f"@article{{mymethod, {fields}}}")
    else:
        print(f"{authors}, {title}, {year}")
