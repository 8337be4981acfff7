"""`mvcore import`: a checkpoint of a method's authors as a model for `mvcore.load`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A torch checkpoint, or safetensors.")],
    as_: Annotated[str, typer.Option("--as", metavar="PLUGIN", help="Whose it is: PLUGIN, or PLUGIN.RECIPE.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="New folder; default: CKPT's name.")] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(help="The base weights under it, a tag or a file: keep only what was trained over them."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Sets a key of the recipe, as encoder.model=ViT-B-16.")
    ] = None,
    tensors_only: Annotated[
        bool,
        typer.Option("--tensors-only", help="Pass over what is no tensor, as hyperparameters; nothing of it is run."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print tracebacks of errors.")] = False,
) -> None:
    """Renames a released checkpoint's weights and writes them as a run or an export."""
    from mvcore.importing import describe, import_checkpoint, importer_of
    from mvcore.plugins import load_plugins

    done = import_checkpoint(
        checkpoint.expanduser(),
        importer_of(as_, load_plugins()),
        (output or Path(checkpoint.stem)).expanduser(),
        pretrained=pretrained,
        assignments=set_ or (),
        tensors_only=tensors_only,
    )
    typer.echo(describe(done))


app = typer.Typer(add_completion=False)
app.command("import")(import_)
