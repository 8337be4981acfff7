"""Lifting, projecting and co-visibility against ray-cast spheres and naive arithmetic."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import shapes
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore_equivariance import lift_depth, project
from mvcore_equivariance.geometry import (
    Camera,
    Sight,
    Surface,
    between_centres,
    lift,
    look_for,
    sees_face,
)
from torch import Tensor

BALL = [shapes.Sphere()]


def tensors(seen: Any, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Depth (H, W), intrinsics and world-to-camera."""
    values = (seen.depth, seen.intrinsics, seen.world_to_camera)
    depth, intrinsics, world_to_camera = (torch.tensor(value, dtype=dtype) for value in values)
    return depth, intrinsics, world_to_camera


def centres(seen: Any) -> Tensor:
    """(P, 2) all foreground pixels' centres."""
    rows, columns = np.nonzero(seen.depth)
    return torch.tensor(np.stack([columns, rows], 1) + 0.5)


def between(first: Any, second: Any, points: Tensor) -> tuple[Surface, Sight]:
    """Points of the first view and what the second sees of them."""
    (d1, k1, t1), (d2, k2, t2) = tensors(first), tensors(second)
    surface = lift(d1[None], Camera(k1[None], t1[None]), points[None])
    return surface, look_for(surface, d2[None], Camera(k2[None], t2[None]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a2_what_is_lifted_projects_back(dtype: torch.dtype) -> None:
    seen = shapes.see(BALL, shapes.camera_at(40, 25), 128)
    points = centres(seen).to(dtype)
    x = lift_depth(*tensors(seen, dtype), points)
    assert x.dtype == dtype
    back, depth = project(x, *tensors(seen, dtype)[1:])
    assert (back - points).abs().max() < 1e-3
    assert (depth - torch.tensor(seen.depth[seen.depth > 0])).abs().max() < 1e-5
    assert (x.norm(dim=1) - 0.5).abs().max() < 1e-5  # on the sphere itself


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_a2_any_point_projects_back_and_planes_are_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, turn = 40, shapes.camera_at(rng.uniform(0, 360), rng.uniform(-80, 80))
    k = torch.tensor(shapes.pinhole(size))
    grid = np.arange(size) + 0.5
    image = np.stack([*np.meshgrid(grid, grid), np.ones((size, size))], -1)
    # Not seen at a glancing angle, where neighbouring pixels count as of different surfaces.
    normal = np.array([*rng.uniform(-0.5, 0.5, 2), -1])
    # n . (z ray) = -2 on a plane
    rays = image @ np.linalg.inv(k.numpy()).T
    depth = torch.tensor(-2 / (rays @ normal))
    points = torch.tensor(rng.uniform(0.5, size - 0.5, (30, 2)))
    x = lift_depth(depth, k, torch.tensor(turn), points)
    local = x.numpy() @ turn[:3, :3].T + turn[:3, 3]
    assert np.abs(local @ normal + 2).max() < 1e-9
    back, z = project(x, k, torch.tensor(turn))
    assert (back - points).abs().max() < 1e-9
    assert np.abs(z.numpy() - local[:, 2]).max() < 1e-9


def test_a2_where_the_other_view_sees_it_depth_agrees() -> None:
    first, second = (shapes.see(BALL, shapes.camera_at(*at), 256) for at in ((0, 0), (35, 15)))
    surface, sight = between(first, second, centres(first))
    pixels = sight.points[0].floor().long().clamp(0, 255)
    there = torch.tensor(second.depth)[pixels[:, 1], pixels[:, 0]]
    kept = sight.seen[0] & (there > 0)  # at the outline a pixel's centre may be background
    _, z = project(surface.xyz[0], *tensors(second)[1:])
    off = ((there - z).abs() / sight.footprint[0])[kept]
    assert off.max() < 2 * (1 + 8)
    assert off.median() < 0.5


@pytest.mark.parametrize("quantum", [None, 1e-3])
def test_a3_correspondences_are_where_the_surface_is(quantum: float | None) -> None:
    """Against the true surface point of each sub-pixel position; with 1 mm depth at most 0.14 pixels more."""
    first, second = (shapes.see(BALL, shapes.camera_at(*at), 512) for at in ((0, 0), (32, 0)))
    rng = torch.Generator().manual_seed(0)
    points = centres(first)[torch.randperm(int((first.depth > 0).sum()), generator=rng)[:3000]]
    points = points + (torch.rand(points.shape, generator=rng) - 0.5) * 0.98
    depth, k1, t1 = tensors(first)
    exact = between_centres(depth[None], Camera(k1[None], t1[None]), points[None])[0]
    assert exact.double().mean() > 0.97
    points = torch.where(exact[:, None], points, points.floor() + 0.5)
    given_depth = first.depth if quantum is None else np.round(first.depth / quantum) * quantum
    quantised = shapes.Seen(given_depth, first.which, first.pixels, first.intrinsics, first.world_to_camera)
    _, sight = between(quantised, second, points)
    k, t = first.intrinsics, first.world_to_camera
    rays = np.concatenate([points.numpy(), np.ones((len(points), 1))], 1) @ np.linalg.inv(k).T @ t[:3, :3]
    origin = -t[:3, :3].T @ t[:3, 3]
    along, which = shapes.hit(BALL, origin, rays)
    truth, _ = project(torch.tensor(origin + rays * np.where(which < 0, 1, along)[:, None]), *tensors(second)[1:])
    kept = sight.seen[0] & torch.tensor(which >= 0)
    errors = (sight.points[0] - truth)[kept].norm(dim=1)
    extra = 0 if quantum is None else 0.14
    assert errors.max() < 1 + extra
    assert errors.mean() < (0.01 if quantum is None else 0.1)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("azimuth", [10, 32, 60, 90])
def test_a4_a_sphere_is_seen_as_far_as_its_normals_say(azimuth: float) -> None:
    first, second = (shapes.see(BALL, shapes.camera_at(a, 10), 256) for a in (0, azimuth))
    surface, sight = between(first, second, centres(first))
    truth = shapes.truly_sees(BALL, surface.xyz[0].numpy(), second.world_to_camera, 256)
    assert iou(sight.seen[0].numpy(), truth) > 0.98


def test_a4_what_is_hidden_is_not_seen() -> None:
    pair = [shapes.Sphere((-0.3, 0, 0), 0.25), shapes.Sphere((0.3, 0, 0.1), 0.3)]
    for angles in pairwise((0, 40, 80, 115, 150)):
        first, second = (shapes.see(pair, shapes.camera_at(a, 5), 256) for a in angles)
        surface, sight = between(first, second, centres(first))
        truth = shapes.truly_sees(pair, surface.xyz[0].numpy(), second.world_to_camera, 256)
        assert iou(sight.seen[0].numpy(), truth) > 0.97
        assert (sight.seen[0].numpy() & ~truth).mean() < 0.01


def test_a4_seeing_is_symmetric() -> None:
    first, second = (shapes.see(BALL, shapes.camera_at(a), 256) for a in (0, 50))
    _, sight = between(first, second, centres(first))
    surface, back = between(second, first, sight.points[0][sight.seen[0]])
    assert surface.valid.double().mean() > 0.95  # at the outline a pixel's centre may be background
    assert back.seen[surface.valid].double().mean() > 0.99


def test_two_sides_of_a_thin_sheet_are_not_one_point() -> None:
    """Nearer than depth can tell: the normals do."""
    front, back = (shapes.see(BALL, shapes.camera_at(a), 64) for a in (0, 180))
    size = front.depth.shape[0]
    sheets = [np.full((size, size), 2.0), np.full((size, size), 2.0 + 1e-3)]
    first, second = (
        shapes.Seen(depth, view.which, view.pixels, view.intrinsics, view.world_to_camera)
        for depth, view in zip(sheets, (front, back), strict=True)
    )
    surface, sight = between(first, second, torch.tensor([[32.5, 32.5], [20.5, 40.5]]).double())
    assert surface.valid.all()
    assert not sight.seen.any()


def test_normals_point_out_of_the_sphere() -> None:
    seen = shapes.see(BALL, shapes.camera_at(25, 40), 256)
    depth, k, t = tensors(seen)
    surface = lift(depth[None], Camera(k[None], t[None]), centres(seen)[None])
    known = surface.normal.norm(dim=-1) > 0
    outwards = (surface.normal * surface.xyz / 0.5).sum(-1)
    assert known.double().mean() > 0.99
    assert torch.rad2deg(torch.acos(outwards[known].clamp(max=1))).median() < 0.5


def test_faces_tell_what_depth_cannot() -> None:
    faces = torch.tensor([[[0, 0, 1, -1]] * 4])
    points = torch.tensor([[[0.5, 0.5], [1.6, 1.2], [3.5, 2.5], [-0.5, 1.0], [0.5, 1.5], [2.5, 3.9]]])
    face = torch.tensor([[0, 1, 1, 0, 2, 1]])
    assert sees_face(points, faces, face)[0].tolist() == [True, True, True, False, False, True]
    assert not sees_face(points, faces, torch.full_like(face, -1)).any()


def test_batches_are_their_rows() -> None:
    views = [shapes.see(BALL, shapes.camera_at(a), 64) for a in (0, 30, 60)]
    points = torch.rand(3, 50, 2, generator=torch.Generator().manual_seed(0)).double() * 64
    depth, k, t = (torch.stack(parts) for parts in zip(*(tensors(view) for view in views), strict=True))
    together = lift_depth(depth, k, t, points)
    for b in range(3):
        assert torch.equal(together[b].isnan(), lift_depth(depth[b], k[b], t[b], points[b]).isnan())
        assert torch.allclose(together[b], lift_depth(depth[b], k[b], t[b], points[b]), equal_nan=True)
    there = together.nan_to_num()
    for b in range(3):
        assert torch.allclose(project(there, k, t)[0][b], project(there[b], k[b], t[b])[0])


@pytest.mark.parametrize("hole", [0.0, float("nan"), float("inf"), -1.0])
def test_no_depth_is_no_point(hole: float) -> None:
    depth = torch.full((8, 8), 2.0)
    depth[2, 3] = hole
    k, t = torch.tensor(shapes.pinhole(8)).float(), torch.eye(4)
    points = torch.tensor([[3.5, 2.5], [2.5, 2.5], [2.9, 2.5], [-0.1, 2.0], [8.0, 2.0]])
    x = lift_depth(depth, k, t, points)
    assert x.isnan().all(1).tolist() == [True, False, False, True, True]
    assert (x[1:3, 2] == 2).all()  # beside the hole, of the pixel alone
    surface = lift(depth[None], Camera(k[None], t[None]), points[None])
    assert surface.valid[0].tolist() == [False, True, True, False, False]
    assert all(bool(part.isfinite().all()) for part in surface)
    sight = look_for(surface, depth[None], Camera(k[None], t[None]))
    assert sight.seen[0].tolist() == [False, True, True, False, False]
    assert all(bool(part.isfinite().all()) for part in sight)


def test_geometry_is_exact_within_autocast() -> None:
    seen = shapes.see(BALL, shapes.camera_at(40, 25), 64)
    points = centres(seen).float()
    expected = lift_depth(*tensors(seen, torch.float32), points)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lift_depth(*tensors(seen, torch.float32), points), expected)
        back, _ = project(expected, *tensors(seen, torch.float32)[1:])
    assert (back - points).abs().max() < 1e-3


def test_what_is_behind_a_camera_has_no_place_in_its_image() -> None:
    k, t = torch.tensor(shapes.pinhole(8)).float(), torch.eye(4)
    points, depth = project(torch.tensor([[0.0, 0, 2], [0, 0, -2], [0, 0, 0]]), k, t)
    assert depth.tolist() == [2, -2, 0]
    assert points[0].tolist() == [4, 4]
    assert points[1:].isnan().all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda k, t: k.zero_(),
        lambda k, t: k[0].neg_(),
        lambda k, t: k.fill_(float("nan")),
        lambda k, t: t[0].zero_(),
        lambda k, t: t[0, 3].fill_(float("inf")),
    ],
    ids=["zero", "negative focal", "nan", "flat", "infinite shift"],
)
def test_what_is_no_camera_is_refused_or_sees_nothing(spoil: Any) -> None:
    seen = shapes.see(BALL, shapes.camera_at(0), 16)
    depth, k, t = tensors(seen)
    good = Camera(k[None].clone(), t[None].clone())
    spoil(k, t)
    with pytest.raises(ValueError, match=r"camera 0 is none: .* got intrinsics"):
        lift_depth(depth, k, t, torch.zeros(1, 2).double())
    with pytest.raises(ValueError, match="camera 0 is none"):
        project(torch.zeros(1, 3).double(), k, t)
    bad = Camera(k[None], t[None])
    surface = lift(depth[None], bad, centres(seen)[None])
    assert not surface.valid.any()
    sight = look_for(lift(depth[None], good, centres(seen)[None]), depth[None], bad)
    assert not sight.seen.any()
    assert all(bool(part.isfinite().all()) for part in (*surface, *sight))


@pytest.mark.parametrize(("points", "message"), [((3, 3), r"\(3, 3\)"), ((2,), r"\(2,\)"), ((2, 3, 2), r"\(2, 3, 2\)")])
def test_wrong_shapes_are_named(points: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lift_depth(torch.ones(4, 4), torch.eye(3), torch.eye(4), torch.zeros(points))
