"""What happens around the steps of a run: progress, metrics, checkpoints, measurements, and stopping in good order."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mvcore.evaluation.files import write_atomic
from mvcore.training.distributed import any_rank
from mvcore.training.module import RunModule
from mvcore.training.ranks import agreed

CHECKPOINTS = "checkpoints"


class Meter(Callback):
    """Gathers each step's terms on the device and hands their means to the loggers every few steps.

    Reading them is the only device sync, and the moment at which terms are checked to be finite. What was gathered
    since the last row is part of a checkpoint, so that a resumed run writes the same rows.

    Args:
        every: steps between rows.
        noted: what trainers logged; it joins the next row and is emptied.
        terms: what is logged of each term.
    """

    def __init__(self, every: int, noted: dict[str, float], terms: Collection[str] = ("raw", "weighted")) -> None:
        self.every = every
        self.noted = noted
        self.terms = terms
        self.latest: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._steps = 0
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        module: RunModule = pl_module
        outcome = module.outcome
        if outcome is None:
            return
        values: dict[str, Tensor] = {"train/loss": outcome.total}
        for name, weight in outcome.weights.items():
            value = outcome.terms.get(name)
            if value is not None and "raw" in self.terms:
                values[f"train/{name}"] = value
            if "weighted" in self.terms:
                # A term that does not count in a step adds nothing to its loss, but has no value of its own there.
                values[f"train/{name}.weighted"] = value * weight if value is not None else outcome.total * 0
        values |= {f"train/{name}": value for name, value in outcome.logged.items()}
        if module.grad_norm is not None:
            values["train/grad_norm"] = module.grad_norm
        for name, value in values.items():
            value = value.detach()
            # After a resume the sum so far is on the host.
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._steps += 1
        if trainer.global_step % self.every == 0 or trainer.global_step >= (trainer.max_steps or 0):
            self.flush(trainer, module)

    def flush(self, trainer: Trainer, module: RunModule) -> None:
        """Writes the means since the last time.

        Raises:
            NonFiniteLossError: a term was NaN or infinite.
        """
        module.check_finite()
        if not self._steps:
            return
        means = {name: float(value) / self._counts[name] for name, value in self._sums.items()}
        now = time.perf_counter()
        means |= self.noted
        self.noted.clear()
        means["train/lr"] = module.lr
        means["train/steps_per_s"] = self._steps / max(now - self._since, 1e-9)
        self._sums, self._counts, self._steps, self._since = {}, {}, 0, now
        self.latest = means
        for logger in trainer.loggers:
            logger.log_metrics(means, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        sums = {name: value.cpu() for name, value in self._sums.items()}
        return {"sums": sums, "counts": dict(self._counts), "steps": self._steps, "noted": dict(self.noted)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums, self._counts = dict(state_dict["sums"]), dict(state_dict["counts"])
        self._steps = state_dict["steps"]
        self.noted.update(state_dict["noted"])


class ProgressBar(Callback):
    """One line on the terminal: steps, time left, and every loss term."""

    def __init__(self, title: str, meter: Meter, console: Console) -> None:
        self.title = title
        self.meter = meter
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
            console=console,
        )
        self._task: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._progress.start()
        self._task = self._progress.add_task(
            self.title, total=trainer.max_steps, completed=trainer.global_step, terms=""
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        terms = "  ".join(
            f"{name.removeprefix('train/')} {self.meter.latest[name]:.3f}"
            for term in pl_module.objective.terms
            if (name := f"train/{term.name}") in self.meter.latest
        )
        self._progress.update(self._task, completed=trainer.global_step, terms=terms)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._progress.stop()


class Checkpoints(Callback):
    """Saves every few steps, at the end and on a stop; keeps the newest two and the best.

    `checkpoints/last.json` names the newest complete one. A state whose losses were not finite is never saved.
    """

    def __init__(self, output: Path, every: int, keep: int = 2) -> None:
        self.folder = output / CHECKPOINTS
        self.every = every
        self.keep = keep
        self.best: str | None = None
        self.best_value = float("-inf")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        loop = trainer.fit_loop
        if loop.restarted_mid_epoch and loop.epoch_loop.batch_progress.is_last_batch:
            # Saved after an epoch's last batch: Lightning goes on with the next one, but would not say that it starts.
            loop.reset_restart_stage()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Always here and never after the loop: from a state that was saved within an epoch Lightning goes on within it,
        # while one that was saved after a stopped loop counts the epoch as done.
        if trainer.should_stop or trainer.global_step % self.every == 0 or trainer.global_step >= trainer.max_steps:
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, module: RunModule) -> None:
        """Saves the present state, unless it is there already.

        Raises:
            NonFiniteLossError: a term or a trained weight is NaN or infinite.
        """
        module.check_finite()
        module.check_weights()
        module.note_position(trainer.fit_loop.epoch_loop.batch_progress.total.ready)
        name = f"step-{trainer.global_step:08d}"
        # Asked once: another process may look when the first one has just written it.
        if not agreed((self.folder / name).exists):
            trainer.save_checkpoint(self.folder / name)
        self._point(trainer, last=name)

    def note_best(self, trainer: Trainer, module: RunModule, value: float) -> None:
        """Saves the present state as the best where `value` beats all before."""
        if value > self.best_value:
            self.best_value, self.best = value, f"step-{trainer.global_step:08d}"
            self.save(trainer, module)

    def _point(self, trainer: Trainer, last: str) -> None:
        if not trainer.is_global_zero:
            return
        pointer = {"last": last, "best": self.best, "best_value": None if self.best is None else self.best_value}
        write_atomic(self.folder / "last.json", json.dumps(pointer, indent=1).encode())
        others = sorted(path for path in self.folder.glob("step-*") if path.name not in (last, self.best))
        for path in others[: max(0, len(others) - (self.keep - 1))]:
            trainer.strategy.remove_checkpoint(path)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_value": self.best_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_value = state_dict["best"], state_dict["best_value"]


class StopOnSignal(Callback):
    """Ctrl-C (or SIGTERM, as schedulers send it) ends the run after the step in progress, so that what is saved is
    whole; a second one ends it at once.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stopped = False
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        # Elsewhere than in the main thread the host program decides about signals.
        with contextlib.suppress(ValueError):
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, frame: Any) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        self.console.print("stopping after this step; press Ctrl-C again to stop at once")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Of any process, so that all stop after the same step.
        if any_rank(self.stopped):
            self.stopped = trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class Measure(Callback):
    """Runs the evaluators every few steps, logs their figures, and tells `Checkpoints` which state is the best."""

    def __init__(
        self,
        measure: Callable[[int], Mapping[str, float]],
        every: int,
        best: str | None,
        checkpoints: Checkpoints,
    ) -> None:
        self.measure = measure
        self.every = every
        self.best = best
        self.checkpoints = checkpoints

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.every:
            return
        pl_module.check_finite()
        figures = agreed(lambda: self.measure(trainer.global_step))
        for logger in trainer.loggers:
            logger.log_metrics(dict(figures), step=trainer.global_step)
        if self.best is not None:
            self.checkpoints.note_best(trainer, pl_module, figures[self.best])
