"""`mvcore train --dry-run`: what a run would take, from one real batch."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mvcore.config import RunConfig
from mvcore.config_layers import Layers
from mvcore.errors import ConfigError
from mvcore.plugins import load_plugins
from mvcore.running import open_session
from mvcore.training.fit import prepare, quiet
from mvcore.training.weights import describe


def dry(config: RunConfig, layers: Layers, notes: Sequence[str]) -> None:
    """Builds everything, runs one real batch forward and backward, and says what a run would take."""
    console = Console()
    processes = 1 if config.run.devices == "auto" else config.run.devices
    config = config.model_copy(update={"run": config.run.model_copy(update={"devices": 1})})
    for note in notes:
        console.print(note, style="dim", markup=False, highlight=False)
    with quiet():
        session = open_session(config, load_plugins(), layers.written)
        training = prepare(session.plan, session.sources, Path(config.run.output or "."))
        device = _device(config)
        training.pipeline.to(device)
        training.module.to(device)
        for trainer in training.trainers:
            if hasattr(trainer, "prepare"):
                trainer.prepare()
        if training.module.make_loader is None:
            raise RuntimeError("no loader")
        batches = next(iter(training.module.make_loader(0, processes, 0)))
        objective = training.module.objective
        terms = objective.terms
        # The step that takes most: one in which all terms count, or as many of them as ever do together.
        objective.at_step(max(range(config.run.max_steps), key=lambda step: sum(t.weight_at(step) > 0 for t in terms)))
        seconds = _timed_steps(objective, batches, config)
    console.print(_summary(session, training, batches, processes))
    steps = config.run.max_steps
    console.print(
        f"peak memory {_peak_memory(device)}; {seconds:.3g} s a step here, so about {_duration(seconds * steps)} for "
        f"{steps} steps (without measuring and mining)"
    )


def _device(config: RunConfig) -> torch.device:
    wanted = config.run.accelerator
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.accelerator is cuda, and this machine has no CUDA device; set it to cpu or auto")
    return torch.device("cuda" if wanted in ("auto", "cuda") and torch.cuda.is_available() else "cpu")


def _timed_steps(objective: Any, batches: Mapping[str, Any], config: RunConfig) -> float:
    """Seconds of the second of two steps: the first one also fills caches."""
    seconds = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        if config.run.micro_batch == "auto":
            objective.step(batches, lambda loss: loss.backward())
        else:
            objective.cached_step(batches, lambda loss: loss.backward(), config.run.micro_batch, torch.manual_seed)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        objective.zero_grad(set_to_none=True)
    return seconds


def _summary(session: Any, training: Any, batches: Mapping[str, Any], processes: int) -> Table:
    table = Table(title="dry run", title_justify="left", show_header=False)
    if processes > 1:
        table.add_row("processes", f"{processes} on this machine; batches, memory and time are those of the first")
    trained = training.module.trained()
    groups: dict[str, int] = {}
    for name, parameter in trained.items():
        part = "/".join(name.split("/")[: 1 if name.startswith("backbone/") else 2])
        groups[part] = groups.get(part, 0) + parameter.numel()
    total = sum(parameter.numel() for parameter in training.pipeline.parameters())
    table.add_row("trainable parameters", f"{sum(groups.values()):,} of {total:,}")
    for part, count in groups.items():
        table.add_row(f"  {part}", f"{count:,}")
    for name, batch in batches.items():
        dataset = session.sources[name]
        size = "x".join(str(side) for side in batch.images.shape[2:]) if batch.images is not None else "no images"
        table.add_row(
            f"source {name}",
            f"{len(dataset)} objects; a batch: {batch.n_objects} objects, {batch.n_views} views, {size}",
        )
    for term in session.plan.losses:
        table.add_row(f"loss {term.part.name}", f"weight {describe(term.weight)} on {', '.join(term.sources)}")
    for term in session.plan.trainers:
        table.add_row(f"trainer {term.part.name}", f"on {', '.join(term.sources)}")
    table.add_row("steps of an epoch", str(training.epoch_steps))
    return table


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the GPU"
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{kilobytes * (1 if sys.platform == 'darwin' else 1024) / 1e9:.2f} GB of this process"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
