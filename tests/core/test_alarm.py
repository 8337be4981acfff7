"""The collapse alarm: what it measures against loops, and runs that really collapse."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from mvcore.config import AlarmSettings
from mvcore.errors import ConfigError
from mvcore.training.alarm import spread_and_rank
from mvcore.training.fit import fit
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from conftest import Lab

LOSSES = """
import torch
from mvcore.api import LossSpec, hookimpl
from torch.nn.functional import normalize

MVCORE_API = 1

@hookimpl
def mvcore_register_losses():
    return [
        LossSpec(name=name, summary="Ruins", factory=f"ruinous:{name.title()}", needs={"view", "object_ids"})
        for name in ("point", "line")
    ]

class Point(torch.nn.Module):
    # Every view to the mean of all.
    def forward(self, features, batch):
        return 1 - normalize(features.view, dim=1).mean(0).square().sum()

class Line(torch.nn.Module):
    # The views of every other object to one axis, those of the others to its opposite.
    def forward(self, features, batch):
        sign = 1 - 2 * (batch.object_ids[batch.object_of_view] % 2)
        return -(sign * normalize(features.view, dim=1)[:, 0]).mean()
"""


@pytest.fixture(scope="session")
def ruinous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin of losses that no one should use."""
    path = tmp_path_factory.mktemp("plugin") / "ruinous.py"
    path.write_text(LOSSES, encoding="utf-8")
    return path


@pytest.mark.parametrize(("n", "dim"), [(5, 9), (12, 4), (1, 3)])
def test_equals_loops_over_pairs(n: int, dim: int) -> None:
    vectors = torch.randn(n, dim, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    unit = normalize(vectors, dim=1)
    apart = sum(1 - float(a @ b) for a in unit for b in unit) / n**2
    centred = unit - unit.mean(0)
    dots = [[float(a @ b) for a in centred] for b in centred]
    trace, square = sum(dots[i][i] for i in range(n)), sum(d * d for row in dots for d in row)
    spread, rank = spread_and_rank(vectors).tolist()
    assert spread == pytest.approx(apart, abs=1e-5)
    if n > 1:
        assert rank == pytest.approx(trace**2 / square, rel=1e-4)


def test_collapsed_features_have_no_spread_and_antipodal_ones_one_direction() -> None:
    point = torch.randn(1, 8).repeat(20, 1)
    assert spread_and_rank(point)[0] == pytest.approx(0, abs=1e-6)
    line = torch.randn(1, 8) * torch.tensor([1.0, -1.0]).repeat(10)[:, None]
    spread, rank = spread_and_rank(line).tolist()
    assert (spread, rank) == pytest.approx((1, 1), abs=1e-5)
    assert all(math.isfinite(v) for v in spread_and_rank(torch.zeros(4, 3)).tolist())


def test_it_needs_no_answer_of_the_device() -> None:
    class Deaf(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func._schema.name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
            return func(*args, **(kwargs or {}))

    vectors: Tensor = torch.randn(6, 4, requires_grad=True)
    with Deaf():
        assert not spread_and_rank(vectors).requires_grad


def trained(lab: Lab, folder: Path, **changes: Any) -> tuple[str, list[dict[str, str]]]:
    """What a run prints, and the rows of its metrics."""
    console = Console(file=io.StringIO(), force_terminal=False, width=80)
    training = lab.prepare(lab.values(**changes), folder)
    fit(training, folder, title="test", console=console)
    with (folder / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue(), rows


def ruined(plugin: Path, loss: str, **run: Any) -> dict[str, Any]:
    """A run of a loss that ruins the features, on all weights."""
    settings = {"max_steps": 60, "log_every": 5, "alarm": {"every": 5, "after": 10}, **run}
    return {
        "plugins": [str(plugin)],
        "encoder": {"train": "all"},
        "losses": {"core.itc": {"weight": 0.0}, "ovt.vc": {"weight": 0.0}, f"ruinous.{loss}": {}},
        "optimizer": {"lr": 1e-2},
        "run": settings,
    }


def test_a_run_that_falls_onto_one_vector_is_named_and_dated(lab: Lab, tmp_path: Path, ruinous: Path) -> None:
    text, rows = trained(lab, tmp_path / "run", **ruined(ruinous, "point"))
    (line,) = [line for line in text.splitlines() if "warning" in line and "run.alarm.spread" in line]
    step = int(line.removeprefix("warning: step ").partition(":")[0])
    noted = {int(row["step"]): float(row["alarm/spread"]) for row in rows if row.get("alarm/spread")}
    first = min(s for s, spread in noted.items() if spread < 0.05 and s >= 10)
    assert step == first
    assert noted[5] > noted[60]
    collapsed = {int(row["step"]): row["alarm/collapsed"] for row in rows if row.get("alarm/collapsed")}
    assert collapsed[step] == "1"


def test_a_run_that_falls_onto_one_line_is_named_though_it_stays_spread(
    lab: Lab, tmp_path: Path, ruinous: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ruined(ruinous, "line", max_steps=80)
    changes["optimizer"]["lr"] = 3e-3
    # Eight objects alone say nothing of rank; as if they were enough.
    monkeypatch.setattr("mvcore.training.alarm.FEW_OBJECTS", 4)
    text, rows = trained(lab, tmp_path / "run", **changes)
    assert "run.alarm.rank" in text
    assert float(rows[-1]["alarm/rank"]) < 3
    assert float(rows[-1]["alarm/spread"]) > 0.2
    assert "run.alarm.spread" not in text


def test_a_sound_run_is_not_warned_of(lab: Lab, tmp_path: Path) -> None:
    text, rows = trained(
        lab, tmp_path / "run", run={"max_steps": 20, "alarm": {"every": 5, "after": 0, "spread": 0.001}}
    )
    assert "warning" not in text
    assert float(rows[-1]["alarm/collapsed"]) == 0
    # Few objects: the rank is not judged.
    assert "alarm/rank" not in rows[-1]


def test_the_gradient_cache_is_looked_at_too(lab: Lab, tmp_path: Path, ruinous: Path) -> None:
    changes = ruined(ruinous, "point", micro_batch=4, max_steps=10)
    _, rows = trained(lab, tmp_path / "run", **changes)
    assert {row["step"] for row in rows if row.get("alarm/spread")} == {"5", "10"}


def test_it_can_be_turned_off(lab: Lab, tmp_path: Path) -> None:
    _, rows = trained(lab, tmp_path / "run", run={"alarm": None, "max_steps": 10})
    assert not [name for name in rows[0] if name.startswith("alarm/")]


def test_one_warning_a_kind_also_after_a_resume(lab: Lab, tmp_path: Path, ruinous: Path) -> None:
    changes = ruined(ruinous, "point", checkpoint_every=30)
    values, folder = lab.values(**changes), tmp_path / "run"
    first = Console(file=io.StringIO(), force_terminal=False)
    training = lab.prepare(lab.changed(lab.values(**changes), {"run": {"max_steps": 30}}), folder)
    checkpoint = fit(training, folder, title="test", console=first)
    again = Console(file=io.StringIO(), force_terminal=False)
    fit(lab.prepare(values, folder), folder, title="test", console=again, resume=checkpoint)
    assert isinstance(first.file, io.StringIO)
    assert isinstance(again.file, io.StringIO)
    assert first.file.getvalue().count("run.alarm.spread") == 1
    assert "run.alarm.spread" not in again.file.getvalue()


def test_a_misspelt_threshold_is_refused(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"run\.alarm\.rnak: unknown key, did you mean 'rank'"):
        lab.config(lab.values(run={"alarm": {"rnak": 2.0}}))
    assert AlarmSettings().after > 0
