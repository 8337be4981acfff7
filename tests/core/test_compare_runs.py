"""`mvcore compare` and `mvcore report` on folders of runs, written by the library's own functions."""

from __future__ import annotations

import base64
import csv
import html.parser
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mvcore.cli.main import run as program
from mvcore.config import LEDGER
from mvcore.errors import ConfigError, DataError
from mvcore.evaluation.options import LEDGER_MISSING
from mvcore.evaluation.results import EvalResult, Figure, Table, fingerprint, save_result
from mvcore.evaluation.statistics import bootstrap_interval, figure_over_objects
from mvcore.report.html import write_report
from mvcore.report.long_table import LongTable, save_long_table, table_of
from mvcore.report.tables import compare
from mvcore.run_folder import RunRecord
from mvcore.run_results import check_comparable, labelled, read_model, seed_folders
from rich.console import Console

OBJECTS = [f"object-{i}" for i in range(40)]
BASE = np.random.default_rng(0).uniform(0.2, 0.6, len(OBJECTS))
NOISE = np.random.default_rng(1).normal(0, 0.01, len(OBJECTS))


def figure(name: str, shift: float, **changes: Any) -> Figure:
    fields: dict[str, Any] = {"n": 480, "std": 0.1, "items": fingerprint(OBJECTS), **changes}
    samples = fields.pop("samples", BASE + shift + (NOISE if shift else 0))
    return figure_over_objects(name, samples, fields.pop("definition", f"What {name} is."), **fields)


def results(shift: float, **changes: Any) -> dict[str, EvalResult]:
    ledger = [
        figure(f"core.ledger/{what}/ood", shift, **changes)
        for what in ("same_object", "different_object", "angle", "elevation")
        if what not in ("angle", "elevation")
    ]
    ledger += [figure(f"core.ledger/angle/ood/{a}", shift - a / 1000, **changes) for a in (180, 30, 90)]
    ledger += [figure("core.ledger/own_text/ood", shift, percent=True, **changes)]
    top1 = figure("core.zero_shot/top1/ood", shift, percent=True, headline="top-1 ood", **changes)
    hidden = figure("core.zero_shot/agreement/ood", shift, **changes)
    table = Table("Top-1 by class, ood", ("class", "top-1 %"), [("cup", "50.0"), ("<b>fish</b>", "40.0")])
    return {LEDGER: EvalResult(ledger), "core.zero_shot": EvalResult([top1, hidden], [table])}


def made_run(
    folder: Path,
    shift: float = 0.1,
    *,
    seed: int | None = None,
    demo: bool = False,
    plugins: tuple[str, ...] = (),
    **changes: Any,
) -> Path:
    """A finished run: configuration, record, metrics, and what was measured of it untouched and tuned."""
    own = folder if seed is None else folder / f"seed-{seed}"
    config = {
        "demo": demo,
        "plugins": list(plugins),
        "encoder": {"id": "core.open_clip", "model": "ViT-B-32"},
        "data": {"objects": {"id": "data.views", "path": "shards/"}},
        "losses": {"ovt.vc": {}},
    }
    for place in {folder, own}:
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    RunRecord("finished", seed or 0, [], "0" * 64, {"torch": "2.10"}).save(own)
    steps = "".join(f"{step},{1 / step},{int(step >= 60)}\n" for step in range(10, 110, 10))
    (own / "metrics.csv").write_text(f"step,train/loss,alarm/collapsed\n{steps}", encoding="utf-8")
    for row, amount in (("untouched", 0.0), ("tuned", shift)):
        for name, found in results(amount, **changes).items():
            save_result(found, own / "evaluation" / row / name)
    return folder


def in_folder(folder: Path, *words: str) -> int:
    before = Path.cwd()
    os.chdir(folder)
    try:
        return program(words)
    finally:
        os.chdir(before)


def shown(table: LongTable, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table.to_rich())
    return capture.get()


# -- reading runs ----------


@pytest.mark.parametrize("width", [60, 80, 200])
def test_models_that_do_not_fit_stand_below_the_others(tmp_path: Path, width: int) -> None:
    rows = {name: read_model(str(made_run(tmp_path / name, 0.1 * k))).results for k, name in enumerate("abcde")}
    text = shown(table_of(rows, title="t"), width)
    assert "…" not in text  # nothing is cut off
    assert max(map(len, text.splitlines())) <= width
    heads = [line.split() for line in text.splitlines() if set(line.split()) <= set("abcde") and line.strip()]
    assert [name for head in heads for name in head] == list("abcde")
    assert (len(heads) == 1) == (width == 200)


def test_a_model_is_named_by_its_run_and_row(tmp_path: Path) -> None:
    run = made_run(tmp_path / "ovt-1", demo=True)
    tuned, untouched = read_model(str(run)), read_model(f"{run}:untouched")
    assert (tuned.label, untouched.label) == ("ovt-1", "ovt-1:untouched")
    assert tuned.demo
    gap = tuned.figures()["core.zero_shot/top1/ood"].value - untouched.figures()["core.zero_shot/top1/ood"].value
    assert gap == pytest.approx(0.1 + NOISE.mean())
    results_alone = read_model(str(run / "evaluation" / "untouched"))
    assert results_alone.figures().keys() == untouched.figures().keys()


def test_seeds_are_read_in_order_and_averaged(tmp_path: Path) -> None:
    for seed, shift in ((10, 0.3), (2, 0.1)):
        made_run(tmp_path / "many", shift, seed=seed)
    assert [path.name for path in seed_folders(tmp_path / "many")] == ["seed-2", "seed-10"]
    model = read_model(str(tmp_path / "many"))
    assert len(model.results) == 2
    table = table_of({"many": model.results}, title="t")
    expected = (BASE + 0.2 + NOISE).mean()
    assert table.comparison.values["many"]["core.zero_shot/top1/ood"].value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("nowhere", ConfigError, "nowhere: no such folder"),
        ("run:best", ConfigError, "run:best: a run has the rows untouched, control, tuned, exported, not 'best'"),
        ("run:control", DataError, "run: nothing was measured of its control model"),
        ("empty", DataError, "empty: neither a run nor a folder of results"),
    ],
)
def test_what_cannot_be_read_is_named(
    name: str, error: type[Exception], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made_run(Path("run"))
    Path("empty").mkdir()
    with pytest.raises(error, match=text):
        read_model(name)


# -- comparing ----------


def test_differences_are_paired_over_objects(tmp_path: Path) -> None:
    made_run(tmp_path / "a", 0.1)
    made_run(tmp_path / "b", 0.15)
    assert in_folder(tmp_path, "compare", "b", "--baseline", "a", "--latex") == 0
    folder = tmp_path / "comparison"
    rows = {(r["row"], r["figure"]): r for r in csv.DictReader((folder / "comparison.csv").open(newline=""))}
    row = rows["b", "core.zero_shot/top1/ood"]
    assert row["baseline"] == "a"
    assert float(row["difference"]) == pytest.approx(0.05)
    # The objects' own spread is out of the difference: every object changed by the same.
    low, high = bootstrap_interval(np.full(40, 0.05))
    assert float(row["difference_low"]) == pytest.approx(low)
    assert float(row["difference_high"]) == pytest.approx(high)
    assert float(row["high"]) - float(row["low"]) > 0.02
    assert ("b", "core.zero_shot/agreement/ood") not in rows
    assert ("b", "core.ledger/angle/ood/90") in rows
    assert {path.suffix for path in folder.glob("comparison.*")} == {".csv", ".json", ".md", ".tex"}
    assert (folder / "ledger-angle-ood.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "comparison.json").read_text())["baseline"] == "a"


def test_the_first_run_is_the_baseline_and_rows_of_a_run_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_run(tmp_path / "a", 0.1, demo=True)
    assert in_folder(tmp_path, "compare", "a:untouched", "a", "-o", "here") == 0
    out = capsys.readouterr().out
    assert "DEMO: Comparison" in out
    assert "Δ: paired difference to a:untouched" in " ".join(out.split())
    assert not (tmp_path / "here" / "comparison.tex").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"items": fingerprint(["x"])}, "is over different objects (40 and 40)"),
        ({"items": fingerprint(OBJECTS[:30]), "samples": BASE[:30]}, "is over different objects (30 and 40)"),
        ({"definition": "Another thing."}, "is defined as 'Another thing.' and as"),
        ({"n": 12}, "is over 12 and over 480 items"),
    ],
)
def test_runs_on_other_objects_or_definitions_are_refused_in_one_line(
    changes: Mapping[str, Any], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_run(tmp_path / "a")
    made_run(tmp_path / "b", **changes)
    assert in_folder(tmp_path, "compare", "a", "b") == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("error: b and a cannot be compared: core.ledger/same_object/ood")
    assert text in error
    assert not (tmp_path / "comparison").exists()


def test_runs_without_a_common_figure_are_refused(tmp_path: Path) -> None:
    save_result(EvalResult([figure("x.y/z", 0)]), tmp_path / "one" / "x.y")
    save_result(EvalResult([figure("x.w/z", 0)]), tmp_path / "two" / "x.w")
    models = labelled([read_model(str(tmp_path / name)) for name in ("one", "two")])
    with pytest.raises(DataError, match=r"two and one have no figure in common \(measured: x\.w and x\.y\)"):
        check_comparable(models, "one")


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    models = [read_model(str(made_run(tmp_path / folder / "run"))) for folder in "ab"]
    assert list(labelled(models)) == ["run", "run (2)"]


# -- the long table ----------


def rows_of(**shifts: float) -> dict[str, list[dict[str, EvalResult]]]:
    return {name: [results(shift)] for name, shift in shifts.items()}


def test_three_models_fit_into_80_columns() -> None:
    text = shown(table_of(rows_of(untouched=0.0, control=0.01, tuned=0.1), title="Ledger"))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("same object"))
    assert re.fullmatch(r" +same object +0\.\d{3} +0\.\d{3} +0\.\d{3} *", lines[at])
    assert lines[at + 1].count("Δ[") == 2
    assert "own text R@1 %" in text
    # Bins stand in the files and in the picture.
    assert "apart" not in text


def test_lines_are_in_the_ledgers_order_and_bins_rise() -> None:
    table = table_of(rows_of(untouched=0.0, tuned=0.1), title="Ledger")
    assert [(line.group, line.label) for line in table.lines()] == [
        ("ledger, ood", "same object"),
        ("ledger, ood", "different object"),
        ("ledger, ood", "own text R@1"),
        ("ledger, ood", "30° apart"),
        ("ledger, ood", "90° apart"),
        ("ledger, ood", "180° apart"),
        ("core.zero_shot", "top-1 ood"),
    ]


def test_markdown_holds_deviations_intervals_differences_and_definitions(tmp_path: Path) -> None:
    table = table_of(rows_of(untouched=0.0, tuned=0.1), title="Ledger", demo=True)
    save_long_table(table, tmp_path, "ledger")
    text = (tmp_path / "ledger.md").read_text()
    assert text.startswith("**DEMO: Ledger**")
    (line,) = [line for line in text.splitlines() if line.startswith("| same object")]
    value = BASE.mean()
    assert f"| {value:.3f} ± 0.100 [" in line
    assert re.search(r"<br>Δ \*\*\+0\.\d{3}\*\* \[\+0\.\d{3}, \+0\.\d{3}\]", line)
    assert "- ledger, ood, same object: What core.ledger/same_object/ood is." in text
    assert "30° apart" in text


def test_latex_is_escaped_and_balanced() -> None:
    rows = {"a_b & 50%": [results(0.0)], "tuned": [results(0.1)]}
    text = table_of(rows, title="Ledger").to_latex()
    assert "a\\_b \\& 50\\%" in text
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert "".join(body).count("{") - "".join(body).count("\\{") == "".join(body).count("}") - "".join(body).count(
        "\\}"
    )
    cells = [line for line in body if " & " in line]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in cells)
    assert "\\textbf{+" in text
    assert text.isascii()


def test_what_is_missing_is_said_below(tmp_path: Path) -> None:
    lacking = Table(LEDGER_MISSING, ("source", "rows", "why"), [("ood", "zero_shot", "the model encodes no text")])
    rows = {"untouched": [{LEDGER: EvalResult(results(0.0)[LEDGER].figures, [lacking])}]}
    table = table_of(rows, title="Ledger")
    assert table.notes == ["No zero_shot on ood: the model encodes no text."]
    assert "encodes no text" in table.to_markdown()


# -- the report ----------


class Outline(html.parser.HTMLParser):
    """Headings, links and pictures of a page, and whether its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


PLUGIN = """
from mvcore.api import Section, hookimpl
MVCORE_API = 1

@hookimpl
def mvcore_report_sections(run, results):
    rows = ", ".join(results)
    return [Section("What <i>mine</i> saw", f"Rows: {rows} of **{run.folder.name}**.\\n\\n<script>alert(1)</script>")]
"""
BROKEN = """
from mvcore.api import hookimpl
MVCORE_API = 1

@hookimpl
def mvcore_report_sections(results):
    return [results["nothing"]]
"""


def test_a_report_stands_alone_and_holds_everything(tmp_path: Path) -> None:
    run = made_run(tmp_path / "ovt-1", demo=True)
    (run / "report").mkdir()
    picture = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    (run / "report" / "viewpoints.png").write_bytes(picture)
    path = write_report([run], tmp_path / "report.html")
    text = path.read_text()
    page = Outline(text)
    assert not page.open
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert base64.b64encode(picture).decode() in text
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "Before and after" in " ".join(page.headings)
    assert "Top-1 by class, ood" in page.headings
    assert "&lt;b&gt;fish" in text
    assert "<b>fish" not in text
    assert "DEMO" in text
    assert "the collapse alarm went off at step 60 (5 rows of metrics in all)" in text
    assert "ViT-B-32" in text
    assert "core.open_clip" in text
    assert (run / "curves.png").is_file()


def test_plugins_add_sections_and_a_broken_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "saying_much.py").write_text(PLUGIN)
    (tmp_path / "saying_nothing.py").write_text(BROKEN)
    plugins = (str(tmp_path / "saying_much.py"), str(tmp_path / "saying_nothing.py"), str(tmp_path / "gone.py"))
    run = made_run(tmp_path / "run", plugins=plugins)
    text = write_report([run], tmp_path / "report.html").read_text()
    assert "What &lt;i&gt;mine&lt;/i&gt; saw" in text
    assert "Rows: untouched, tuned of <strong>run</strong>." in text
    assert "<script>" not in text
    assert "failed in mvcore_report_sections: KeyError" in text
    assert "no report section of" in text
    assert "gone.py" in text
    error = capsys.readouterr().err
    assert "saying_nothing" in error
    assert len(error.strip().splitlines()) == 2


def test_several_runs_are_compared_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_run(tmp_path / "a", 0.1)
    made_run(tmp_path / "b", 0.2)
    assert in_folder(tmp_path, "report", "a", "b", "-o", "out/both.html") == 0
    assert capsys.readouterr().out == "saved as out/both.html\n"
    page = Outline((tmp_path / "out" / "both.html").read_text())
    assert [heading for heading in page.headings if heading in ("Comparison", "a", "b")] == ["Comparison", "a", "b"]


def test_runs_that_cannot_be_compared_are_reported_with_the_reason(tmp_path: Path) -> None:
    made_run(tmp_path / "a")
    made_run(tmp_path / "b", n=12)
    text = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "report.html").read_text()
    assert "b and a cannot be compared: core.ledger/same_object/ood is over 12 and over 480 items" in text


def test_a_run_that_was_not_measured_still_has_a_report(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    for path in sorted((run / "evaluation").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (run / "evaluation").rmdir()
    page = Outline(write_report([run], tmp_path / "report.html").read_text())
    assert "run" in page.headings


@pytest.mark.parametrize("payload", [b"GIF89a", b""])
def test_what_is_no_picture_is_named(payload: bytes, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    (run / "report").mkdir()
    (run / "report" / "x.png").write_bytes(payload)
    with pytest.raises(DataError, match=r"x\.png: not a PNG"):
        write_report([run], tmp_path / "report.html")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_folder(tmp_path, "report", "nowhere") == 2
    assert capsys.readouterr().err == "error: nowhere: not a run (no config.yaml)\n"


def test_figures_are_compared_by_name_in_both_layouts() -> None:
    rows = rows_of(untouched=0.0, tuned=0.1)
    long, wide = table_of(rows, title="t").comparison, compare(rows, title="t")
    name = "core.zero_shot/top1/ood"
    assert long.differences["tuned"][name] == wide.differences["tuned"][name]
