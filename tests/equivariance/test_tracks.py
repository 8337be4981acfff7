"""`equivariance.smooth_ap` with `sampling: tracks`: against a naive loop, and in a run on a packed COLMAP model."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import Cameras, DataError, Features, Tracks, ViewBatch
from mvcore.cli.main import run
from mvcore_data import ViewStore
from mvcore_data.packing import pack
from mvcore_equivariance import sample_features
from mvcore_equivariance.loss_options import SmoothAPOptions
from mvcore_equivariance.losses import SmoothAPLoss
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import normalize

SIZE = 32
TAU = 0.05


def batch_of(views: list[list[int]], seed: int = 0, room: int = 2) -> ViewBatch:
    """Pairs of views that show points by these ids, in any order; a point's place hangs on its id."""
    rng = np.random.default_rng(seed)
    tracks = Tracks.none(len(views), max(map(len, views)) + room)
    places = torch.tensor(rng.uniform(-1, 1, (40, 3))).float()
    for n, ids in enumerate(views):
        where = rng.permutation(tracks.ids.shape[1])[: len(ids)].copy()
        tracks.ids[n, where] = torch.tensor(ids, dtype=torch.int64)
        tracks.points[n, where] = torch.tensor(rng.uniform(1, SIZE - 1, (len(ids), 2))).float()
        tracks.xyz[n, where] = places[ids]
    turn = torch.eye(4).repeat(len(views), 1, 1)
    turn[:, 2, 3] = 3
    intrinsics = torch.tensor([[40.0, 0, 16], [0, 44, 16], [0, 0, 1]]).repeat(len(views), 1, 1)
    return ViewBatch.make(
        [2] * (len(views) // 2),
        images=torch.zeros(len(views), 3, SIZE, SIZE, dtype=torch.uint8),
        tracks=tracks,
        cameras=Cameras(intrinsics, turn),
        camera_valid=torch.ones(len(views), dtype=torch.bool),
        masks=torch.ones(len(views), SIZE, SIZE, dtype=torch.bool),
    )


def dense_of(batch: ViewBatch) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch.n_views, 12, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()


def loss_of(batch: ViewBatch, dense: Tensor, **options: Any) -> dict[str, Tensor]:
    loss = SmoothAPLoss(sampling="tracks", tau=TAU, **options)
    needs = loss.options.needs()
    return loss(Features({"dense": dense}).restricted(needs, "loss"), batch.restricted(needs, "loss"))


def naive(batch: ViewBatch, dense: Tensor, negative: float, unit: str, symmetric: bool = False) -> tuple[Tensor, int]:
    """The loss point by point: all shared points are sources, all points of the other view are targets."""
    tracks = batch.tracks
    assert tracks is not None
    total, positives = dense.sum() * 0, 0
    for b in range(batch.n_objects):
        views = []
        for n in (2 * b, 2 * b + 1):
            rows = [m for m in range(tracks.ids.shape[1]) if tracks.ids[n, m] >= 0]
            found = sample_features(dense[n : n + 1], tracks.points[n : n + 1], (SIZE, SIZE))[0]
            views.append({int(tracks.ids[n, m]): (normalize(found[m], dim=0), tracks.xyz[n, m]) for m in rows})
        both = sorted(views[0].keys() & views[1].keys())
        if not both:
            continue
        positives += len(both)
        shown = torch.stack([views[1][i][1] for i in views[1]])
        extent = float((shown.amax(0) - shown.amin(0)).max())
        for ours, theirs in [(views[0], views[1]), (views[1], {i: views[0][i] for i in both})][: 1 + symmetric]:
            terms = []
            for s in both:
                f, x = ours[s]
                scale = {"store": 1.0, "extent": extent, "footprint": (float(x[2]) + 3) / 40}[unit]
                p = f @ theirs[s][0]
                far = [f @ g for g, y in theirs.values() if float((x - y).norm()) > negative * scale]
                ap = []
                for query in (torch.ones_like(p), p):
                    same = 1 + torch.sigmoid(((p if query is not p else torch.ones_like(p)) - query) / TAU)
                    ap.append(same / (same + sum(torch.sigmoid((g - query) / TAU) for g in far)))
                terms.append(1 - (ap[0] + ap[1]) / 2)
            total = total + torch.stack(terms).mean() / (1 + symmetric)
    return total, positives


@given(
    views=st.lists(st.lists(st.integers(0, 39), unique=True, max_size=9), min_size=4, max_size=4),
    unit=st.sampled_from(["store", "extent", "footprint"]),
    symmetric=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_positives_are_the_points_that_both_views_show(
    views: list[list[int]], unit: str, symmetric: bool, seed: int
) -> None:
    batch = batch_of(views, seed)
    dense = dense_of(batch)
    negative = {"store": 0.7, "extent": 0.3, "footprint": 9.0}[unit]
    found = loss_of(batch, dense, points=20, unit=unit, negative=negative, positive=1e-3, symmetric=symmetric)
    expected, positives = naive(batch, dense, negative, unit, symmetric)
    assert found["loss"].item() == pytest.approx(expected.item(), abs=1e-9)
    (ours,), (theirs,) = (torch.autograd.grad(value, dense) for value in (found["loss"], expected))
    assert (ours - theirs).abs().max() < 1e-9
    assert int(found["positives"]) == positives
    empty = sum(not set(views[k]) & set(views[k + 1]) for k in (0, 2))
    assert (int(found["pairs_without_positive"]), int(found["count"])) == (empty, 2 - empty)


def test_a_pair_without_a_shared_track_adds_nothing() -> None:
    batch = batch_of([[1, 2, 3], [4, 5], [], []])
    dense = dense_of(batch)
    found = loss_of(batch, dense)
    assert (found["loss"].item(), int(found["count"]), int(found["pairs_without_positive"])) == (0, 0, 2)
    assert not torch.autograd.grad(found["loss"], dense)[0].any()
    nothing = batch_of([[], []], room=0)
    assert loss_of(nothing, dense_of(nothing))["loss"].item() == 0


def test_a_run_without_a_shared_track_is_stopped() -> None:
    batch = batch_of([[1, 2, 3], [4, 5]] * 32)
    with pytest.raises(DataError, match=r"none of the first 32 pairs .* show a track .* packed with its tracks"):
        loss_of(batch, dense_of(batch))


def test_no_more_points_are_drawn_than_asked_for() -> None:
    batch = batch_of([list(range(30)), list(range(10, 40))])
    dense = dense_of(batch)
    seen = set[float]()
    for seed in range(4):
        torch.manual_seed(seed)
        found = loss_of(batch, dense, points=5, further=3)
        assert int(found["positives"]) == 5
        seen.add(found["loss"].item())
    assert len(seen) == 4


def test_masks_keep_points_off_the_background() -> None:
    batch = batch_of([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
    assert batch.masks is not None
    assert batch.tracks is not None
    batch.masks[0, :, :16] = False
    x = batch.tracks.points[0, :, 0]
    expected = int(((x >= 16) & (batch.tracks.ids[0] >= 0)).sum())
    assert 0 < expected < 6
    assert int(loss_of(batch, dense_of(batch), masks=True)["positives"]) == expected


def test_a_view_without_a_camera_has_no_footprint() -> None:
    batch = batch_of([[1, 2, 3], [1, 2, 3]])
    assert batch.camera_valid is not None
    batch.camera_valid[1] = False
    assert int(loss_of(batch, dense_of(batch), unit="footprint", negative=9.0)["count"]) == 0
    assert int(loss_of(batch, dense_of(batch))["count"]) == 1


@pytest.mark.parametrize("form", ["info_nce", "procrustes"])
def test_other_forms_learn_from_tracks(form: Any) -> None:
    batch = batch_of([[1, 2, 3, 4, 5], [5, 4, 3, 2, 9]])
    dense = dense_of(batch)
    found = loss_of(batch, dense, form=form)
    assert int(found["positives"]) == 4
    assert torch.autograd.grad(found["loss"], dense)[0].abs().max() > 1e-6


def test_what_tracks_need() -> None:
    def needs(**options: Any) -> frozenset[str]:
        return SmoothAPOptions(**options).needs()

    least = {"dense", "tracks", "images"}
    assert needs(sampling="tracks") == least
    assert needs(sampling="tracks", unit="footprint", masks=True) == least | {"cameras", "masks"}
    with pytest.raises(ValidationError, match="several_positives goes by distance"):
        needs(sampling="tracks", form="several_positives")


def reconstruction(folder: Path, objects: int = 3) -> Path:
    """Objects of three images each with a sparse model of 60 points."""
    rng = np.random.default_rng(0)
    for k in range(objects):
        sparse = folder / f"o{k}/sparse/0"
        sparse.mkdir(parents=True)
        (folder / f"o{k}/images").mkdir()
        (sparse / "cameras.bin").write_bytes(struct.pack("<QiiQQ4d", 1, 1, 1, 48, 48, 50, 50, 24, 24))
        xyz = rng.uniform(-0.4, 0.4, (60, 3))
        images, points = struct.pack("<Q", 3), struct.pack("<Q", 60)
        for n, angle in enumerate((0.0, 0.3, -0.4)):
            Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8)).save(folder / f"o{k}/images/{n}.png")
            turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
            local = xyz @ turn.T + [0, 0, 2]
            seen = 50 * local[:, :2] / local[:, 2:] + 24
            chosen = rng.permutation(60)[:40]
            images += struct.pack("<i7di", n, np.cos(angle / 2), 0, np.sin(angle / 2), 0, 0, 0, 2, 1)
            images += f"{n}.png".encode() + b"\0" + struct.pack("<Q", 40)
            images += b"".join(struct.pack("<ddq", *seen[i], i + 1) for i in chosen)
        for i in range(60):
            points += struct.pack("<q3d3BdQ", i + 1, *xyz[i], 0, 0, 0, 0.1, 0)
        (sparse / "images.bin").write_bytes(images)
        (sparse / "points3D.bin").write_bytes(points)
    return folder


def test_a_run_trains_on_a_packed_model_without_depth(tmp_path: Path, tiny_clip_json: Path) -> None:
    pack(reconstruction(tmp_path / "scans"), tmp_path / "store", options={"tracks": "true"})
    with ViewStore(tmp_path / "store") as store:
        assert not store.holds("depth")
    pairs = {"id": "data.views", "path": str(tmp_path / "store"), "image_size": 32, "sampling": "pairs"}
    values = {
        "encoder": {"id": "core.open_clip", "model": str(tiny_clip_json), "pretrained": None, "train": "none"},
        "adapters": {"equivariance.dense": {"rank": 2, "last_blocks": 1, "head": "residual"}},
        "data": {"pairs": {**pairs, "batch_size": 3, "tracks": True, "augment": [{"rotate": 20}]}},
        "losses": {"equivariance.smooth_ap": {"sampling": "tracks", "points": 30}},
        "optimizer": {"lr": 3e-3},
        "run": {"max_steps": 2, "accelerator": "cpu", "devices": 1, "log_every": 1, "workers": 1},
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values))
    assert run(["train", str(path), "-o", str(tmp_path / "run")]) == 0
    with (tmp_path / "run/metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2
    for row in rows:
        assert 0 < float(row["train/equivariance.smooth_ap"]) < 1
        assert 30 < float(row["train/equivariance.smooth_ap/positives"]) <= 90
        assert float(row["train/equivariance.smooth_ap/pairs_without_positive"]) == 0


def test_a_run_on_a_source_that_does_not_load_tracks_is_one_line(
    tmp_path: Path, tiny_clip_json: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(reconstruction(tmp_path / "scans", 1), tmp_path / "store", options={"tracks": "true"})
    values = {
        "encoder": {"id": "core.open_clip", "model": str(tiny_clip_json), "pretrained": None, "train": "none"},
        "data": {"pairs": {"id": "data.views", "path": str(tmp_path / "store"), "sampling": "pairs", "image_size": 32}},
        "losses": {"equivariance.smooth_ap": {"sampling": "tracks"}},
        "run": {"max_steps": 1, "accelerator": "cpu", "devices": 1},
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values))
    assert run(["train", str(path), "-o", str(tmp_path / "run")]) == 2
    assert "equivariance.smooth_ap needs: pairs lacks tracks" in capsys.readouterr().err
