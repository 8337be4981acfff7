"""Several processes as one run: they meet, agree, speak with one voice, and end together."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.rendezvous import rendezvous

from mvcore.config import RunSettings
from mvcore.errors import ConfigError, DeviceError, MvcoreError
from mvcore.launching import LIFELINE, World, world
from mvcore.training.distributed import host_group, rank, use_host_group, world_size

T = TypeVar("T")
_LONG = timedelta(days=7)
"""How long processes wait for the first one while it measures or reports."""
_meetings = itertools.count()


class RanksLostError(MvcoreError):
    """Another process of the run ended without a word."""


@contextmanager
def joined(here: World) -> Iterator[None]:
    """Makes this process one of several that run what is inside, each on its own part of every batch.

    Only the first one prints. An error is said by the process that meets it first, in one line, and ends all.

    Raises:
        ConfigError: the others cannot be found.
    """
    if here.starter == "srun":
        _name_meeting_place(here)
    _watch_lifeline()
    try:
        store, _, _ = next(iter(rendezvous("env://", here.rank, here.size)))
    except (RuntimeError, ValueError) as error:
        text = f"process {here.rank} of {here.size} could not meet the others: {str(error).splitlines()[0]}"
        raise ConfigError(f"{text}; set MASTER_ADDR and MASTER_PORT to a free port of the first machine") from error
    store = dist.PrefixStore(f"mvcore-{next(_meetings)}", store)  # pyright: ignore[reportPrivateImportUsage]
    with _one_voice(store), _hushed(here.rank > 0):
        if torch.cuda.is_available() and here.local_rank < torch.cuda.device_count():
            torch.cuda.set_device(here.local_rank)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size)
        use_host_group(dist.new_group(backend="gloo", timeout=_LONG))
        yield
        dist.barrier(group=host_group())  # until the first one has reported
        use_host_group(None)
        dist.destroy_process_group()


def _name_meeting_place(here: World) -> None:
    """Sets for SLURM what torchrun sets: the first machine of the step, and a port that follows from the job."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
    os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    os.environ.setdefault("MASTER_PORT", str(15000 + int(os.environ.get("SLURM_JOB_ID", "0")[-4:])))
    names = {"RANK": here.rank, "WORLD_SIZE": here.size, "LOCAL_RANK": here.local_rank}
    names |= {"LOCAL_WORLD_SIZE": here.local_size, "GROUP_RANK": here.rank // here.local_size}
    os.environ.update({name: str(value) for name, value in names.items()})


def _watch_lifeline() -> None:
    """Stops this process in good order when the program that started it is gone."""
    if LIFELINE not in os.environ:
        return

    def wait(reader: int) -> None:
        os.read(reader, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, args=(int(os.environ[LIFELINE]),), daemon=True).start()


@contextmanager
def _hushed(silent: bool) -> Iterator[None]:
    if not silent:
        yield
        return
    with (
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield


@contextmanager
def _one_voice(store: Any) -> Iterator[None]:
    """Lets the error through on the process that is first to have one; the others end without a word."""

    def others_spoke() -> bool:
        try:
            return store.add("spoken", 1) > 1
        except RuntimeError:  # the first process, which keeps the store, has ended
            return True

    try:
        with contact("start it again, or go on with --resume"):
            yield
    except (Exception, KeyboardInterrupt) as error:
        if others_spoke():
            time.sleep(1)  # torchrun ends the others as soon as one is gone: also the one that is about to speak
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
            raise SystemExit(getattr(error, "exit_code", code)) from None
        raise


@contextmanager
def contact(advice: str) -> Iterator[None]:
    """Turns what torch says when another process is gone into one line.

    Raises:
        RanksLostError: contact was lost.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _is_lost(error):
            raise
        text = f"process {rank()} lost contact with another one, which may have been ended for want of memory; {advice}"
        raise RanksLostError(text) from error


def _is_lost(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "NCCL", "Connection closed"))


def agreed(found: Callable[[], T]) -> T:
    """What the first process finds, on all of them; the others wait for it however long it takes."""
    if world_size() == 1:
        return found()
    box: list[Any] = [found() if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0, group=host_group())
    return box[0]


def check_processes(settings: RunSettings) -> None:
    """Refuses settings that the processes which were started do not fit.

    Raises:
        ConfigError: another number of processes, or a strategy that does not work with several.
        DeviceError: fewer GPUs than processes on this machine.
    """
    here, devices = world(), settings.devices
    if here.size == 1:
        if devices not in ("auto", 1):
            how = f"'mvcore train', or this program with torchrun --nproc-per-node {devices}"
            raise ConfigError(f"run.devices is {devices}, and this is one process; start {how}")
        return
    if devices not in ("auto", here.local_size):
        raise ConfigError(
            f"run.devices is {devices}, but {here.starter} started {here.local_size} processes on each machine; set it "
            f"to {here.local_size} or auto"
        )
    if settings.strategy not in ("auto", "ddp"):
        raise ConfigError(
            f"run.strategy is {settings.strategy}: with several processes each holds the whole model, which is ddp; "
            "set it to ddp or auto"
        )
    if settings.accelerator == "mps":
        raise ConfigError("run.accelerator is mps, which several processes cannot share; set run.devices to 1")
    if settings.accelerator != "cpu" and 0 < torch.cuda.device_count() < here.local_size:
        text = f"{here.local_size} processes for the {torch.cuda.device_count()} GPUs of this machine"
        raise DeviceError(f"{text}; set run.devices to that number, or run.accelerator to cpu")


class AveragedOnce(DDPStrategy):
    """Lightning's data-parallel strategy without torch's wrapper: gradients are averaged once, when a step has them.

    The wrapper counts on every parameter having a gradient in every backward pass, and on one pass a step. Here terms
    come and go, sources alternate, and a gradient cache goes back chunk by chunk, in numbers that differ by process.
    """

    def configure_ddp(self) -> None:
        """Starts all processes from the weights of the first."""
        module: Any = self.lightning_module
        for parameter in module.trained().values():
            dist.broadcast(parameter.data, src=0)


def lightning_options(settings: RunSettings) -> dict[str, Any]:
    """Devices, strategy and plugins of Lightning's Trainer, by the processes that there are."""
    here = world()
    if here.size == 1 or world_size() == 1:
        return {"devices": 1, "strategy": settings.strategy, "plugins": []}
    environment = TorchElasticEnvironment()
    strategy = AveragedOnce()
    return {
        "devices": here.local_size,
        "num_nodes": here.machines,
        "strategy": strategy,
        "plugins": [environment],
    }
