"""The collapse alarm: says at which step a model's features began to fall onto one vector or a few directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from torch import Tensor

from mvcore.config import AlarmSettings
from mvcore.training.distributed import all_rows
from mvcore.types import Features

FEW_OBJECTS = 16
"""Objects of a step below which the rank says nothing: consistent views of few objects lie in few directions."""


def spread_and_rank(vectors: Tensor) -> Tensor:
    """(2,) float32: how far N vectors are apart and in how many directions, without waiting for the device.

    Args:
        vectors: (N, D) of any length.

    Returns:
        The mean of 1 - cosine over all ordered pairs, each with itself included (0 = one vector); and tr(C)^2 / tr(C^2)
        of the unit vectors' covariance C (the participation ratio about their mean; 1 = one direction).
    """
    unit = torch.nn.functional.normalize(vectors.detach().float(), dim=1)
    mean = unit.mean(0)
    centred = unit - mean
    moment = centred @ centred.T if len(centred) <= centred.shape[1] else centred.T @ centred
    rank = centred.square().sum().square() / moment.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.stack([1 - mean.square().sum(), rank])


class CollapseAlarm(Callback):
    """Looks at a step's `view` features (else `object`) every few steps, logs what it finds and warns once of each.

    Metrics: `alarm/spread`, `alarm/rank` and `alarm/collapsed` (0 or 1). Between those steps it does nothing.

    Args:
        settings: how often, from when on, and the thresholds.
        noted: joins the next row of metrics.
        console: where the warning goes.
    """

    def __init__(self, settings: AlarmSettings, noted: dict[str, float], console: Console) -> None:
        self.settings = settings
        self.noted = noted
        self.console = console
        self.warned: list[str] = []
        self._seen: tuple[Tensor, bool] | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        due = (trainer.global_step + 1) % self.settings.every == 0
        pl_module.objective.watch = self._look if due else None

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._seen is None:
            return
        (spread, rank), many = self._seen[0].tolist(), self._seen[1]
        self._seen = None
        found = {"spread": spread, **({"rank": rank} if many else {})}
        low = {name: value for name, value in found.items() if value < getattr(self.settings, name)}
        self.noted.update(
            {f"alarm/{name}": value for name, value in found.items()}, **{"alarm/collapsed": float(bool(low))}
        )
        if trainer.global_step < self.settings.after or not trainer.is_global_zero:
            return
        for name, value in low.items():
            if name not in self.warned:
                self.warned.append(name)
                self.console.print(
                    self._warning(name, value, trainer.global_step), markup=False, highlight=False, soft_wrap=True
                )

    def state_dict(self) -> dict[str, Any]:
        return {"warned": list(self.warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.warned = list(state_dict["warned"])

    def _look(self, features: Sequence[Features], n_objects: int) -> None:
        for key in ("view", "object"):
            vectors = [found[key].detach() for found in features if key in found]
            if vectors:
                everywhere, objects = all_rows(torch.cat(vectors), n_objects)
                self._seen = spread_and_rank(everywhere), objects >= FEW_OBJECTS
                return

    def _warning(self, name: str, value: float, step: int) -> str:
        threshold = getattr(self.settings, name)
        what = {
            "spread": f"they nearly fall onto one vector: mean 1 - cosine is {value:.3g}",
            "rank": f"they differ in few directions: participation ratio {value:.3g}",
        }[name]
        return (
            f"warning: step {step}: the features are collapsing: {what}, under run.alarm.{name} {threshold:g}; see"
            f" alarm/{name} in metrics.csv, and weaken the loss that draws views together or lower optimizer.lr"
        )
