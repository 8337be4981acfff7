"""``mvcore data synth``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from mvcore.api import ConfigError

from mvcore_data.render.cli import RIG_HELP, render_settings, run_plan


def synth(
    out: Annotated[Path, typer.Argument(help="The store to make.")],
    objects_per_category: Annotated[int, typer.Option(help="Objects of each category.")] = 28,
    categories: Annotated[str | None, typer.Option(help="Their names with commas between; all if not given.")] = None,
    size: Annotated[int, typer.Option(help="Width and height of a view in pixels.")] = 64,
    views: Annotated[int | None, typer.Option(help="Views an object; the rig's own number if not given.")] = None,
    rig: Annotated[str, typer.Option(help=RIG_HELP)] = "demo24",
    background: Annotated[str, typer.Option(help="Behind the objects: colour, image or folder of images.")] = "#d6dade",
    seed: Annotated[int, typer.Option(help="Another seed, other objects.")] = 0,
    depth_objects: Annotated[
        int, typer.Option(help="Objects that keep z-depth and masks, held-out ones and others in turn.")
    ] = 20,
    codec: Annotated[str, typer.Option(help="jpeg, png or webp.")] = "webp",
    quality: Annotated[int, typer.Option(help="Of JPEG and WebP, 1 to 100.")] = 80,
    workers: Annotated[int | None, typer.Option(help="Processes that render; one a core if not given.")] = None,
) -> None:
    """Make procedural textured objects with captions and render them to a store, split by object.

    The objects depend on the seed, their category and their number alone. Views 0 to 3 of the rig demo24 are frontal.
    """
    settings = render_settings(size, background, codec, quality, seed)
    if not 1 <= objects_per_category <= 999:
        raise ConfigError(f"--objects-per-category {objects_per_category}: must be from 1 to 999")
    if seed < 0:
        raise ConfigError(f"--seed {seed}: must not be negative")
    if depth_objects < 0:
        raise ConfigError(f"--depth-objects {depth_objects}: must not be negative")
    from mvcore_data.render.pipeline import RenderPlan
    from mvcore_data.rigs import make_rig
    from mvcore_data.synth.items import SyntheticItem, split_items

    cameras = make_rig(rig, views, seed)
    names = _categories(categories)
    total = len(names) * objects_per_category
    wanted = {
        (names[k % len(names)], _with_depth(k // len(names), objects_per_category))
        for k in range(min(depth_objects, total))
    }
    items = [
        SyntheticItem(name, number, seed, (name, number) in wanted)
        for name in names
        for number in range(objects_per_category)
    ]
    run_plan(RenderPlan(items, cameras, settings, splits=split_items(items)), out, workers, strict=True)


def _with_depth(turn: int, objects: int) -> int:
    """Depth goes round the categories: their last object, which is held out, then their first, then the next last."""
    return turn // 2 if turn % 2 else objects - 1 - turn // 2


def _categories(wanted: str | None) -> tuple[str, ...]:
    from mvcore_data.synth.names import CATEGORIES

    if wanted is None:
        return CATEGORIES
    names = tuple(dict.fromkeys(name.strip() for name in wanted.split(",")))
    unknown = [name for name in names if name not in CATEGORIES]
    if unknown:
        raise ConfigError(f"--categories: unknown category {unknown[0]!r}; known are {', '.join(CATEGORIES)}")
    return names
