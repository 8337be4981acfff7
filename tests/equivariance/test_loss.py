"""`equivariance.smooth_ap` on batches: what it compares and counts, and what it does with nothing to compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapes
import torch
from mvcore.api import Cameras, DataError, Features, ViewBatch
from mvcore_equivariance import sample_features, smooth_ap
from mvcore_equivariance.chunks import Points
from mvcore_equivariance.correspondences import extent, pairs_of, projected, released
from mvcore_equivariance.loss_options import SmoothAPOptions
from mvcore_equivariance.losses import SmoothAPLoss
from mvcore_equivariance.procrustes import nearest_rotation, procrustes
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import normalize

SIZE = 64
BALL = [shapes.Sphere()]


def batch_of(angles: list[float]) -> ViewBatch:
    views = [shapes.see(BALL, shapes.camera_at(a, 10), SIZE) for a in angles]
    depth, intrinsics, extrinsics = (
        torch.tensor(np.stack([getattr(view, name) for view in views])).float()
        for name in ("depth", "intrinsics", "world_to_camera")
    )
    there = torch.ones(len(views), dtype=torch.bool)
    return ViewBatch.make(
        [2] * (len(views) // 2),
        depth=depth,
        depth_valid=there,
        cameras=Cameras(intrinsics, extrinsics),
        camera_valid=there,
        masks=depth > 0,
    )


@pytest.fixture(scope="module")
def batch() -> ViewBatch:
    """Two pairs that share much and one that shares nothing."""
    return batch_of([0, 30, 50, 100, 0, 180])


def dense_of(batch: ViewBatch, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch.n_views, 16, 8, 8, generator=generator, dtype=torch.float64).requires_grad_()


def loss_of(batch: ViewBatch, dense: Tensor, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(5)
    loss = SmoothAPLoss(points=60, **options)
    needs = loss.options.needs()
    return loss(Features({"dense": dense}).restricted(needs, "loss"), batch.restricted(needs, "loss"))


def descriptors(dense: Tensor, points: Tensor) -> Tensor:
    return normalize(sample_features(dense[None], points[None], (SIZE, SIZE))[0], dim=1)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("unit", ["store", "extent", "footprint"])
def test_it_is_smooth_ap_of_what_is_drawn(batch: ViewBatch, symmetric: bool, unit: str) -> None:
    """With points so far apart that each one's own partner alone is near, `smooth_ap` says the same."""
    bounds = {"store": (1e-6, 0.2), "extent": (1e-6, 0.2), "footprint": (1e-4, 9.0)}[unit]
    dense = dense_of(batch)
    given: Any = {"positive": bounds[0], "negative": bounds[1], "unit": unit, "symmetric": symmetric, "tau": 0.05}
    found = loss_of(batch, dense, further=30, **given)
    torch.manual_seed(5)
    spots = projected(*pairs_of(batch, masks=False), 60, 30)
    assert spots.own is not None
    expected = dense.sum() * 0
    for b in range(2):
        f1 = descriptors(dense[2 * b], spots.source.points[b])
        f2 = descriptors(dense[2 * b + 1], spots.target.points[b])
        valid, own = spots.target.valid[b], spots.own[b]
        sides = [(f1, spots.source, own, f2, spots.target, valid)]
        if symmetric:
            sides.append((f2, spots.target, torch.cat([own, own.new_zeros(30)]), f1, spots.source, own | ~own))
        for one, ours, chosen, other, theirs, there in sides:
            terms = []
            for s in chosen.nonzero()[:, 0].tolist():
                unit_of = {"store": 1.0, "extent": float(extent(spots)[b]), "footprint": float(ours.footprint[b, s])}
                apart = (ours.xyz[b, s] - theirs.xyz[b]).norm(dim=1) / unit_of[unit]
                kept = there & ((apart > bounds[1]) | (torch.arange(len(there)) == s))
                # Far off, but for its own: the scalar thresholds of `smooth_ap`.
                x2 = torch.where(torch.arange(len(there)) == s, 0.0, 9.0)[kept, None].expand(-1, 3)
                terms.append(smooth_ap(one[s : s + 1], other[kept], torch.zeros(1, 3), x2, tau=0.05))
            expected = expected + torch.stack(terms).mean() / len(sides)
    assert found["loss"].item() == pytest.approx(expected.item(), abs=1e-9)
    (ours,), (theirs,) = torch.autograd.grad(found["loss"], dense), torch.autograd.grad(expected, dense)
    assert (ours - theirs).abs().max() < 1e-9
    assert int(found["count"]) == 2
    assert int(found["pairs_without_positive"]) == 1
    assert int(found["positives"]) == int(spots.own.sum())


@pytest.mark.parametrize("symmetric", [False, True])
def test_released_sampling_is_smooth_ap_of_two_draws(batch: ViewBatch, symmetric: bool) -> None:
    dense = dense_of(batch)
    found = loss_of(batch, dense, sampling="released", positive=0.1, negative=0.3, unit="store", symmetric=symmetric)
    torch.manual_seed(5)
    spots = released(*pairs_of(batch, masks=False), 60)
    expected = dense.sum() * 0
    for b in range(2):
        f1 = descriptors(dense[2 * b], spots.source.points[b])
        f2 = descriptors(dense[2 * b + 1], spots.target.points[b])
        x1, x2 = spots.source.xyz[b], spots.target.xyz[b]
        ways = [(f1, f2, x1, x2), (f2, f1, x2, x1)][: 1 + symmetric]
        expected = expected + sum(smooth_ap(*way, positive=0.1, negative=0.3) for way in ways) / len(ways)
    assert int(found["count"]) == 2
    assert found["loss"].item() == pytest.approx(expected.item(), abs=1e-9)
    (ours,), (theirs,) = torch.autograd.grad(found["loss"], dense), torch.autograd.grad(expected, dense)
    assert (ours - theirs).abs().max() < 1e-9


@pytest.mark.parametrize("form", ["one_positive", "several_positives", "info_nce", "procrustes"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_each_form_is_low_for_features_that_know_the_place(batch: ViewBatch, form: str, symmetric: bool) -> None:
    """A map of what is at each cell's centre, against a random one."""
    first = batch_of([0, 20])
    known = torch.zeros(2, 48, SIZE, SIZE, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    waves, phase = torch.randn(3, 48, generator=generator).double() * 6, torch.rand(48, generator=generator) * 6.3
    for v, azimuth in enumerate((0, 20)):
        seen = shapes.see(BALL, shapes.camera_at(azimuth, 10), SIZE)
        grid = np.arange(SIZE) + 0.5
        image = np.stack([*np.meshgrid(grid, grid), np.ones((SIZE, SIZE))], -1)
        local = image @ np.linalg.inv(seen.intrinsics).T * seen.depth[..., None]
        world = (local - seen.world_to_camera[:3, 3]) @ seen.world_to_camera[:3, :3]
        known[v] = torch.cos(torch.tensor(world) @ waves + phase.double()).permute(2, 0, 1)
    options: Any = {"form": form, "symmetric": symmetric}
    good = loss_of(first, known.requires_grad_(), **options)
    bad = loss_of(first, dense_of(first), **options)
    assert good["loss"].item() < 0.4 * bad["loss"].item()
    for found in (good, bad):
        assert int(found["count"]) == 1
        assert found["loss"].requires_grad
    (grad,) = torch.autograd.grad(good["loss"], known)
    assert grad.isfinite().all()


@pytest.mark.parametrize("form", ["one_positive", "several_positives", "info_nce", "procrustes"])
def test_nothing_shared_is_zero_with_zero_gradient(form: str) -> None:
    batch = batch_of([0, 180])
    dense = dense_of(batch)
    found = loss_of(batch, dense, form=form)
    (grad,) = torch.autograd.grad(found["loss"], dense)
    assert found["loss"].item() == 0
    assert not grad.any()
    assert {key: float(found[key]) for key in ("count", "positives", "pairs_without_positive")} == {
        "count": 0,
        "positives": 0,
        "pairs_without_positive": 1,
    }


@pytest.mark.parametrize("sampling", ["projected", "released"])
def test_a_run_that_finds_nothing_is_stopped(sampling: str) -> None:
    """Its loss would be 0, as if all had been learnt."""
    nothing, something = batch_of([0.0, 180.0] * 8), batch_of([0.0, 180.0] * 7 + [0.0, 20.0])
    loss = SmoothAPLoss(points=200, positive=0.03, sampling=sampling)
    for _ in range(3):
        assert not loss(Features({"dense": dense_of(nothing)}), nothing)["positives"]
    with pytest.raises(
        DataError, match=r"none of the first 32 pairs of views .* show a point .*pair_angle.*OpenCV's axes"
    ):
        loss(Features({"dense": dense_of(nothing)}), nothing)
    loss = SmoothAPLoss(points=200, positive=0.03, sampling=sampling)
    for batch in [something, *[nothing] * 9]:  # one pair that shares something is enough
        loss(Features({"dense": dense_of(batch)}), batch)


def test_the_band_and_what_is_not_there_get_no_gradient(batch: ViewBatch) -> None:
    """A view without depth adds neither loss nor gradient to its pair, and no NaN."""
    dense = dense_of(batch)
    assert batch.depth is not None
    depth = batch.depth.clone()
    depth[0] = torch.nan
    from dataclasses import replace

    found = loss_of(replace(batch, depth=depth), dense)
    (grad,) = torch.autograd.grad(found["loss"], dense)
    assert int(found["count"]) == 1
    assert not grad[:2].any()
    assert grad[2:4].any()
    assert grad.isfinite().all()


def test_half_precision_maps_and_autocast_give_single_precision(batch: ViewBatch) -> None:
    dense = dense_of(batch).detach().to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_of(batch, dense)
    assert found["loss"].dtype == torch.float32
    assert found["loss"].item() == pytest.approx(loss_of(batch, dense.detach().float())["loss"].item(), abs=1e-6)


def test_three_views_of_an_object_are_refused() -> None:
    pair = batch_of([0, 20, 40, 60])
    batch = ViewBatch.make([3, 1], depth=pair.depth, cameras=pair.cameras)
    with pytest.raises(
        DataError, match=r"equivariance\.smooth_ap: needs two views .*\[3, 1\]; set the source's sampling to pairs"
    ):
        loss_of(batch, dense_of(batch))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positive": 0.2}, "positive"),
        ({"form": "procrustes", "sampling": "released"}, "sampling to projected"),
        ({"further": 3, "sampling": "released"}, "further"),
        ({"tau": 0}, "tau"),
        ({"unit": "metre"}, "unit"),
        ({"points": 0}, "points"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SmoothAPOptions(**options)


def test_masks_are_needed_where_they_are_used() -> None:
    assert SmoothAPOptions.model_validate({}).needs() == {"dense", "cameras", "depth"}
    assert SmoothAPOptions.model_validate({"masks": True}).needs() == {"dense", "cameras", "depth", "masks"}


# -- the rigid motion --------------------------------------------------------------------------------------------------


def test_the_nearest_rotation_and_its_gradient() -> None:
    torch.manual_seed(0)
    turn = torch.linalg.matrix_exp(torch.tensor([[0, -0.4, 0.2], [0.4, 0, 0.1], [-0.2, -0.1, 0]], dtype=torch.float64))
    stretch = torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64))
    assert (nearest_rotation(turn @ stretch) - turn).abs().max() < 1e-12
    for flip in (1, -1):
        matrix = (torch.randn(4, 3, 3, dtype=torch.float64) * flip).requires_grad_()
        found = nearest_rotation(matrix)
        assert torch.allclose(torch.linalg.det(found), torch.ones(4, dtype=torch.float64))
        assert torch.autograd.gradcheck(nearest_rotation, matrix)
        # No small rotation does better.
        for axis in torch.eye(3, dtype=torch.float64):
            skew = torch.linalg.cross(torch.eye(3, dtype=torch.float64), axis.expand(3, 3))
            turned = found @ torch.linalg.matrix_exp(0.01 * skew)
            assert ((found - turned) * matrix).sum((1, 2)).min() > 0


@pytest.mark.parametrize("matrix", [torch.zeros(3, 3), torch.eye(3), torch.diag(torch.tensor([1.0, 0.0, 0.0]))])
def test_rotations_that_are_not_determined_have_a_finite_gradient(matrix: Tensor) -> None:
    matrix = matrix.clone().requires_grad_()
    (grad,) = torch.autograd.grad((nearest_rotation(matrix) * torch.arange(9.0).reshape(3, 3)).sum(), matrix)
    assert grad.isfinite().all()


def test_exact_matches_move_nothing_and_shifted_ones_by_their_shift() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 20, 3, dtype=torch.float64)
    f = torch.eye(20, dtype=torch.float64)[None]
    there = torch.ones(1, 20, dtype=torch.bool)
    scale = torch.full((1, 1), 2.0, dtype=torch.float64)
    source = Points(f, x, there)
    assert procrustes(source, source, there, scale, 0.01).item() == pytest.approx(0, abs=1e-12)
    shifted = Points(f, x + torch.tensor([0.3, 0, 0.4], dtype=torch.float64), there)
    assert procrustes(source, shifted, there, scale, 0.01).item() == pytest.approx(0.25, abs=1e-12)
    assert procrustes(source, shifted, there & (torch.arange(20) < 2), scale, 0.01).item() == 0
