"""From objects to a store: render in workers, keep each object's result, pack everything at the end."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mvcore.api import DataError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mvcore_data.index import Index, read_index, write_index
from mvcore_data.render.jobs import ImageOptions, Item, read_rendered
from mvcore_data.render.pool import Job, render_all
from mvcore_data.render.probe import probe_renderer
from mvcore_data.rigs import Rig
from mvcore_data.schema import SHARD_SUFFIXES
from mvcore_data.writer import ViewStoreWriter


@dataclass(frozen=True)
class RenderPlan:
    """A whole render.

    Attributes:
        items: The objects, in the store's order.
        rig: The cameras.
        options: How views are drawn and encoded.
        depth: Keep z-depth of the items that want geometry.
        masks: Keep masks of them.
        splits: Object ids by split name, for the store's index.
    """

    items: Sequence[Item]
    rig: Rig
    options: ImageOptions
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
        DataError: ``out`` exists, the partial render is another one's, nothing could be drawn, or ``strict``.
        DeviceError: This machine cannot render.
    """
    if out.exists():
        raise DataError(f"{out}: exists already; give another name or remove it")
    work = out.with_name(f"{out.name}.partial")
    _claim(work, _fingerprint(plan))
    jobs = [Job(item, work / f"{number:06d}.npz") for number, item in enumerate(plan.items)]
    failed = _render_missing([job for job in jobs if not job.path.exists()], plan, workers, strict)
    done = [job for job in jobs if job.item.id not in failed]
    if not done:
        first = next(iter(failed.items()))
        raise DataError(
            f"{out}: none of the {len(jobs)} objects could be rendered; the first, {first[0]!r}: {first[1]}"
        )
    _pack(done, plan, work, out)
    shutil.rmtree(work)
    return failed


def _fingerprint(plan: RenderPlan) -> str:
    digest = hashlib.sha256()
    settings = [asdict(plan.options), plan.rig.name, plan.rig.angles.tolist(), plan.depth, plan.masks]
    digest.update(json.dumps(settings).encode())
    for item in plan.items:
        digest.update(f"{item.id}\0{item.geometry}\0{item.fingerprint()}\n".encode())
    return digest.hexdigest()


def _claim(work: Path, fingerprint: str) -> None:
    """Make the work folder, or go on with it if it holds the same render."""
    mark = work / "job.json"
    try:
        work.mkdir(parents=True, exist_ok=True)
        if mark.exists():
            if json.loads(mark.read_text()).get("fingerprint") != fingerprint:
                raise DataError(
                    f"{work}: holds an unfinished render of other objects or settings; finish it with its own command "
                    "or remove the folder"
                )
            return
        if any(work.iterdir()):
            raise DataError(f"{work}: is in the way (not an unfinished render); move it")
        temporary = work / "job.json.tmp"
        temporary.write_text(json.dumps({"fingerprint": fingerprint}))
        temporary.replace(mark)
    except (OSError, ValueError) as error:
        raise DataError(f"{work}: cannot be used as the work folder ({error})") from None


def _render_missing(jobs: list[Job], plan: RenderPlan, workers: int, strict: bool) -> dict[str, str]:
    if not jobs:
        return {}
    window = probe_renderer()
    failed: dict[str, str] = {}
    console = Console(stderr=True)
    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    total = len(plan.items)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total, completed=total - len(jobs))
        outcomes = render_all(jobs, plan.rig, plan.options, window=window, workers=min(workers, len(jobs)))
        for item, reason in outcomes:
            progress.advance(task)
            if reason is None:
                continue
            if strict:
                raise DataError(f"object {item.id!r} failed: {reason}")
            failed[item.id] = reason
            progress.console.print(f"skipped {item.id}: {reason}", style="yellow", markup=False, highlight=False)
    return failed


def _pack(jobs: list[Job], plan: RenderPlan, work: Path, out: Path) -> None:
    single = out.suffix in SHARD_SUFFIXES
    built = work / ("store.h5" if single else "store")
    if built.is_dir():
        shutil.rmtree(built)
    built.unlink(missing_ok=True)
    cameras = list(zip(*plan.rig.cameras(plan.options.size), strict=True))
    with ViewStoreWriter(built, codec=plan.options.codec, quality=plan.options.quality) as writer:
        for job in jobs:
            rendered, item = read_rendered(job.path), job.item
            writer.add_object(
                item.id,
                rendered.views,
                captions=rendered.captions,
                category=item.category,
                cameras=cameras,
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
