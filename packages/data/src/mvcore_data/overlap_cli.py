"""`mvcore data overlap`: what two stores share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mvcore_data.overlap import Overlap, Side

_LISTED = 20


def overlap(
    first: Annotated[str, typer.Argument(metavar="A", help="STORE or STORE#SPLIT, as what is trained on.")],
    second: Annotated[str, typer.Argument(metavar="B", help="STORE or STORE#SPLIT, as what is measured on.")],
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Look for near-identical images, not for ids alone.")
    ] = True,
    radius: Annotated[int, typer.Option(min=0, max=11, help="Bits of the image hash that may differ.")] = 10,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that read images.")] = 1,
    sheet: Annotated[Path | None, typer.Option(help="Draw the closest pairs side by side to this PNG.")] = None,
    fail: Annotated[bool, typer.Option("--fail", help="Exit with code 2 where anything is shared.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all pairs.")] = False,
) -> None:
    """Find ids and near-identical images that two stores, or two splits of one, share."""
    import json
    from dataclasses import asdict

    from mvcore.api import DataError
    from rich.console import Console
    from rich.progress import Progress

    from mvcore_data.overlap import find_overlap, open_side
    from mvcore_data.overlap_sheet import draw_pairs

    one, two = open_side(first), open_side(second)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("comparing", total=None)
        found = find_overlap(
            one,
            two,
            images=images,
            radius=radius,
            workers=workers,
            on_views=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        objects = [{"first": a, "second": b, "pairs": n} for (a, b), n in found.by_object.items()]
        typer.echo(json.dumps({**asdict(found), "objects": objects}, indent=1, ensure_ascii=False))
    else:
        typer.echo("\n".join(_lines(one, two, found, images)))
    if sheet is not None:
        drawn = draw_pairs(one, two, found.pairs, sheet)
        typer.echo(f"{drawn} pairs drawn: {sheet}" if drawn else "no pair to draw", err=True)
    if fail and found:
        counts = (
            f"{len(found.ids)} ids, {len(found.names)} names, {len(found.by_object)} pairs of objects that look alike"
        )
        raise DataError(f"{first} and {second} share {counts}")


def _lines(one: Side, two: Side, found: Overlap, images: bool) -> list[str]:
    lines = [
        f"A           {one.name}: {len(one.objects)} objects",
        f"B           {two.name}: {len(two.objects)} objects",
    ]
    lines.append(f"same id     {len(found.ids)} objects{_some(found.ids)}")
    lines.append(f"same name   {len(found.names)} objects{_some([f'{a} = {b}' for a, b in found.names])}")
    if not images:
        return lines
    objects = found.by_object
    own, other = len({a for a, _ in objects}), len({b for _, b in objects})
    lines.append(f"same image  {len(found.pairs)} pairs of views: {own} objects of A, {other} of B")
    lines += [f"  {n:4d}  {a} = {b}" for (a, b), n in list(objects.items())[:_LISTED]]
    if len(objects) > _LISTED:
        lines.append(f"  and {len(objects) - _LISTED} more pairs of objects")
    if any(found.empty):
        lines.append(
            f"empty       {found.empty[0]} views of A and {found.empty[1]} of B show nothing and were left out"
        )
    return lines


def _some(names: list[str]) -> str:
    return f": {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""
