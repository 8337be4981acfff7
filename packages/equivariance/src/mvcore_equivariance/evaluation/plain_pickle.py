"""Arrays in a pickle file, read without running anything that the file names.

TAP-Vid is given as a pickle of dictionaries, lists and NumPy arrays. Unpickled, a file may call any function. Here the
few names that such a file needs stand for plain classes of this module, which keep the bytes of arrays; any other name
is refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray

_KINDS = {"b1": "?", "u1": "u1", "i4": "i4", "i8": "i8", "f4": "f4", "f8": "f8"}


class _RefusedError(ValueError):
    """What a file holds that it must not."""


class _Type:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def made(self) -> np.dtype[Any]:
        code = self.code if isinstance(self.code, str) else ""
        if code not in _KINDS:
            raise _RefusedError(f"arrays of type {self.code!r}")
        return np.dtype(_KINDS[code]).newbyteorder(self.order)  # type: ignore[call-overload]


class _Array:
    """Stands for an array that is filled by `__setstate__`, or, of protocol 5, at once."""

    def __init__(self, *values: Any) -> None:
        self.state: Any = (values[2], values[1], values[3] == "F", values[0]) if len(values) == 4 else None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        self.state = (shape, kind, fortran, raw)

    def made(self) -> NDArray[Any]:
        shape, kind, fortran, raw = self.state
        raw = raw.made() if isinstance(raw, _Bytes) else raw
        if not isinstance(kind, _Type) or not isinstance(raw, (bytes, bytearray)):
            raise _RefusedError("arrays of objects")
        return np.frombuffer(raw, kind.made()).reshape(shape, order="F" if fortran else "C")


class _Scalar:
    """Stands for a NumPy number."""

    def __init__(self, kind: Any, raw: Any) -> None:
        self.array = _Array(raw, kind, (), "C")

    def made(self) -> Any:
        return self.array.made()[()]


class _Bytes:
    """Stands for bytes as protocol 2 writes them: text in latin-1, or a call for none."""

    def __init__(self, text: str = "", _: str = "") -> None:
        self.raw = text.encode("latin-1")

    def made(self) -> bytes:
        return self.raw


def _empty(*_: object) -> _Array:
    return _Array()


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Bytes,
    ("__builtin__", "bytes"): _Bytes,
}
for _core in ("numpy.core", "numpy._core"):
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _empty
    _NAMES[f"{_core}.multiarray", "scalar"] = _Scalar
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _Array


# The reader in Python: that in C reserves memory by the numbers that a file names.
class _Reader(pickle._Unpickler):  # type: ignore[name-defined]  # pyright: ignore[reportAttributeAccessIssue]
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _RefusedError(f"the name {module}.{name}")
        return _NAMES[module, name]


def read_pickle(path: Path) -> Any:
    """Dictionaries, lists, texts, numbers and arrays of numbers from a pickle file.

    Raises:
        DataError: absent, damaged, or it holds anything else.
    """
    try:
        with path.open("rb") as stream:
            return _made(_Reader(stream).load())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise
    except _RefusedError as error:
        raise DataError(
            f"{path}: must be a pickle of dictionaries, lists and arrays of numbers; it holds {error}"
        ) from None
    except Exception:
        raise DataError(f"{path}: is no pickle, or a damaged one; download it again") from None


def _made(value: Any) -> Any:
    """The value with arrays in the place of what stands for them."""
    if isinstance(value, (_Array, _Scalar, _Bytes)):
        return value.made()
    if isinstance(value, dict):
        return {_made(key): _made(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_made(each) for each in value]
    if value is None or isinstance(value, (str, bytes, bool, int, float)):
        return value
    raise _RefusedError(f"a {type(value).__name__}")
