"""Acceptance A14: two ranks take the step that one process takes on the same objects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mvcore_data import ViewStoreWriter

pytestmark = pytest.mark.process

LOSSES = ("duoduo.shape_image", "duoduo.shape_text")

ONE_STEP = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from mvcore.config_layers import Layers
from mvcore.plugins import load_plugins
from mvcore.running import open_session
from mvcore.training.distributed import average_gradients
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
    for _, parameter in sorted(training.pipeline.named_parameters()):
        if parameter.ndim:
            parameter.add_(0.1 * torch.randn_like(parameter))
batch = next(iter(training.module.make_loader(rank, ranks, 0)))
trained = training.module.trained()
found = {"counts": batch["objects"].view_counts}
for name in ("whole", "chunks"):
    training.module.zero_grad(set_to_none=True)
    objective = training.module.objective
    if name == "whole":
        outcome = objective.step(batch, lambda total: total.backward())
    else:
        outcome = objective.cached_step(batch, lambda total: total.backward(), 4, lambda number: None)
    average_gradients(trained.values())
    found[name] = {"terms": outcome.terms, "grads": {key: value.grad for key, value in trained.items()}}
torch.save(found, folder / f"rank-{rank}-of-{ranks}.pt")
if ranks > 1:  # a process that just ends may be aborted by a thread of gloo's that still waits for the other one
    dist.barrier()
    dist.destroy_process_group()
"""


def steps(values: dict[str, Any], folder: Path, ranks: int) -> list[dict[str, Any]]:
    """What each rank found in one step."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ONE_STEP, json.dumps(values), str(folder)]
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
    return [torch.load(folder / f"rank-{rank}-of-{ranks}.pt", weights_only=True) for rank in range(ranks)]


def test_a14_two_ranks_give_the_loss_and_the_gradient_of_one(tiny_clip_json: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with ViewStoreWriter(tmp_path / "store", codec="png") as writer:
        for i in range(7):
            views = list(rng.integers(0, 256, (4, 32, 32, 3), np.uint8))
            writer.add_object(f"o{i}", views, captions=[f"thing {i}"] * (i != 2))
    source = {"id": "data.views", "path": str(tmp_path / "store"), "batch_size": 7, "views_per_object": [1, 4]}
    values = {
        "encoder": {"id": "core.open_clip", "model": str(tiny_clip_json), "pretrained": None},
        "adapters": {"duoduo.image_target": {}, "duoduo.cross_view": {"cross_view_from": 1}, "duoduo.log_scale": {}},
        "data": {"objects": source},
        "losses": {name: {} for name in LOSSES},
        "run": {"max_steps": 1, "workers": 0, "accelerator": "cpu"},
    }
    (one,) = steps(values, tmp_path, 1)
    ranks = steps(values, tmp_path, 2)
    assert torch.cat([rank["counts"] for rank in ranks]).tolist() == one["counts"].tolist()
    assert len(ranks[0]["counts"]) != len(ranks[1]["counts"])  # rows of different number on each rank
    assert len(set(one["counts"].tolist())) > 1
    for rank in ranks:
        for way in ("whole", "chunks"):
            for name in LOSSES:
                expected = float(one["whole"]["terms"][name])
                assert float(rank[way]["terms"][name]) == pytest.approx(expected, rel=1e-9)
            grads = one["whole"]["grads"]
            assert "adapters/duoduo.log_scale/log_scale" in grads
            assert len(grads) == 5
            for name, wanted in grads.items():
                assert float(wanted.abs().max()) > 0
                torch.testing.assert_close(rank[way]["grads"][name], wanted, rtol=1e-7, atol=1e-12)
