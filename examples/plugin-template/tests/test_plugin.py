"""The plugin keeps mvcore's contract, and its parts do what they say. Install it first: pip install -e ".[test]"."""

from __future__ import annotations

from pathlib import Path

import mvcore.testing
import pytest
import torch
from mvcore.cli.main import run


def test_it_keeps_the_contract():
    mvcore.testing.assert_plugin_ok("mymethod")


def test_the_loss_is_what_a_loop_over_objects_gives():
    from mymethod.pull import pull

    generator = torch.Generator().manual_seed(0)
    views = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    owners = torch.tensor([0, 0, 0, 1, 1, 2])
    distances = []
    for i in range(3):
        unit = [view / view.norm() for view in views[owners == i]]
        mean = torch.stack(unit).mean(dim=0)
        distances += [1 - float(view @ mean / mean.norm()) for view in unit]
    expected = sum(max(distance, 1e-6) for distance in distances) / len(distances)
    assert abs(float(pull(views, owners, 3)) - expected) < 1e-12


def test_the_loss_takes_other_options():
    mvcore.testing.check_loss("mymethod.pull", args={"power": 2.0})


def test_the_dataset_takes_other_options():
    options = {"objects": 3, "views": 2, "image_size": 16}
    mvcore.testing.check_dataset("mymethod.blobs", args=options)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_recipe_trains(folder: Path):
    settings = ["--set", "run.max_steps=3", "--set", "run.accelerator=cpu"]
    assert run(["train", "--plugin", "mymethod", *settings]) == 0
    (metrics,) = folder.rglob("metrics.csv")
    lines = metrics.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 3
    assert "train/mymethod.pull" in lines[0].split(",")


def test_the_command_prints_what_to_cite(capsys):
    assert run(["mymethod", "--bibtex"]) == 0
    assert "@article{mymethod" in capsys.readouterr().out


def test_the_check_is_asked(capsys):
    run(["doctor"])
    assert "mymethod 0.1.0" in capsys.readouterr().out
