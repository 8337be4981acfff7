"""The program on a tiny store from the first command to the last: train, eval, export, dry run, several seeds."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mvcore
import open_clip
import pytest
import torch
import yaml
from mvcore.cli.main import run
from mvcore.run_folder import read_config

if TYPE_CHECKING:
    from conftest import Workshop

Call = Callable[..., str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls the program, which must succeed, and returns what it prints."""
    monkeypatch.setenv("COLUMNS", "200")

    def called(*arguments: str | Path) -> str:
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert (code, err) == (0, ""), err
        return out

    return called


@dataclass(frozen=True)
class Trained:
    folder: Path
    printed: str


@pytest.fixture(scope="module")
def trained(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One run with its control, over two seeds."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "run.yaml").write_text(workshop.yaml(validate=_two_measurements(workshop)))
    with pytest.MonkeyPatch.context() as patch, (folder / "out.txt").open("w") as out:
        patch.setattr("sys.stdout", out)
        patch.setenv("COLUMNS", "200")
        assert run(["train", str(folder / "run.yaml"), "-o", str(folder / "run"), "--control", "--seeds", "3,5"]) == 0
    return Trained(folder / "run", (folder / "out.txt").read_text())


def _two_measurements(workshop: Workshop) -> str:
    return f"{{data: {{seen: {{id: data.views, path: {workshop.store}}}}}, on: [core.zero_shot, core.consistency]}}"


# --- train ------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_stage_and_says_where_it_is(trained: Trained):
    for row in ("untouched", "control", "tuned", "tuned, as exported"):
        assert re.search(rf"^\W*{row}\W", trained.printed, re.MULTILINE), trained.printed
    assert "DEMO" not in trained.printed
    assert trained.printed.rstrip().endswith(f"saved in {trained.folder}")


def test_each_seed_leaves_a_whole_run_behind(trained: Trained):
    assert json.loads((trained.folder / "seeds.json").read_text()) == [3, 5]
    for seed in (3, 5):
        folder = trained.folder / f"seed-{seed}"
        record = json.loads((folder / "run.json").read_text())
        assert (record["status"], record["seed"]) == ("finished", seed)
        assert record["adapters"] == ["ovt.lora", "ovt.viformer", "ovt.logit_scale"]
        assert read_config(folder).run.seed == seed
        for name in ("curves.png", "export/open_clip_model.safetensors", "control/run.json", "control/curves.png"):
            assert (folder / name).stat().st_size > 0
        for row in ("untouched", "control", "tuned", "exported"):
            assert (folder / "evaluation" / row / "core.consistency" / "result.json").is_file()
    reports = {path.suffix for path in (trained.folder / "report").iterdir()}
    assert {".csv", ".json", ".md", ".html"} <= reports, reports
    ledger = json.loads((trained.folder / "report" / "ledger.json").read_text())
    assert [(row["row"], row["seeds"]) for row in ledger["rows"]] == [("untouched", 2), ("control", 2), ("tuned", 2)]
    assert "core.ledger/own_text/seen" in ledger["rows"][2]["differences"]


def test_metrics_have_every_term_raw_and_weighted_at_every_step(trained: Trained):
    with (trained.folder / "seed-3" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    for name in ("core.itc", "ovt.vc"):
        for row in rows:
            assert float(row[f"train/{name}"]) == pytest.approx(float(row[f"train/{name}.weighted"]))
    with (trained.folder / "seed-3" / "control" / "metrics.csv").open(newline="") as file:
        assert "train/ovt.vc" not in next(csv.reader(file))


def test_seeds_differ(trained: Trained):
    losses = []
    for seed in (3, 5):
        with (trained.folder / f"seed-{seed}" / "metrics.csv").open(newline="") as file:
            losses.append([row["train/loss"] for row in csv.DictReader(file)])
    assert losses[0] != losses[1]


def test_the_runs_configuration_runs_again_and_gives_the_same_losses(trained: Trained, tmp_path: Path, call: Call):
    config = trained.folder / "seed-3" / "config.yaml"
    call("train", config, "-o", tmp_path / "again", "--no-control", "--set", "validate.on={}")
    rows = []
    for folder in (trained.folder / "seed-3", tmp_path / "again"):
        with (folder / "metrics.csv").open(newline="") as file:
            rows.append([row["train/loss"] for row in csv.DictReader(file)])
    assert rows[0] == rows[1]


def test_a_finished_run_is_told_again_without_training_or_measuring(trained: Trained, call: Call):
    kept = [*trained.folder.rglob("last.json"), *trained.folder.rglob("result.json")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    printed = call("train", "--resume", trained.folder)
    # A seed: two trainings, two evaluators of four models, and the ledger of all but the exported one.
    assert len(before) == 2 * (2 + 4 * 2 + 3)
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    table = trained.printed[trained.printed.index("Before and after") :]
    assert printed[printed.index("Before and after") :] == table


def test_a_measurement_that_is_damaged_is_made_again(trained: Trained, call: Call):
    result = trained.folder / "seed-3" / "evaluation" / "tuned" / "core.zero_shot" / "result.json"
    before = result.read_text()
    result.write_text(before[:-20])
    call("train", "--resume", trained.folder)
    assert result.read_text() == before


def test_strength_0_measures_the_untouched_model(trained: Trained, tmp_path: Path, call: Call):
    run_folder = trained.folder / "seed-3"
    call("eval", run_folder, "--on", "core.consistency", "--strength", "0", "-o", tmp_path / "measured")
    (found,) = (tmp_path / "measured").rglob("result.json")
    untouched = run_folder / "evaluation" / "untouched" / "core.consistency" / "result.json"
    figures = [
        {figure["name"]: figure["value"] for figure in json.loads(path.read_text())["figures"]}
        for path in (found, untouched)
    ]
    assert figures[0] == pytest.approx(figures[1], abs=1e-6)


def test_a_run_without_an_output_of_its_own_gets_the_next_free_folder(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(workshop.yaml(validate="", run="{max_steps: 1, accelerator: cpu, workers: 0}"))
    for number in (1, 2):
        assert f"saved in runs/ovt-{number}" in call("train", "run.yaml", "--set", "plugins=[ovt]")


# --- print-config and dry-run -----------------------------------------------------------------------------------


def test_print_config_runs_as_it_is(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(workshop.yaml())
    first = call("train", "run.yaml", "--set", "losses[ovt.vc].margin=0.2", "--loss", "core.itc=0.5", "--print-config")
    assert "    margin: 0.2  # --set" in first.splitlines()
    assert "    weight: 0.5  # --loss" in first.splitlines()
    assert "  max_steps: 3  # run.yaml:6" in first.splitlines()
    Path("again.yaml").write_text(first)
    second = call("train", "again.yaml", "--print-config")
    assert yaml.safe_load(second) == yaml.safe_load(first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.yaml", "run.yaml"]


@pytest.mark.parametrize("extra", [[], ["--set", "run.micro_batch=4"], ["--control"]])
def test_dry_run_tells_what_a_run_would_take_and_leaves_nothing(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, extra: list[str]
):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(workshop.yaml())
    printed = call("train", "run.yaml", "--dry-run", *extra)
    trainable, total = re.search(r"trainable parameters\W+([\d,]+) of ([\d,]+)", printed).groups()  # pyright: ignore[reportOptionalMemberAccess]
    parts = re.findall(r"adapters/ovt\.\w+\W+([\d,]+)", printed)
    number = lambda text: int(text.replace(",", ""))  # noqa: E731
    assert number(trainable) == sum(map(number, parts))
    assert 0 < number(trainable) < number(total)
    assert re.search(r"source mine\W+6 objects; a batch: \d objects, 12 views, 32x32", printed)
    assert re.search(r"loss ovt\.vc\W+weight 1 on mine", printed)
    assert re.search(r"trainer ovt\.outlier_mining\W+on mine", printed)
    assert re.search(
        r"peak memory [\d.]+ GB of this process; [\d.e-]+ s a step here, so about \d+ s for 3 steps", printed
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


# --- eval and export --------------------------------------------------------------------------------------------


def test_a_run_and_its_export_are_measured_side_by_side(
    trained: Trained, workshop: Workshop, tmp_path: Path, call: Call
):
    run_folder = trained.folder / "seed-3"
    printed = call(
        "eval", run_folder, run_folder / "export", "--data", workshop.store, "--on", "core.consistency",
        "-o", tmp_path / "measured",
    )  # fmt: skip
    assert "seed-3" in printed
    assert "export" in printed
    results = {
        name: json.loads((tmp_path / "measured" / name / "core.consistency" / "result.json").read_text())
        for name in ("seed-3", "export")
    }
    values = {name: [figure["value"] for figure in result["figures"]] for name, result in results.items()}
    # The export brings its adapters that cannot be merged along, so mvcore reads the same model from it.
    assert values["seed-3"] == pytest.approx(values["export"], abs=1e-4)


def test_what_a_run_measured_on_is_the_default(trained: Trained, tmp_path: Path, call: Call):
    call("eval", trained.folder / "seed-3", "--on", "core.consistency", "-o", tmp_path / "measured")
    mine, theirs = (
        json.loads((folder / "core.consistency" / "result.json").read_text())["figures"]
        for folder in (tmp_path / "measured" / "seed-3", trained.folder / "seed-3" / "evaluation" / "tuned")
    )
    assert [(f["name"], f["value"]) for f in mine] == [(f["name"], pytest.approx(f["value"], abs=1e-5)) for f in theirs]


def test_an_export_loads_in_plain_open_clip(trained: Trained, tmp_path: Path, call: Call):
    printed = call("export", trained.folder / "seed-3", "-o", tmp_path / "plain")
    assert "merged: ovt.lora" in printed
    assert re.search(r"largest difference [\d.e-]+", printed)
    assert "not mergeable, exported beside it and missing in plain open_clip: ovt.viformer" in printed
    plain = open_clip.create_model(f"local-dir:{tmp_path / 'plain'}").eval()
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    texts = ["a cup"]
    tuned = mvcore.load(trained.folder / "seed-3")
    with torch.no_grad():
        theirs = plain.encode_text(tuned.backbone.tokenizer(texts))  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    mine = tuned.encode_text(texts)
    assert torch.nn.functional.cosine_similarity(mine, theirs).min() > 0.9999
    assert tuned.encode_images(list(images.numpy())).shape == (2, 16)


def test_an_export_is_never_overwritten(trained: Trained, fault: Callable[..., str], tmp_path: Path):
    (tmp_path / "there").mkdir()
    assert "there exists and is never overwritten" in fault("export", trained.folder / "seed-3", "-o", "there")
    assert fault("export", trained.folder / "seed-3", "--to", "timm", "-o", "new").startswith(
        "--to timm: this model is"
    )
    assert fault("export", trained.folder / "seed-3", "--dtype", "int8", "-o", "new").startswith("--dtype 'int8': ")
    assert fault("export", trained.folder / "seed-3", "--which", "first", "-o", "new").startswith("which must be ")
