"""Acceptance A1 and A6: the angle between cameras, and which pairs of a rig are within 120 degrees."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.training.sampling.pairs import TOLERANCE, pair_angles
from mvcore_data.rigs import make_rig
from mvcore_equivariance.geometry import relative_rotation
from numpy.typing import NDArray


def authors_rig() -> NDArray[np.float64]:
    """(42, 4, 4) object to camera: a once subdivided icosahedron with vertices at the poles, as Blender makes it.

    Level cameras; at the poles, where that says nothing, y takes the place of z. Our own rig of 42 views has its
    vertices elsewhere, and so other rolls.
    """
    steps = np.radians(72 * np.arange(5))
    ring = [(2 * np.cos(a), 2 * np.sin(a), 1.0) for a in steps]
    vertices = np.array([(0, 0, 5**0.5), *ring])
    vertices = np.concatenate([vertices, -vertices]) / 5**0.5
    sides = [(one, other) for one, other in combinations(vertices, 2) if 0 < np.linalg.norm(one - other) < 1.1]
    places = np.array([*vertices, *(one + other for one, other in sides)])
    matrices = np.tile(np.eye(4), (42, 1, 1))
    for matrix, place in zip(matrices, places / np.linalg.norm(places, axis=1, keepdims=True), strict=True):
        down = np.array([0.0, -1, 0] if abs(place[2]) > 1 - 1e-9 else [0.0, 0, -1])
        right = np.cross(down, -place)
        right /= np.linalg.norm(right)
        matrix[:3, :3] = right, np.cross(-place, right), -place
        matrix[2, 3] = 2
    return matrices


def test_a1_the_authors_rig() -> None:
    matrices = authors_rig()
    turns, shifts = matrices[:, :3, :3], matrices[:, :3, 3]
    np.testing.assert_allclose(shifts, np.tile([0, 0, 2.0], (42, 1)))
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (42, 1, 1)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(turns), 1)
    centres = -np.einsum("nij,ni->nj", turns, shifts)
    elevations = np.unique(np.degrees(np.arcsin(centres[:, 2] / 2)).round(1))
    np.testing.assert_allclose(elevations, [-90, -58.3, -31.7, -26.6, 0, 26.6, 31.7, 58.3, 90])
    apart = np.degrees(np.arccos(np.clip(centres @ centres.T / 4, -1, 1)))
    np.testing.assert_allclose(np.sort(apart, axis=1)[:, 1], 31.72, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a6_pairs_of_the_authors_rig_within_120_degrees(dtype: torch.dtype) -> None:
    """Of 861 pairs, 20 are at 120 degrees exactly, and a rounding says on which side; they count as within."""
    matrices = torch.tensor(authors_rig(), dtype=dtype)
    found = relative_rotation(matrices[:, None], matrices[None])[torch.triu_indices(42, 42, 1).unbind()]
    assert len(found) == 861
    assert (found < 119.9).sum() == 490
    assert (found < 120.1).sum() == 510
    assert ((found - 120).abs() < TOLERANCE).sum() == 20
    core = pair_angles(matrices.double().numpy(), "rotation")[np.triu_indices(42, 1)]
    assert (core <= 120 + TOLERANCE).sum() == 510
    assert (core <= 120 - TOLERANCE).sum() == 490


def test_a6_the_angle_between_cameras_is_core_s() -> None:
    """With the tolerance that it takes: the rig has pairs at 120 degrees exactly, give or take a rounding."""
    _, matrices = make_rig("icosphere42").cameras(512)
    for dtype in (torch.float64, torch.float32):
        t = torch.tensor(matrices, dtype=dtype)
        found = relative_rotation(t[:, None], t[None])
        off = found - torch.tensor(pair_angles(matrices, "rotation"))
        assert (off.abs() < TOLERANCE / 10)[found < 179].all()
        pairs = found[torch.triu_indices(42, 42, 1).unbind()]
        at_limit = ((pairs - 120).abs() < TOLERANCE).sum()
        assert at_limit == 28
        assert (pairs <= 120 + TOLERANCE).sum() == 500
        assert (pairs <= 120 - TOLERANCE).sum() == 472


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 180), st.integers(0, 1000))
def test_a6_a_known_rotation_has_its_angle(angle: float, seed: int) -> None:
    axis = torch.nn.functional.normalize(torch.randn(3, generator=torch.Generator().manual_seed(seed)).double(), dim=0)
    cross = torch.linalg.cross(torch.eye(3, dtype=torch.float64), axis.expand(3, 3))
    turn = torch.linalg.matrix_exp(cross * np.radians(angle))
    assert float(relative_rotation(turn, torch.eye(3, dtype=torch.float64))) == pytest.approx(angle, abs=1e-5)
