"""The ledger of a run: untouched and tuned models line by line, and its pictures with the models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mvcore.config import LEDGER
from mvcore.errors import DataError
from mvcore.evaluation.ledger_maps import Maps, load_maps
from mvcore.evaluation.results import EvalResult, Figure
from mvcore.report.heat_maps import draw_all_pairs, draw_by_relative_angle, draw_view_maps
from mvcore.report.long_table import LongTable, table_of
from mvcore.report.tables import DEMO, Results

_NAMED = "ledger"


def ledger_table(
    rows: Mapping[str, Sequence[Results]], *, title: str = "Ledger", demo: bool = False
) -> LongTable | None:
    """The ledger alone of models side by side; None where it was not measured.

    Args:
        rows: by name, one result a seed and evaluator; the first is the baseline.
        title: of the table.
        demo: the title says DEMO.
    """
    found = {row: [{LEDGER: seed[LEDGER]} for seed in seeds if LEDGER in seed] for row, seeds in rows.items()}
    found = {row: seeds for row, seeds in found.items() if seeds}
    return table_of(found, title=title, demo=demo) if found else None


def draw_ledger(
    folders: Mapping[str, Path], results: Mapping[str, EvalResult], output: Path, *, demo: bool = False
) -> list[Path]:
    """The ledger's pictures of each source, models side by side.

    Args:
        folders: by model, the folder that the evaluator `core.ledger` wrote into.
        results: by model, what it found.
        output: folder for the pictures.
        demo: the titles say DEMO.

    Returns:
        The pictures: `ledger-views-<source>.png`, `ledger-pairs-<source>.png` and `ledger-angle-<source>.png`, each
        where there is something to draw.
    """
    start = f"{DEMO}: " if demo else ""
    pictures: list[Path] = []
    for source in _sources(results):
        maps = {row: found for row, folder in folders.items() if (found := _maps(folder, source)) is not None}
        by_view = {row: found for row, found in maps.items() if len(found.mean)}
        if by_view:
            pictures.append(draw_view_maps(by_view, output / f"{_NAMED}-views-{source}.png", title=f"{start}{source}"))
        if maps:
            pictures.append(draw_all_pairs(maps, output / f"{_NAMED}-pairs-{source}.png", title=f"{start}{source}"))
        curves = {row: curve for row, result in results.items() if (curve := angle_curve(result, source))}
        if curves:
            levels = {row: f for row, result in results.items() if (f := _different(result, source)) is not None}
            path = output / f"{_NAMED}-angle-{source}.png"
            pictures.append(draw_by_relative_angle(curves, levels, path, title=f"{start}{source}"))
    return pictures


def angle_curve(result: EvalResult, source: str) -> list[tuple[float, Figure]]:
    """Same-object similarity of a source by relative angle in degrees, rising."""
    prefix = f"{LEDGER}/angle/{source}/"
    points = [(float(f.name.removeprefix(prefix)), f) for f in result.figures if f.name.startswith(prefix)]
    return sorted(points, key=lambda point: point[0])


def _different(result: EvalResult, source: str) -> Figure | None:
    return result.by_name().get(f"{LEDGER}/different_object/{source}")


def _sources(results: Mapping[str, EvalResult]) -> list[str]:
    return list(dict.fromkeys(figure.name.split("/")[2] for result in results.values() for figure in result.figures))


def _maps(folder: Path, source: str) -> Maps | None:
    """None of a ledger that was measured without maps."""
    path = folder / f"maps-{source}.npz"
    try:
        return load_maps(path)
    except DataError:
        if path.exists():
            raise
        return None
