"""Training with `equivariance.smooth_ap`: it learns to find points again, repeats, resumes and mixes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapes
import torch
from mvcore.api import Cameras, Features, ViewBatch
from mvcore.cli.main import run
from mvcore.config_layers import Layers
from mvcore.plugins import load_plugins
from mvcore.run_folder import checkpoint_of
from mvcore.running import open_session
from mvcore.training.fit import fit, prepare
from mvcore_data import ViewStoreWriter
from mvcore_equivariance import sample_features
from mvcore_equivariance.correspondences import pairs_of, projected
from mvcore_equivariance.losses import SmoothAPLoss
from mvcore_equivariance.metrics import ape_pcdp
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize

SIZE = 64


def painted_pair() -> tuple[Tensor, ViewBatch]:
    """(2, 3, 64, 64) normalised images of a painted ball, 30 degrees apart, and their geometry."""
    views = [shapes.see([shapes.Sphere()], shapes.camera_at(a, 10), SIZE) for a in (0, 30)]
    depth, intrinsics, extrinsics, pixels = (
        torch.tensor(np.stack([getattr(view, name) for view in views])).float()
        for name in ("depth", "intrinsics", "world_to_camera", "pixels")
    )
    there = torch.ones(2, dtype=torch.bool)
    cameras = Cameras(intrinsics, extrinsics)
    batch = ViewBatch.make([2], depth=depth, depth_valid=there, camera_valid=there, cameras=cameras)
    return pixels.permute(0, 3, 1, 2) / 127.5 - 1, batch


def found_again(dense: Tensor, batch: ViewBatch) -> float:
    """PCDP@0.05: share of points whose nearest feature among the second view's foreground is where they are."""
    torch.manual_seed(1)
    spots = projected(*pairs_of(batch, masks=False), 300, 0)
    assert spots.own is not None
    assert batch.depth is not None
    rows, columns = np.nonzero(batch.depth[1].numpy())
    candidates = torch.tensor(np.stack([columns, rows], 1) + 0.5).float()
    sampled = [sample_features(dense[:1], spots.source.points, (SIZE, SIZE))]
    sampled.append(sample_features(dense[1:], candidates[None], (SIZE, SIZE)))
    one, other = (normalize(part[0], dim=1) for part in sampled)
    own = spots.own[0]
    predicted, truth = candidates[(one @ other.T).argmax(1)][own], spots.target.points[0][own]
    return float(ape_pcdp(predicted, truth, (SIZE, SIZE), (0.05,)).pcdp[0])


def test_e2_a_small_transformer_learns_one_pair(make_vit: Callable[..., Any]) -> None:
    images, batch = painted_pair()
    vit = make_vit(img_size=SIZE, patch_size=4, embed_dim=48, depth=2).train()
    loss = SmoothAPLoss(points=100, further=60)

    def dense() -> Tensor:
        return vit.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (16, 16))

    with torch.no_grad():
        before = found_again(dense(), batch)
    optimizer = torch.optim.AdamW(vit.parameters(), 1e-3)
    value = torch.ones(())
    for step in range(45):
        torch.manual_seed(step)
        value = loss(Features({"dense": dense()}), batch)["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        after = found_again(dense(), batch)
    assert value.item() < 0.05
    assert after > before + 0.2


@pytest.fixture(scope="module")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of four pairs of painted balls from five directions each; the last without depth."""
    path = tmp_path_factory.mktemp("balls") / "store"
    with ViewStoreWriter(path, codec="png") as writer:
        for k in range(5):
            spheres = [shapes.Sphere((-0.2, 0.02 * k, 0.0), 0.3), shapes.Sphere((0.25, 0.0, 0.1 * k - 0.2), 0.25)]
            views = [shapes.see(spheres, shapes.camera_at(a, 10 * k), SIZE) for a in (0, 25, 60, 100, 180)]
            writer.add_object(
                f"balls{k}",
                np.stack([view.pixels for view in views]),
                captions=[f"two balls {k}"],
                cameras=[(view.intrinsics, view.world_to_camera) for view in views],
                depth=None if k == 4 else [view.depth for view in views],
                masks=[view.depth > 0 for view in views],
            )
    return path


@pytest.fixture
def values(balls: Path, tiny_clip_json: Path) -> dict[str, Any]:
    """A run on that store, of pairs that share something."""
    pairs = {"id": "data.views", "path": str(balls), "image_size": 32, "sampling": "pairs", "batch_size": 4}
    return {
        "encoder": {"id": "core.open_clip", "model": str(tiny_clip_json), "pretrained": None, "train": "none"},
        "adapters": {"equivariance.dense": {"rank": 2, "last_blocks": 1, "head": "residual"}},
        "data": {"pairs": {**pairs, "depth": True, "captions": "none", "augment": [{"rotate": 20}]}},
        "losses": {"equivariance.smooth_ap": {"points": 80, "further": 40}},
        "optimizer": {"lr": 3e-3},
        "run": {"max_steps": 4, "accelerator": "cpu", "devices": 1, "log_every": 1, "workers": 0},
    }


def trained(values: dict[str, Any], folder: Path, resume: Path | None = None) -> list[dict[str, str]]:
    """The metrics of a run, without what the clock decides."""
    layers = Layers()
    layers.merge(values, "test")
    session = open_session(layers.config(), load_plugins())
    training = prepare(session.plan, session.sources, folder)
    fit(training, folder, title="test", console=Console(quiet=True), resume=resume)
    with (folder / "metrics.csv").open(newline="") as stream:
        return [{k: v for k, v in row.items() if not k.endswith("per_s")} for row in csv.DictReader(stream)]


def test_e1_the_seed_decides_and_a_resumed_run_is_the_same(values: dict[str, Any], tmp_path: Path) -> None:
    whole = trained(values, tmp_path / "whole")
    torch.rand(5)
    values["run"] |= {"checkpoint_every": 2}
    again = trained(values, tmp_path / "again")
    assert again == whole
    (half,) = (tmp_path / "again").rglob("step-00000002")
    values["run"] |= {"workers": 1}
    resumed = trained(values, tmp_path / "again", half)
    assert resumed == whole
    values["run"] |= {"seed": 1, "workers": 0}
    assert trained(values, tmp_path / "other")[0] != whole[0]
    # Every step draws other points: the losses of one epoch differ from those of the next.
    assert len({row["train/equivariance.smooth_ap"] for row in whole}) == len(whole)
    assert checkpoint_of(tmp_path / "again").name == "step-00000004"


def test_what_was_found_is_logged_beside_the_loss(values: dict[str, Any], tmp_path: Path) -> None:
    """With all of five objects in a step: one has no depth, and opposite views share nothing."""
    values["data"]["pairs"] |= {"batch_size": 5, "augment": []}
    (first, *_) = trained(values, tmp_path / "run")
    assert 1 <= float(first["train/equivariance.smooth_ap/pairs_without_positive"]) <= 4
    assert 1 <= float(first["train/equivariance.smooth_ap/positives"]) <= 4 * 80
    assert 0 < float(first["train/equivariance.smooth_ap"]) < 1


@pytest.mark.parametrize("micro_batch", ["auto", 4])
def test_it_trains_beside_the_losses_of_another_method(
    values: dict[str, Any], balls: Path, tmp_path: Path, micro_batch: Any
) -> None:
    views = {"id": "data.views", "path": str(balls), "image_size": 32, "sampling": "views", "batch_size": 6}
    values["data"]["views"] = {**views, "captions": "random"}
    values["adapters"] |= {"ovt.lora": {"rank": 2}, "ovt.viformer": {"feedforward": 16}, "ovt.logit_scale": {}}
    values["losses"] |= {"core.itc": {"on": ["views"]}, "ovt.vc": {"on": ["views"]}}
    values["trainers"] = {"ovt.outlier_mining": {"k": 2, "neighbours": 3, "on": ["views"]}}
    values["run"] |= {"max_steps": 2, "micro_batch": micro_batch}
    for row in trained(values, tmp_path / "run"):
        for name in ("equivariance.smooth_ap", "core.itc", "ovt.vc"):
            assert np.isfinite(float(row[f"train/{name}"]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"depth": False}, "no source of this run has what equivariance.smooth_ap needs: pairs lacks depth"),
        ({"sampling": "objects", "batch_size": 4, "views_per_object": 2}, "equivariance.smooth_ap needs"),
    ],
    ids=["without depth", "without pairs"],
)
def test_a_source_that_does_not_fit_is_one_line(
    values: dict[str, Any], source: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values["data"]["pairs"] |= source
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values))
    assert run(["train", str(path), "-o", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_store_without_cameras_is_one_line(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ViewStoreWriter(tmp_path / "store", codec="png") as writer:
        writer.add_object("a", np.zeros((2, 32, 32, 3), np.uint8), depth=[np.ones((32, 32), np.float32)] * 2)
    values["data"]["pairs"] |= {"path": str(tmp_path / "store")}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values))
    assert run(["train", str(path), "-o", str(tmp_path / "run")]) == 2
    assert "equivariance.smooth_ap needs: pairs lacks cameras" in capsys.readouterr().err
