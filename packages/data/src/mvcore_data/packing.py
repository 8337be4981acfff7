"""`pack`: a store from any layout that an importer reads; the sources' bytes are kept wherever they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from mvcore.api import ConfigError, DataError

from mvcore_data.importers import detect_format, find_format
from mvcore_data.importers.base import Format, Skipped, Source, SourceObject
from mvcore_data.licences import allowed, check_patterns, normalise
from mvcore_data.pack_journal import PackState, PartialStore
from mvcore_data.pack_options import make_options
from mvcore_data.schema import INDEX_NAME, SHARD_SUFFIXES
from mvcore_data.source_images import UnusableError, parse_colour
from mvcore_data.source_views import ReadyView, Treatment, prepare_view
from mvcore_data.writer import ViewStoreWriter

SHARD_BYTES = 512 << 20

Verify = Literal["structure", "decode"]


@dataclass
class PackReport:
    """What became of a source.

    Args:
        format: its format.
        mark: by which mark the format was recognised; empty where it was given.
        objects, views: packed.
        resumed: objects that were there from an interrupted pack.
        reencoded: images by why their bytes could not be kept.
        skipped: what was left out, by why.
    """

    format: str
    mark: str = ""
    objects: int = 0
    views: int = 0
    resumed: int = 0
    reencoded: dict[str, int] = field(default_factory=dict)
    skipped: Skipped = field(default_factory=Skipped)


@dataclass(frozen=True, kw_only=True)
class _Defaults:
    licence: str | None
    source: str | None
    creator: str | None


class _Strict(Skipped):
    """Nothing may be left out."""

    def add(self, why: str, name: str | Path) -> None:
        raise DataError(f"{name}: {why} (--strict: nothing is left out)")


def pack(
    src: str | PathLike[str],
    out: str | PathLike[str],
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    background: str | None = None,
    licence: str | None = None,
    source: str | None = None,
    creator: str | None = None,
    allow_licences: Sequence[str] | None = None,
    resize: int | None = None,
    verify: Verify = "structure",
    strict: bool = False,
    allow_pickle: bool = False,
    shard_bytes: int = SHARD_BYTES,
    on_format: Callable[[str, str], None] = lambda name, mark: None,
    on_object: Callable[[int, int | None], None] = lambda done, total: None,
) -> PackReport:
    """Packs a source into a store.

    JPEG, PNG and WebP files are copied byte for byte, except those with an alpha channel or an EXIF rotation and, with
    `resize`, larger ones. A pack that ends early, however it ends, leaves its finished shards in `OUT.partial`; the
    same call goes on behind them and gives the same bytes as one that was never interrupted. A single shard file
    starts over.

    Args:
        src: a file or folder.
        out: the store to make: a folder, or a name ending in `.h5` for one shard.
        format: the source's format; None recognises it by its marks.
        options: of the format, by name; see `mvcore data formats`.
        background: colour behind transparent pixels, as `#ffffff` or `white`; without it such an image is an error.
        licence, source, creator: of objects that name none.
        allow_licences: take only objects of these licences; see `mvcore_data.licences.allowed`.
        resize: length of the shorter side of larger images in pixels; cameras, depth and masks follow.
        verify: `structure` finds truncated files and wrong PNG checksums; `decode` decodes every image.
        strict: stop at the first thing that cannot be used.
        allow_pickle: let formats that have them read pickles, which run any code that their author put there.
        shard_bytes: a shard is closed and published when its images reach this size.
        on_format: called with the format and by which mark it was recognised.
        on_object: called with the number of objects done and in all, where that is known.

    Returns:
        What was packed, encoded anew and skipped.

    Raises:
        DataError: nothing to pack, wrong metadata, transparency without a background, or the store cannot be written.
        ConfigError: an unknown format, option or colour.
    """
    src, out = Path(src), Path(out)
    treatment = Treatment(None if background is None else parse_colour(background), resize, verify == "decode")
    if resize is not None and resize < 1:
        raise ConfigError(f"resize {resize}: give a length of at least 1 pixel")
    if not src.exists():
        raise DataError(f"{src}: no such file or folder")
    _check_free(out)
    found, mark = (find_format(format), "") if format is not None else detect_format(src)
    parsed = make_options(found, options or {}, allow_pickle=allow_pickle)
    on_format(found.name, mark)
    wanted = None if allow_licences is None else list(allow_licences)
    if wanted is not None:
        check_patterns(wanted)
    job = _Job(
        found, found.open(src, parsed), src, _Defaults(licence=licence, source=source, creator=creator), wanted,
        treatment, strict, on_object,
    )  # fmt: skip
    if out.suffix in SHARD_SUFFIXES:
        state = _pack_file(job, out)
        return _report(found, mark, state, 0)
    identity = {
        "source": str(src.resolve()),
        "format": found.name,
        "options": parsed.model_dump(mode="json"),
        "background": background,
        "licence": licence,
        "origin": source,
        "creator": creator,
        "allow-licence": wanted,
        "resize": resize,
        "verify": verify,
        "strict": strict,
        "shard-size": shard_bytes,
        "mvcore-data": version("mvcore-data"),
    }
    partial = PartialStore(out, identity)
    try:
        resumed = partial.state.objects
        state = _pack_folder(job, partial, shard_bytes)
        partial.publish()
    finally:
        partial.close()
    return _report(found, mark, state, resumed)


def _report(found: Format, mark: str, state: PackState, resumed: int) -> PackReport:
    return PackReport(found.name, mark, state.objects, state.views, resumed, state.reencoded, state.skipped)


def _check_free(out: Path) -> None:
    if (out / INDEX_NAME).exists():
        raise DataError(f"{out}: holds a store already; give another name")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: exists already; give another name")


@dataclass(frozen=True)
class _Job:
    format: Format
    opened: Source
    src: Path
    defaults: _Defaults
    licences: list[str] | None
    treatment: Treatment
    strict: bool
    on_object: Callable[[int, int | None], None]

    def skipped(self) -> Skipped:
        return _Strict() if self.strict else Skipped()


def _pack_file(job: _Job, out: Path) -> PackState:
    state = PackState(skipped=job.skipped())
    with ViewStoreWriter(out) as writer:
        for item in job.opened.objects(state.skipped):
            _pack_object(job, writer, item, state)
        _require_objects(job, state)
    return state


def _pack_folder(job: _Job, partial: PartialStore, shard_bytes: int) -> PackState:
    state = PackState(skipped=job.skipped())
    objects = job.opened.objects(state.skipped)
    state = _pass_packed(job, objects, state, partial)
    with ViewStoreWriter(partial.store, append=True, shard_bytes=shard_bytes) as writer, _kept(partial):
        for item in objects:
            _pack_object(job, writer, item, state)
            if writer.finished_shards:
                partial.save(state)
                writer.publish()
        _require_objects(job, state)
        partial.save(state)
    return state


def _pass_packed(job: _Job, objects: Iterator[SourceObject], state: PackState, partial: PartialStore) -> PackState:
    """Walks past the objects of the published part; gives the state that the journal recorded behind them."""
    wanted = partial.state
    while state.position < wanted.position:
        item = next(objects, None)
        if item is None:
            break
        state.pass_by(item.id)
        job.on_object(state.position, job.opened.total)
    if (state.position, state.ids) != (wanted.position, wanted.ids):
        raise DataError(
            f"{job.src}: its objects are not those that the interrupted pack in {partial.folder} saw; "
            "restore the source, or remove that folder to start anew"
        )
    # The walk fills this very object, so what it counted is replaced in place.
    state.skipped.restore(wanted.skipped)
    return replace(wanted, skipped=state.skipped)


@contextmanager
def _kept(partial: PartialStore) -> Iterator[None]:
    """Says at the end of an error what is kept."""
    try:
        yield
    except DataError as error:
        kept = partial.published
        hint = f" ({kept} objects are kept in {partial.folder}; repeat the command to go on)" if kept else ""
        raise DataError(f"{error}{hint}") from None


def _pack_object(job: _Job, writer: ViewStoreWriter, item: SourceObject, state: PackState) -> None:
    state.pass_by(item.id)
    licence = item.licence or job.defaults.licence
    if writer.holds(item.id):
        state.skipped.add("an object with the id of another one", f"{item.name} ({item.id!r})")
    elif job.licences is not None and not allowed(licence, job.licences):
        name = "unknown" if licence is None else normalise(licence)
        state.skipped.add(f"licence {name} is not of {', '.join(job.licences)}", item.name)
    else:
        _add_object(job, writer, item, licence, state)
    job.on_object(state.position, job.opened.total)


def _add_object(job: _Job, writer: ViewStoreWriter, item: SourceObject, licence: str | None, state: PackState) -> None:
    ready: list[ReadyView] = []
    captions: list[list[str]] = []
    for view in item.views:
        try:
            ready.append(prepare_view(view, job.treatment))
        except UnusableError as error:
            state.skipped.add(str(error), view.name)
            continue
        captions.append(list(view.captions))
        if why := ready[-1].reencoded:
            state.reencoded[why] = state.reencoded.get(why, 0) + 1
    if not ready:
        state.skipped.add("no usable image", item.name)
        return
    try:
        writer.add_object(
            item.id,
            [view.image for view in ready],
            captions=list(item.captions),
            view_captions=captions,
            category=item.category,
            cameras=[view.camera for view in ready],
            depth=[view.depth for view in ready],
            masks=[view.mask for view in ready],
            tracks=[view.tracks for view in ready],
            licence=licence,
            source=item.source or job.defaults.source,
            creator=item.creator or job.defaults.creator,
        )
    except DataError as error:
        raise DataError(str(error) if writer.closed else f"{item.name}: {error}") from None
    state.objects += 1
    state.views += len(ready)


def _require_objects(job: _Job, state: PackState) -> None:
    if not state.objects:
        counts = ", ".join(f"{count} {why}" for why, count in state.skipped.counts.items())
        skipped = f" (skipped: {counts})" if counts else ""
        what = "none of its images can be used" if state.position else f"holds nothing of the format {job.format.name}"
        raise DataError(f"{job.src}: {what}{skipped}")
