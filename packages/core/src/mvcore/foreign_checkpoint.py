"""Tensors out of a checkpoint that others wrote, which is a pickle: nothing that it names is ever run."""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch._utils
import torch.storage
from torch import Tensor

from mvcore.checkpoint import load_weights
from mvcore.errors import WeightsError
from mvcore.suggest import listed

_NAMED = 4
"""How many of the classes that a file names are told."""


def read_tensors(path: Path, *, tensors_only: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: of its `state_dict`, where it has one, and those at its top.

    A state dict within the state dict counts as a part of it: `{"head": {"weight": W}}` is `head.weight`.

    Args:
        path: a safetensors file, or a file of `torch.save` (zip form, torch 1.6 and later), as Lightning's `.ckpt`.
        tensors_only: passes over whatever the file names beside tensors, as the hyperparameters of a run; a stand-in
            takes its place and nothing of it is imported or run. Otherwise such a file is refused.

    Raises:
        WeightsError: absent, damaged, naming more than tensors, or without tensors by name.
    """
    if path.suffix == ".safetensors":
        return load_weights(path)
    _check_archive(path)
    if not tensors_only:
        _check_names(path)
    options: dict[str, Any] = {"pickle_module": _PICKLE, "weights_only": False}
    if not tensors_only:
        options = {"weights_only": True}
    try:
        content: Any = torch.load(path, map_location="cpu", **options)
    except Exception as error:
        # A damaged pickle raises what it likes.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{path}: damaged or no checkpoint of torch ({reason})") from None
    state: Any = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{path}: holds no tensors by name")
    found: dict[str, Tensor] = {}
    if state is not content:
        # Beside a state dict, Lightning's own entries are no tensors; what is one, somebody put there to be found.
        found = {key: value.detach() for key, value in content.items() if isinstance(value, Tensor)}
    for key, value in cast("Mapping[Any, Any]", state).items():
        inner = {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, Mapping) else {key: value}
        for name, part in inner.items():
            if not isinstance(key, str) or not isinstance(part, Tensor):
                kind = type(part).__name__
                raise WeightsError(f"{path}: {name!r} in its state dict is a {kind} where a tensor belongs")
            found[name] = part.detach()
    return found


def _check_archive(path: Path) -> None:
    """Refuses what `torch.save` does not write, before torch opens it: another format, code, compressed contents."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such checkpoint") from None
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        raise WeightsError(
            f"{path}: not a checkpoint of torch in the zip form of torch 1.6 and later, nor safetensors; save it again "
            "with a newer torch"
        ) from None
    names = {Path(entry.filename).name for entry in entries}
    if "constants.pkl" in names:
        raise WeightsError(f"{path}: a TorchScript program, not weights; save its state_dict()")
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if "data.pkl" not in names or packed or sum(entry.file_size for entry in entries) > size:
        raise WeightsError(f"{path}: damaged: a zip archive, but not as torch writes it")


def _check_names(path: Path) -> None:
    """Refuses a pickle that names more than tensors; only looks at it."""
    try:
        unsafe = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:
        raise WeightsError(f"{path}: damaged ({type(error).__name__})") from None
    if unsafe:
        named = listed(unsafe[:_NAMED]) + (" ..." if len(unsafe) > _NAMED else "")
        raise WeightsError(
            f"{path}: names more than tensors ({named}), which loading would run; --tensors-only takes its tensors "
            "alone and runs nothing of it"
        )


class _Skipped:
    """Stands for whatever a file names that is no tensor: takes anything and does nothing."""

    def __new__(cls, *args: Any, **options: Any) -> _Skipped:
        return super().__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def __call__(self, *args: Any, **options: Any) -> _Skipped:
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "UntypedStorage"): torch.storage.UntypedStorage,
    ("torch", "Size"): torch.Size,
}
"""What tensors by name are made of. Types of storages torch looks up itself, among its own."""

_Unpickler: Any = vars(pickle)["_Unpickler"]
"""The one in Python: its memo is a dict, so that a file cannot ask for memory by naming a high place in it."""


class _TensorUnpickler(_Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _KNOWN.get((module, name), _Skipped)


def _load(file: Any, **options: Any) -> Any:
    return _TensorUnpickler(file, **options).load()


_PICKLE: Any = SimpleNamespace(Unpickler=_TensorUnpickler, load=_load, __name__="mvcore.foreign_checkpoint")
"""What `torch.load` takes in the place of the module `pickle`."""
