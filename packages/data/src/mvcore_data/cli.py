"""`mvcore data`: make, check, describe and split multi-view stores.

The commands that render live in modules of their own and are imported when they are called, so that `mvcore data
--help` loads no renderer.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from mvcore.api import ConfigError
from typer.core import TyperCommand, TyperGroup

_LAZY = {
    "caption": ("mvcore_data.caption_cli:caption", "Caption a store's views with a vision-language model."),
    "check": ("mvcore_data.check_cli:check", "Read everything in a store, say what is wrong, and repair it."),
    "embed": ("mvcore_data.embed_cli:embed", "Store vectors of a store's views and captions beside it."),
    "overlap": ("mvcore_data.overlap_cli:overlap", "Find what two stores, or two splits of one, share."),
    "pack": ("mvcore_data.pack_cli:pack", "Pack images of any known layout into a store; their bytes are kept."),
    "formats": ("mvcore_data.pack_cli:formats", "List the layouts that pack reads, with their options."),
    "render": ("mvcore_data.render.cli:render", "Render meshes to a store with cameras, z-depth and masks."),
    "unpack": ("mvcore_data.unpack_cli:unpack", "Write a store's objects as files again: folders or tar shards."),
    "synth": ("mvcore_data.synth.cli:synth", "Make procedural textured objects and render them to a store."),
}


class DataGroup(TyperGroup):
    """Lists the rendering commands by their summaries alone, and imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted([*super().list_commands(ctx), *_LAZY])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """For a rendering command a stand-in that carries its summary; `resolve_command` gives the real one."""
        if cmd_name in _LAZY:
            return TyperCommand(cmd_name, help=_LAZY[cmd_name][1], rich_markup_mode=self.rich_markup_mode)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name in _LAZY:
            return name, _load(name), args[1:]
        known = self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            near = difflib.get_close_matches(name, known, 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown command 'data {name}'{hint} (known: {', '.join(known)})")
        return super().resolve_command(ctx, args)


def _load(name: str) -> Any:
    module, _, function = _LAZY[name][0].partition(":")
    single = typer.Typer(add_completion=False)
    single.command()(getattr(importlib.import_module(module), function))
    command = typer.main.get_command(single)
    command.name = name
    return command


app = typer.Typer(cls=DataGroup, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")
Store = Annotated[Path, typer.Argument(metavar="STORE", help="A shard, or the folder of a store.")]
StoreOrFolder = Annotated[
    Path, typer.Argument(metavar="STORE", help="A shard, a store, or a folder that `mvcore data pack` reads.")
]


@app.callback()
def _data() -> None:
    """Make, check, describe and split multi-view stores."""


@app.command()
def info(
    store: StoreOrFolder,
    sheet: Annotated[Path | None, typer.Option(help="Draw a contact sheet to this PNG.")] = None,
    objects: Annotated[int, typer.Option(min=1, max=100, help="Rows of the sheet.")] = 8,
    views: Annotated[int, typer.Option(min=1, max=100, help="Columns of the sheet.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a store holds, and draw it."""
    import json
    from dataclasses import asdict

    from mvcore_data.info import contact_sheet, store_info
    from mvcore_data.packed_cache import as_store
    from mvcore_data.store import ViewStore

    with ViewStore(as_store(store)) as opened:
        found = store_info(opened)
        if as_json:
            typer.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
        else:
            typer.echo("\n".join(_lines(found)))
        if sheet is not None:
            contact_sheet(opened, sheet, objects=objects, views=views)
            typer.echo(f"contact sheet: {sheet}", err=True)


def _lines(info: Any) -> list[str]:
    low, mean, high = info.views_per_object
    coverage = ", ".join(
        f"{what} {getattr(info, what) / info.views:.0%}" for what in ("cameras", "depth", "masks", "tracks")
    )
    return [
        f"objects     {info.objects}",
        f"views       {info.views} ({low} to {high} an object, mean {mean:.1f}), {info.bytes / 1e6:.1f} MB",
        f"sizes       {_counts(info.sizes)}",
        f"codecs      {_counts(info.codecs)}",
        f"views with  {coverage}",
        f"captions    {info.captions}: {info.captioned_objects} objects, {info.captioned_views} views have their own",
        f"categories  {len(info.categories.keys() - {''})}: {_counts(info.categories)}",
        f"licences    {_counts(info.licences)}",
        f"sources     {len(info.sources.keys() - {''})}: {_counts(info.sources)}",
        f"creators    {len(info.creators.keys() - {''})}: {_counts(info.creators)}",
        f"splits      {_counts(info.splits)}",
    ]


def _counts(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name or 'none'} {count}" for name, count in list(counts.items())[:6])
    return (shown or "none") + (f", and {len(counts) - 6} more" if len(counts) > 6 else "")


@app.command()
def split(
    store: Store,
    parts: Annotated[
        list[str], typer.Argument(metavar="NAME=PART...", help="A fraction, or a file with an id a line.")
    ],
    by: Annotated[
        Literal["object", "category"], typer.Option(help="What is never divided; files hold names of such.")
    ] = "object",
    seed: Annotated[int, typer.Option(help="Another seed, another split.")] = 0,
    stratify: Annotated[bool, typer.Option("--stratify/--no-stratify", help="Divide inside each category.")] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Replace splits that are there already.")] = False,
) -> None:
    """Split a store by object or by category, as in: mvcore data split STORE train=0.8 test=0.2."""
    from mvcore_data.split import split_store

    named = dict(_part(part) for part in parts)
    splits = split_store(store, named, by=by, seed=seed, stratify=stratify, replace_old=replace)
    for name, ids in splits.items():
        typer.echo(f"{name}: {len(ids)} objects")


def _part(text: str) -> tuple[str, float | list[str]]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ConfigError(f"{text!r} is no split; give NAME=FRACTION or NAME=FILE, as in train=0.8")
    try:
        return name, float(value)
    except ValueError:
        pass
    try:
        lines = Path(value).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"split {name!r}: {value!r} is neither a fraction nor a file of ids") from None
    return name, [line for line in lines if line.strip()]
