"""Camera rigs: where the cameras stand, and what their matrices do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mvcore.api import ConfigError
from mvcore_data import viewpoints
from mvcore_data.rigs import FRONTAL_AZIMUTH, FRONTAL_ELEVATION, RIG_NAMES, look_at, make_rig


@pytest.mark.parametrize("name", RIG_NAMES)
def test_cameras_look_at_the_object(name: str) -> None:
    rig = make_rig(name)
    intrinsics, world_to_camera = rig.cameras(100)
    for position, matrix, camera in zip(rig.positions(), intrinsics, world_to_camera, strict=True):
        rotation = camera[:3, :3].astype(float)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(rotation) == pytest.approx(1)
        np.testing.assert_allclose(rotation @ position + camera[:3, 3], 0, atol=1e-6)
        np.testing.assert_allclose(camera[:3, 3], [0, 0, rig.distance], atol=1e-6)
        np.testing.assert_allclose(matrix @ camera[:3, 3] / rig.distance, [50, 50, 1], atol=1e-4)
        assert rotation[1, 1] < 1e-6  # the picture's y points down


@pytest.mark.parametrize("name", RIG_NAMES)
def test_angles_are_those_of_the_cameras(name: str) -> None:
    rig = make_rig(name)
    azimuth, elevation = viewpoints.azimuth_elevation(rig.cameras(64)[1])
    np.testing.assert_allclose(elevation, rig.angles[:, 1], atol=1e-3)
    level = np.abs(elevation) < 89
    np.testing.assert_allclose(np.mod(azimuth - rig.angles[:, 0] + 180, 360)[level], 180, atol=1e-3)


def test_positive_azimuth_turns_towards_x_and_the_picture_is_not_mirrored() -> None:
    front, side = make_rig("ring", 4).positions()[:2]
    assert front[2] > 0
    assert abs(front[0]) < 1e-9
    assert side[0] > 0
    assert abs(side[2]) < 1e-9
    seen = look_at(front) @ [1, 0, 0, 1]  # a point on +X is on the right of a camera on +Z
    assert seen[0] > 0


@given(st.tuples(*[st.floats(-5, 5)] * 3), st.tuples(*[st.floats(-1, 1)] * 3))
def test_look_at_puts_the_target_on_the_axis(position: tuple[float, ...], target: tuple[float, ...]) -> None:
    eye, aim = np.array(position), np.array(target)
    if np.linalg.norm(aim - eye) < 1e-3:
        return
    seen = look_at(eye, aim) @ [*aim, 1]
    np.testing.assert_allclose(seen[:3], np.array([0, 0, np.linalg.norm(aim - eye)]), atol=1e-9)


def test_look_at_works_straight_above() -> None:
    matrix = look_at(np.array([0.0, 2.0, 0.0]))
    np.testing.assert_allclose(matrix @ [1, 0, 0, 1], [1, 0, 2, 1], atol=1e-9)


def test_icosphere42_is_even() -> None:
    rig = make_rig("icosphere42")
    unit = rig.positions() / rig.distance
    angles = np.degrees(np.arccos(np.clip(unit @ unit.T, -1, 1)))
    nearest = np.sort(angles, axis=1)[:, 1]
    assert len(unit) == 42
    assert nearest.min() > 31
    assert nearest.max() < 37
    np.testing.assert_allclose(unit.sum(axis=0), 0, atol=1e-9)


def test_mvc36_follows_the_paper() -> None:
    rig = make_rig("mvc36")
    assert rig.angles.shape == (36, 2)
    assert (rig.distance, rig.unit) == (1.5, "longest_side")
    assert rig.field_of_view == pytest.approx(49.13, abs=0.01)
    heights = rig.positions()[::12, 1]
    np.testing.assert_allclose(heights, [1.4095, 0.9642, 0.2605], atol=1e-4)
    np.testing.assert_allclose(np.hypot(*rig.positions()[::12, ::2].T), [0.5130, 1.1491, 1.4772], atol=1e-4)
    np.testing.assert_allclose(rig.positions()[0, ::2], [0.5130, 0], atol=1e-4)  # view 0 on +X
    np.testing.assert_allclose(np.diff(np.unwrap(rig.angles[:12, 0], period=360)), 30)
    half = make_rig("mvc36", 18)
    np.testing.assert_allclose(half.angles[:6], rig.angles[:12:2])


def test_demo24_has_four_frontal_views_and_goes_round() -> None:
    azimuth, elevation = make_rig("demo24").angles.T
    frontal = viewpoints.within(azimuth, [FRONTAL_AZIMUTH]) & viewpoints.within(elevation, [FRONTAL_ELEVATION])
    assert np.flatnonzero(frontal).tolist() == [0, 1, 2, 3]
    assert elevation.min() >= -30
    assert elevation.max() <= 70
    np.testing.assert_array_equal(make_rig("demo24", 4).angles, make_rig("demo24").angles[:4])
    gaps = np.diff(np.sort(np.mod(azimuth[4:], 360)), append=360)
    assert gaps.max() <= 18 + 1e-9


def test_upper_stays_above_ground() -> None:
    for views in (1, 7, 24, 100):
        elevation = make_rig("upper", views).angles[:, 1]
        assert len(elevation) == views
        assert elevation.min() >= 0
        assert elevation.max() <= 80


@pytest.mark.parametrize("name", [name for name in RIG_NAMES if name != "mvc36"])
def test_a_unit_sphere_fits_into_the_picture(name: str) -> None:
    rig = make_rig(name)
    assert np.degrees(np.arcsin(1 / rig.distance)) < rig.field_of_view / 2


@pytest.mark.parametrize(
    ("name", "views"), [("demo24", 12), ("icosphere42", 24), ("mvc36", 35), ("ring", 0), ("cube", 6)]
)
def test_what_a_rig_cannot_do_is_said(name: str, views: int) -> None:
    with pytest.raises(ConfigError, match=f"rig '{name}'"):
        make_rig(name, views)
