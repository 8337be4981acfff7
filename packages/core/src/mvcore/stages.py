"""A run from its settled configuration: start it, or go on with it; one seed or several."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

from rich.console import Console

from mvcore.config import RunConfig
from mvcore.config_layers import Layers, to_yaml
from mvcore.errors import ConfigError, Interrupted, MvcoreError
from mvcore.launching import among_processes
from mvcore.plugins import load_plugins
from mvcore.report.figures import draw_training_curves
from mvcore.report.html import NAME, write_report
from mvcore.resolution import Flags, as_request, resolve
from mvcore.run_folder import CONFIG, SEEDS, new_folder, write_text
from mvcore.running import Rows, Session, open_session, report, run
from mvcore.training.distributed import rank
from mvcore.training.ranks import agreed, contact
from mvcore.training.weights import describe


def train(
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    seeds: Sequence[int] | None = None,
    **flags: Unpack[Flags],
) -> Path:
    """Trains as a configuration says, or as the flags of `mvcore train` do.

        mvcore.train("run.yaml")
        mvcore.train(plugins=["ovt"], losses={"equivariance.smooth_ap": 0.5}, settings={"run.max_steps": 50})

    Args:
        config: a YAML file, the same as nested values, or a validated configuration.
        seeds: runs once a seed and averages; default: the configuration's own seed.
        flags: see `Flags`; they go with a file or alone.

    Returns:
        The run's folder, for `mvcore.load`.

    Raises:
        MvcoreError: what is wrong, in one line.
    """
    with among_processes():
        if isinstance(config, (RunConfig, Mapping)):
            if flags:
                text = f"mvcore.train: flags ({', '.join(sorted(flags))}) go with a file or alone"
                raise ConfigError(f"{text}; nested values hold all that there is")
            layers, notes = Layers(), list[str]()
            layers.merge(config.to_plain() if isinstance(config, RunConfig) else config, "mvcore.train")
        else:
            resolved = resolve(as_request(config, flags), load_plugins())
            layers, notes = resolved.layers, resolved.notes
        validated = layers.config()
        return start(validated, layers, notes, seeds or [validated.run.seed])


def start(config: RunConfig, layers: Layers, notes: Sequence[str], seeds: Sequence[int]) -> Path:
    """Trains into a new folder and returns it."""
    console = Console()
    # Opened first: what is wrong with the run is said before there is a folder.
    session = open_session(config, load_plugins(), layers.written)
    plugins = "-".join(Path(plugin).stem for plugin in config.plugins)
    with _agreed_folder(config.run.output, plugins or "run") as folder:
        for note in notes:
            console.print(note, style="dim", markup=False, highlight=False)
        for term in session.plan.losses:
            text = f"loss {term.part.name}: weight {describe(term.weight)} on {', '.join(term.sources)}"
            console.print(text, style="dim", markup=False, highlight=False)
        console.print(f"run folder: {folder}", markup=False, highlight=False)
        if rank() == 0:
            write_text(folder / CONFIG, to_yaml(layers, config))
            write_text(folder / SEEDS, json.dumps(list(seeds)) + "\n")
        _run_seeds(session, layers, folder, seeds, console)
    return folder


@contextmanager
def _agreed_folder(wanted: str | None, plugin: str) -> Iterator[Path]:
    """The run's new folder, made by the first process alone."""
    if rank() > 0:
        yield Path(agreed(str))
        return
    with new_folder(wanted, plugin) as folder, contact("start it again"):
        agreed(lambda: str(folder))
        yield folder


def go_on(folder: Path, layers: Layers, seeds: Sequence[int]) -> None:
    """Goes on with a run that was stopped; what it finished is not done again.

    Args:
        folder, layers, seeds: what `run_to_resume` found.
    """
    console = Console()
    console.print(f"going on with {folder}", markup=False, highlight=False)
    _run_seeds(open_session(layers.config(), load_plugins(), layers.written), layers, folder, seeds, console)


def _run_seeds(session: Session, layers: Layers, folder: Path, seeds: Sequence[int], console: Console) -> None:
    results: list[Rows] = []
    demo = session.config.demo
    for seed in seeds:
        layers.merge({"run": {"seed": seed}}, "--seeds")
        own = folder if len(seeds) == 1 else folder / f"seed-{seed}"
        label = ("DEMO " if demo else "") + (f"seed {seed} " if len(seeds) > 1 else "")
        seeded = session.with_seed(seed)
        try:
            results.append(run(seeded, own, to_yaml(layers, seeded.config), console, label))
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted(f"stopped and saved; go on with: mvcore train --resume {folder}") from None
        if rank() == 0:
            _draw(own)
    if rank() > 0:
        return
    report(results, folder, console, demo=demo)
    _write_report(folder)
    console.print(f"saved in {folder}", markup=False, highlight=False)


def _write_report(folder: Path) -> None:
    """The HTML report; a finished run does not fail over it."""
    try:
        write_report([folder], folder / "report" / NAME)
    except MvcoreError as error:
        print(f"warning: no HTML report: {error}", file=sys.stderr)


def _draw(folder: Path) -> None:
    for run_folder in (folder, folder / "control"):
        if (run_folder / "metrics.csv").is_file():
            draw_training_curves(run_folder / "metrics.csv", run_folder / "curves.png")
