"""Tracks of a view as a file beside its image: NumPy's `.npy` of the records of a store."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from mvcore.api import DataError

from mvcore_data.tracks import RECORD, Tracks


def tracks_file(records: bytes) -> bytes:
    """The file of a view's tracks, as `ViewStore.encoded_tracks` gives them."""
    buffer = io.BytesIO()
    np.save(buffer, np.frombuffer(records, RECORD), allow_pickle=False)
    return buffer.getvalue()


def read_tracks_file(path: Path) -> Tracks:
    """What `tracks_file` made; the numbers themselves are checked where they are stored.

    Raises:
        DataError: it is not that.
    """
    try:
        # Mapped, so that a header cannot ask for more memory than the file has bytes.
        records = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError):
        raise DataError(f"{path}: cannot be read as tracks, a .npy file of records") from None
    if records.ndim != 1 or records.dtype != RECORD:
        raise DataError(f"{path}: holds no tracks, which are records of point (2), xyz (3) and id")
    return Tracks(np.array(records["point"]), np.array(records["id"]), np.array(records["xyz"]))
