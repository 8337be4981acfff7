"""The before/after table: what it averages, pairs, prints and saves."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from mvcore.errors import ConfigError, DataError
from mvcore.evaluation.results import EvalResult, Figure
from mvcore.evaluation.statistics import figure_over_objects
from mvcore.report.tables import compare, save_comparison
from rich.console import Console

RNG = np.random.default_rng(3)
BASE = RNG.uniform(0.2, 0.6, size=80)
NOISE = RNG.normal(0, 0.02, size=(3, 80))


def results(shift: float, seed: int = 0, extra: bool = False) -> dict[str, EvalResult]:
    accuracy = figure_over_objects(
        "core.zero_shot/top1/ood", BASE + shift + NOISE[seed], "Share right.", n=800, headline="top-1 ood", percent=True
    )
    similarity = figure_over_objects(
        "core.consistency/same_object/ood",
        0.5 + BASE / 2 + shift,
        "Cosine.",
        n=9600,
        std=0.1,
        headline="same-object ood",
    )
    hidden = Figure("core.zero_shot/agreement/ood", 0.4, 80, "Not a headline.")
    found = {"core.zero_shot": EvalResult([accuracy, hidden]), "core.consistency": EvalResult([similarity])}
    if extra:
        found["x.own"] = EvalResult([Figure("x.own/thing", 7.0, 1, "A plugin's own.", headline="thing")])
    return found


def four_rows() -> dict[str, dict[str, EvalResult]]:
    return {
        "untouched": results(0.0),
        "control": results(0.05, 1),
        "tuned": results(0.1, 2, extra=True),
        "tuned as exported": results(0.1, 2),
    }


def text_of(comparison, width: int = 80) -> str:
    console = Console(width=width, record=True, color_system=None, file=None, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(comparison.to_rich())
    return capture.get()


def test_cells_hold_values_intervals_and_paired_differences() -> None:
    comparison = compare(four_rows())
    assert [column.heading for column in comparison.columns] == ["top-1 ood", "same-object ood", "thing"]
    tuned = comparison.values["tuned"]["core.zero_shot/top1/ood"]
    assert tuned.value == pytest.approx((BASE + 0.1 + NOISE[2]).mean())
    gap = comparison.differences["tuned"]["core.zero_shot/top1/ood"]
    assert gap.value == pytest.approx((0.1 + NOISE[2] - NOISE[0]).mean())
    # Pairing takes the spread between objects out of the difference.
    assert gap.high - gap.low < 0.3 * (tuned.high - tuned.low)
    assert set(comparison.differences) == {"control", "tuned", "tuned as exported"}
    assert "x.own/thing" not in comparison.values["untouched"]


def test_console_shows_all_of_it_in_80_columns() -> None:
    rows = four_rows()
    del rows["tuned"]["x.own"]
    headings = ("top-1 clean", "different object ood", "text to image ood")
    for row in rows.values():
        row["core.more"] = EvalResult(
            [figure_over_objects(f"core.more/{name}", BASE, "d", n=80, headline=name) for name in headings]
        )
    text = text_of(compare(rows, title="OVT"))
    value = 100 * (BASE + NOISE[0]).mean()
    for part in ("OVT", "untouched", "exported", f"{value:.1f}", "top-1", "different", "[+0.050,", "Δ tuned"):
        assert part in text, text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text


def test_demo_is_said_in_every_form(tmp_path: Path) -> None:
    comparison = compare(four_rows(), title="OVT", demo=True)
    assert "DEMO: OVT" in text_of(comparison)
    paths = save_comparison(comparison, tmp_path)
    assert json.loads(paths[0].read_text())["title"] == "DEMO: OVT"
    assert paths[2].read_text().startswith("**DEMO: OVT**")
    assert "DEMO" not in text_of(compare(four_rows(), title="OVT"))


def test_seeds_are_averaged_and_paired() -> None:
    rows = {"untouched": results(0.0), "tuned": [results(0.1, seed) for seed in range(3)]}
    comparison = compare(rows)
    assert comparison.seeds == {"untouched": 1, "tuned": 3}
    name = "core.zero_shot/top1/ood"
    assert comparison.values["tuned"][name].value == pytest.approx((BASE + 0.1 + NOISE).mean())
    assert comparison.differences["tuned"][name].value == pytest.approx((0.1 + NOISE - NOISE[0]).mean())
    assert "objects and 3 seeds" in comparison.note()
    with pytest.raises(DataError, match="3 seeds cannot be paired with 2"):
        compare({"a": [results(0), results(0, 1)], "b": [results(0, seed) for seed in range(3)]})


def test_files_hold_what_was_measured(tmp_path: Path) -> None:
    comparison = compare(four_rows())
    json_path, csv_path, markdown = save_comparison(comparison, tmp_path / "new", "table")
    assert [p.name for p in (json_path, csv_path, markdown)] == ["table.json", "table.csv", "table.md"]
    document = json.loads(json_path.read_text())
    assert [row["row"] for row in document["rows"]] == list(four_rows())
    lines = list(csv.DictReader(csv_path.open()))
    assert len(lines) == 4 * 2 + 1
    line = next(r for r in lines if (r["row"], r["figure"]) == ("tuned", "core.zero_shot/top1/ood"))
    gap = comparison.differences["tuned"]["core.zero_shot/top1/ood"]
    assert float(line["difference"]) == gap.value
    assert float(line["difference_low"]) == gap.low
    assert line["baseline"] == "untouched"
    assert lines[0]["difference"] == ""
    text = markdown.read_text()
    table = [row for row in text.splitlines() if row.startswith("|")]
    assert len({row.count("|") for row in table}) == 1
    assert len(table) == 2 + 4 + 3
    assert "- top-1 ood %: Share right." in text
    assert f"**{100 * gap.value:+.1f}** [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]" in text


def test_columns_and_baseline_can_be_chosen() -> None:
    comparison = compare(four_rows(), columns=["core.zero_shot/agreement/ood"], baseline="control")
    assert [column.heading for column in comparison.columns] == ["core.zero_shot/agreement/ood"]
    gap = comparison.differences["tuned"]["core.zero_shot/agreement/ood"]
    assert gap.value == 0
    assert math.isnan(gap.low)
    with pytest.raises(ConfigError, match="no row 'nope' to compare with; there are: untouched"):
        compare(four_rows(), baseline="nope")
    with pytest.raises(ConfigError, match="no figure 'nope' for a column"):
        compare(four_rows(), columns=["nope"])
    with pytest.raises(ConfigError, match="at least one row"):
        compare({})


def test_names_with_markup_stay_as_they_are() -> None:
    comparison = compare({"a|b [red]x": results(0.0), "c": results(0.1)})
    assert "a|b [red]x" in text_of(comparison)
    assert "| a\\|b [red]x |" in comparison.to_markdown()
