"""Weights on disk: safetensors that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mvcore.errors import DataError, WeightsError

WEIGHTS = "weights.safetensors"
"""Of what trained, in a checkpoint's folder."""
STATE = "state.pt"
"""Of the loop and the optimizer, beside it."""


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors as safetensors, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in weights.items()}, partial, metadata)
        sync(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{path}: weights could not be written: {error}") from None


def load_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        WeightsError: absent or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weights") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged or not safetensors ({error})") from None


def sync(path: Path) -> None:
    """Waits until a file, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
