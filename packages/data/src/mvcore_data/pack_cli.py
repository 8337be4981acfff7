"""`mvcore data pack` and `mvcore data formats`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def pack(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A file or folder; see 'mvcore data formats'.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The store to make.")],
    format: Annotated[str | None, typer.Option("--format", help="Its format; by default recognised.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the format; repeatable.")
    ] = None,
    background: Annotated[str | None, typer.Option(help="Colour behind transparent pixels, as '#ffffff'.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of objects that name none, best an SPDX id.")] = None,
    origin: Annotated[str | None, typer.Option(help="Source of objects that name none.")] = None,
    creator: Annotated[str | None, typer.Option(help="Creator of objects that name none.")] = None,
    allow_licence: Annotated[
        list[str] | None, typer.Option("--allow-licence", help="Take only objects of this licence; repeatable.")
    ] = None,
    resize: Annotated[
        int | None, typer.Option(min=1, help="Make the shorter side of larger images this long and encode them anew.")
    ] = None,
    verify: Annotated[
        Literal["structure", "decode"], typer.Option(help="Check that files are whole, or decode every image.")
    ] = "structure",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first thing that cannot be used.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickles, which run any code that their author put there.")
    ] = False,
    shard_size: Annotated[int, typer.Option(min=1, help="Megabytes (2^20) of images in a shard.")] = 512,
) -> None:
    """Pack images of any known layout into a store; JPEG, PNG and WebP files are kept byte for byte.

    Called again after an interruption it goes on where it stood.
    """
    from rich.console import Console
    from rich.progress import Progress

    from mvcore_data.pack_options import parse_pairs
    from mvcore_data.packing import pack as pack_source

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("packing", total=None)
        try:
            report = pack_source(
                source,
                out,
                format=format,
                options=parse_pairs(option or []),
                background=background,
                licence=licence,
                source=origin,
                creator=creator,
                allow_licences=allow_licence,
                resize=resize,
                verify=verify,
                strict=strict,
                allow_pickle=allow_pickle,
                shard_bytes=shard_size << 20,
                on_format=_say_format,
                on_object=lambda done, total: progress.update(task, completed=done, total=total),
            )
        except KeyboardInterrupt:
            kept = "; repeat the command to go on" if out.with_name(f"{out.name}.partial").exists() else ""
            typer.echo(f"interrupted; {out} was not made{kept}", err=True)
            raise
    resumed = f" ({report.resumed} objects from the interrupted pack)" if report.resumed else ""
    typer.echo(f"{out}: {report.objects} objects, {report.views} views{resumed}")
    for why, count in report.reencoded.items():
        typer.echo(f"encoded anew: {count} ({why})", err=True)
    for why, count in report.skipped.counts.items():
        typer.echo(f"skipped: {count} ({why}), first {report.skipped.first[why]}", err=True)


def _say_format(name: str, mark: str) -> None:
    if mark:
        typer.echo(f"format: {name} ({mark})", err=True)


def formats(
    name: Annotated[str | None, typer.Argument(metavar="[FORMAT]", help="Show this one's options.")] = None,
) -> None:
    """List the layouts that pack reads, or the options of one."""
    from rich.console import Console
    from rich.table import Table

    from mvcore_data.importers import FORMATS, find_format, load_format

    table = Table(box=None, pad_edge=False)
    if name is None:
        for column in ("format", "layout"):
            table.add_column(column, overflow="fold")
        for known in map(load_format, FORMATS):
            table.add_row(known.name, known.summary)
        Console().print(table)
        typer.echo("options of one: mvcore data formats FORMAT", err=True)
        return
    known = find_format(name)
    meanings = _meanings(known.options)
    for column in ("--option", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for option, field in _fields(known):
        table.add_row(option, _default(field), meanings.get(option, ""))
    Console().print(f"{known.name}: {known.summary}", highlight=False, markup=False)
    Console().print(table if table.row_count else "no options of its own")


def _fields(known: Any) -> list[tuple[str, Any]]:
    return list(known.options.model_fields.items())


def _default(field: Any) -> str:
    return "required" if field.is_required() else "" if field.default is None else str(field.default)


def _meanings(options: type) -> dict[str, str]:
    """What the `Args:` of a model's docstring say of each option."""
    text = inspect.getdoc(options) or ""
    block = text.partition("Args:\n")[2].split("\n\n")[0]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", f"\n{block}"):
        names, colon, meaning = entry.strip().partition(": ")
        if colon:
            found |= {name.strip(): " ".join(meaning.split()) for name in names.split(",")}
    return found
