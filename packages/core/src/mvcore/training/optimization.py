"""Optimizer and learning-rate schedule from the run's settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from mvcore.config import OptimizerSettings
from mvcore.errors import ConfigError


def make_optimizer(settings: OptimizerSettings, trained: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer over what trains, by checkpoint name; later groups win where several match.

    Raises:
        ConfigError: a group that matches nothing.
    """
    by_setting: dict[tuple[float, float], list[nn.Parameter]] = {}
    matched: set[str] = set()
    for name, parameter in trained.items():
        lr = settings.lr
        decay = settings.weight_decay if settings.decay == "all" or parameter.ndim >= 2 else 0.0
        for group in settings.groups:
            if group.match in name:
                matched.add(group.match)
                lr = lr if group.lr is None else group.lr
                decay = decay if group.weight_decay is None else group.weight_decay
        by_setting.setdefault((lr, decay), []).append(parameter)
    for group in settings.groups:
        if group.match not in matched:
            raise ConfigError(f"optimizer.groups: no trained parameter's name contains {group.match!r}")
    groups = [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in by_setting.items()]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.betas[0])
    # One kernel for all the arithmetic, where there is one: on the CPU, several times faster than the default.
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained.values()) or None
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def learning_rate(settings: OptimizerSettings, *, max_steps: int, epoch_steps: int) -> Callable[[int], float]:
    """The factor on the base learning rate by 0-based step.

    Raises:
        ConfigError: `cosine-epochs` without `schedule_epochs`.
    """
    floor = settings.min_lr / settings.lr
    if settings.schedule == "cosine-epochs" and settings.schedule_epochs is None:
        raise ConfigError("optimizer.schedule: cosine-epochs needs optimizer.schedule_epochs")

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        if settings.schedule == "constant":
            return 1.0
        if settings.schedule == "cosine-epochs":
            progress = (step // epoch_steps) / (settings.schedule_epochs or 1)
        else:
            progress = (step - settings.warmup_steps) / max(1, max_steps - settings.warmup_steps)
        if settings.schedule == "linear":
            return floor + (1 - floor) * (1 - min(progress, 1.0))
        return floor + (1 - floor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2

    return factor
