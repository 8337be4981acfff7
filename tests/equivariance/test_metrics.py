"""Metrics of the evaluators against definitions written out as loops."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mvcore_equivariance.metrics import ape_pcdp, pck, pose_error, tap_vid_metrics
from numpy.typing import NDArray

SIZE = (512, 640)


def points(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 500


def test_a_perfect_predictor_has_no_error() -> None:
    truth = points(20)
    ape, pcdp = ape_pcdp(truth, truth, SIZE)
    assert float(ape) == 0
    assert pcdp.tolist() == [1, 1, 1]


@pytest.mark.parametrize("size", [(512, 640), (640, 512)])
def test_ape_counts_in_shortest_edges(size: tuple[int, int]) -> None:
    truth = points(20)
    ape, pcdp = ape_pcdp(truth + torch.tensor([3.0, 4.0]), truth, size)
    assert float(ape) == pytest.approx(5 / 512, abs=1e-12)
    assert pcdp.tolist() == [1, 1, 1]


def test_an_error_at_the_threshold_is_not_below_it() -> None:
    truth = torch.zeros(2, 2, dtype=torch.float64)
    predicted = torch.tensor([[0.05 * 512, 0], [math.nextafter(0.05 * 512, 0), 0]], dtype=torch.float64)
    assert ape_pcdp(predicted, truth, (512, 512), (0.05,)).pcdp.tolist() == [0.5]
    assert pck(predicted, truth, 512, (0.05,)).tolist() == [0.5]
    for edge in range(3, 700):  # also where the quotient is not exact
        one = torch.tensor([[0.1 * edge, 0]], dtype=torch.float64)
        assert ape_pcdp(one, truth[:1], (edge, edge), (0.1,)).pcdp.tolist() == [0]


@given(st.integers(1, 30), st.integers(0, 1000))
def test_pcdp_rises_with_the_threshold_and_is_a_loop(count: int, seed: int) -> None:
    predicted, truth = points(count, seed), points(count, seed + 1)
    thresholds = (0.05, 0.1, 0.2, 0.5)
    ape, pcdp = ape_pcdp(predicted, truth, SIZE, thresholds)
    errors = [math.dist(p, t) for p, t in zip(predicted.tolist(), truth.tolist(), strict=True)]
    assert float(ape) == pytest.approx(sum(errors) / count / 512, abs=1e-12)
    expected = [sum(error < t * 512 for error in errors) / count for t in thresholds]
    assert pcdp.tolist() == pytest.approx(expected, abs=1e-12)
    assert sorted(expected) == expected


def test_float32_points_are_measured_alike() -> None:
    predicted, truth = points(50, 1), points(50, 2)
    exact, rough = ape_pcdp(predicted, truth, SIZE), ape_pcdp(predicted.float(), truth.float(), SIZE)
    assert float(exact.ape) == pytest.approx(float(rough.ape), rel=1e-6)


def test_pck_takes_a_size_for_each_point() -> None:
    truth = torch.zeros(3, 2)
    predicted = torch.tensor([[1.0, 0], [1.0, 0], [5.0, 0]])
    assert pck(predicted, truth, torch.tensor([5.0, 20.0, 40.0]), (0.1, 0.25)).tolist() == pytest.approx([1 / 3, 1])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ape_pcdp(torch.zeros(2, 3), torch.zeros(2, 3), SIZE), r"\(P, 2\) with P > 0, not \(2, 3\)"),
        (lambda: ape_pcdp(torch.zeros(0, 2), torch.zeros(0, 2), SIZE), r"not \(0, 2\)"),
        (lambda: ape_pcdp(torch.zeros(2, 2), torch.zeros(2, 2), (0, 5)), r"image_size must be positive, not \(0, 5\)"),
        (lambda: pck(torch.zeros(2, 2), torch.zeros(2, 2), 0, (0.1,)), "size must be positive"),
        (lambda: pose_error(np.eye(3), np.eye(4)), r"a pose must be \(4, 4\) finite numbers, not \(3, 3\)"),
        (lambda: pose_error(np.full((4, 4), np.nan), np.eye(4)), "finite"),
    ],
)
def test_wrong_shapes_are_named(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def rotation(axis: NDArray, degrees: float) -> NDArray[np.float64]:
    """Rodrigues' formula."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    pose = np.eye(4)
    pose[:3, :3] += math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    return pose


def test_equal_poses_are_not_apart() -> None:
    pose = rotation(np.array([1.0, 2, 3]), 77)
    pose[:3, 3] = 1, 2, 3
    assert pose_error(pose, pose) == pytest.approx((0, 0), abs=1e-12)


@given(st.floats(0, 180), st.floats(0, 5), st.integers(0, 100))
def test_a_known_turn_and_shift_is_found(degrees: float, distance: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = rotation(rng.normal(size=3), rng.uniform(0, 180))
    base[:3, 3] = rng.normal(size=3)
    moved = base.copy()
    moved[:3, :3] = rotation(rng.normal(size=3), degrees)[:3, :3] @ base[:3, :3]
    way = rng.normal(size=3)
    moved[:3, 3] += distance * way / np.linalg.norm(way)
    assert pose_error(moved, base) == pytest.approx((degrees, distance), abs=1e-6)
    assert pose_error(torch.tensor(moved), torch.tensor(base)).degrees == pytest.approx(degrees, abs=1e-6)


def test_half_a_turn_is_a_number() -> None:
    for axis in np.eye(3):
        assert pose_error(rotation(axis, 180), np.eye(4)).degrees == pytest.approx(180, abs=1e-6)
    assert pose_error(np.diag([-1.0, -1.0, 1.0, 1.0]), np.eye(4)).degrees == 180


def tap_vid_loop(queries: Any, hidden: Any, truth: Any, said: Any, tracks: Any, mode: str) -> list[dict[str, float]]:
    """The definitions of TAP-Vid, point by point and frame by frame."""
    videos = []
    for b in range(len(hidden)):
        n, frames = hidden[b].shape
        cells = [
            (i, t)
            for i in range(n)
            for t in range(frames)
            if (t > round(queries[b][i][0]) if mode == "first" else t != round(queries[b][i][0]))
        ]
        found: dict[str, Any] = {"occlusion_accuracy": np.mean([hidden[b][c] == said[b][c] for c in cells])}
        for distance in (1, 2, 4, 8, 16):
            hits = visible = positives = false = 0
            for c in cells:
                near = sum((tracks[b][c] - truth[b][c]) ** 2) < distance**2
                visible += not hidden[b][c]
                hits += near and not hidden[b][c]
                positives += near and not hidden[b][c] and not said[b][c]
                false += not said[b][c] and (hidden[b][c] or not near)
            found[f"pts_within_{distance}"] = hits / visible
            found[f"jaccard_{distance}"] = positives / (visible + false)
        found["average_pts_within_thresh"] = np.mean([found[f"pts_within_{d}"] for d in (1, 2, 4, 8, 16)])
        found["average_jaccard"] = np.mean([found[f"jaccard_{d}"] for d in (1, 2, 4, 8, 16)])
        videos.append(found)
    return videos


Arrays: TypeAlias = tuple[NDArray, NDArray, NDArray, NDArray, NDArray]


def arrays(seed: int, videos: int = 2, n: int = 7, frames: int = 6) -> Arrays:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 256, (videos, n, frames, 2))
    tracks = truth + rng.normal(size=truth.shape) * rng.choice([0.3, 3.0, 12.0], (videos, n, frames, 1))
    queries = np.concatenate([rng.integers(0, frames - 1, (videos, n, 1)), rng.uniform(0, 256, (videos, n, 2))], -1)
    hidden, said = rng.random((2, videos, n, frames)) < 0.3
    return queries, hidden, truth, said, tracks


@pytest.mark.parametrize("mode", ["first", "strided"])
@pytest.mark.parametrize("seed", range(10))
def test_tap_vid_is_its_definition(mode: Literal["first", "strided"], seed: int) -> None:
    given_arrays = arrays(seed)
    found = tap_vid_metrics(*given_arrays, mode)
    for b, expected in enumerate(tap_vid_loop(*given_arrays, mode)):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key][b] == pytest.approx(value, abs=1e-12), key


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_perfect_tracks_score_one(mode: Literal["first", "strided"]) -> None:
    queries, hidden, truth, _, _ = arrays(0)
    found = tap_vid_metrics(queries, hidden, truth, hidden, truth, mode)
    assert {key: values.tolist() for key, values in found.items()} == {key: [1.0, 1.0] for key in found}


def test_a_shift_of_three_pixels_is_within_four() -> None:
    queries, hidden, truth, _, _ = arrays(0)
    found = tap_vid_metrics(queries, hidden, truth, hidden, truth + np.array([3.0, 0.0]), "strided")
    within = [found[f"pts_within_{distance}"].tolist() for distance in (1, 2, 4, 8, 16)]
    assert within == [[0, 0], [0, 0], [1, 1], [1, 1], [1, 1]]
    assert found["average_jaccard"].tolist() == pytest.approx([0.6, 0.6])


def test_the_query_frame_is_not_counted() -> None:
    queries, hidden, truth, said, tracks = arrays(3)
    changed = tracks.copy()
    flipped = said.copy()
    for b in range(len(queries)):
        for i, query in enumerate(queries[b]):
            changed[b, i, int(query[0])] += 1000
            flipped[b, i, int(query[0])] ^= True
    for mode in ("first", "strided"):
        before, after = (
            tap_vid_metrics(queries, hidden, truth, *p, mode) for p in ((said, tracks), (flipped, changed))
        )
        assert all((before[key] == after[key]).all() for key in before)


def test_what_is_not_tap_vid_is_refused() -> None:
    queries, hidden, truth, said, tracks = arrays(0)
    unknown: Any = "last"
    with pytest.raises(ValueError, match="query_mode must be 'first' or 'strided', not 'last'"):
        tap_vid_metrics(queries, hidden, truth, said, tracks, unknown)
    with pytest.raises(ValueError, match="query's frame must lie in 0 to 5, not"):
        tap_vid_metrics(queries + 7, hidden, truth, said, tracks, "first")
    with pytest.raises(ValueError, match=r"pred_tracks must be \(2, 7, 6, 2\), not \(2, 7, 5, 2\)"):
        tap_vid_metrics(queries, hidden, truth, said, tracks[:, :, :5], "first")
    with pytest.raises(ValueError, match=r"query_points must be \(B, N, 3\)"):
        tap_vid_metrics(queries[0], hidden, truth, said, tracks, "first")


def test_arrays_are_measured_as_tensors_are() -> None:
    predicted, truth = points(9, 1), points(9, 2)
    assert ape_pcdp(predicted.numpy(), truth.numpy(), SIZE).ape == ape_pcdp(predicted, truth, SIZE).ape  # type: ignore[arg-type]
