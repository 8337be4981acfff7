"""The model card of an export, and the record of a run's training data that it is written from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvcore.config import Part, RunConfig
from mvcore.errors import DataError
from mvcore.evaluation.results import EvalResult, load_result
from mvcore.parts import DescribedDataset
from mvcore.report.tables import compare
from mvcore.run_folder import RunRecord, read_config, read_record, write_text
from mvcore.training.weights import describe

TRAINING_DATA = "training_data.json"
CARD = "README.md"
_LISTED = 12
_ROWS = {"untouched": "untouched", "control": "control", "tuned": "tuned", "exported": "tuned, as exported"}


def write_training_data(folder: Path, config: RunConfig, sources: Mapping[str, Any]) -> None:
    """Notes in a run's folder what its sources give, so that an export needs no data at hand.

    Args:
        folder: the run's.
        config: names the dataset of each source.
        sources: the opened sources by name.
    """
    noted = {name: {"id": config.data[name].id, **_described(source)} for name, source in sources.items()}
    write_text(folder / TRAINING_DATA, json.dumps(noted, indent=1, ensure_ascii=False) + "\n")


def read_training_data(folder: Path) -> dict[str, dict[str, Any]]:
    """What `write_training_data` noted; empty where a run has no such note.

    Raises:
        DataError: it is damaged.
    """
    path = folder / TRAINING_DATA
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged: {' '.join(str(error).split())}") from None
    if not isinstance(noted, dict) or not all(isinstance(entry, dict) for entry in noted.values()):
        raise DataError(f"{path}: damaged: it must hold one mapping for each source")
    return noted


def model_card(name: str, library: str, adapters: Mapping[str, str], run: Path | None, *, measured: bool) -> str:
    """The card as Markdown.

    Args:
        name: of the exported folder.
        library: whose model it is.
        adapters: what became of each, by its name.
        run: the folder of the run that trained it; without one the card says nothing about training.
        measured: the run's figures are those of these weights.

    Raises:
        MvcoreError: the run's folder is damaged.
    """
    kind = "clip" if library == "open_clip" else "dense-features"
    head = ["---", f"library_name: {library}", f"tags: [{kind}, multi-view, mvcore]", "---", "", f"# {name}", ""]
    parts = [head, _about(library, adapters, run)]
    if run is not None:
        parts += [_training_data(read_training_data(run)), _figures(run, measured)]
    parts.append(_use(name, library, [key for key, fate in adapters.items() if fate == "beside"]))
    return "\n".join(line for part in parts for line in part)


def _described(source: Any) -> dict[str, Any]:
    return dict(source.describe()) if isinstance(source, DescribedDataset) else {}


def _about(library: str, adapters: Mapping[str, str], run: Path | None) -> list[str]:
    fates = {"merged": "merged into the weights", "in place": "trained in place", "beside": "beside the weights"}
    parts = [f"`{key}` ({fates[fate]})" for key, fate in adapters.items()]
    if run is None:
        rows = {"adapters": ", ".join(parts) or "none"}
        return [f"A model of {library}, written by mvcore.", "", *_table(rows), ""]
    config, record = read_config(run), read_record(run)
    lines = [f"A model of {library}, trained and written by mvcore.", ""]
    if config.demo:
        lines += ["**DEMO**: a small model trained on the small embedded data set, of no use beyond a first look.", ""]
    return [*lines, *_table(_method(config, record, ", ".join(parts))), ""]


def _method(config: RunConfig, record: RunRecord, adapters: str) -> dict[str, str]:
    encoder = {"model": config.encoder.args.get("model"), "weights": config.encoder.args.get("pretrained")}
    base = ", ".join(f"{key} `{Path(str(value)).name}`" for key, value in encoder.items() if value)
    optimizer, run = config.optimizer, config.run
    return {
        "base": f"{base}; trained of it: {config.encoder.args.get('train', 'none')}",
        "plugins": ", ".join(f"`{Path(plugin).name}`" for plugin in config.plugins) or "none named",
        "losses": ", ".join(f"`{_named(key, part)}` x {describe(part.weight)}" for key, part in config.losses.items()),
        "adapters": adapters or "none",
        "trainers": ", ".join(f"`{_named(key, part)}`" for key, part in config.trainers.items()) or "none",
        "training": f"{run.max_steps} steps, {optimizer.name} at {optimizer.lr:g}, seed {record.seed}, {run.precision}",
        "versions": ", ".join(f"{package} {number}" for package, number in record.versions.items()) or "unknown",
    }


def _named(name: str, part: Part) -> str:
    return name if name == part.id else f"{name}: {part.id}"


def _training_data(noted: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["## Training data", ""]
    if not noted:
        return [*lines, "The run holds no record of it.", ""]
    for source, entry in noted.items():
        title = f"**{_escaped(source)}** (`{entry.get('id', '?')}`)"
        if "objects" not in entry:
            lines += [f"{title}: this kind of data does not say what it holds; its licences are unknown.", ""]
            continue
        lines += [
            f"{title}: {_escaped(entry.get('name', ''))}, {entry['objects']} objects, {entry.get('views', '?')} views",
            "",
            *_table({what: _counts(entry.get(what)) for what in ("licences", "sources", "creators")}),
            "",
        ]
    return [*lines, f"All names with their numbers of objects stand in `{TRAINING_DATA}`.", ""]


def _counts(counts: Any) -> str:
    if not isinstance(counts, Mapping) or not counts:
        return "unknown"
    shown = [f"{_escaped(name) or 'unknown'} {n}" for name, n in list(counts.items())[:_LISTED]]
    more = len(counts) - _LISTED
    return ", ".join(shown) + (f", and {more} more" if more > 0 else "")


def _figures(run: Path, measured: bool) -> list[str]:
    lines = ["## Before and after", ""]
    rows = {label: found for row, label in _ROWS.items() if (found := _row(run / "evaluation" / row))}
    if not measured:
        return [*lines, "The run's figures are of its last checkpoint at full strength, not of these weights.", ""]
    if "tuned" not in rows:
        return [*lines, "The run measured nothing.", ""]
    title = f"Measured on {', '.join(read_config(run).validation.data)}"
    return [*lines, compare(rows, title=title, demo=read_config(run).demo).to_markdown()]


def _row(folder: Path) -> dict[str, EvalResult]:
    return {path.parent.name: load_result(path.parent) for path in sorted(folder.glob("*/result.json"))}


_IN_CODE: Mapping[str, tuple[list[str], str]] = {
    "open_clip": (
        [
            "import open_clip",
            "",
            'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{name}")',
            'tokenizer = open_clip.get_tokenizer("local-dir:{name}")',
            "model.eval()",
        ],
        'vectors = model.encode_text(["a red cup"])',
    ),
    "timm": (
        ["import timm", "", 'model = timm.create_model("local-dir:{name}", pretrained=True).eval()'],
        "features = model.keypoints(image, points)  # (1, P, C) for an (H, W, 3) uint8 image and (P, 2) pixels",
    ),
}
"""How a model is used in each library, and one line with mvcore."""


def _use(name: str, library: str, beside: list[str]) -> list[str]:
    missing = f" It lacks what stands beside the weights: {', '.join(f'`{key}`' for key in beside)}." if beside else ""
    plain, ours = _IN_CODE[library]
    return [
        "## Use",
        "",
        f"In plain {library}, from the folder that holds `{name}`:{missing}",
        "",
        "```python",
        *(line.format(name=name) for line in plain),
        "```",
        "",
        "With mvcore, all of it:",
        "",
        "```python",
        "import mvcore",
        "",
        f'model = mvcore.load("{name}")',
        ours,
        "```",
        "",
    ]


def _table(rows: Mapping[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]


def _escaped(text: Any) -> str:
    """A name from data as plain text inside a table."""
    plain = " ".join(str(text).split())
    for mark in ("\\", "|", "`", "*", "_", "[", "]"):
        plain = plain.replace(mark, f"\\{mark}")
    return plain.replace("<", "&lt;")
