"""`mvcore data caption`: captions by a vision-language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mvcore_data.caption_prompts import GUIDED, UNGUIDED


def caption(
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="A shard, a store, or a folder that `mvcore data pack` reads.")
    ],
    model: Annotated[
        str, typer.Option(help="A transformers model, as BLIP-2 or InstructBLIP: a folder or a hub name.")
    ],
    name: Annotated[str, typer.Option(help="What the captions are called.")] = "captions",
    prompt: Annotated[str, typer.Option(help="{category} stands for the object's category.")] = GUIDED,
    plain_prompt: Annotated[str, typer.Option(help="For objects without a category.")] = UNGUIDED,
    require_category: Annotated[
        Literal["retry", "drop", "keep"], typer.Option(help="Captions that do not name the category.")
    ] = "retry",
    attempts: Annotated[int, typer.Option(min=1, max=20, help="Of retry.")] = 2,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Views at a time.")] = 8,
    beams: Annotated[int, typer.Option(min=1, max=64, help="Of the beam search.")] = 5,
    max_length: Annotated[int, typer.Option(min=1, max=1024, help="Tokens of a caption.")] = 32,
    length_penalty: Annotated[float, typer.Option(help="Below 0 favours short captions.")] = -1.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], typer.Option(help="Of the model.")] = "float32",
    replace: Annotated[bool, typer.Option("--replace", help="Replace captions that were made otherwise.")] = False,
) -> None:
    """Caption every view of a store with a vision-language model, beside the store.

    Interrupted, it keeps what is done and goes on when the same command is given again.
    """
    from rich.console import Console
    from rich.progress import Progress

    from mvcore_data.caption import caption_store
    from mvcore_data.caption_files import captions_path
    from mvcore_data.captioner import Captioner, Generation
    from mvcore_data.packed_cache import as_store
    from mvcore_data.store import ViewStore

    store = as_store(store)
    with ViewStore(store) as opened:
        path = captions_path(store, name)
        captioner = Captioner(model, device=device, dtype=dtype)
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("captioning", total=None)
            try:
                report = caption_store(
                    opened,
                    captioner,
                    name,
                    model=model,
                    prompt=prompt,
                    plain_prompt=plain_prompt,
                    generation=Generation(beams=beams, max_length=max_length, length_penalty=length_penalty),
                    require_category=require_category,
                    attempts=attempts,
                    batch=batch,
                    replace=replace,
                    on_views=lambda done, total: progress.update(task, completed=done, total=total),
                )
            except KeyboardInterrupt:
                typer.echo("interrupted; what is done is kept: give the same command again to go on", err=True)
                raise
    typer.echo(f"{path}: {report.written} captions written, {report.before} views had a line already")
    counts = {
        "objects without a category, captioned by the plain prompt": report.unguided,
        "asked again for the category": report.retried,
        "do not name the category": report.without_category,
        "left without a caption": report.left_out,
    }
    for what, count in counts.items():
        if count:
            typer.echo(f"{what}: {count} views", err=True)
