"""``mvcore data render``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from mvcore.api import ConfigError, DataError


def render(
    source: Annotated[Path, typer.Argument(metavar="MANIFEST_OR_FOLDER", help="A manifest, or a folder of meshes.")],
    out: Annotated[Path, typer.Argument(help="The store to make.")],
    size: Annotated[int, typer.Option(help="Width and height of a view in pixels.")] = 224,
    views: Annotated[int | None, typer.Option(help="Views an object; the rig's own number if not given.")] = None,
    rig: Annotated[str, typer.Option(help="Cameras: ring, upper, icosphere42, mvc36 or demo24.")] = "upper",
    background: Annotated[str, typer.Option(help="Colour behind the objects.")] = "#ffffff",
    workers: Annotated[int | None, typer.Option(help="Processes that render; one a core if not given.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first mesh that fails.")] = False,
    codec: Annotated[str, typer.Option(help="jpeg, png or webp.")] = "jpeg",
    quality: Annotated[int, typer.Option(help="Of JPEG and WebP, 1 to 100.")] = 92,
    depth: Annotated[bool, typer.Option("--depth/--no-depth", help="Keep z-depth.")] = True,
    masks: Annotated[bool, typer.Option("--masks/--no-masks", help="Keep masks.")] = True,
    only_categories_with: Annotated[int, typer.Option(help="Only categories with at least so many meshes.")] = 1,
) -> None:
    """Render meshes (GLB, OBJ, PLY) to a multi-view store with cameras, z-depth and masks.

    A mesh that fails is named and skipped. An interrupted render goes on when the same command is given again.
    """
    options = image_options(size, background, codec, quality)
    from mvcore_data.render.items import MeshItem
    from mvcore_data.render.manifest import read_manifest
    from mvcore_data.render.pipeline import RenderPlan
    from mvcore_data.rigs import make_rig

    cameras = make_rig(rig, views)
    manifest = read_manifest(source)
    if manifest.skipped:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(manifest.skipped.items()))
        typer.echo(f"left out, not meshes: {kinds}", err=True)
    if only_categories_with > 1:
        manifest = manifest.with_populous_categories(only_categories_with)
    if not manifest.meshes:
        raise DataError(f"{source}: no category has {only_categories_with} meshes")
    items = [MeshItem(entry, depth or masks) for entry in manifest.meshes]
    run_plan(RenderPlan(items, cameras, options, depth, masks), out, workers, strict)


def image_options(size: int, background: str, codec: str, quality: int) -> Any:
    """Checked `ImageOptions`.

    Raises:
        ConfigError: A value is out of range.
    """
    from mvcore_data.render.jobs import ImageOptions
    from mvcore_data.schema import CODECS

    if not 8 <= size <= 4096:
        raise ConfigError(f"--size {size}: must be from 8 to 4096 pixels")
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", background):
        raise ConfigError(f"--background {background!r}: must be a colour like '#ffffff'")
    if codec not in CODECS:
        raise ConfigError(f"--codec {codec!r}: must be one of {', '.join(CODECS)}")
    if not 1 <= quality <= 100:
        raise ConfigError(f"--quality {quality}: must be from 1 to 100")
    red, green, blue = bytes.fromhex(background[1:])
    return ImageOptions(size, (red, green, blue), codec, quality)


def run_plan(plan: Any, out: Path, workers: int | None, strict: bool = False) -> None:
    """Render a plan and say what came of it.

    Raises:
        ConfigError: The number of workers is out of range.
    """
    if workers is not None and not 1 <= workers <= 256:
        raise ConfigError(f"--workers {workers}: must be from 1 to 256")
    from mvcore_data.render.pipeline import render_store

    try:
        failed = render_store(plan, out, workers=workers or _cores(), strict=strict)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; what is drawn waits in {out}.partial: give the same command to go on", err=True)
        raise
    done = len(plan.items) - len(failed)
    typer.echo(f"{out}: {done} objects, {done * len(plan.rig.angles)} views")
    if failed:
        typer.echo(f"{len(failed)} failed and were skipped: {', '.join(failed)}", err=True)


def _cores() -> int:
    """Cores that this process may use; not every system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
