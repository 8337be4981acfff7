"""What the program sets for its own process, before anything else is imported."""

from __future__ import annotations

import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers of the two settings, in its malloc.h."""
_KEPT = 1 << 30
_LARGEST_ON_HEAP = 32 << 20
"""The most that glibc allows."""


def prepare() -> None:
    """Makes threads that wait sleep, and memory that was freed stay; what the environment says already holds."""
    # By default an OpenMP thread spins while it waits for another; on a machine that is busy with other programs as
    # well, those that it waits for do not run, and a step can take many times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Lets glibc keep up to 1 GiB that was freed.

    It would give back each step's activations to the system, which has to clear every page again in the next step.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
        mallopt(_TRIM_THRESHOLD, _KEPT)
