"""`check_store`: reads a store whole and says what is wrong, in a child process where its origin is unknown.

HDF5 itself can crash or hang on hostile metadata, so a file without a seal, or any file with `untrusted`, is first read
by a child with limits of time and memory.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mvcore.api import DataError

PROBE_SECONDS = 60
MEMORY_BYTES = 8 << 30


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
    """Reads everything in a store: every checksum, image, depth map, mask, camera, caption and range.

    Args:
        path: a shard or the folder of a store.
        untrusted: read it in a child process with limits.
        seconds: the child's limit; None is one minute and a second more for each 10 MB.
        memory: the child's limit in bytes of address space.

    Returns:
        The report; a damaged store is a report with problems, not an error.
    """
    if not untrusted:
        return _check(Path(path))
    limit = PROBE_SECONDS + _size(Path(path)) / 1e7 if seconds is None else seconds
    answer = _in_child("check", Path(path), limit, memory)
    return answer if isinstance(answer, CheckReport) else CheckReport(str(path), problems=[answer])


def probe(path: Path) -> None:
    """Opens a shard in a child process.

    Raises:
        DataError: it cannot be opened there, whatever became of the child.
    """
    answer = _in_child("probe", path, PROBE_SECONDS, MEMORY_BYTES)
    problems = answer.problems if isinstance(answer, CheckReport) else [answer]
    if problems:
        raise DataError(problems[0])


def _check(path: Path) -> CheckReport:
    from mvcore_data.store import ViewStore

    report = CheckReport(str(path))
    try:
        store = ViewStore(path)
    except DataError as error:
        report.problems.append(str(error))
        return report
    with store:
        for i in range(len(store)):
            report.objects += 1
            for v in store.views_of(i):
                report.views += 1
                for read in (store.image, store.depth, store.mask):
                    try:
                        read(v)
                    except DataError as error:
                        report.problems.append(str(error))
    return report


def _size(path: Path) -> int:
    files = path.glob("shard-*.h5") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _in_child(what: str, path: Path, seconds: float, memory: int) -> CheckReport | str:
    command = [sys.executable, "-P", "-m", "mvcore_data.check", what, str(path), str(memory)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return f"{path}: reading it took more than {seconds:.0f} s, so it is damaged or hostile; do not use it"
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"{path}: reading it kills the HDF5 library ({name}), so it is damaged or hostile; do not use it"
    try:
        value: dict[str, Any] = json.loads(done.stdout)
        return CheckReport(**value)
    except (ValueError, TypeError):
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no answer"])[-1]
        return f"{path}: reading it failed ({reason}), so it is damaged or hostile; do not use it"


def _child(what: str, path: str, memory: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if what == "check":
        report = _check(Path(path))
    else:
        from mvcore_data.shard import Shard

        report = CheckReport(path)
        try:
            Shard(Path(path), probing=True)
        except DataError as error:
            report.problems.append(str(error))
    sys.stdout.write(json.dumps(asdict(report)))


if __name__ == "__main__":
    _child(*sys.argv[1:])
