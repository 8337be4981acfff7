"""The processes of a run: which of them this is, and starting all of them on one machine. Needs no torch."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from mvcore.errors import ConfigError

LIFELINE = "MVCORE_LIFELINE"
"""Names the pipe whose other end `launch` holds: when that is closed, the program that started this one is gone."""
_GRACE = 15.0
"""Seconds that the other processes have to end by themselves, once one has failed."""


@dataclass(frozen=True)
class World:
    """This process among those of its run; `local` counts those on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    starter: str = ""

    @property
    def machines(self) -> int:
        return self.size // self.local_size


def world(environment: Mapping[str, str] | None = None) -> World:
    """What torchrun, SLURM's srun or `launch` says in the environment; a world of one where none of them does.

    Raises:
        ConfigError: a number that is none, or machines with different numbers of processes.
    """
    given = os.environ if environment is None else environment
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= given.keys():
        names, starter = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), "torchrun"
        sizes = given[names[3]]
    elif {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"} <= given.keys():
        # Those of the step are srun's own; a batch script that does not call srun has none of them.
        names, starter = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"), "srun"
        sizes = re.sub(r"\(x\d+\)", "", given[names[3]])  # 4(x2): 4 on each of 2 machines
    else:
        return World()
    try:
        rank, size, local_rank = (int(given[name]) for name in names[:3])
        local = {int(part) for part in sizes.split(",")}
    except ValueError:
        raise ConfigError(f"the environment's {', '.join(names)} must be numbers; {starter} sets them") from None
    if size == 1:
        return World()
    if len(local) > 1 or size % max(local):
        raise ConfigError(f"{starter} started {size} processes, not equally many on each machine; start equally many")
    return World(rank, size, local_rank, local.pop(), starter)


@contextmanager
def among_processes() -> Iterator[None]:
    """Brings together what runs inside, where there are several processes: one folder, one voice, one end."""
    here = world()
    if here.size == 1:
        yield
        return
    # Before torch is imported: when a process ends early, the others' connections would each print a stack.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from mvcore.training.ranks import joined

    with joined(here):
        yield


def must_launch(devices: int | str) -> bool:
    """Whether this process is to start those of a run rather than to be one of them."""
    return devices not in ("auto", 1) and world().size == 1


def launch(arguments: Sequence[str], processes: int) -> int:
    """Runs this program with the same arguments in several processes and returns the exit code of them all.

    Signals are passed on. When one process fails, the others are given time to notice and then ended.
    """
    reader, writer = os.pipe()
    common = _environment(processes, reader)
    children: list[subprocess.Popen[bytes]] = []
    with _passing_on(children) as received:
        try:
            for rank in range(processes):
                own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                command = [sys.executable, "-m", "mvcore.cli.main", *arguments]
                # In sessions of their own: a terminal would send Ctrl-C to them too, and they would get it twice.
                children.append(subprocess.Popen(command, env=own, pass_fds=(reader,), start_new_session=True))
            os.close(reader)
            first_to_fail = _wait(children)
        finally:
            for child in children:
                _end(child)
            os.close(writer)
    return _exit_code(children, first_to_fail, received)


def _environment(processes: int, reader: int) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    defaults = {"OMP_NUM_THREADS": str(max(1, cores // processes))}
    if sys.platform == "linux":
        # Else it looks up the host's name, which not every host knows.
        defaults["GLOO_SOCKET_IFNAME"] = "lo"
    fixed = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0", LIFELINE: str(reader)}
    sizes = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return {**defaults, **os.environ, **fixed, **sizes}


@contextmanager
def _passing_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Passes Ctrl-C and SIGTERM on to the first child, which stops the others with it; yields those that came."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in children[:1]:
            with suppress(ProcessLookupError):
                child.send_signal(number)

    before: dict[int, Any] = {}
    with suppress(ValueError):  # elsewhere than in the main thread the host program decides about signals
        before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Waits until all have ended, or until the grace after the first failure is over; gives the one that failed."""
    failed: int | None = None
    end = float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < end:
        time.sleep(0.05)
        if failed is None and (bad := [rank for rank, child in enumerate(children) if child.poll()]):
            failed, end = bad[0], time.monotonic() + _GRACE
    return next((rank for rank, child in enumerate(children) if child.poll()), None) if failed is None else failed


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # with the processes that load its data
        child.wait()


def _exit_code(children: Sequence[subprocess.Popen[bytes]], failed: int | None, received: Sequence[int]) -> int:
    if failed is None:
        return 0
    codes = [child.returncode for child in children]
    if codes[0] < 0 and not received:
        # The first process can no longer say anything, and the others have nobody to ask whether to speak.
        print(f"error: process 0 of {len(codes)} {_ended_by(-codes[0])}", file=sys.stderr)
    said = [code for code in codes if code > 0]
    if received:
        return 130 if 130 in said else 128 + received[-1]
    return 130 if 130 in said else (said or [2])[0]


def _ended_by(number: int) -> str:
    name = signal.Signals(number).name
    why = "; the machine may have run out of memory" if number == signal.SIGKILL else ""
    return f"was ended by {name}{why}; --resume goes on from the last checkpoint"
