"""The embedded demonstration set: procedural objects, rendered. It needs no renderer to be read."""

from __future__ import annotations

from pathlib import Path

from mvcore.api import DataError


def store_path() -> Path:
    """The embedded store.

    Raises:
        DataError: This installation comes without it.
    """
    path = Path(__file__).resolve().parent / "views"
    if not (path / "index.json").is_file():
        raise DataError(
            f"{path}: the embedded demo store is not installed; install mvcore-data from a wheel, or make it with "
            f"'mvcore data synth {path}'"
        )
    return path
