"""``mvcore data render``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from mvcore.api import ConfigError, DataError

RIG_HELP = "Cameras: ring, upper, random-upper-100, icosphere42, mvc36, mvc18, zero123-12 or demo24."


def render(
    source: Annotated[Path, typer.Argument(metavar="MANIFEST_OR_FOLDER", help="A manifest, or a folder of meshes.")],
    out: Annotated[Path, typer.Argument(help="The store to make.")],
    size: Annotated[int, typer.Option(help="Width and height of a view in pixels.")] = 224,
    views: Annotated[int | None, typer.Option(help="Views an object; the rig's own number if not given.")] = None,
    rig: Annotated[str, typer.Option(help=RIG_HELP)] = "upper",
    renderer: Annotated[str, typer.Option(help="pyvista, or blender for Cycles.")] = "pyvista",
    lights: Annotated[str, typer.Option(help="What the lights are fixed to: world or camera.")] = "world",
    background: Annotated[str, typer.Option(help="Behind the objects: colour, image or folder of images.")] = "#ffffff",
    materials: Annotated[str, typer.Option(help="Those of the file, or grey.")] = "file",
    samples: Annotated[int | None, typer.Option(help="Light paths a pixel in Blender; 64 if not given.")] = None,
    device: Annotated[str | None, typer.Option(help="Where Blender computes, cpu or gpu; cpu if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of random rigs, drawn backgrounds and Blender's noise.")] = 0,
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
    look = {"renderer": renderer, "lights": lights, "materials": materials, "samples": samples, "device": device}
    settings = render_settings(size, background, codec, quality, seed, **look)
    from mvcore_data.render.items import MeshItem
    from mvcore_data.render.manifest import read_manifest
    from mvcore_data.render.pipeline import RenderPlan
    from mvcore_data.rigs import make_rig

    cameras = make_rig(rig, views, seed)
    manifest = read_manifest(source)
    if manifest.skipped:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(manifest.skipped.items()))
        typer.echo(f"left out, not meshes: {kinds}", err=True)
    if only_categories_with > 1:
        manifest = manifest.with_populous_categories(only_categories_with)
    if not manifest.meshes:
        raise DataError(f"{source}: no category has {only_categories_with} meshes")
    items = [MeshItem(entry, depth or masks) for entry in manifest.meshes]
    run_plan(RenderPlan(items, cameras, settings, depth, masks), out, workers, strict)


def render_settings(size: int, background: str, codec: str, quality: int, seed: int = 0, **look: Any) -> Any:
    """Checked `RenderSettings`; what is None in ``look`` has its default.

    Raises:
        ConfigError: A value is out of range.
    """
    from mvcore_data.render.backgrounds import read_background
    from mvcore_data.render.settings import CHOICES, RenderSettings
    from mvcore_data.schema import CODECS

    given = {name: value for name, value in look.items() if value is not None}
    if not 8 <= size <= 4096:
        raise ConfigError(f"--size {size}: must be from 8 to 4096 pixels")
    for name, known in {"codec": CODECS, **CHOICES}.items():
        value = codec if name == "codec" else given.get(name)
        if value is not None and value not in known:
            raise ConfigError(f"--{name} {value!r}: must be one of {', '.join(known)}")
    if not 1 <= quality <= 100:
        raise ConfigError(f"--quality {quality}: must be from 1 to 100")
    if not 0 <= seed < 1 << 63:
        raise ConfigError(f"--seed {seed}: must not be negative")
    for name in ("samples", "device"):
        if name in given and given.get("renderer") != "blender":
            raise ConfigError(f"--{name} {given[name]}: only with --renderer blender")
    if not 1 <= given.get("samples", 1) <= 65536:
        raise ConfigError(f"--samples {given['samples']}: must be from 1 to 65536")
    return RenderSettings(size, read_background(background), codec, quality, seed=seed, **given)


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
    typer.echo(f"{out}: {done} objects, {done * plan.rig.views} views")
    if failed:
        typer.echo(f"{len(failed)} failed and were skipped: {', '.join(failed)}", err=True)


def _cores() -> int:
    """Cores that this process may use; not every system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
