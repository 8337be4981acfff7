"""`mvcore duoduo`: what the method shows beside training and measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from mvcore.api import ConfigError

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def _duoduo() -> None:
    """Look into cross-view attention."""


@app.command()
def attention(
    run: Annotated[str, typer.Argument(help="A run, an export or an open_clip name.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More images, behind --image.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE...", help="Image files, the views of one object.")
    ] = None,
    view: Annotated[int, typer.Option(min=0, help="Which of them looks, from 0.")] = 0,
    point: Annotated[
        str | None, typer.Option(metavar="X,Y", help="Where in it, in its pixels; default: its class token.")
    ] = None,
    block: Annotated[int | None, typer.Option(min=0, help="The block; default: the first across views.")] = None,
    cross_view_from: Annotated[
        int | None, typer.Option(min=0, help="The first block across views; default: the run's own.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PNG", help="The picture.")] = Path("attention.png"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print tracebacks of errors.")] = False,
) -> None:
    """Draws where attention goes from one place of one view: to the patches of every view."""
    from mvcore.api import draw_heat_maps, load, read_image

    from mvcore_duoduo.attention_maps import attention_maps

    files = [*(image or ()), *(more or ())]
    if not files or (more and len(image or ()) != 1):
        raise ConfigError("name the views of one object behind one --image, as --image a.jpg b.jpg c.jpg")
    place = None if point is None else _point(point)
    views = [read_image(file) for file in files]
    model = load(run, device=device)
    found = attention_maps(model, views, view=view, point=place, block=block, cross_view_from=cross_view_from)
    side = found.patches.shape[1]
    mark = None
    if found.patch is not None:
        cell = found.images.shape[1] / side
        mark = (view, (found.patch[1] + 0.5) * cell, (found.patch[0] + 0.5) * cell)
    titles = [f"{file.stem}: {share:.0%}" for file, share in zip(files, found.of_views, strict=True)]
    looks = "class token" if found.patch is None else f"patch {found.patch[0]},{found.patch[1]}"
    label = f"attention of the {looks} of {files[view].stem}, block {found.block}"
    draw_heat_maps(found.images, found.patches, output, titles=titles, label=label, point=mark)
    shares = ", ".join(titles)
    typer.echo(f"{label}: {shares}; drawn to {output}")


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--point {text!r}: write X,Y in pixels, as 120,80") from None
    return x, y
