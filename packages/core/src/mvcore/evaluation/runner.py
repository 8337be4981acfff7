"""Runs evaluators over a model one after the other and keeps what they find."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mvcore.blame import blamed_on
from mvcore.errors import PluginError
from mvcore.evaluation.embedder import Embedder
from mvcore.evaluation.results import EvalResult, save_result
from mvcore.evaluation.stored import StoredViews
from mvcore.model import Model
from mvcore.parts import IndexedDataset

Evaluator = Callable[[Any, Mapping[str, IndexedDataset], Path], EvalResult]


@contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Restores afterwards every submodule's mode and the random states of Python, NumPy and torch (all devices)."""
    modes = [(child, child.training) for module in modules for child in module.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        # Naming the devices keeps torch from warning on machines with several, and from starting CUDA for nothing.
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for child, mode in modes:
            child.training = mode


def evaluate(
    model: Model,
    evaluators: Mapping[str, Evaluator],
    sources: Mapping[str, IndexedDataset],
    output: Path,
    *,
    stored: StoredViews | None = None,
) -> dict[str, EvalResult]:
    """Runs every evaluator on `sources` and saves each result under `output/<id>/` as soon as it is there.

    The evaluators get the model as an `Embedder`, which passes over each source once for all of them. Modes and random
    states are as before after each.

    Args:
        model: what is measured.
        evaluators: by id.
        sources: what it is measured on, by name.
        output: folder for results and pictures; made where it is not there.
        stored: sources whose views are not encoded, since their vectors are stored; the results say so in a table.

    Raises:
        MvcoreError: what an evaluator found wrong; results of those before it are kept.
    """
    embedder = Embedder(model, stored)
    results: dict[str, EvalResult] = {}
    for name, evaluator in evaluators.items():
        folder = output / name
        folder.mkdir(parents=True, exist_ok=True)
        with undisturbed(model.pipeline), blamed_on(f"evaluator {name}"):
            result = evaluator(embedder, sources, folder)
        if not isinstance(result, EvalResult):
            raise PluginError(f"evaluator {name} gave {type(result).__name__}; it must return an EvalResult")
        if stored is not None:
            result = replace(result, tables=[*result.tables, stored.table()])
        save_result(result, folder)
        results[name] = result
    return results
