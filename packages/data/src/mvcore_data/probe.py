"""Has a shard opened by a child process before HDF5 opens it here, unless it is known.

A seal finds damage, not malice: HDF5 can crash or hang on metadata that somebody made to harm, with a seal that fits.
What was opened once without harm, or was written by this library, is remembered in the user's cache folder by its seal
and the file's identity, so a child is needed once for each new file.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from mvcore.api import DataError

from mvcore_data import sandbox
from mvcore_data.seal import Seal

PROBE_SECONDS = 20
_BYTES_A_SECOND = 100_000_000
MEMORY_BYTES = 8 << 30
_MAX_BYTES = 1 << 20
_TRY = "mvcore_data.probe:try_shard"


def ensure_openable(path: Path, fd: int, seal: Seal | None) -> None:
    """Tries HDF5 on a shard in a child process, unless this very file is known to be harmless.

    Args:
        path: the file.
        fd: the same, open, and verified against its seal.
        seal: its seal, or None for a file that another program wrote.

    Raises:
        DataError: it cannot be opened there, whatever became of the child.
    """
    if sandbox.inside or (seal is not None and _is_known(_key(fd, seal))):
        return
    seconds = PROBE_SECONDS + os.fstat(fd).st_size / _BYTES_A_SECOND
    record = None if seal is None else seal.as_json()
    try:
        sandbox.call(_TRY, str(path), record, seconds=seconds, memory=MEMORY_BYTES)
    except sandbox.SandboxError as error:
        raise DataError(f"{path}: reading it {error}, so it is damaged or hostile; do not use it") from None
    if seal is not None:
        remember(fd, seal)


def try_shard(path: str, seal: dict[str, object] | None) -> None:
    """Opens a shard, in the child.

    Raises:
        DataError: it is not sound.
    """
    from mvcore_data.shard import Shard

    Shard(Path(path), None if seal is None else Seal.from_json(seal, path)).close()


def remember(fd: int, seal: Seal) -> None:
    """Records that an open file with this seal does no harm; without a cache folder it is tried again next time."""
    file = _file()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and file.stat().st_size > _MAX_BYTES:
            half = file.read_bytes()[-_MAX_BYTES // 2 :].partition(b"\n")[2]
            staged = file.with_name(f"{file.name}.{os.getpid()}.tmp")
            staged.write_bytes(half)
            staged.replace(file)
        with file.open("ab") as known:
            known.write(_key(fd, seal) + b"\n")  # one short write, which other processes' do not break up


def _is_known(key: bytes) -> bool:
    try:
        return key in _file().read_bytes().split()
    except OSError:
        return False


def _key(fd: int, seal: Seal) -> bytes:
    # The file's identity too: HDF5 could be led to metadata that hides among the images, which no seal covers.
    stat = os.fstat(fd)
    identity = (seal.sha256, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return hashlib.sha256(repr(identity).encode()).hexdigest().encode()


def _file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - Path.home() may raise
    return Path(base) / "mvcore" / "opened-shards"
