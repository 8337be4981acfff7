"""Whose fault an unexpected error is: one line that names the part and the place in its code."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mvcore.errors import MvcoreError, PluginError


@contextmanager
def blamed_on(owner: str) -> Iterator[None]:
    """Turns what a part raises into one line that names the part, and where in its code.

    Raises:
        PluginError: in the place of any error that is neither ours nor a want of memory.
    """
    try:
        yield
    except (MvcoreError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())
        text = f"{owner} failed: {type(error).__name__}: {said} ({Path(frame.filename).name}:{frame.lineno})"
        raise PluginError(f"{text}; mvcore -v shows the whole traceback") from error
