"""The optimizer of a run: its arithmetic against the formula, and which setting each parameter gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mvcore.config import OptimizerSettings, ParameterGroup
from mvcore.errors import ConfigError
from mvcore.training.optimization import make_optimizer
from torch import nn


def adamw(values: np.ndarray, grads: list[np.ndarray], settings: OptimizerSettings, lr: float, decay: float) -> None:
    """Loshchilov & Hutter, algorithm 2, in place and in float64."""
    first, second = np.zeros_like(values), np.zeros_like(values)
    beta1, beta2 = settings.betas
    for t, grad in enumerate(grads, 1):
        first = beta1 * first + (1 - beta1) * grad
        second = beta2 * second + (1 - beta2) * grad**2
        step = (first / (1 - beta1**t)) / (np.sqrt(second / (1 - beta2**t)) + settings.eps)
        values -= lr * (step + decay * values)


def test_adamw_follows_its_formula_with_each_parameters_own_settings() -> None:
    rng = np.random.default_rng(0)
    settings = OptimizerSettings(lr=0.01, weight_decay=0.1, groups=(ParameterGroup(match="head", lr=0.05),))
    shapes = {"backbone/weight": (4, 3), "backbone/bias": (4,), "losses/head/weight": (3, 5), "scale": ()}
    expected = {name: np.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    trained = {name: nn.Parameter(torch.tensor(value, dtype=torch.float32)) for name, value in expected.items()}
    # The strides of a transposed weight must not matter.
    trained["losses/head/weight"] = nn.Parameter(torch.tensor(expected["losses/head/weight"].T.copy()).float().t())
    optimizer = make_optimizer(settings, trained)
    grads = {name: [np.asarray(rng.normal(size=shape)) for _ in range(6)] for name, shape in shapes.items()}
    for t in range(6):
        optimizer.zero_grad()
        # Through backward, which gives a gradient its parameter's strides.
        sum((trained[name] * torch.tensor(grads[name][t]).float()).sum() for name in trained).backward()  # pyright: ignore
        optimizer.step()
    for name, values in expected.items():
        decay = 0.1 if values.ndim >= 2 else 0.0
        adamw(values, grads[name], settings, 0.05 if "head" in name else 0.01, decay)
        np.testing.assert_allclose(trained[name].detach().numpy(), values, rtol=1e-5, atol=1e-6)


def test_a_group_that_matches_nothing_is_named() -> None:
    settings = OptimizerSettings(groups=(ParameterGroup(match="nowhere", lr=0.1),))
    with pytest.raises(ConfigError, match="'nowhere'"):
        make_optimizer(settings, {"weight": nn.Parameter(torch.zeros(2, 2))})
