"""The HTML report of runs: one file that holds its tables, pictures and the sections of the runs' plugins."""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvcore.config import RunConfig
from mvcore.errors import DataError, MvcoreError
from mvcore.evaluation.files import write_atomic
from mvcore.evaluation.results import EvalResult, Table
from mvcore.plugins import Registry, load_plugins
from mvcore.report.figures import draw_training_curves, read_metrics
from mvcore.report.long_table import Line, LongTable, is_clear, shown_interval, shown_number, table_of, written
from mvcore.report.tables import NO_VALUE
from mvcore.run_folder import CONFIG, METRICS, is_run, read_config, read_record
from mvcore.run_results import ROWS, Measured, check_comparable, labelled, read_row, seed_folders

NAME = "report.html"
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 16 << 20
"""Of one picture."""
_MOST_LINES = 200
"""Of one table of an evaluator."""


@dataclass(frozen=True)
class ReportedRun:
    """What the hook `mvcore_report_sections` gets as `run`.

    Args:
        folder: of the run.
        config: as it was resolved.
    """

    folder: Path
    config: RunConfig


@dataclass
class Chapter:
    """One run, or the comparison of all, as the template reads it."""

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    warnings: list[str] = field(default_factory=list[str])
    tables: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    pictures: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    sections: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    config: str = ""


def write_report(runs: Sequence[Path], path: Path) -> Path:
    """Writes the report of some runs into one HTML file that refers to no other.

    Raises:
        DataError: a folder is no run, or what it holds is damaged.
    """
    from jinja2 import Environment, PackageLoader

    registry = load_plugins()
    chapters = [_run_chapter(run, registry) for run in runs]
    if len(runs) > 1:
        chapters.insert(0, _comparison_chapter(runs))
    environment = Environment(
        loader=PackageLoader("mvcore.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    title = "mvcore report: " + ", ".join(run.resolve().name for run in runs)
    demo = any(read_config(run).demo for run in runs)
    text = environment.get_template("report.html.j2").render(title=title, demo=demo, chapters=chapters)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())
    return path


def used_plugins(config: RunConfig) -> set[str]:
    """The names of the plugins whose parts stand in a run's configuration."""
    parts = [config.encoder]
    sections = (config.adapters, config.data, config.losses, config.trainers, config.validation.data)
    for section in (*sections, config.validation.on):
        parts += section.values()
    return {part.id.partition(".")[0] for part in parts}


def _run_chapter(run: Path, registry: Registry) -> Chapter:
    if not (run / CONFIG).is_file():
        raise DataError(f"{run}: not a run (no {CONFIG})")
    config = read_config(run)
    folders = seed_folders(run) or [run]
    chapter = Chapter(run.resolve().name, _facts(config, folders), _collapses(config, folders))
    rows = {row: found for row in ROWS if (found := read_row(run, row)) is not None}
    if rows:
        results = {row: found.results for row, found in rows.items()}
        chapter.tables.append(_long(table_of(results, title="Before and after", demo=config.demo)))
        last = rows.get("tuned", next(iter(rows.values())))
        chapter.tables += [_plain(table) for result in last.results[0].values() for table in result.tables]
    chapter.pictures = [_inline(path, name) for path, name in _pictures(run, folders, rows)]
    first = {row: found.results[0] for row, found in rows.items()}
    for title, html, error in _sections(run, config, first, registry):
        if error:
            chapter.warnings.append(error)
            print(f"warning: {error}", file=sys.stderr)
        else:
            chapter.sections.append({"title": title, "html": html})
    chapter.config = (run / CONFIG).read_text(encoding="utf-8")
    return chapter


def _comparison_chapter(runs: Sequence[Path]) -> Chapter:
    """The tuned models of all runs; a line that says why where they cannot be compared."""
    chapter = Chapter("Comparison")
    found = [(run, read_row(run, "tuned")) for run in runs]
    named = [Measured(run.resolve().name, row.folders, row.results) for run, row in found if row is not None]
    models = labelled(named)
    if len(models) < 2:
        chapter.warnings.append("fewer than two of these runs were measured")
        return chapter
    try:
        check_comparable(models, next(iter(models)))
        demo = any(read_config(run).demo for run in runs)
        results = {label: model.results for label, model in models.items()}
        chapter.tables.append(_long(table_of(results, title="Tuned models", demo=demo)))
    except DataError as error:
        chapter.warnings.append(str(error))
    return chapter


def _facts(config: RunConfig, folders: Sequence[Path]) -> list[tuple[str, str]]:
    records = [read_record(folder) for folder in folders if is_run(folder)]
    facts = [
        ("status", ", ".join(dict.fromkeys(record.status for record in records)) or "unknown"),
        ("methods", ", ".join(sorted(used_plugins(config) - {"core", "data"})) or "none"),
        (
            "encoder",
            " ".join([config.encoder.id, *(str(config.encoder.args.get(key) or "") for key in ("model", "tag"))]),
        ),
        ("steps", str(config.run.max_steps)),
        ("seeds", ", ".join(str(record.seed) for record in records) or str(config.run.seed)),
    ]
    versions = records[0].versions if records else {}
    return [(name, " ".join(value.split())) for name, value in facts] + list(versions.items())


def _collapses(config: RunConfig, folders: Sequence[Path]) -> list[str]:
    """From which step on the metrics of each seed call the features collapsed."""
    if config.run.alarm is None:
        return []
    found: list[str] = []
    for folder in folders:
        if not (folder / METRICS).is_file():
            continue
        steps, values = read_metrics(folder / METRICS).get("alarm/collapsed", ((), ()))
        late = [step for step, value in zip(steps, values, strict=True) if value and step >= config.run.alarm.after]
        if late:
            where = f"{folder.name}: " if len(folders) > 1 else ""
            found.append(f"{where}the collapse alarm went off at step {late[0]:g} ({len(late)} rows of metrics in all)")
    return found


def _sections(
    run: Path, config: RunConfig, results: Mapping[str, Mapping[str, EvalResult]], registry: Registry
) -> Iterator[tuple[str, Any, str]]:
    """Title and safe HTML of each plugin's sections, or what went wrong in it."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    from mvcore.resolution import use_plugin

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    names = used_plugins(config)
    for plugin in config.plugins:
        try:
            names.add(use_plugin(plugin, registry).name)
        except MvcoreError as error:
            yield "", "", f"no report section of {plugin}: {error}"
    reported = ReportedRun(run, config)
    for name in sorted(names):
        try:
            answers = registry.call("mvcore_report_sections", [name], run=reported, results=results)
        except MvcoreError as error:
            yield "", "", f"no report section of {name}: {error}"
            continue
        for answer in answers:
            if answer.error is not None:
                yield "", "", str(answer.error)
            for section in answer.items:
                # What markdown-it makes without raw HTML in it is safe: all else is escaped.
                yield section.title, Markup(markdown.render(section.markdown)), ""


def _long(table: LongTable) -> dict[str, Any]:
    comparison = table.comparison
    rows: list[dict[str, Any]] = []
    for group, lines in table.groups(binned=True):
        rows.append({"group": group})
        rows += [
            {"label": written(line), "cells": [_cell(table, line, row) for row in comparison.values]} for line in lines
        ]
    return {
        "title": comparison.title,
        "columns": ["", *comparison.values],
        "rows": rows,
        "note": " ".join([comparison.note(), *table.notes]),
        "definitions": [
            (f"{group}, {written(line)}", line.column.definition)
            for group, lines in table.groups(binned=False)
            for line in lines
        ],
    }


def _cell(table: LongTable, line: Line, row: str) -> dict[str, Any]:
    figure, gap = table.found(line, row)
    if figure is None or math.isnan(figure.value):
        return {"value": NO_VALUE, "below": [], "clear": False}
    value = shown_number(figure.value, line)
    if not math.isnan(figure.std):
        value += f" ± {shown_number(figure.std, line)}"
    below = [shown_interval(figure, line)]
    if gap is not None and not math.isnan(gap.value):
        below.append(f"Δ {shown_number(gap.value, line, '+')} {shown_interval(gap, line, '+')}")
    return {"value": value, "below": [text for text in below if text], "clear": is_clear(gap)}


def _plain(table: Table) -> dict[str, Any]:
    shown = [
        {"label": row[0], "cells": [{"value": cell, "below": [], "clear": False} for cell in row[1:]]}
        for row in table.rows[:_MOST_LINES]
        if row
    ]
    more = len(table.rows) - len(shown)
    return {"title": table.title, "columns": table.columns, "rows": shown, "note": f"{more} more rows" if more else ""}


def _pictures(run: Path, folders: Sequence[Path], rows: Mapping[str, Measured]) -> Iterator[tuple[Path, str]]:
    """Curves, the pictures over all models, and those of the tuned model's evaluators."""
    for folder in (*folders, folders[0] / "control"):
        if (folder / METRICS).is_file():
            curves = folder / "curves.png"
            if not curves.is_file():
                draw_training_curves(folder / METRICS, curves)
            if curves.is_file():
                yield curves, f"training curves, {folder.relative_to(run.parent)}"
    yield from ((path, path.stem) for path in sorted((run / "report").glob("*.png")))
    tuned = rows.get("tuned")
    if tuned is not None:
        for path in sorted(tuned.folders[0].glob("*/*.png")):
            yield path, f"{path.parent.name}: {path.stem}, tuned"


def _inline(path: Path, name: str) -> dict[str, str]:
    """A PNG as text.

    Raises:
        DataError: it cannot be read, or is no PNG of sensible size.
    """
    try:
        payload = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else b""
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if not payload.startswith(_PNG):
        raise DataError(f"{path}: not a PNG of at most {_MOST_BYTES >> 20} MiB; remove it")
    return {"name": name, "data": base64.b64encode(payload).decode()}
