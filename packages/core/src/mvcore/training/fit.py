"""Trains one model: assembles the parts of a plan, hands them to Lightning, and leaves a run folder behind."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from mvcore import build
from mvcore.blame import blamed_on_one_of
from mvcore.config import RunSettings, SourcePart
from mvcore.errors import ConfigError, DataError, DeviceError, Interrupted
from mvcore.launching import world
from mvcore.model import Model, Pipeline
from mvcore.training.alarm import CollapseAlarm
from mvcore.training.assembly import check_image_sizes, make_losses, make_pipeline
from mvcore.training.callbacks import CHECKPOINTS, Checkpoints, Measure, Meter, ProgressBar, StopOnSignal
from mvcore.training.context import RunContext
from mvcore.training.distributed import rank
from mvcore.training.folder_checkpoint import FolderCheckpoint
from mvcore.training.gradients import ConflictReport
from mvcore.training.loader import StepLoader
from mvcore.training.metrics_csv import MetricsCsv
from mvcore.training.module import RunModule
from mvcore.training.objective import Objective
from mvcore.training.planner import Plan, read_by
from mvcore.training.ranks import contact, lightning_options
from mvcore.training.sampling import (
    PairFilter,
    PreferredViews,
    SourceSpecification,
    assign_offsets,
    is_stream,
    sampler_of,
)
from mvcore.training.terms import Term
from mvcore.training.weights import weight_at

MeasureFn = Callable[[Model, Path], Mapping[str, float]]
Specified: TypeAlias = tuple[dict[str, SourceSpecification], tuple[int, int]]
"""The sources as they are drawn from, by name, and how many object and view ids their stores have together."""


@dataclass
class Training:
    """All parts of a training, ready to run."""

    plan: Plan
    module: RunModule
    pipeline: Pipeline
    trainers: list[Any]
    epoch_steps: int
    context: RunContext

    @property
    def model(self) -> Model:
        return Model(self.pipeline, views_per_batch=self.plan.config.validation.views_per_batch)


def prepare(
    plan: Plan,
    datasets: Mapping[str, Any],
    output: Path,
    pipeline: Pipeline | None = None,
    specified: Specified | None = None,
) -> Training:
    """Makes model, losses, trainers and loader of a plan.

    Args:
        pipeline: a model made before from the same plan, to be trained further; None makes it.
        specified: what `specifications` gave for the same data; None asks it.
    """
    config = plan.config
    seed = config.run.seed
    if pipeline is None:
        pipeline = make_pipeline(plan.blueprint.encoder, plan.adapters, seed)
    check_image_sizes("data", datasets, pipeline.backbone)
    sources, id_counts = specified or specifications(plan, datasets)
    preferred = PreferredViews()
    trainers = [term.part.make() for term in plan.trainers]
    objective = _objective(plan, pipeline, datasets, trainers)
    first = sampler_of(next(iter(sources.values())), seed)
    epoch_steps = config.run.epoch_steps or first.steps_per_epoch
    replaces = [made for t, made in zip(plan.trainers, trainers, strict=True) if t.part.spec.replaces_step]
    module = RunModule(
        objective,
        settings=config.run,
        optimizer=config.optimizer,
        epoch_steps=epoch_steps,
        replaces_step=replaces[0] if replaces else None,
    )

    module.make_loader = lambda rank, world_size, start: StepLoader(
        list(sources.values()),
        seed=seed,
        workers=_workers(config.run, datasets.values()),
        rank=rank,
        world_size=world_size,
        start=start,
        steps=epoch_steps,
        pin_memory=torch.cuda.is_available() and config.run.accelerator in ("auto", "cuda"),
        preferred=preferred,
    )
    context = RunContext(
        seed=seed,
        output=output,
        model=Model(pipeline, views_per_batch=config.validation.views_per_batch),
        sources=sources,
        id_counts=id_counts,
        trainer_sources={id(made): t.sources for t, made in zip(plan.trainers, trainers, strict=True)},
        preferred=preferred,
    )
    for term, made in zip(plan.trainers, trainers, strict=True):
        if hasattr(made, "bind"):
            with blamed_on_one_of(_owners(plan, trainers)):
                made.bind(context.limited(f"trainer {term.part.name}", term.part.reads))
    return Training(plan, module, pipeline, trainers, epoch_steps, context)


def _objective(plan: Plan, pipeline: Pipeline, datasets: Mapping[str, Any], trainers: Sequence[Any]) -> Objective:
    """Model and losses, with what the trainers publish to them and observe of them."""
    pairs = list(zip(plan.trainers, trainers, strict=True))
    observing = [(term, made) for term, made in pairs if hasattr(made, "observe")]
    # What a trainer only embeds is computed when it asks, not in every step.
    observed = read_by([term for term, _ in observing], datasets)
    objective = Objective(
        pipeline,
        _terms(plan),
        {name: keys | observed[name] for name, keys in plan.keys.items()},
        {name: dataset.image_size for name, dataset in datasets.items()},
        {key: made.state for term, made in pairs for key in term.part.provides},
        {k: axis for t in plan.trainers for k, axis in build.axes_of(t.part.registered, t.part.options).items()},
        observed,
    )
    for term, made in observing:
        for name in term.sources:
            objective.observers.setdefault(name, []).append(made.observe)
    return objective


def _terms(plan: Plan) -> list[Term]:
    losses = make_losses(plan, plan.config.run.seed)
    return [
        Term(
            t.part.name,
            losses[t.part.name],
            t.part.needs,
            t.sources,
            t.weight if isinstance(t.weight, float) else weight_at(t.weight, plan.config.run.max_steps),
            t.part.spec.scope,
        )
        for t in plan.losses
    ]


def _owners(plan: Plan, trainers: Iterable[Any]) -> dict[int, str]:
    """What each trainer is called, by its identity."""
    return {id(made): f"trainer {t.part.name}" for t, made in zip(plan.trainers, trainers, strict=False)}


def specifications(plan: Plan, datasets: Mapping[str, Any]) -> Specified:
    """The sources as they are drawn from, by name, and how many object and view ids their stores have together."""
    offsets, n_objects, n_views = assign_offsets(list(datasets.values()))
    sizes = plan.config.batch_sizes()
    found: dict[str, SourceSpecification] = {}
    for index, (name, dataset) in enumerate(datasets.items()):
        settings = plan.config.data[name]
        found[name] = SourceSpecification(
            name=name,
            dataset=dataset,
            sampling=settings.sampling,
            batch_size=sizes[name],
            views_per_object=settings.views_per_object or 1,
            views_draw=settings.views_draw,
            views_per_batch=settings.views_per_batch,
            short_objects=settings.short_objects,
            balance=settings.balance,
            outlier_share=settings.outlier_share,
            pairs_like=_pairs_like(settings),
            object_offset=offsets[index][0],
            view_offset=offsets[index][1],
            index=index,
        )
    return found, (n_objects, n_views)


def _pairs_like(settings: SourcePart) -> PairFilter | None:
    if settings.pair_angle is None and settings.pair_covisibility is None:
        return None
    return PairFilter(settings.pair_angle, settings.pair_angle_of, settings.pair_covisibility)


def _workers(settings: RunSettings, datasets: Iterable[Any]) -> int:
    if settings.workers != "auto":
        return settings.workers
    if any(is_stream(dataset) for dataset in datasets):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= world().local_size
    return 0 if cores <= 2 else min(8, cores - 1)


def fit(
    training: Training,
    output: Path,
    *,
    title: str,
    console: Console,
    resume: Path | None = None,
    measure: MeasureFn | None = None,
) -> Path:
    """Trains to the end and returns the last checkpoint's folder.

    Raises:
        Interrupted: Ctrl-C; the state is saved.
        NonFiniteLossError: a loss became NaN or infinite; the last good checkpoint is kept.
        DeviceError: the device asked for is not there or out of memory.
    """
    config = training.plan.config
    start = 0 if resume is None else int(resume.name.removeprefix("step-"))
    training.module.start = start
    meter = Meter(config.run.log_every, training.context.logged, config.run.log_terms)
    conflicts = ConflictReport(training.context.logged)
    stop = StopOnSignal(console)
    checkpoints = Checkpoints(output, config.run.checkpoint_every)
    callbacks = [*training.trainers, conflicts, meter, ProgressBar(title, meter, console), stop]
    if config.run.alarm is not None:  # before the meter, whose next row it joins
        callbacks.insert(0, CollapseAlarm(config.run.alarm, training.context.logged, console))
    if measure is not None and config.validation.every is not None:
        callbacks.append(_measuring(training, measure, output, checkpoints))
    callbacks.append(checkpoints)
    lost = contact(f"go on with: mvcore train --resume {output}")
    with quiet(), _own_signals(), _device_errors(config.run), _file_errors(output), lost:
        if rank() == 0:
            output.mkdir(parents=True, exist_ok=True)
        trainer = _lightning(config.run, output, callbacks, start)
        try:
            with blamed_on_one_of(_owners(training.plan, training.trainers)):
                trainer.fit(training.module, ckpt_path=None if resume is None else str(resume), weights_only=True)
        except SystemExit:  # what Lightning makes of a KeyboardInterrupt
            raise Interrupted(f"stopped at once; go on with: mvcore train --resume {output}") from None
        if conflicts.norms and rank() == 0:
            conflicts.save(output)
            console.print(conflicts.tables(title))
    if stop.stopped and trainer.global_step < config.run.max_steps:
        raise Interrupted(f"stopped and saved; go on with: mvcore train --resume {output}")
    return output / CHECKPOINTS / f"step-{trainer.global_step:08d}"


def _measuring(training: Training, measure: MeasureFn, output: Path, checkpoints: Checkpoints) -> Measure:
    validation = training.plan.config.validation

    def at(step: int) -> Mapping[str, float]:
        figures = measure(training.model, output / "validation" / f"step-{step:08d}")
        if validation.best is not None and validation.best not in figures:
            raise ConfigError(f"validate.best: no figure {validation.best!r}; there are: {', '.join(sorted(figures))}")
        return figures

    return Measure(at, validation.every or 1, validation.best, checkpoints)


def _lightning(settings: RunSettings, output: Path, callbacks: list[Any], start: int) -> Trainer:
    loggers: list[Any] = [MetricsCsv(output, start)]
    # Without the extra `mvcore[logs]` there is no TensorBoard; metrics.csv is always written.
    with contextlib.suppress(ModuleNotFoundError):
        loggers.append(TensorBoardLogger(str(output), name="", version="tensorboard"))
    options = lightning_options(settings)
    options["plugins"] = [FolderCheckpoint(), *options["plugins"]]
    return Trainer(
        **options,
        max_steps=settings.max_steps,
        accelerator=settings.accelerator,
        precision=settings.precision,
        callbacks=callbacks,
        logger=loggers,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=settings.log_every,
        default_root_dir=str(output),
        limit_val_batches=0,
        num_sanity_val_steps=0,
        inference_mode=False,
    )


@contextmanager
def _device_errors(settings: RunSettings) -> Iterator[None]:
    """Turns what Lightning and CUDA say about devices into one line."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        advice = "set run.micro_batch lower, or a smaller batch_size"
        raise DeviceError(f"out of GPU memory ({str(error).splitlines()[0]}); {advice}") from error
    except MisconfigurationException as error:
        asked = (
            f"run.accelerator={settings.accelerator}, run.devices={settings.devices}, run.strategy={settings.strategy}"
        )
        raise DeviceError(f"{asked}: {str(error).splitlines()[0]}") from error


@contextmanager
def _file_errors(output: Path) -> Iterator[None]:
    """Turns what the file system refuses into one line; TensorBoard's thread, which would print its own, is hushed."""

    def hushed(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError):
            before(args)

    before = threading.excepthook
    threading.excepthook = hushed
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{error.filename or output}: {reason}; free space or mend it, and resume") from error
    finally:
        threading.excepthook = before


@contextmanager
def _own_signals() -> Iterator[None]:
    """Gives the host program its signal handlers back: Lightning keeps its own where a logger fails at the end."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler and handler is not None:
                # Elsewhere than in the main thread none was changed, and none can be.
                with contextlib.suppress(ValueError):
                    signal.signal(number, handler)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Lightning's banners and its advice on settings that we choose on purpose."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
