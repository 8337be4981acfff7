"""One writer per store at a time; a killed one's lock and leftovers do not stand in the way."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mvcore.api import DataError

LOCK_NAME = "writer.lock"


class StoreLock:
    """An exclusive lock that the kernel releases when its process ends, however it ends.

    Args:
        path: the lock's file, made when needed and removed on release.

    Raises:
        DataError: another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if not isinstance(error, BlockingIOError):
                    raise
                raise DataError(f"{path.parent}: another process is writing this store; wait for it to end") from None
            if _is_same_file(fd, path):  # else its last holder removed it between our open and our lock
                self._fd = fd
                return
            os.close(fd)

    def release(self) -> None:
        """Removes the lock."""
        self.path.unlink(missing_ok=True)
        os.close(self._fd)


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def store_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of the store in a folder.

    Raises:
        DataError: another process holds it, or the folder cannot be written.
    """
    try:
        lock = StoreLock(folder / LOCK_NAME)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        yield
    finally:
        lock.release()
