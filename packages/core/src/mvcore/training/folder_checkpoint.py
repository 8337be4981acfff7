"""Checkpoints on disk: a folder with what trains as safetensors and the loop's state, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from mvcore.checkpoint import STATE, WEIGHTS, load_weights, save_weights, sync
from mvcore.errors import DataError, WeightsError


class FolderCheckpoint(CheckpointIO):
    """Lightning's seam for checkpoints: a folder of two files that appears in one rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        partial = target.with_name(f".{target.name}.tmp-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            rest = {key: value for key, value in checkpoint.items() if key != "state_dict"}
            weights = {key: value.contiguous() for key, value in checkpoint["state_dict"].items()}
            save_weights(partial / WEIGHTS, weights)
            torch.save(rest, partial / STATE)
            for name in (WEIGHTS, STATE):
                sync(partial / name)
            old = target.with_name(f".{target.name}.old-{os.getpid()}")
            if target.exists():
                target.replace(old)
            partial.replace(target)
            sync(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        except (OSError, RuntimeError, DataError) as error:
            # torch.save reports a full disk as a RuntimeError about its archive.
            reason = error.strerror if isinstance(error, OSError) else str(error.__context__ or error).splitlines()[0]
            raise DataError(f"{target}: the checkpoint could not be written: {reason}; free space and resume") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        target = Path(path)
        try:
            state: dict[str, Any] = torch.load(target / STATE, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise WeightsError(f"{target}: no checkpoint there (a folder with {WEIGHTS} and {STATE})") from None
        except Exception as error:
            raise WeightsError(f"{target / STATE}: damaged or not a checkpoint ({type(error).__name__})") from None
        return {**state, "state_dict": load_weights(target / WEIGHTS)}

    def remove_checkpoint(self, path: Any) -> None:
        shutil.rmtree(path, ignore_errors=True)
