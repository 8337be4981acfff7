"""`mvcore data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from mvcore.api import ConfigError, DataError

_LISTED = 20


def check(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A shard, or the folder of a store.")],
    untrusted: Annotated[
        bool, typer.Option("--untrusted", help="Of unknown origin: decode it, too, in a child process with limits.")
    ] = False,
    repair: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write what is sound as a new store; STORE is only read.")
    ] = None,
    keep_good_views: Annotated[
        bool, typer.Option("--keep-good-views", help="With --repair: drop damaged views, not their whole objects.")
    ] = False,
) -> None:
    """Read everything in a store and say what is wrong; exit code 2 if anything is and nothing was repaired."""
    if repair is not None:
        _repair(store, repair, keep_good_views, untrusted)
        return
    if keep_good_views:
        raise ConfigError("--keep-good-views says what --repair keeps; give --repair OUT, too")
    from mvcore_data.check import check_store

    report = check_store(store, untrusted=untrusted)
    if report.ok:
        typer.echo(f"{store}: sound, {report.objects} objects, {report.views} views")
        return
    *rest, last = _shown(report.problems)
    for problem in rest:
        typer.echo(problem)
    raise DataError(last)


def _repair(store: Path, out: Path, keep_good_views: bool, untrusted: bool) -> None:
    from mvcore_data.repair import repair_store

    report = repair_store(store, out, keep_good_views=keep_good_views, untrusted=untrusted)
    if report.vectors:
        for problem in _shown(report.vectors):
            typer.echo(problem, err=True)
        raise DataError(
            f"{store}: its objects are sound, so {out} was not made; give the 'mvcore data embed' command that made "
            "the vectors again, which makes damaged files anew"
        )
    if not report.problems:
        typer.echo(f"{store}: sound, nothing to repair; {out} was not made")
        return
    for problem in _shown(report.problems):
        typer.echo(problem, err=True)
    for what, ids in (("dropped", report.dropped), ("kept without its damaged views", report.thinned)):
        for name in ids:
            typer.echo(f"{what}: object {name!r}", err=True)
    if report.lost_objects:
        typer.echo(f"lost with their shards: {report.lost_objects} objects, {report.lost_views} views", err=True)
    typer.echo(f"{out}: {report.objects} objects, {report.views} views; {report.dropped_views} views dropped")


def _shown(problems: list[str]) -> list[str]:
    shown, more = problems[:_LISTED], len(problems) - _LISTED
    return [*shown[:-1], shown[-1] + (f" (and {more} more problems)" if more > 0 else "")]
