"""Bad input to the program: one clear line that names the thing, exit 2, no traceback, no run folder left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mvcore.cli.main import run

if TYPE_CHECKING:
    from conftest import Workshop

Fault = Callable[..., str]


@pytest.fixture
def file(workshop: Workshop, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(workshop.yaml())
    return path


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--plugin", "ovtt"], "unknown plugin 'ovtt', did you mean 'ovt'?"),
        (["--plugin", "./mine.py"], "--plugin ./mine.py: no such Python file"),
        (["--plugin", "ovt", "--recipe", "papr"], "plugin 'ovt' has no recipe 'papr', did you mean 'paper'?"),
        (["--recipe", "nobody.paper"], "unknown plugin 'nobody'"),
        ([], "nothing to run: name a plugin"),
        (["nothing.yaml"], "nothing.yaml: cannot be read: No such file or directory"),
        (["--plugin", "ovt", "--recipe", "paper"], "data.mvcap.path is null: name your data with --data STORE"),
        (["--resume", "nothing"], "--resume nothing: nothing is no run (no config.yaml)"),
        (["--resume", "auto"], "--resume auto: there is no run under ./runs"),
        (["--resume", "auto", "--plugin", "ovt"], "--resume goes on with a run as it was configured; leave out --plu"),
        (["--resume", "auto", "--seeds", "1"], "--resume goes on with a run as it was configured; leave out --seeds"),
        (["--steps", "3"], "No such option: --steps"),
    ],
)
def test_what_is_asked_for_is_not_there(fault: Fault, arguments, text):
    assert fault("train", *arguments).startswith(text)


OF_224 = ["--set", "data[mine].image_size=224", "--set", "validate.data[seen].image_size=224"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--set", "optimizer.lrr=1"], "--set: optimizer.lrr: unknown key, did you mean 'lr'?"),
        (["--set", "losses[ovt.vc].marign=1"], "--set: losses[ovt.vc].marign: unknown key, did you mean 'margin'?"),
        (["--set", "losses[ovt.vx].weight=1"], "--set: losses[ovt.vx].id: unknown loss 'ovt.vx', did you mean"),
        (["--set", "optimizer.lr=fast"], "--set: optimizer.lr: input should be a valid number, got 'fast'"),
        (["--set", "optimizer.lr"], "--set 'optimizer.lr': write KEY=VALUE"),
        (["--set", "[x]=1"], "--set '[x]': a key looks like optimizer.lr or 'losses[ovt.vc].margin'"),
        (["--loss", "ovt.vc=high"], "--loss 'ovt.vc=high': the weight must be a finite number"),
        (["--loss", "ovt.vcc"], "unknown loss 'ovt.vcc', did you mean 'ovt.vc'?"),
        (["--seeds", "1,1"], "--seeds '1,1': write different whole numbers, as 0,1,2"),
        (["--seeds", "a"], "--seeds 'a': write different whole numbers"),
        (["--seeds", "-1"], "--seeds '-1': write different whole numbers"),
        (["--seeds", ""], "--seeds '': write different whole numbers"),
        (["--set", "encoder.model=ViT-B-23"], "encoder: open_clip has no model 'ViT-B-23', did you mean 'ViT-B-32'?"),
        (["--set", "encoder.model=gone.json"], "encoder: model config 'gone.json' does not exist"),
        ([*OF_224, "--set", "encoder.model=ViT-B-32", "--set", "encoder.pretrained=laion2b"], "encoder: "),
        (["--set", "encoder.pretrained=w.safetensors"], "encoder: "),
        ([*OF_224, "--encoder", "ViT-B-32:openai2"], "--encoder: encoder: "),
        (["--encoder", "ViT-B-32:openai2"], "data[mine].image_size is 32, but the encoder takes 224"),
        (["--set", "data[mine].path=gone"], "data.mine: "),
        (["--set", "data[mine].split=train"], "data.mine: "),
        (["--set", "data[mine].sampling=objects", "--set", "data[mine].views_per_object=5"], "data.mine"),
        (["--set", "data[mine].image_size=64"], "data[mine].image_size is 64, but the encoder takes 32"),
        (["--set", "validate.data[seen].image_size=64"], "validate.data[seen].image_size is 64, but the encoder takes"),
        (["--set", "validate.data[seen].path=gone"], "validate.data.seen: "),
        (["--set", "validate.on=[core.zero_shut]"], "--set: validate.on[core.zero_shut].id: unknown evaluator"),
        (["--set", "trainers[ovt.outlier_mining]=null"], "losses[ovt.vc]"),
    ],
)
def test_what_a_run_cannot_have(fault: Fault, file: Path, arguments, text):
    line = fault("train", file, *arguments)
    assert text in line


def test_keys_of_a_file_are_told_with_their_line(fault: Fault, workshop: Workshop, tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(workshop.yaml(losses="\n  core.itc: {}\n  ovt.vc:\n    marign: 1\n"))
    line = fault("train", path)
    number = path.read_text().splitlines().index("    marign: 1") + 1
    assert line == f"{path}:{number}: losses[ovt.vc].marign: unknown key, did you mean 'margin'?"


# --- data -------------------------------------------------------------------------------------------------------


def test_an_empty_folder_is_no_store(fault: Fault, file: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    line = fault("train", file, "--data", "empty")
    assert line.startswith("--data: data.mine: ")
    assert "empty" in line


def test_a_damaged_store(fault: Fault, workshop: Workshop, file: Path, tmp_path: Path):
    shutil.copytree(workshop.store, tmp_path / "damaged")
    shard = max((tmp_path / "damaged").glob("*"), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    line = fault("train", file, "--data", "damaged")
    assert line.startswith("--data: data.mine: ")
    assert shard.name in line


def test_a_store_without_captions_for_a_loss_that_needs_text(fault: Fault, workshop: Workshop, file: Path):
    line = fault("train", file, "--data", workshop.silent)
    assert line == (f"{file}:4: losses[core.itc]: no source of this run has what core.itc needs: mine lacks captions")


def test_more_views_than_an_object_has(fault: Fault, file: Path):
    line = fault("train", file, "--set", "data[mine].sampling=objects", "--set", "data[mine].views_per_object=5")
    assert "views_per_object: 5 needs 5 views of every object, but object 'cup-0' has 4" in line
    assert "views_per_object" in fault(
        "train", file, "--dry-run", "--set", "data[mine].sampling=objects", "--set", "data[mine].views_per_object=5"
    )


# --- output -----------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_never_overwritten(fault: Fault, file: Path, tmp_path: Path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    assert fault("train", file, "-o", "kept").startswith("run.output: kept exists and is never overwritten; name an")
    assert fault("train", file, "-o", "run.yaml").startswith("run.output: run.yaml exists and is never overwritten")


def test_an_output_that_cannot_be_written(fault: Fault, file: Path):
    line = fault("train", file, "-o", file / "below")
    assert line.startswith(f"run.output: {file / 'below'} cannot be made: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_an_output_without_the_right_to_write(fault: Fault, file: Path, tmp_path: Path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be made: Permission denied" in fault("train", file, "-o", "locked/run")


def test_an_empty_folder_that_was_there_stays(workshop: Workshop, file: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert run(["train", str(file), "-o", "mine", "--set", "encoder.model=ViT-B-23"]) == 2
    assert list((tmp_path / "mine").iterdir()) == []


# --- the other commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["eval", "gone", "--data", "STORE"], "timm has no model 'gone'"),
        (["eval", "ViT-B-23", "--data", "STORE"], "open_clip has no model 'ViT-B-23', did you mean 'ViT-B-32'?"),
        (["eval", ".", "--data", "STORE"], ".: neither a run nor an export"),
        (["eval", "CLIP"], "name the data to measure on: --data STORE"),
        (["eval", "CLIP", "--data", "gone"], "gone"),
        (["eval", "CLIP", "--data", "STORE", "--split", "tset"], "tset"),
        (["eval", "CLIP", "--data", "STORE", "--on", "core.zero_shut"], "unknown evaluator 'core.zero_shut', did you"),
        (["eval", "CLIP", "--data", "STORE", "--device", "gpu"], "--device gpu"),
        (["eval", "CLIP", "--data", "a=STORE", "--data", "a=STORE"], "--data: 'a' names two stores"),
        (["eval"], "Missing argument"),
        (["export", "gone"], "gone: not a run (no run.json)"),
        (["export", "."], ".: not a run (no run.json)"),
    ],
)
def test_models_and_data_to_measure(fault: Fault, workshop: Workshop, arguments, text):
    names = {"STORE": str(workshop.store), "CLIP": str(workshop.clip), "a=STORE": f"a={workshop.store}"}
    assert text in fault(*(names.get(argument, argument) for argument in arguments))


def test_a_damaged_run(fault: Fault, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    (tmp_path / "run" / "config.yaml").write_text("encoder: 3\n")
    assert "run.json: damaged" in fault("export", "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"status": "finished"}))
    assert "run.json: damaged" in fault("export", "run")
    assert "config.yaml:1: encoder: " in fault("eval", "run")
    assert "run/seeds.json is missing or damaged" in fault("train", "--resume", "run")
    (tmp_path / "run" / "seeds.json").write_text("[0]")
    assert "config.yaml:1: encoder: " in fault("train", "--resume", "run")
