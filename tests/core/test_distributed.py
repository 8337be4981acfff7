"""D5: several ranks take the step that one process takes on the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from mvcore.errors import ConfigError

if TYPE_CHECKING:
    from conftest import Lab

pytestmark = pytest.mark.process

ONE_STEP = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from mvcore.config_layers import Layers
from mvcore.plugins import load_plugins
from mvcore.running import open_session
from mvcore.training.distributed import average_gradients, mean_over_ranks
from mvcore.training.fit import prepare

values, folder, rank, ranks = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
if ranks > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
layers = Layers()
layers.merge(values, "test")
session = open_session(layers.config(), load_plugins())
training = prepare(session.plan, session.sources, folder)
training.pipeline.double()
torch.manual_seed(3)
with torch.no_grad():
    for parameter in training.pipeline.parameters():
        if parameter.ndim:
            parameter.add_(0.05 * torch.randn_like(parameter))
mining = training.trainers[0]
training.context._model.views_per_batch = 12
mining.mine()
batch = next(iter(training.module.make_loader(rank, ranks, 0)))
trained = training.module.trained()
seen = []
training.module.objective.observers["objects"] = [lambda own, features: seen.append(features.view.clone())]


def backward(total):
    total.backward()


found = {"anchors": mining._anchors, "outliers": mining._outliers, "views": batch["objects"].n_views}
for name in ("whole", "cached"):
    training.module.zero_grad(set_to_none=True)
    objective = training.module.objective
    if name == "whole":
        outcome = objective.step(batch, backward)
    else:
        outcome = objective.cached_step(batch, backward, 2 + rank, lambda number: None)
    average_gradients(trained.values())
    found[name] = {
        "terms": outcome.terms,
        "total": outcome.total,
        "grads": {key: value.grad for key, value in trained.items()},
        "observed": seen.pop(),
    }
ramp = torch.arange(6.0).reshape(2, 3).T * (rank + 1)
some = [ramp if rank == ranks - 1 else None, None, ramp.double(), ramp + 1]
found["means"] = mean_over_ranks(some, [ramp, ramp, ramp.double(), ramp])
torch.save(found, folder / f"rank-{rank}-of-{ranks}.pt")
if ranks > 1:  # a process that just ends may be aborted by a thread of gloo's that still waits for the other one
    dist.barrier()
    dist.destroy_process_group()
"""


def together(command: list[str], ranks: int) -> None:
    """Runs a process a rank to their end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, str(rank), str(ranks)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(said)


def test_two_ranks_take_the_step_of_one(lab: Lab, tmp_path: Path) -> None:
    values = lab.values(
        encoder={"train": "all"},
        adapters={"ovt.viformer": {"dropout": 0.0}},
        data={"objects": {"batch_size": 17}},
    )
    command = [sys.executable, "-c", ONE_STEP, json.dumps(values), str(tmp_path)]
    together(command, 1)
    together(command, 2)
    one = torch.load(tmp_path / "rank-0-of-1.pt", weights_only=True)
    ranks: list[dict[str, Any]] = [torch.load(tmp_path / f"rank-{r}-of-2.pt", weights_only=True) for r in range(2)]
    assert sum(rank["views"] for rank in ranks) == one["views"]
    assert min(rank["views"] for rank in ranks) > 0
    ramp = torch.arange(6.0).reshape(2, 3).T
    for rank in ranks:
        first, absent, double, last = rank["means"]  # of ramp and 2 ramp, the first only on the second rank
        assert absent is None
        for mean, expected in ((first, ramp), (double, 1.5 * ramp.double()), (last, 1.5 * ramp + 1)):
            torch.testing.assert_close(mean, expected)
        torch.testing.assert_close(rank["anchors"], one["anchors"])
        assert torch.equal(rank["outliers"], one["outliers"])
        for way in ("whole", "cached"):
            found, expected = rank[way], one["whole"]
            assert set(found["terms"]) == {"core.itc", "ovt.vc"}
            assert float(found["total"]) == pytest.approx(float(expected["total"]), rel=1e-9)
            for name, value in expected["terms"].items():
                assert float(found["terms"][name]) == pytest.approx(float(value), rel=1e-9)
            torch.testing.assert_close(found["observed"], expected["observed"])
            wanted = {name: grad for name, grad in expected["grads"].items() if grad is not None}
            assert {name for name, grad in found["grads"].items() if grad is not None} == set(wanted)
            assert len(wanted) > 20
            scale = max(float(grad.abs().max()) for grad in wanted.values())
            for name, grad in wanted.items():
                assert float((found["grads"][name] - grad).abs().max()) <= 1e-9 * scale, name


def test_several_devices_need_several_processes(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"run.devices is 2, and this is one process; start .* torchrun"):
        lab.session(lab.values(run={"devices": 2}))
    with pytest.raises(ConfigError, match=r"run.devices.*must be 'auto' or at least 1"):
        lab.session(lab.values(run={"devices": 0}))
