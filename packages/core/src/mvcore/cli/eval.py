"""`mvcore eval`: runs, exports and plain models side by side on the same data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from mvcore.errors import ConfigError, DataError, DeviceError

DEFAULT = ("core.zero_shot", "core.consistency")


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Runs, exports, open_clip or timm names, ids.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(help="A store, or NAME=STORE; may be repeated. Default: what the run measured on."),
    ] = None,
    on: Annotated[list[str] | None, typer.Option(help="An evaluator; may be repeated or hold commas.")] = None,
    options: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with the evaluators' options, by their ids.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only this split of the stores.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables and pictures.")] = Path(
        "evaluation"
    ),
    strength: Annotated[float, typer.Option(help="How much of what runs learnt: 0 untouched, 1 as trained.")] = 1.0,
    embeddings: Annotated[
        str | None, typer.Option(metavar="TAG", help="Read views of models that made these stored vectors from there.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print tracebacks of errors.")] = False,
) -> None:
    """Measures models on multi-view data and prints them side by side, with intervals."""
    from rich.console import Console

    from mvcore.evaluation.runner import evaluate as measure
    from mvcore.loading import load
    from mvcore.report.tables import compare, save_comparison

    console = Console()
    asked = _evaluators([part for text in on or () for part in text.split(",") if part], options)
    loaded = [load(name, strength, device=chosen_device(device)) for name in models]
    sizes = {model.backbone.image_size for model in loaded}
    if len(sizes) > 1:
        raise ConfigError(f"the models take images of different sizes ({sorted(map(str, sizes))}); measure them apart")
    sources: dict[str, Any] = {}
    if data or asked.data:
        depth = {"depth": True} if "depth" in asked.needs else {}
        sources = _sources(data, models, split, {"image_size": next(iter(sizes)), **depth, **_stored_only(loaded)})
    for model in loaded:
        if model.backbone.library == "embeddings":
            model.backbone.connect(sources)
    rows: dict[str, Any] = {}
    for number, (name, model) in enumerate(zip(models, loaded, strict=True)):
        label = Path(name).name or name
        label = label if label not in rows else f"{label} ({number + 1})"
        stored = None if embeddings is None else _stored(console, label, model, sources, embeddings)
        with console.status(f"measuring {name}"):
            rows[label] = measure(model, asked.parts, sources, output / label.replace(":", "-"), stored=stored)
    comparison = compare(rows, title="Evaluation")
    save_comparison(comparison, output)
    if comparison.columns:
        console.print(comparison.to_rich())
    _show_ledger(rows, output, console)
    console.print(f"saved in {output}", markup=False, highlight=False)


def _show_ledger(rows: dict[str, Any], output: Path, console: Any) -> None:
    """The ledger's table and pictures, where it was measured."""
    from mvcore.config import LEDGER
    from mvcore.report.ledger import draw_ledger, ledger_table
    from mvcore.report.long_table import save_long_table

    table = ledger_table({label: [found] for label, found in rows.items()})
    if table is not None:
        save_long_table(table, output, "ledger")
        console.print(table.to_rich())
        draw_ledger(
            {label: output / label.replace(":", "-") / LEDGER for label in rows},
            {label: found[LEDGER] for label, found in rows.items()},
            output,
        )


def _stored(console: Any, label: str, model: Any, sources: dict[str, Any], tag: str) -> Any:
    """The sources whose vectors of this model are stored; None of a model that did not make them."""
    from mvcore.evaluation.stored import stored_views

    try:
        found = stored_views(model, sources, tag)
    except DataError as error:
        console.print(f"{label}: views are encoded: {error}", markup=False, highlight=False)
        return None
    if found is None:
        raise ConfigError(f"--embeddings {tag}: no data has vectors of that name; make them with 'mvcore data embed'")
    names = ", ".join(found.sources)
    console.print(f"{label}: views of {names} read from the stored embeddings {tag}", markup=False, highlight=False)
    return found


def chosen_device(name: str) -> Any:
    """The torch device of an option `--device`.

    Raises:
        ConfigError: no device's name.
        DeviceError: it is not there.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name}: write cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"--device {name}: this machine has no CUDA device; write --device cpu")
    return device


class _Asked(NamedTuple):
    """Evaluators by id, all that they need, and whether one of them reads the data."""

    parts: dict[str, Any]
    needs: frozenset[str]
    data: bool


def _evaluators(ids: list[str], file: Path | None) -> _Asked:
    """Those asked for, else those that a file of options names, else the default ones."""
    from mvcore import build
    from mvcore.config_layers import read_yaml
    from mvcore.plugins import load_plugins

    given: dict[str, Any] = {} if file is None else read_yaml(file)[0]
    wanted = ids or list(given) or list(DEFAULT)
    for name, args in given.items():
        if name not in wanted:
            raise ConfigError(f"{file}: {name!r} is not among the evaluators of --on ({', '.join(wanted)})")
        if args is not None and not isinstance(args, dict):
            raise ConfigError(f"{file}: the options of {name} must be keys and values, not {args!r}")
    found: dict[str, Any] = {}
    needs, reads = frozenset[str](), False
    for name in wanted:
        registered = load_plugins().spec("evaluator", name)
        where = name if file is None else f"{file}: {name}"
        chosen = build.options(registered, given.get(name) or {}, where)
        needs |= build.needs_of(registered, chosen)
        reads |= not getattr(registered.spec, "own_files", False)
        found[name] = build.make(registered, chosen)
    return _Asked(found, needs, reads)


def _stored_only(models: list[Any]) -> dict[str, Any]:
    """How the data is read for models of stored vectors: without images where no other model wants them."""
    tags = {model.backbone.tag for model in models if model.backbone.library == "embeddings"}
    others = any(model.backbone.library != "embeddings" for model in models)
    return {"embeddings": sorted(tags), "images": others} if tags else {}


def _sources(data: list[str] | None, models: list[str], split: str | None, options: dict[str, Any]) -> dict[str, Any]:
    from mvcore import build
    from mvcore.plugins import load_plugins
    from mvcore.run_folder import is_run, read_config

    registry = load_plugins()
    entries: dict[str, tuple[str, dict[str, Any]]] = {}
    if data:
        for text in data:
            name, equals, path = text.partition("=")
            name, path = (name, path) if equals else (Path(text).name or "data", text)
            if name in entries:
                raise ConfigError(f"--data: {name!r} names two stores; tell them apart as NAME=STORE")
            args: dict[str, Any] = {"path": path, "split": split, **options}
            entries[name] = ("data.views", {key: value for key, value in args.items() if value is not None})
    elif split is not None:
        raise ConfigError(f"--split {split} goes with --data STORE")
    else:
        run = next((Path(name) for name in models if is_run(Path(name))), None)
        if run is None:
            raise ConfigError("name the data to measure on: --data STORE")
        for name, part in read_config(run).validation.data.items():
            entries[name] = (part.id, part.args)
    made: dict[str, Any] = {}
    for name, (part_id, args) in entries.items():
        registered = registry.spec("dataset", part_id)
        made[name] = build.make(registered, build.options(registered, args, f"--data {name}"))
    return made


app = typer.Typer(add_completion=False)
app.command("eval")(evaluate)
