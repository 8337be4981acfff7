"""A whole run in two processes gives what one gives, also when it is stopped and gone on with; or it fails as one."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mvcore
import pytest
import yaml
from mvcore.checkpoint import WEIGHTS, load_weights
from mvcore.errors import ConfigError
from mvcore.launching import World, among_processes, launch, world
from mvcore.run_folder import checkpoint_of

if TYPE_CHECKING:
    from conftest import Lab

PROGRAM = [sys.executable, "-m", "mvcore.cli.main"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *PROGRAM[1:]]
STEPS = 24


def values(lab: Lab) -> dict[str, Any]:
    """Mining, chunks, a term that comes in late, gradients term by term, measurements between; no dropout.

    Plain gradient descent, since it does not blow rounding errors up as Adam does where gradients are small.
    """
    return lab.values(
        adapters={"ovt.viformer": {"dropout": 0.0}},
        losses={"ovt.vc": {"weight": {"to": 1.0, "start": 3}}},
        trainers={"ovt.outlier_mining": {"refresh": "bank"}},
        optimizer={"name": "sgd", "lr": 0.1},
        run={"max_steps": STEPS, "micro_batch": 4, "gradients": {"every": 2}, "checkpoint_every": 12},
        validate={
            "data": {"test": {"id": "data.views", "path": str(lab.store)}},
            "on": ["core.consistency"],
            "every": 10,
            "best": "core.consistency/same_object/test",
            "ledger": False,
        },
    )


def started(arguments: list[str], where: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, cwd=where, env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_for_steps(process: subprocess.Popen[str], metrics: Path, steps: int) -> None:
    end = time.monotonic() + 300
    while not metrics.exists() or len(metrics.read_text().splitlines()) <= steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return [{key: text for key, text in row.items() if text} for row in csv.DictReader(stream)]


def files(folder: Path) -> set[str]:
    """All but those with names of the moment, as TensorBoard's and samples'."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if "events.out" not in name and "samples-" not in name}


@pytest.mark.process
def test_two_processes_stop_together_go_on_and_end_as_one(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values(lab)))
    two = tmp_path / "runs/run-1"
    process = started([*PROGRAM, "train", "run.yaml", "--set", "run.devices=2"], tmp_path)
    try:
        wait_for_steps(process, two / "metrics.csv", 8)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, (out, err)
    assert err.splitlines() == ["stopped and saved; go on with: mvcore train --resume runs/run-1"]
    assert out.count("run folder: ") == 1
    assert json.loads((two / "run.json").read_text())["status"] == "stopped"
    assert 8 <= int(checkpoint_of(two).name.removeprefix("step-")) < STEPS
    stopped = load_weights(checkpoint_of(two) / WEIGHTS)

    process = started([*TORCHRUN, "train", "--resume", "runs/run-1"], tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (out, err)
    assert out.count("saved in ") == 1
    assert json.loads((two / "run.json").read_text())["status"] == "finished"

    one = mvcore.train({**values(lab), "run": {**values(lab)["run"], "output": str(tmp_path / "one")}})
    assert files(two) == files(one)
    found, expected = (load_weights(checkpoint_of(folder) / WEIGHTS) for folder in (two, one))
    assert found.keys() == expected.keys()
    moved = {name: float((value - stopped[name]).abs().max()) for name, value in expected.items()}
    assert min(moved.values()) > 0
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) <= 1e-3 * moved[name], name
    assert len(rows(two)) == len(rows(one)) == STEPS
    for row, wanted in zip(rows(two), rows(one), strict=True):
        assert row.keys() == wanted.keys()
        for name in row.keys() - {"train/steps_per_s"}:
            assert float(row[name]) == pytest.approx(float(wanted[name]), rel=1e-3, abs=1e-4), (row["step"], name)
    assert {"train/cosine/core.itc/ovt.vc", "train/grad_norm"} <= rows(two)[-1].keys()


@pytest.mark.process
def test_an_error_in_one_process_ends_the_run_in_one_line(lab: Lab, tmp_path: Path) -> None:
    shutil.copytree(lab.store, tmp_path / "store")
    damage_last_view(tmp_path / "store")
    changed = values(lab)
    changed["data"]["objects"]["path"] = str(tmp_path / "store")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**changed, "validate": {}}))
    process = started([*PROGRAM, "train", "run.yaml", "--set", "run.devices=2"], tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2, (out, err)
    assert len(err.splitlines()) == 1, err
    assert "lamp-7" in err or "store" in err
    assert "error" in err
    assert not (tmp_path / "runs").exists()


def damage_last_view(store: Path) -> None:
    """Changes a byte in the middle of the last object's last image."""
    from mvcore_data import ViewStore

    with ViewStore(store) as opened:
        image = bytes(opened.encoded(opened.n_views - 1))
    for path in store.rglob("*"):
        if path.is_file() and image in (held := path.read_bytes()):
            at = held.index(image) + len(image) // 2
            path.write_bytes(held[:at] + bytes([held[at] ^ 255]) + held[at + 1 :])
            return
    raise AssertionError("no file holds the image")


TORCH = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}


@pytest.mark.parametrize(("environment", "starter"), [(TORCH, "torchrun"), (SLURM, "srun")])
def test_the_environment_says_which_process_this_is(environment: dict[str, str], starter: str) -> None:
    assert world(environment) == World(5, 8, 1, 4, starter)
    assert world(environment).machines == 2


def test_without_processes_beside_it_is_alone() -> None:
    assert world({}) == World()
    assert world({"RANK": "0", "WORLD_SIZE": "2"}) == World()  # as some clusters set for a machine
    assert world({**TORCH, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}) == World()
    assert world({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}) == World()  # a script without srun


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "3,5"}, "srun started 8 processes, not equally many on each machine"),
        ({**TORCH, "LOCAL_WORLD_SIZE": "3"}, "torchrun started 8 processes, not equally many"),
        ({**TORCH, "RANK": "first"}, "RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE must be numbers"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        world(environment)


def test_processes_that_cannot_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in TORCH.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match=r"process 5 of 8 could not meet the others: .*MASTER_ADDR"),
        among_processes(),
    ):
        pass


@pytest.mark.process
def test_the_exit_code_is_that_of_the_processes(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(["--version"], 2) == 0
    assert capfd.readouterr().out.count("mvcore ") == 2
    assert launch(["no-such-command"], 2) == 2
