"""Whose fault an unexpected error is: one line that names the part and the place in its code."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from mvcore.errors import MvcoreError, PluginError


@contextmanager
def blamed_on(owner: str) -> Iterator[None]:
    """Turns what a part raises, or its wish to end the program, into one line that names it, and where in its code.

    Raises:
        PluginError: in the place of any error that is neither ours nor a want of memory.
    """
    try:
        yield
    except (MvcoreError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise _fault(owner, error) from error


@contextmanager
def blamed_on_one_of(owners: Mapping[int, str]) -> Iterator[None]:
    """As `blamed_on`, for errors that come out of a method of one of several objects; others pass through.

    Args:
        owners: what each object is called, by its `id`.

    Raises:
        PluginError: in the place of such an error that is neither ours, nor the file system's, nor a want of memory.
    """
    try:
        yield
    except (MvcoreError, OSError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        for frame in reversed(frames):
            owner = owners.get(id(frame.f_locals.get("self")))
            if owner is not None:
                raise _fault(owner, error) from error
        raise


def _fault(owner: str, error: BaseException) -> PluginError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())
    text = f"{owner} failed: {type(error).__name__}: {said} ({Path(frame.filename).name}:{frame.lineno})"
    return PluginError(f"{text}; mvcore -v shows the whole traceback")
