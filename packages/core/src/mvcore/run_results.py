"""What was measured of runs, read back: by row (`untouched`, `control`, `tuned`, `exported`), seed and evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mvcore.errors import ConfigError, DataError
from mvcore.evaluation.results import EvalResult, Figure, load_result
from mvcore.run_folder import is_run, read_config

EVALUATION = "evaluation"
ROWS = ("untouched", "control", "tuned", "exported")


@dataclass(frozen=True)
class Measured:
    """One model that was measured.

    Args:
        label: how tables name it.
        folders: of its results, one a seed; each holds a folder for each evaluator.
        results: one a seed, by evaluator.
        demo: it is a run on the embedded demo set.
    """

    label: str
    folders: Sequence[Path]
    results: Sequence[Mapping[str, EvalResult]]
    demo: bool = False

    def figures(self) -> dict[str, Figure]:
        """Of the first seed, by name."""
        return {figure.name: figure for result in self.results[0].values() for figure in result.figures}


def seed_folders(run: Path) -> list[Path]:
    """The folders of a run's seeds: itself, or `seed-0`, `seed-1`, ..."""
    if (run / EVALUATION).is_dir():
        return [run]
    return sorted((path for path in run.glob("seed-*") if path.is_dir()), key=lambda path: (len(path.name), path.name))


def read_row(run: Path, row: str) -> Measured | None:
    """What was measured of one row of a run; None where nothing was.

    Raises:
        DataError: a result is damaged.
    """
    folders = [folder / EVALUATION / row for folder in seed_folders(run)]
    results = [read_folder(folder) for folder in folders]
    return Measured(row, folders, results) if results and all(results) else None


def read_folder(folder: Path) -> dict[str, EvalResult]:
    """The results of all evaluators in a folder.

    Raises:
        DataError: one is damaged.
    """
    return {path.parent.name: load_result(path.parent) for path in sorted(folder.glob("*/result.json"))}


def read_model(text: str) -> Measured:
    """What was measured of a model that a user names: `RUN` (its tuned model), `RUN:ROW`, or a folder of results.

    Raises:
        ConfigError: no such folder or row.
        DataError: nothing was measured there, or a result is damaged.
    """
    path, row = Path(text).expanduser(), "tuned"
    if not path.is_dir() and ":" in text:
        start, _, row = text.rpartition(":")
        path = Path(start).expanduser()
        if row not in ROWS:
            raise ConfigError(f"{text}: a run has the rows {', '.join(ROWS)}, not {row!r}")
    label = path.resolve().name + ("" if row == "tuned" else f":{row}")
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; name a run, RUN:ROW or a folder that 'mvcore eval' wrote")
    if is_run(path) or seed_folders(path):
        found = read_row(path, row)
        if found is None:
            raise DataError(f"{path}: nothing was measured of its {row} model; run 'mvcore eval {path} --data STORE'")
        return Measured(label, found.folders, found.results, read_config(path).demo)
    results = read_folder(path)
    if not results:
        raise DataError(f"{path}: neither a run nor a folder of results that 'mvcore eval' wrote")
    return Measured(label, [path], [results])


def labelled(models: Sequence[Measured]) -> dict[str, Measured]:
    """Models by their labels, in order; equal ones are told apart by their numbers."""
    found: dict[str, Measured] = {}
    for number, model in enumerate(models, 1):
        found[model.label if model.label not in found else f"{model.label} ({number})"] = model
    return found


def check_comparable(models: Mapping[str, Measured], baseline: str) -> None:
    """Refuses models that were measured on different objects or by different definitions.

    Raises:
        DataError: names the figure, both models and what differs; or that they have no figure in common.
    """
    base = models[baseline].figures()
    for label, model in models.items():
        own = model.figures()
        common = [name for name in own if name in base]
        if not common:
            measured = [", ".join(sorted({name.split("/")[0] for name in figures})) for figures in (own, base)]
            raise DataError(
                f"{label} and {baseline} have no figure in common (measured: {measured[0]} and {measured[1]});"
                " measure both with 'mvcore eval RUN RUN --data STORE --on core.ledger'"
            )
        for name in common:
            if what := _difference(own[name], base[name]):
                raise DataError(
                    f"{label} and {baseline} cannot be compared: {name} {what}; measure both on the same data with"
                    " 'mvcore eval RUN RUN --data STORE --on core.ledger'"
                )


def _difference(one: Figure, other: Figure) -> str:
    if one.items and other.items and one.items != other.items:
        counts = [len(f.samples) if f.samples is not None else None for f in (one, other)]
        return f"is over different objects ({counts[0]} and {counts[1]})" if counts[0] else "is over different objects"
    if one.definition != other.definition:
        return f"is defined as {one.definition!r} and as {other.definition!r}"
    if one.n != other.n:
        return f"is over {one.n} and over {other.n} items"
    return ""
