"""Points of two views that show the same place: where they are, which there are, and what draws them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapes
import torch
from mvcore.api import Cameras, ViewBatch
from mvcore_equivariance.correspondences import (
    Correspondences,
    draw_pixels,
    extent,
    pairs_of,
    projected,
    released,
)
from torch import Tensor

SIZE = 128
PAIR = [shapes.Sphere((-0.3, 0, 0), 0.25), shapes.Sphere((0.3, 0, 0.1), 0.3)]
ANGLES = ((0, 35), (70, 20))


def batch_of(views: list[Any], **fields: Any) -> ViewBatch:
    """Two views of each object."""
    stacked = {name: np.stack([getattr(view, name) for view in views]) for name in ("depth", "intrinsics")}
    extrinsics = np.stack([view.world_to_camera for view in views])
    fields = {
        "depth": torch.tensor(stacked["depth"]).float(),
        "depth_valid": torch.ones(len(views), dtype=torch.bool),
        "cameras": Cameras(torch.tensor(stacked["intrinsics"]).float(), torch.tensor(extrinsics).float()),
        "camera_valid": torch.ones(len(views), dtype=torch.bool),
        **fields,
    }
    return ViewBatch.make([2] * (len(views) // 2), **fields)


@pytest.fixture(scope="module")
def views() -> list[Any]:
    """Two spheres, one of which hides the other in part, in two pairs of views."""
    return [shapes.see(PAIR, shapes.camera_at(a, 5), SIZE) for pair in ANGLES for a in pair]


@pytest.fixture(scope="module")
def batch(views: list[Any]) -> ViewBatch:
    return batch_of(views)


def truly_seen(x: Tensor, view: Any, off: float) -> Any:
    """(P,) whether a view sees points of the spheres, taken off the surface that they are on but for rounding."""
    centres = np.array([sphere.centre for sphere in PAIR])
    apart = np.linalg.norm(x.double().numpy()[:, None] - centres, axis=2) - [sphere.radius for sphere in PAIR]
    centre = centres[np.abs(apart).argmin(1)]
    outside = centre + (x.double().numpy() - centre) * (1 + off)
    return shapes.truly_sees(PAIR, outside, view.world_to_camera, SIZE)


def drawn(batch: ViewBatch, points: int = 400, further: int = 300, seed: int = 0) -> Correspondences:
    torch.manual_seed(seed)
    return projected(*pairs_of(batch, masks=False), points, further)


def test_own_targets_show_the_same_place(batch: ViewBatch, views: list[Any]) -> None:
    found = drawn(batch)
    assert found.own is not None
    assert found.source.points.shape == (2, 400, 2)
    assert found.target.points.shape == (2, 700, 2)
    assert found.source.valid.all()
    for b, second in enumerate(views[1::2]):
        own = found.own[b]
        x = found.source.xyz[b].double().numpy()
        assert 0.3 < own.double().mean() < 1
        assert (own.numpy() & ~truly_seen(found.source.xyz[b], second, 0.01)).mean() < 0.01
        local = x @ second.world_to_camera[:3, :3].T + second.world_to_camera[:3, 3]
        image = local @ second.intrinsics.T
        expected = image[:, :2] / image[:, 2:]
        assert np.abs(found.target.points[b, :400].numpy() - expected)[own.numpy()].max() < 1e-3
        assert torch.equal(found.target.valid[b, :400], own)
        assert torch.equal(found.target.xyz[b, :400], found.source.xyz[b])


def test_almost_all_that_both_views_see_has_its_partner(batch: ViewBatch, views: list[Any]) -> None:
    """At least 95 % of what is truly seen, against a third at best for points drawn in each view by itself."""
    found = drawn(batch, points=1500)
    torch.manual_seed(0)
    theirs = released(*pairs_of(batch, masks=False), 1500)
    assert found.own is not None
    assert theirs.own is None
    for b, second in enumerate(views[1::2]):
        seen = truly_seen(found.source.xyz[b], second, 0.001)
        assert found.own[b].numpy()[seen].mean() > 0.95
        near = (torch.cdist(theirs.source.xyz[b], theirs.target.xyz[b]) < 5e-3).any(1)
        assert near.double().mean() < 0.5 * seen.mean()


def test_further_targets_are_of_the_second_view(batch: ViewBatch, views: list[Any]) -> None:
    found = drawn(batch)
    for b, second in enumerate(views[1::2]):
        pixels = found.target.points[b, 400:].floor().long()
        assert (second.depth[pixels[:, 1], pixels[:, 0]] > 0).all()
        assert len(np.unique(pixels.numpy(), axis=0)) == 300
    assert found.target.valid[:, 400:].all()


def test_released_points_are_centres_of_different_pixels(batch: ViewBatch) -> None:
    found = released(*pairs_of(batch, masks=False), 300)
    for spots in found[:2]:
        assert (spots.points.frac() == 0.5).all()
        assert all(len(points.unique(dim=0)) == 300 for points in spots.points)
        assert spots.valid.all()


def test_draws_are_uniform_and_within_their_pixels() -> None:
    foreground = torch.zeros(1, 4, 5, dtype=torch.bool)
    foreground[0, 1, 2] = foreground[0, 3, 4] = foreground[0, 0, 0] = True
    counts = torch.zeros(4, 5)
    torch.manual_seed(0)
    for _ in range(600):
        points, valid = draw_pixels(foreground, 1)
        assert valid.all()
        x, y = points[0, 0].floor().long().tolist()
        counts[y, x] += 1
    assert (counts > 0).equal(foreground[0])
    assert (counts[counts > 0] - 200).abs().max() < 45


def test_fewer_pixels_than_points_are_each_drawn_once() -> None:
    foreground = torch.zeros(2, 4, 5, dtype=torch.bool)
    foreground[0, 2, :3] = True
    points, valid = draw_pixels(foreground, 1000, centres=True)
    assert points.shape == (2, 20, 2)
    assert valid.sum(1).tolist() == [3, 0]
    assert {tuple(point) for point in points[0][valid[0]].tolist()} == {(0.5, 2.5), (1.5, 2.5), (2.5, 2.5)}


def everything(found: Correspondences) -> list[Tensor]:
    return [part for spots in found[:2] for part in spots]


def test_the_seed_determines_the_draw(batch: ViewBatch) -> None:
    one, same, other = drawn(batch, seed=1), drawn(batch, seed=1), drawn(batch, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(everything(one), everything(same), strict=True))
    assert not torch.equal(one.source.points, other.source.points)


@pytest.mark.parametrize("spoil", ["no depth", "nan depth", "no camera", "bad camera", "empty mask", "opposite"])
def test_views_that_tell_nothing_have_no_partner_and_no_nan(spoil: str, views: list[Any]) -> None:
    chosen = list(views[:2])
    fields: dict[str, Any] = {}
    if spoil == "no depth":
        fields["depth_valid"] = torch.tensor([True, False])
    elif spoil == "nan depth":
        fields["depth"] = torch.full((2, SIZE, SIZE), torch.nan)
    elif spoil == "no camera":
        fields["camera_valid"] = torch.tensor([False, True])
    elif spoil == "bad camera":
        fields["cameras"] = Cameras(torch.zeros(2, 3, 3), torch.eye(4).repeat(2, 1, 1))
    elif spoil == "empty mask":
        fields["masks"] = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    else:
        ball = [shapes.Sphere()]
        chosen = [shapes.see(ball, shapes.camera_at(a), SIZE) for a in (0, 180)]
    found = projected(*pairs_of(batch_of(chosen, **fields), masks=True), 50, 20)
    assert found.own is not None
    assert not found.own.any()
    assert all(bool(part.isfinite().all()) for part in everything(found))
    assert extent(found).isfinite().all()


def test_masks_cut_the_foreground(views: list[Any]) -> None:
    masks = torch.zeros(4, SIZE, SIZE, dtype=torch.bool)
    masks[:, :, : SIZE // 2] = True
    found = projected(*pairs_of(batch_of(views, masks=masks), masks=True), 100, 100)
    assert (found.source.points[found.source.valid][:, 0] < SIZE / 2).all()
    assert (found.target.points[found.target.valid][:, 0] < SIZE / 2 + 1).all()
    without = projected(*pairs_of(batch_of(views, masks=masks), masks=False), 100, 100)
    assert (without.source.points[without.source.valid][:, 0] > SIZE / 2).any()


def test_the_extent_is_the_longest_side_of_what_is_seen(batch: ViewBatch) -> None:
    found = drawn(batch, points=3000)
    for b in range(2):
        xyz = torch.cat([spots.xyz[b][spots.valid[b]] for spots in found[:2]])
        assert float(extent(found)[b]) == pytest.approx(float((xyz.amax(0) - xyz.amin(0)).max()))
    assert float(extent(found)[0]) == pytest.approx(1.15, abs=0.05)  # from -0.55 to 0.6 along x


def test_other_numbers_of_views_are_refused(views: list[Any]) -> None:
    pair = batch_of(views)
    batch = ViewBatch.make([3, 1], depth=pair.depth, cameras=pair.cameras)
    with pytest.raises(ValueError, match=r"two views of each object, got \[3, 1\]"):
        pairs_of(batch, masks=False)
