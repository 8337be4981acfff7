"""Spawned processes that render, one object at a time each.

A mesh that kills its process (VTK can) or never ends costs that object only: the pool knows who worked on what.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from mvcore.api import MvcoreError

from mvcore_data.render.backgrounds import BackgroundError
from mvcore_data.render.jobs import Item, WorkFolderError
from mvcore_data.render.probe import configure_process
from mvcore_data.render.settings import RenderSettings
from mvcore_data.rigs import Rig

_CONTEXT = multiprocessing.get_context("spawn")  # a process forked after OpenGL was used hangs
LIMIT_S = 600.0  # for one object


@dataclass(frozen=True)
class Job:
    """An object and the file that its render goes to."""

    item: Item
    path: Path


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Job | None = None
    since: float = 0.0


def render_all(
    jobs: Sequence[Job], rig: Rig, settings: RenderSettings, *, window: str, workers: int
) -> Iterator[tuple[Item, str | None]]:
    """Render jobs in spawned processes; yields each item when it is done, with the reason if it failed.

    Raises:
        WorkFolderError: Results cannot be written.
        BackgroundError: A background cannot be read.
    """
    waiting = deque(jobs)
    pool: list[_Worker] = []
    try:
        while waiting or any(worker.job for worker in pool):
            while waiting and len(pool) < workers:
                pool.append(_start(rig, settings, window, jobs[0].path.parent))
            for worker in pool:
                if worker.job is None and waiting:
                    _give(worker, waiting.popleft())
            for worker in _ready(pool):
                assert worker.job is not None
                item, worker.job, reason = worker.job.item, None, _outcome(worker)
                if not worker.process.is_alive():
                    pool.remove(worker)
                yield item, reason
    finally:
        for worker in pool:
            worker.connection.close()
            worker.process.kill()
            worker.process.join()


def _start(rig: Rig, settings: RenderSettings, window: str, scratch: Path) -> _Worker:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_work, args=(theirs, rig, settings, window, scratch), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, job: Job) -> None:
    worker.job, worker.since = job, time.monotonic()
    try:
        worker.connection.send(job)
    except OSError:
        worker.process.join()  # it died in between; `_outcome` finds out


def _ready(pool: list[_Worker]) -> list[_Worker]:
    """The busy workers that have an answer, have died or have run out of time."""
    busy = [worker for worker in pool if worker.job is not None]
    heard = wait([worker.connection for worker in busy], timeout=5.0)
    late = [worker for worker in busy if time.monotonic() - worker.since > LIMIT_S]
    for worker in late:
        worker.process.kill()
    return [worker for worker in busy if worker.connection in heard or worker in late]


def _outcome(worker: _Worker) -> str | None:
    try:
        answer = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        late = time.monotonic() - worker.since > LIMIT_S
        how = f"took over {LIMIT_S:.0f} s" if late else f"killed its process (exit code {code})"
        return f"the render {how}"
    if isinstance(answer, WorkFolderError | BackgroundError):
        raise answer
    return None if answer is None else str(answer)


def _work(connection: Connection, rig: Rig, settings: RenderSettings, window: str, scratch: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    configure_process(window)
    from mvcore_data.render.jobs import render_item
    from mvcore_data.render.renderer import make_renderer

    renderer = make_renderer(settings, scratch)
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        try:
            render_item(renderer, job.item, rig, settings, job.path)
            connection.send(None)
        except MvcoreError as error:
            connection.send(error)
        except Exception as error:
            connection.send(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")
