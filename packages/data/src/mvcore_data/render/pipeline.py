"""From objects to a store: render in workers, keep each object's result, pack everything at the end."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mvcore.api import DataError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mvcore_data.index import Index, read_index, write_index
from mvcore_data.render.jobs import Item, read_rendered
from mvcore_data.render.pool import Job, render_all
from mvcore_data.render.probe import probe_renderer
from mvcore_data.render.settings import RenderSettings
from mvcore_data.rigs import Rig
from mvcore_data.schema import SHARD_SUFFIXES
from mvcore_data.writer import ViewStoreWriter


@dataclass(frozen=True)
class RenderPlan:
    """A whole render.

    Attributes:
        items: The objects, in the store's order.
        rig: The cameras.
        settings: How views are drawn and encoded.
        depth: Keep z-depth of the items that want geometry.
        masks: Keep masks of them.
        splits: Object ids by split name, for the store's index.
    """

    items: Sequence[Item]
    rig: Rig
    settings: RenderSettings
    depth: bool = True
    masks: bool = True
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)


def render_store(plan: RenderPlan, out: Path, *, workers: int, strict: bool = False) -> dict[str, str]:
    """Render a plan to a store at ``out``; what an interrupted call has drawn already is not drawn again.

    Finished objects wait in ``OUT.partial`` until the store is there.

    Args:
        plan: What to render.
        out: The store's folder, or a name ending in `.h5`; must not exist.
        workers: Number of processes.
        strict: Stop at the first object that fails.

    Returns:
        The objects that failed, with the reason.

    Raises:
        DataError: ``out`` exists or cannot be written, nothing could be drawn, or an object failed and ``strict``.
        DeviceError: This machine cannot render.
    """
    if out.exists():
        raise DataError(f"{out}: exists already; give another name or remove it")
    work = out.with_name(f"{out.name}.partial")
    settings = plan.settings.fingerprint()
    jobs = [Job(item, work / _result_name(plan, settings, item)) for item in plan.items]
    failed = _render_missing([job for job in jobs if not job.path.exists()], plan, work, workers, strict)
    done = [job for job in jobs if job.item.id not in failed]
    if not done:
        _remove_folder(work)
        first = next(iter(failed.items()))
        raise DataError(
            f"{out}: none of the {len(jobs)} objects could be rendered; the first, {first[0]!r}: {first[1]}"
        )
    _pack(done, plan, work, out)
    _remove_folder(work)
    return failed


def _result_name(plan: RenderPlan, settings: str, item: Item) -> str:
    """Of the file with an object's render: another object, file, camera or setting has another name."""
    cameras = [camera.tolist() for camera in plan.rig.cameras(plan.settings.size, item.id)]
    text = "\0".join([settings, json.dumps([cameras, plan.rig.unit, item.geometry]), item.id, item.fingerprint()])
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def _make_folder(work: Path) -> None:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{work}: cannot be made ({error.strerror})") from None


def _remove_folder(work: Path) -> None:
    """Remove the results, and the folder unless it holds something else."""
    for pattern in ("*.npz", "*.npz.tmp", "*.exr"):
        for file in work.glob(pattern):
            file.unlink()
    if not any(work.iterdir()):
        work.rmdir()


def _render_missing(jobs: list[Job], plan: RenderPlan, work: Path, workers: int, strict: bool) -> dict[str, str]:
    if not jobs:
        return {}
    window = probe_renderer(plan.settings.renderer, plan.settings.device)
    _make_folder(work)
    failed: dict[str, str] = {}
    console = Console(stderr=True)
    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    total = len(plan.items)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total, completed=total - len(jobs))
        outcomes = render_all(jobs, plan.rig, plan.settings, window=window, workers=min(workers, len(jobs)))
        for item, reason in outcomes:
            progress.advance(task)
            if reason is None:
                continue
            if strict:
                raise DataError(f"object {item.id!r} failed: {reason}")
            failed[item.id] = reason
            progress.console.print(f"skipped {item.id}: {reason}", markup=False, highlight=False, soft_wrap=True)
    return failed


def _pack(jobs: list[Job], plan: RenderPlan, work: Path, out: Path) -> None:
    single = out.suffix in SHARD_SUFFIXES
    built = work / ("store.h5" if single else "store")
    if built.is_dir():
        shutil.rmtree(built)
    built.unlink(missing_ok=True)
    with ViewStoreWriter(built, codec=plan.settings.codec, quality=plan.settings.quality) as writer:
        for job in jobs:
            rendered, item = read_rendered(job.path), job.item
            writer.add_object(
                item.id,
                rendered.views,
                captions=rendered.captions,
                category=item.category,
                cameras=list(zip(*plan.rig.cameras(plan.settings.size, item.id), strict=True)),
                depth=list(rendered.depth) if plan.depth and rendered.depth is not None else None,
                masks=list(rendered.masks) if plan.masks and rendered.masks is not None else None,
                licence=item.licence,
                source=item.source,
            )
    if plan.splits and not single:
        there = {job.item.id for job in jobs}
        splits = {name: [id for id in ids if id in there] for name, ids in plan.splits.items()}
        write_index(built, Index(read_index(built).shards, splits))
    built.replace(out)
