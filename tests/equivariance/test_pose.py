"""`equivariance.pose`: PnP on exact matches, and the protocol on small files in OnePose-LowTexture's layout."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mvcore
import numpy as np
import pytest
import torch
from known_backbones import KnownBackbone
from mvcore.api import Backbone, ConfigError, DataError, DenseGrid, EvalResult, ViewBatch
from mvcore.evaluation.runner import evaluate
from mvcore.model import Model, Pipeline
from mvcore_equivariance.metrics import pose_error
from mvcore_equivariance.pnp import solve_pnp
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

ID = "equivariance.pose"
SIZE = 96
K = np.array([[110.0, 0, SIZE / 2], [0, 110.0, SIZE / 2], [0, 0, 1]])


def pose_at(degrees: float, distance: float = 0.5) -> NDArray[np.float64]:
    """A camera that looks at the origin after a turn about an oblique axis."""
    x, y, z = np.array([0.2, 0.9, 0.3]) / np.linalg.norm([0.2, 0.9, 0.3])
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    pose = np.eye(4)
    pose[:3, :3] += math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    pose[2, 3] = distance
    return pose


def seen(points: NDArray, pose: NDArray) -> NDArray[np.float64]:
    local = points @ pose[:3, :3].T + pose[:3, 3]
    image = local @ K.T
    return image[:, :2] / image[:, 2:]


def cloud(count: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-0.1, 0.1, (count, 3))


def test_exact_matches_give_the_pose() -> None:
    points, pose = cloud(60), pose_at(40)
    found = solve_pnp(points, seen(points, pose), K)
    assert found.inliers == 60
    assert found.pose is not None
    degrees, distance = pose_error(found.pose, pose)
    assert degrees < 0.05
    assert distance * 100 < 0.05


def test_half_of_the_matches_may_be_wrong() -> None:
    points, pose = cloud(200), pose_at(-70)
    places = seen(points, pose)
    places[::2] = np.random.default_rng(1).uniform(0, SIZE, (100, 2))
    found = solve_pnp(points, places, K, reprojection=2.0)
    assert found.pose is not None
    assert pose_error(found.pose, pose).degrees < 0.5
    assert 95 < found.inliers < 125


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_than_four_matches_give_none(count: int) -> None:
    points, pose = cloud(count), pose_at(10)
    assert solve_pnp(points, seen(points, pose), K) == (None, 0)


@pytest.mark.parametrize(("count", "found"), [(5, False), (6, True)])
def test_up_to_five_inliers_are_none(count: int, found: bool) -> None:
    points, pose = cloud(count, seed=3), pose_at(10)
    answer = solve_pnp(points, seen(points, pose), K)
    assert (answer.pose is not None) == found
    assert answer.inliers <= count


def test_points_in_one_place_give_none() -> None:
    assert solve_pnp(np.zeros((20, 3)), np.full((20, 2), 5.0), K).pose is None


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"needs points \(M, 3\).*not \(4, 2\)"):
        solve_pnp(np.zeros((4, 2)), np.zeros((4, 2)), K)


def test_without_opencv_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"pip install 'mvcore-equivariance\[eval\]'"):
        solve_pnp(cloud(9), seen(cloud(9), pose_at(5)), K)


class Colours(KnownBackbone):
    """A feature is the colour of its pixel, with a constant."""

    dims: Mapping[str, int] = {"dense": 4}
    provides = frozenset(dims)
    any_size = True

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind

    def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
        assert batch.images is not None
        colour = batch.images.float() / 127.5 - 1
        if self.blind:
            colour = torch.zeros_like(colour)
        return {"dense": torch.cat([colour, torch.ones_like(colour[:, :1])], dim=1) * self.scale}

    def dense_grid(self, width: int, height: int) -> DenseGrid:
        return DenseGrid.tiling(height, width, width, height)


def render(pose: NDArray) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A ball of radius 0.1 whose colour is the place on it; and that place (H, W, 3), NaN where it is not."""
    column, row = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
    rays = np.stack([column, row, np.ones_like(row)], -1) @ np.linalg.inv(K).T @ pose[:3, :3]
    start = -pose[:3, :3].T @ pose[:3, 3]
    a, b, c = (rays**2).sum(-1), rays @ start, start @ start - 0.01
    root = b**2 - a * c
    depth = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.nan)
    places = start + rays * depth[..., None]
    colours = np.where(np.isnan(places), 0, np.rint(127.5 + 1270 * np.nan_to_num(places)))
    return colours.clip(0, 255).astype(np.uint8), places


def write(folder: Path, frames: int = 11) -> tuple[Path, Path]:
    """One object in the layout of OnePose-LowTexture, and its structure from motion."""
    name, short = "0700-ball-others", "ball"
    data, sfm = folder / "lowtexture_test_data", folder / "sfm"
    points: list[NDArray] = []
    for number, count in ((1, 3), (2, frames)):
        sequence = data / name / f"{short}-{number}"
        for part in ("color", "intrin_ba", "poses_ba", "anno_loftr"):
            (sequence / part).mkdir(parents=True)
        for frame in range(count):
            pose = pose_at(12.0 * frame if number == 1 else 5 + frame)
            image, places = render(pose)
            Image.fromarray(image).save(sequence / "color" / f"{frame}.png")
            np.savetxt(sequence / "intrin_ba" / f"{frame}.txt", K)
            np.savetxt(sequence / "poses_ba" / f"{frame}.txt", pose)
            if number == 1:
                rows, columns = (~np.isnan(places[::3, ::3, 0])).nonzero()
                first = sum(map(len, points))
                points.append(places[rows * 3, columns * 3])
                # A point of the frame that no point of the object belongs to stands first.
                note = {
                    "keypoints2d": [[0.0, 0.0], *(np.stack([columns, rows], 1) * 3 + 0.5).tolist()],
                    "assign_matrix": [list(range(1, len(rows) + 1)), list(range(first, first + len(rows)))],
                }
                (sequence / "anno_loftr" / f"{frame}.json").write_text(json.dumps(note))
    (sfm / name / "anno").mkdir(parents=True)
    np.savez(sfm / name / "anno" / "anno_3d_average.npz", keypoints3d=np.concatenate(points))
    return data, sfm


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write(tmp_path_factory.mktemp("onepose"))


def measured(files: tuple[Path, Path], output: Path, model: Backbone | None = None, **options: Any) -> EvalResult:
    args = {"data": str(files[0]), "sfm": str(files[1]), "cell": None, **options}
    part = mvcore.api.build({"id": ID, "args": args}, "evaluator")
    return evaluate(Model(Pipeline(model or Colours(), []).eval()), {ID: part}, {}, output)[ID]


def test_known_features_find_the_pose(files: tuple[Path, Path], tmp_path: Path) -> None:
    found = measured(files, tmp_path, reprojection=2.0)
    assert found[f"{ID}/accuracy_3"].value == 1
    assert found[f"{ID}/accuracy_3"].n == 2  # every tenth of eleven frames
    assert found[f"{ID}/failed"].value == 0
    assert found[f"{ID}/inliers"].value > 30
    assert found.tables[0].rows[0][:2] == ["0700-ball-others", "2"]


def test_features_that_tell_nothing_fail(files: tuple[Path, Path], tmp_path: Path) -> None:
    """All are equal: one mutual match, which is no pose and counts as wrong."""
    found = measured(files, tmp_path, Colours(blind=True))
    assert found[f"{ID}/failed"].value == 1
    assert found[f"{ID}/accuracy_5"].value == 0


def test_the_draw_of_templates_repeats(files: tuple[Path, Path], tmp_path: Path) -> None:
    first, again, other = (
        measured(files, tmp_path / str(k), templates=200, seed=seed)[f"{ID}/inliers"].value
        for k, seed in enumerate((0, 0, 1))
    )
    assert first == again != other


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    data, sfm = write(tmp_path / "a", frames=1)
    with pytest.raises(ConfigError, match=r"no object 'x' in .*; there are: 0700-ball-others"):
        measured((data, sfm), tmp_path / "out", objects=("x",))
    with pytest.raises(DataError, match=r"sfm '.*none' does not exist"):
        measured((data, tmp_path / "none"), tmp_path / "out")
    with pytest.raises(DataError, match="holds no object; folders are named <id>-<name>-<type>"):
        measured((sfm / "0700-ball-others", sfm), tmp_path / "out")
    test, reference = (data / "0700-ball-others" / f"ball-{number}" for number in (2, 1))
    note = reference / "anno_loftr" / "0.json"
    text = note.read_text()
    for wrong, problem in (
        ("{}", "must hold keypoints2d and assign_matrix"),
        ('{"keypoints2d": [[0, 0]], "assign_matrix": [[1], [0]]}', "names 1, but keypoints2d holds 1 points"),
        ('{"keypoints2d": [[0, 0]], "assign_matrix": [[0], [99999]]}', "names 99999, but keypoints3d holds"),
        ('{"keypoints2d": [[0]], "assign_matrix": [[0], [0]]}', "must be a list of points"),
        ('{"keypoints2d": [[0, 0]], "assign_matrix": [[0, 1], [0]]}', "two equal lists of numbers"),
        ("[", "is no JSON"),
    ):
        note.write_text(wrong)
        with pytest.raises(DataError, match=problem) as error:
            measured((data, sfm), tmp_path / "out")
        assert "0.json" in str(error.value)
        assert "\n" not in str(error.value)
    note.write_text(text)
    (test / "poses_ba" / "0.txt").write_text("1 2 3\n")
    with pytest.raises(DataError, match=r"0\.txt: must hold 4 x 4 finite numbers, not \(1, 3\)"):
        measured((data, sfm), tmp_path / "out")
    (test / "intrin_ba" / "0.txt").unlink()
    with pytest.raises(DataError, match=r"0\.txt: cannot be read \(No such file"):
        measured((data, sfm), tmp_path / "out")
    np.savez(sfm / "0700-ball-others" / "anno" / "anno_3d_average.npz", other=np.zeros(3))
    with pytest.raises(DataError, match=r"anno_3d_average\.npz: holds no 'keypoints3d' \(it has: other\)"):
        measured((data, sfm), tmp_path / "out")


def test_evaluation_leaves_a_tuned_model_as_it_was(files: tuple[Path, Path], tmp_path: Path, tuned: Model) -> None:
    args = {"data": str(files[0]), "sfm": str(files[1]), "grid": 8, "templates": 500}
    part = mvcore.api.build({"id": ID, "args": args}, "evaluator")
    found = evaluate(tuned, {ID: part}, {}, tmp_path)[ID]
    assert found[f"{ID}/failed"].n == 2
