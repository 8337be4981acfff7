"""A run on disk: its resolved configuration, what it was made with, its state, and its checkpoints."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from mvcore.config import RunConfig
from mvcore.config_layers import Layers, read_yaml
from mvcore.errors import ConfigError, DataError, Interrupted, MvcoreError, NonFiniteLossError

CONFIG = "config.yaml"
RECORD = "run.json"
SEEDS = "seeds.json"
POINTER = "checkpoints/last.json"
METRICS = "metrics.csv"

Status = Literal["running", "stopped", "failed", "finished"]


@dataclass
class RunRecord:
    """What a run was made with.

    Args:
        status: `running` (also after a crash), `stopped` by the user, `failed`, or `finished`.
        seed: the run's seed.
        adapters: the names of the adapters that took part.
        frozen_sha256: over the base weights that did not train; checked when the run is loaded.
        versions: of Python and the packages underneath.
    """

    status: Status
    seed: int
    adapters: list[str]
    frozen_sha256: str
    versions: dict[str, str] = field(default_factory=dict[str, str])

    def save(self, folder: Path) -> None:
        """Writes `run.json`."""
        write_text(folder / RECORD, json.dumps(asdict(self), indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    from mvcore.evaluation.files import write_atomic

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide about a run's numbers."""
    found = {"python": platform.python_version()}
    for name in ("mvcore", "mvcore-data", "torch", "open_clip_torch", "timm", "lightning"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def is_run(path: Path) -> bool:
    """Whether a folder is a run."""
    return (path / RECORD).is_file() and (path / CONFIG).is_file()


def read_record(folder: Path) -> RunRecord:
    """The record of a run.

    Raises:
        DataError: the folder is no run, or its record is damaged.
    """
    try:
        values: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return RunRecord(**values)
    except FileNotFoundError:
        raise DataError(f"{folder}: not a run (no {RECORD})") from None
    except (ValueError, TypeError, OSError) as error:
        raise DataError(f"{folder / RECORD}: damaged: {error}") from None


def read_config(folder: Path) -> RunConfig:
    """The resolved configuration of a run.

    Raises:
        ConfigError: absent or not valid.
    """
    layers = Layers()
    layers.merge(*read_yaml(folder / CONFIG))
    return layers.config()


def run_to_resume(where: str) -> tuple[Path, Layers, list[int]]:
    """The folder of a run that is to go on, its configuration, and its seeds.

    Args:
        where: the folder, or one of its control or of one of its seeds; or `auto` for the newest under `runs`.

    Raises:
        ConfigError: its configuration is not valid.
        DataError: no such run.
    """
    folder = _newest() if where == "auto" else Path(where).expanduser()
    if not (folder / CONFIG).is_file():
        raise DataError(f"--resume {where}: {folder} is no run (no {CONFIG})")
    if folder.name == "control" or folder.name.startswith("seed-"):
        outer = folder.parent
        if (outer / SEEDS).is_file():
            folder = outer
    layers = Layers()
    layers.merge(*read_yaml(folder / CONFIG))
    try:
        seeds = [int(seed) for seed in json.loads((folder / SEEDS).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        raise DataError(f"--resume {where}: {folder / SEEDS} is missing or damaged") from None
    return folder, layers, seeds


def _newest() -> Path:
    found = sorted(Path("runs").glob(f"*/{SEEDS}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise DataError("--resume auto: there is no run under ./runs; name the run's folder")
    return found[-1].parent


def checkpoint_of(folder: Path, which: Literal["best", "last"] = "last") -> Path:
    """The folder of a run's newest or best checkpoint; the newest where none was marked the best.

    Raises:
        DataError: the run has no checkpoint.
    """
    try:
        pointer: dict[str, Any] = json.loads((folder / POINTER).read_text(encoding="utf-8"))
        name = pointer.get(which) or pointer["last"]
    except FileNotFoundError:
        raise DataError(f"{folder}: no checkpoint was saved; train it again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{folder / POINTER}: damaged; it must name the checkpoint to load as 'last'") from None
    path = folder / "checkpoints" / Path(str(name)).name
    if not path.is_dir():
        raise DataError(f"{folder}: its checkpoint {name} is gone")
    return path


@contextmanager
def new_folder(wanted: str | None, plugin: str) -> Iterator[Path]:
    """The run's output folder: the one asked for, which must be new, or the next free `runs/<plugin>-N`.

    Where an error other than a diverging loss ends the run before it had a checkpoint or a row of metrics, the folder
    is gone again.

    Raises:
        ConfigError: the folder holds something already, or cannot be made.
    """
    was_there = wanted is not None and Path(wanted).expanduser().is_dir()
    folder = _numbered(plugin) if wanted is None else _empty(Path(wanted).expanduser())
    try:
        yield folder
    except (Interrupted, NonFiniteLossError):
        raise
    except MvcoreError:
        if not _has_trained(folder):
            shutil.rmtree(folder)
            with suppress(OSError):  # `runs` too, unless there are others in it
                if was_there:
                    folder.mkdir()
                elif wanted is None:
                    folder.parent.rmdir()
        raise


def _has_trained(folder: Path) -> bool:
    """Whether any training in a folder left a checkpoint or the metrics of a step."""
    if any(folder.rglob(Path(POINTER).name)):
        return True
    steps = (line.partition(",")[0] for path in folder.rglob(METRICS) for line in path.read_text().splitlines()[1:])
    return any(step != "0" for step in steps)


def _empty(folder: Path) -> Path:
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"run.output: {folder} exists and is never overwritten; name another or --resume {folder}"
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run.output: {folder} cannot be made: {os.strerror(error.errno or 0)}") from None
    return folder


def _numbered(plugin: str) -> Path:
    number = 1
    while True:
        folder = Path("runs") / f"{plugin}-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ConfigError(f"run.output: {folder} cannot be made: {os.strerror(error.errno or 0)}") from None
