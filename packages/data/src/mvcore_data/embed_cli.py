"""``mvcore data embed``."""

from __future__ import annotations

import re
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from mvcore.api import ConfigError

_PART_ID = re.compile(r"[a-z][a-z0-9_-]*\.[a-z][a-z0-9_-]*")


class ImportFormat(StrEnum):
    """Files of vectors that others made."""

    duoduo = "duoduo"


def embed(
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="A shard, a store, or a folder that `mvcore data pack` reads.")
    ],
    encoder: Annotated[
        str | None,
        typer.Option(help="A backbone's id, a run, an export, or an open_clip or timm name as NAME:PRETRAINED."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The backbone's model, beside its id, as core.open_clip.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="Its weights: a tag or a file.")] = None,
    tag: Annotated[str | None, typer.Option(help="What the vectors are called; by default, the model's name.")] = None,
    on: Annotated[str | None, typer.Option(help="image, text, or image,text; by default what is there.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Views, or captions, encoded at a time.")] = 256,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Threads that read and decode.")] = 1,
    fit: Annotated[Literal["crop", "pad"], typer.Option(help="What is done to images that are not square.")] = "crop",
    background: Annotated[str | None, typer.Option(help="Colour where masks leave out a view, as '#ffffff'.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    imported: Annotated[
        Path | None, typer.Option("--import", help="Take vectors from this file in the place of encoding.")
    ] = None,
    file_format: Annotated[ImportFormat, typer.Option("--format", help="Of the file to import.")] = ImportFormat.duoduo,
    replace: Annotated[bool, typer.Option("--replace", help="Replace vectors of this tag made otherwise.")] = False,
) -> None:
    """Store the vectors of a store's views and captions beside it, in float16.

    Interrupted, it keeps the finished shards and goes on when the same command is given again.
    """
    from rich.console import Console
    from rich.progress import Progress

    from mvcore_data.embed import Encoded, embed_store
    from mvcore_data.packed_cache import as_store
    from mvcore_data.source_images import parse_colour
    from mvcore_data.store import ViewStore

    if (encoder is None) == (imported is None):
        raise ConfigError("give either --encoder, which makes the vectors, or --import, a file that holds them")
    kinds = _kinds(on)
    store = as_store(store)
    with ViewStore(store) as opened:
        if imported is not None:
            from mvcore_data.embed_import import DuoduoVectors

            vectors: Any = DuoduoVectors(opened, imported, kinds)
            name = tag or _as_tag(imported.stem)
        else:
            loaded = _model(str(encoder), model, pretrained, device)
            name = tag or _default_tag(str(encoder), model, pretrained)
            colour = None if background is None else parse_colour(background)
            vectors = Encoded(opened, loaded, kinds, views_per_batch=batch, fit=fit, background=colour, workers=workers)
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("embedding", total=None)
            try:
                report = embed_store(
                    opened,
                    vectors,
                    name,
                    replace=replace,
                    on_progress=lambda done, total: progress.update(task, completed=done, total=total),
                )
            except KeyboardInterrupt:
                typer.echo("interrupted; finished shards are kept: give the same command again to go on", err=True)
                raise
    kept = f"; {report.kept} of {report.shards} shards were there" if report.kept else ""
    typer.echo(f"{report.folder}: {report.views} views, {report.captions} captions{kept}")
    typer.echo(f"use it with: --set {shlex.quote(f'data[NAME].embeddings=[{name}]')}", err=True)


def _kinds(on: str | None) -> list[str] | None:
    if on is None:
        return None
    kinds = [kind.strip() for kind in on.split(",") if kind.strip()]
    if not kinds or set(kinds) - {"image", "text"}:
        raise ConfigError(f"--on {on}: write image, text or image,text")
    return kinds


def _model(encoder: str, model: str | None, pretrained: str | None, device: str) -> Any:
    import torch
    from mvcore.api import DeviceError, load, load_encoder

    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: write cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: this machine has no CUDA device; write --device cpu")
    args = {key: value for key, value in (("model", model), ("pretrained", pretrained)) if value is not None}
    if args and (not _PART_ID.fullmatch(encoder) or encoder.endswith(".json") or Path(encoder).exists()):
        raise ConfigError(f"--encoder {encoder}: --model and --pretrained go with a backbone's id, as core.open_clip")
    return load_encoder(encoder, args, device=device) if args else load(encoder, device=device)


def _default_tag(encoder: str, model: str | None, pretrained: str | None) -> str:
    if model is None:
        return _as_tag(Path(encoder).name)
    parts = [
        Path(text).stem if Path(text).suffix in (".json", ".pt", ".safetensors") else text
        for text in (model, pretrained)
        if text is not None
    ]
    return _as_tag("_".join(parts))


def _as_tag(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+|\.\.+", "_", text).strip("_.-") or "embeddings"
