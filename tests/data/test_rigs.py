"""Camera rigs: where the cameras stand, and what their matrices do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mvcore.api import ConfigError
from mvcore_data import viewpoints
from mvcore_data.rigs import FRONTAL_AZIMUTH, FRONTAL_ELEVATION, RIG_NAMES, look_at, make_rig


@pytest.mark.parametrize("name", RIG_NAMES)
def test_cameras_look_at_the_object(name: str) -> None:
    rig = make_rig(name)
    viewpoints = rig.viewpoints()
    matrices, cameras = rig.cameras(100)
    for position, distance, matrix, camera in zip(
        viewpoints.positions(), viewpoints.distances, matrices, cameras, strict=True
    ):
        rotation = camera[:3, :3].astype(float)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(rotation) == pytest.approx(1)
        np.testing.assert_allclose(rotation @ position + camera[:3, 3], 0, atol=1e-6)
        np.testing.assert_allclose(camera[:3, 3], [0, 0, distance], atol=1e-6)
        np.testing.assert_allclose(matrix @ camera[:3, 3] / distance, [50, 50, 1], atol=1e-4)
        assert rotation[1, 1] < 1e-6  # the picture's y points down


@pytest.mark.parametrize("name", RIG_NAMES)
def test_angles_are_those_of_the_cameras(name: str) -> None:
    rig = make_rig(name)
    angles = rig.viewpoints().angles
    azimuth, elevation = viewpoints.azimuth_elevation(rig.cameras(64)[1])
    np.testing.assert_allclose(elevation, angles[:, 1], atol=1e-3)
    level = np.abs(elevation) < 89
    np.testing.assert_allclose(np.mod(azimuth - angles[:, 0] + 180, 360)[level], 180, atol=1e-3)


def test_positive_azimuth_turns_towards_x_and_the_picture_is_not_mirrored() -> None:
    front, side = make_rig("ring", 4).viewpoints().positions()[:2]
    assert front[2] > 0
    assert abs(front[0]) < 1e-9
    assert side[0] > 0
    assert abs(side[2]) < 1e-9
    seen = look_at(front) @ [1, 0, 0, 1]  # a point on +X is on the right of a camera on +Z
    assert seen[0] > 0


@given(st.tuples(*[st.floats(-5, 5)] * 3), st.tuples(*[st.floats(-1, 1)] * 3))
@example((0.0, 0.0, 0.0), (2.0**-23, 1.0, 0.0))  # all but straight above
def test_look_at_puts_the_target_on_the_axis(position: tuple[float, ...], target: tuple[float, ...]) -> None:
    eye, aim = np.array(position), np.array(target)
    if np.linalg.norm(aim - eye) < 1e-3:
        return
    matrix = look_at(eye, aim)
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
    seen = matrix @ [*aim, 1]
    np.testing.assert_allclose(seen[:3], np.array([0, 0, np.linalg.norm(aim - eye)]), atol=1e-9)


def test_look_at_works_straight_above() -> None:
    matrix = look_at(np.array([0.0, 2.0, 0.0]))
    np.testing.assert_allclose(matrix @ [1, 0, 0, 1], [1, 0, 2, 1], atol=1e-9)


def test_icosphere42_is_even() -> None:
    unit = make_rig("icosphere42").viewpoints().positions()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    angles = np.degrees(np.arccos(np.clip(unit @ unit.T, -1, 1)))
    nearest = np.sort(angles, axis=1)[:, 1]
    assert len(unit) == 42
    assert nearest.min() > 31
    assert nearest.max() < 37
    np.testing.assert_allclose(unit.sum(axis=0), 0, atol=1e-9)


def test_mvc36_follows_the_paper() -> None:
    rig = make_rig("mvc36")
    placed = rig.viewpoints()
    assert placed.angles.shape == (36, 2)
    assert set(placed.distances) == {1.5}
    assert rig.unit == "longest_side"
    assert rig.field_of_view == pytest.approx(49.13, abs=0.01)
    positions = placed.positions()
    np.testing.assert_allclose(positions[::12, 1], [1.4095, 0.9642, 0.2605], atol=1e-4)
    np.testing.assert_allclose(np.hypot(*positions[::12, ::2].T), [0.5130, 1.1491, 1.4772], atol=1e-4)
    np.testing.assert_allclose(positions[0, ::2], [0.5130, 0], atol=1e-4)  # view 0 on +X
    np.testing.assert_allclose(np.diff(np.unwrap(placed.angles[:12, 0], period=360)), 30)


def test_mvc18_is_every_second_azimuth_of_mvc36() -> None:
    whole = make_rig("mvc36").cameras(64)
    kept = np.arange(36).reshape(3, 12)[:, ::2].ravel()
    for half in (make_rig("mvc36", 18), make_rig("mvc18")):
        for one, all_ in zip(half.cameras(64), whole, strict=True):
            np.testing.assert_array_equal(one, all_[kept])


RANDOM = [name for name in RIG_NAMES if make_rig(name).seed is not None]


@pytest.mark.parametrize("name", RANDOM)
def test_random_viewpoints_follow_from_the_seed_and_the_object(name: str) -> None:
    rig = make_rig(name)
    first, again = rig.cameras(64, "mug"), make_rig(name).cameras(64, "mug")
    np.testing.assert_array_equal(first[1], again[1])
    fewer = make_rig(name, 5).cameras(64, "mug")
    np.testing.assert_array_equal(fewer[1], first[1][:5])
    for other in (rig.cameras(64, "car"), make_rig(name, seed=1).cameras(64, "mug")):
        assert np.abs(other[1] - first[1]).max(axis=(1, 2)).min() > 1e-3


def test_other_rigs_are_the_same_for_every_object() -> None:
    assert set(RANDOM) == {"zero123-12", "random-upper-100"}
    for name in set(RIG_NAMES) - set(RANDOM):
        rig = make_rig(name, seed=3)
        np.testing.assert_array_equal(rig.cameras(64, "mug")[1], rig.cameras(64, "car")[1])


def test_zero123_goes_all_round_at_its_distances() -> None:
    rig = make_rig("zero123-12")
    assert (rig.views, rig.unit) == (12, "longest_side")
    assert rig.field_of_view == pytest.approx(49.13, abs=0.01)
    placed = make_rig("zero123-12", 4000).viewpoints("x")
    assert 1.5 <= placed.distances.min() < 1.501
    assert 2.199 < placed.distances.max() <= 2.2
    assert abs(placed.distances.mean() - 1.85) < 0.01
    unit = placed.positions() / placed.distances[:, None]
    # A point of a cube lies in a cone towards a corner more often than one of a sphere does: cubed sizes tell.
    assert np.abs(unit.mean(axis=0)).max() < 0.03
    np.testing.assert_allclose((unit**2).mean(axis=0), 1 / 3, atol=0.01)
    assert (unit**4).sum(axis=1).mean() < 0.58  # uniform on the sphere: 3/5


def test_random_upper_is_uniform_over_the_upper_half_sphere() -> None:
    assert make_rig("random-upper-100").views == 100
    placed = make_rig("random-upper-100", 4000).viewpoints("x")
    height = placed.positions()[:, 1] / placed.distances
    assert height.min() >= 0
    np.testing.assert_allclose(np.histogram(height, 10, (0, 1))[0], 400, atol=80)
    np.testing.assert_allclose(np.histogram(placed.angles[:, 0], 12, (0, 360))[0], 4000 / 12, atol=80)


def test_demo24_has_four_frontal_views_and_goes_round() -> None:
    azimuth, elevation = make_rig("demo24").viewpoints().angles.T
    frontal = viewpoints.within(azimuth, [FRONTAL_AZIMUTH]) & viewpoints.within(elevation, [FRONTAL_ELEVATION])
    assert np.flatnonzero(frontal).tolist() == [0, 1, 2, 3]
    assert elevation.min() >= -30
    assert elevation.max() <= 70
    np.testing.assert_array_equal(make_rig("demo24", 4).viewpoints().angles, make_rig("demo24").viewpoints().angles[:4])
    gaps = np.diff(np.sort(np.mod(azimuth[4:], 360)), append=360)
    assert gaps.max() <= 18 + 1e-9


def test_upper_stays_above_ground() -> None:
    for views in (1, 7, 24, 100):
        elevation = make_rig("upper", views).viewpoints().angles[:, 1]
        assert len(elevation) == views
        assert elevation.min() >= 0
        assert elevation.max() <= 80


@pytest.mark.parametrize("name", [name for name in RIG_NAMES if make_rig(name).unit == "sphere"])
def test_a_unit_sphere_fits_into_the_picture(name: str) -> None:
    rig = make_rig(name)
    assert np.degrees(np.arcsin(1 / rig.viewpoints().distances.min())) < rig.field_of_view / 2


@pytest.mark.parametrize(
    ("name", "views"), [("demo24", 12), ("icosphere42", 24), ("mvc36", 35), ("mvc18", 36), ("ring", 0), ("cube", 6)]
)
def test_what_a_rig_cannot_do_is_said(name: str, views: int) -> None:
    with pytest.raises(ConfigError, match=f"rig '{name}'"):
        make_rig(name, views)
