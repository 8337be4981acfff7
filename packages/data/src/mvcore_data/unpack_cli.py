"""`mvcore data unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def unpack(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A shard, or the folder of a store.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    format: Annotated[
        Literal["folders", "webdataset"], typer.Option("--format", help="Folders that pack reads, or tar shards.")
    ] = "folders",
    split: Annotated[str | None, typer.Option(help="Only the objects of this split.")] = None,
    allow_licence: Annotated[
        list[str] | None, typer.Option("--allow-licence", help="Only objects of this licence; repeatable.")
    ] = None,
    sample: Annotated[
        Literal["object", "view"] | None, typer.Option(help="What a sample of webdataset is; default: object.")
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Megabytes (2^20) of a shard of webdataset; default: 512.")
    ] = None,
) -> None:
    """Write a store's objects as files again; images are the stored bytes.

    LICENCES.csv and README.md in OUT count licences, sources and creators.
    """
    from rich.console import Console
    from rich.progress import Progress

    from mvcore_data.unpack import unpack as unpack_store

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("unpacking", total=None)
        try:
            report = unpack_store(
                store,
                out,
                format=format,
                split=split,
                allow_licences=allow_licence,
                sample=sample,
                shard_bytes=None if shard_size is None else shard_size << 20,
                on_object=lambda done, total: progress.update(task, completed=done, total=total),
            )
        except KeyboardInterrupt:
            typer.echo(f"interrupted; {out} was not made", err=True)
            raise
    if report.left_out:
        typer.echo(report.left_out, err=True)
    typer.echo(f"{out}: {report.objects} objects, {report.views} views")
