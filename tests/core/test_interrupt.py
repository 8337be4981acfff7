"""A run that is stopped from outside leaves a state that it can go on from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import mvcore
import pytest
import torch
import yaml
from mvcore.checkpoint import WEIGHTS, load_weights
from mvcore.cli.main import run as mvcore_command
from mvcore.run_folder import checkpoint_of

if TYPE_CHECKING:
    from conftest import Lab

pytestmark = pytest.mark.process
STEPS = 90


@pytest.fixture(scope="module")
def config(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run configuration as a file."""
    path = tmp_path_factory.mktemp("interrupt") / "run.yaml"
    values = lab.values(
        run={"max_steps": STEPS, "checkpoint_every": 6}, trainers={"ovt.outlier_mining": {"refresh": 30}}
    )
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def uninterrupted(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    values = yaml.safe_load(config.read_text())
    values["run"]["output"] = str(tmp_path_factory.mktemp("reference") / "run")
    return mvcore.train(values)


@contextmanager
def started(config: Path, where: Path) -> Iterator[subprocess.Popen[str]]:
    """`mvcore train` in a process of its own, after its first steps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mvcore.cli.main", "train", str(config)],
        cwd=where,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        metrics = where / "runs/run-1/metrics.csv"
        end = time.monotonic() + 120
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 14:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def same_weights(folder: Path, reference: Path) -> None:
    one, other = (load_weights(checkpoint_of(path) / WEIGHTS) for path in (folder, reference))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    steps = [
        [line.partition(",")[0] for line in (path / "metrics.csv").read_text().splitlines()[1:]]
        for path in (folder, reference)
    ]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_does(
    config: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    with started(config, tmp_path) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert err.splitlines() == ["stopped and saved; go on with: mvcore train --resume runs/run-1"]
    folder = tmp_path / "runs/run-1"
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    stopped = checkpoint_of(folder)
    assert 12 <= int(stopped.name.removeprefix("step-")) < STEPS
    mvcore.load(folder).encode_text("a cup 0")
    assert not list(folder.rglob("*.tmp*"))
    if number == signal.SIGTERM:  # the way back is the same
        return
    monkeypatch.chdir(tmp_path)
    assert mvcore_command(["train", "--resume", "auto"]) == 0
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    same_weights(folder, uninterrupted)


def test_a_killed_run_goes_on_from_its_last_checkpoint(config: Path, uninterrupted: Path, tmp_path: Path) -> None:
    with started(config, tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    folder = tmp_path / "runs/run-1"
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    mvcore.load(folder).encode_text("a cup 0")
    assert mvcore_command(["train", "--resume", str(folder)]) == 0
    same_weights(folder, uninterrupted)


def test_a_finished_run_is_not_trained_again(uninterrupted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (uninterrupted / "checkpoints").rglob("*")}
    assert mvcore_command(["train", "--resume", str(uninterrupted)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (uninterrupted / "checkpoints").rglob("*")} == before


@pytest.mark.parametrize("name", ["config.yaml", "seeds.json", "run.json", "checkpoints/last.json"])
def test_a_damaged_run_is_not_resumed(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    import shutil

    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run" / name).write_text("[{")
    assert mvcore_command(["train", "--resume", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert name in err
    assert len(err.splitlines()) == 1


def test_resuming_nothing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for where in ("auto", "nowhere"):
        assert mvcore_command(["train", "--resume", where]) == 2
        err = capsys.readouterr().err
        assert f"--resume {where}" in err
        assert len(err.splitlines()) == 1
