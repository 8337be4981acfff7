"""`mvcore index`: builds indexes of a store's objects and searches them by text or by images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvcore.errors import ConfigError

if TYPE_CHECKING:
    from mvcore.images import Pixels
    from mvcore.index.catalogue import Hit

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Builds indexes of objects and searches them.")

Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print tracebacks of errors.")]


@app.command("build")
def build_index(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store, or demo.")],
    model: Annotated[str, typer.Option(help="A run, an export, an open_clip or timm name, or a backbone's id.")],
    of: Annotated[str, typer.Option(help="What a row of the index is: object or view.")] = "object",
    split: Annotated[str | None, typer.Option(help="Only this split of the store.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="INDEX", help="New folder; default: STORE.index here.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an index that is there.")] = False,
    device: Device = "cpu",
    verbose: Verbose = False,
) -> None:
    """Encodes the objects, or the views, of a store."""
    from rich.console import Console

    from mvcore.cli.eval import chosen_device
    from mvcore.index.building import build
    from mvcore.index.folder import check_target
    from mvcore.loading import load

    if of not in ("object", "view"):
        raise ConfigError(f"--of {of!r}: write object or view")
    name = Path(store).resolve().name if Path(store).exists() else Path(store).name
    target = output or Path(f"{name}{'-' + split if split else ''}.index")
    check_target(target, replace=replace)
    loaded = load(model, device=chosen_device(device))
    console = Console(stderr=True)
    with console.status("encoding") as status:

        def tell(done: int, total: int) -> None:
            status.update(f"encoded {done} of {total} objects")

        index = build(store, loaded, of=of, split=split, on_progress=tell)
    index.save(target, replace=replace)
    objects = len(index.catalogue.objects)
    rows = f"{objects} objects" if of == "object" else f"{len(index)} views of {objects} objects"
    typer.echo(f"indexed {rows} as vectors of width {index.catalogue.dim} in {target}")


def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="What 'mvcore index build' wrote.")],
    query: Annotated[
        list[str] | None, typer.Argument(metavar="[QUERY]...", help="The text; behind --image, more image files.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE...", help="Image files, the views of one object, in the place of a text."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many hits.")] = 10,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the query and its hits.")] = None,
    model: Annotated[str | None, typer.Option(help="The model; default: the one that built the index.")] = None,
    background: Annotated[str, typer.Option(help="Behind transparent images: a colour.")] = "white",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = "cpu",
    verbose: Verbose = False,
) -> None:
    """Finds the objects or views nearest to a text or to images of one object."""
    from mvcore.cli.eval import chosen_device
    from mvcore.images import parse_colour, read_image
    from mvcore.index.searching import load

    words = query or []
    if not image and not words:
        raise ConfigError('name what to search for: a text as "a white couch", or --image FILE...')
    # A program's option takes one value, so the other files of `--image a.jpg b.jpg` come as arguments.
    files = [*image, *map(Path, words)] if image else []
    colour = parse_colour(background)
    pictures = [read_image(file, colour) for file in files]
    opened = load(index, model, device=chosen_device(device))
    if changed := opened.changes():
        typer.secho(f"warning: {changed}", fg="yellow", err=True)
    text = " ".join(words)
    hits = opened.search(images=[pictures], k=k)[0] if pictures else opened.search(texts=text, k=k)[0]
    _print(hits, text, files, json)
    if sheet is not None:
        from mvcore.index.sheet import draw_hits

        shown: str | list[Pixels] = pictures or text
        draw_hits(opened, hits, sheet, query=shown)
        typer.echo(f"drawn in {sheet}", err=json)


def _print(hits: list[Hit], text: str, files: list[Path], json: bool) -> None:
    from mvcore.cli.output import print_json, print_table

    if json:
        query: Any = {"images": [str(file) for file in files]} if files else {"text": text}
        print_json({"query": query, "hits": [hit.model_dump(mode="json") for hit in hits]})
        return
    of_views = hits[0].view is not None
    columns = ["rank", "score", "id", *(["view"] if of_views else []), "category", "caption"]
    rows = [
        [
            str(hit.rank),
            f"{hit.score:.3f}",
            hit.id,
            *([str(hit.view)] if of_views else []),
            hit.category or "",
            hit.captions[0] if hit.captions else "",
        ]
        for hit in hits
    ]
    print_table(columns, rows)


app.command("search")(search)
