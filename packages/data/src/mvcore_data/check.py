"""`check_store`: reads a store whole and says what is wrong, in a child process where its origin is unknown."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvcore.api import DataError

from mvcore_data import sandbox

if TYPE_CHECKING:
    from mvcore_data.store import ViewStore

CHECK_SECONDS = 60
MEMORY_BYTES = 8 << 30
_BYTES_A_SECOND = 10_000_000


@dataclass
class CheckReport:
    """What a check found.

    Args:
        path: the store.
        objects: objects read.
        views: views read.
        problems: one line each; empty for a sound store.
    """

    path: str
    objects: int = 0
    views: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_store(
    path: str | os.PathLike[str], *, untrusted: bool = False, seconds: float | None = None, memory: int = MEMORY_BYTES
) -> CheckReport:
    """Reads everything in a store: every checksum, image, depth map, mask, track, camera, caption and range.

    The vectors that stand beside it are read, too.

    Args:
        path: a shard or the folder of a store.
        untrusted: decode it, too, in a child process with limits.
        seconds: the child's limit; None is one minute and a second more for each 10 MB.
        memory: the child's limit in bytes of address space.

    Returns:
        The report; a damaged store is a report with problems, not an error.
    """
    if not untrusted:
        return _check(Path(path))
    limit = CHECK_SECONDS + reading_seconds(Path(path)) if seconds is None else seconds
    try:
        return CheckReport(**sandbox.call("mvcore_data.check:check_here", str(path), seconds=limit, memory=memory))
    except sandbox.SandboxError as error:
        problem = f"{path}: reading it {error}, so it is damaged or hostile; do not use it"
        return CheckReport(str(path), problems=[problem])


def check_here(path: str) -> dict[str, Any]:
    """Checks a store, in the child."""
    return asdict(_check(Path(path)))


def _check(path: Path) -> CheckReport:
    from mvcore_data.embedding_check import embedding_problems
    from mvcore_data.store import ViewStore

    report = CheckReport(str(path))
    try:
        store = ViewStore(path, skip_damaged=True)
    except DataError as error:
        report.problems.append(str(error))
        return report
    report.problems += [shard.problem for shard in store.lost]
    for i in range(len(store)):
        report.objects += 1
        for v in store.views_of(i):
            report.views += 1
            report.problems += problems_of(store, v)
    report.problems += embedding_problems(store)
    store.close()
    return report


def problems_of(store: ViewStore, v: int) -> list[str]:
    """What is wrong with a view, its depth map, its mask and its tracks, a line each."""
    problems: list[str] = []
    for read in (store.image, store.depth, store.mask, store.tracks):
        try:
            read(v)
        except DataError as error:
            problems.append(str(error))
    return problems


def reading_seconds(path: Path) -> float:
    """How long reading and decoding a store takes at most, on a slow machine."""
    files = path.glob("shard-*.h5") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / _BYTES_A_SECOND
