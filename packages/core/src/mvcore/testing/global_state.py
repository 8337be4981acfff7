"""The state that all parts of a process share, and which of it a part changed."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mvcore.testing.findings import Unfit

_READERS: Mapping[str, Callable[[], Any]] = {
    "the random state of Python": random.getstate,
    "the random state of NumPy": lambda: tuple(map(str, np.random.get_state())),
    "the random state of torch": lambda: torch.get_rng_state().numpy().tobytes(),
    "torch's default dtype": torch.get_default_dtype,
    "torch's default device": torch.get_default_device,
    "torch's gradient mode": torch.is_grad_enabled,
    "torch's number of threads": torch.get_num_threads,
    "torch's matmul precision": torch.get_float32_matmul_precision,
    "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "torch's anomaly detection": torch.is_anomaly_enabled,
    "cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
    "the environment": lambda: dict(os.environ),
    "the working folder": os.getcwd,
    "sys.path": lambda: list(sys.path),
    "sys.stdout": lambda: id(sys.stdout),
}

_ADVICE: Mapping[str, str] = {
    "the random state of Python": "use a generator of its own: what draws from the shared one cannot be resumed",
    "the random state of NumPy": "use a generator of its own: what draws from the shared one cannot be resumed",
    "the random state of torch": "use a torch.Generator of its own, or fork_rng",
}


@contextmanager
def unchanged(*, torch_random: bool = False) -> Iterator[None]:
    """Watches a block of a part's code.

    Args:
        torch_random: the block may draw from torch's generator, as a constructor or a training step may: those are
            seeded by mvcore.

    Raises:
        Unfit: something shared is not as it was; all of it is named, and what can be is restored.
    """
    with torch.random.fork_rng(devices=[]):
        python_state, numpy_state, dtype = random.getstate(), np.random.get_state(), torch.get_default_dtype()
        before = {name: read() for name, read in _READERS.items()}
        try:
            yield
            changed = [name for name, read in _READERS.items() if read() != before[name]]
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            torch.set_default_dtype(dtype)
    if torch_random:
        changed = [name for name in changed if name != "the random state of torch"]
    if changed:
        advice = next((_ADVICE[name] for name in changed if name in _ADVICE), "leave it as it was, or restore it")
        raise Unfit(f"it changes {', '.join(changed)}; {advice}")
