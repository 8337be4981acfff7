"""`equivariance.tracking` on small files in TAP-Vid's layout, with a texture that moves."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mvcore
import numpy as np
import pytest
import torch
from known_backbones import KnownBackbone
from mvcore.api import Backbone, ConfigError, DataError, DenseGrid, EvalResult, ViewBatch
from mvcore.cli.main import run
from mvcore.evaluation.runner import evaluate
from mvcore.model import Model, Pipeline
from mvcore_equivariance.evaluation.dense import DenseMaps
from mvcore_equivariance.evaluation.plain_pickle import read_pickle
from mvcore_equivariance.evaluation.tracker import Tracker
from mvcore_equivariance.evaluation.tracking import Video, queries_of
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

ID = "equivariance.tracking"
WIDTH, HEIGHT, FRAMES = 72, 48, 6


class Patches(KnownBackbone):
    """A feature is the pixels of its patch, less their mean: it knows nothing of where it is."""

    patch = 8
    dims: Mapping[str, int] = {"dense": 3 * patch**2}
    provides = frozenset(dims)
    any_size = True

    def __init__(self, stride: int = 8) -> None:
        super().__init__()
        self.stride = stride
        self.asked: list[dict[str, Any]] = []

    def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
        assert batch.images is not None
        grid = self.dense_grid(batch.images.shape[3], batch.images.shape[2])
        found = nn.functional.unfold(batch.images.float(), self.patch, stride=self.stride)
        found = found - found.mean(dim=1, keepdim=True)
        return {"dense": found.unflatten(2, (grid.rows, grid.columns)) * self.scale}

    def dense_grid(self, width: int, height: int) -> DenseGrid:
        return DenseGrid.of_patches(width, height, self.patch, self.stride)

    @contextmanager
    def dense_at(self, **changes: Any) -> Iterator[None]:
        self.asked.append(changes)
        before = self.stride
        self.stride = changes.get("stride", before)
        try:
            yield
        finally:
            self.stride = before


def moving(shift: tuple[int, int], hidden_from: int | None = None) -> dict[str, NDArray]:
    """A random texture that moves by so many pixels a frame, and nine points on it; from a frame on it is covered."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, ((HEIGHT + 80) // 4, (WIDTH + 80) // 4, 3), np.uint8))
    texture = np.asarray(coarse.resize((WIDTH + 80, HEIGHT + 80), Image.Resampling.BICUBIC))
    frames = [
        texture[40 - t * shift[1] : 40 - t * shift[1] + HEIGHT, 40 - t * shift[0] : 40 - t * shift[0] + WIDTH]
        for t in range(FRAMES)
    ]
    start = np.stack(np.meshgrid([20.0, 30, 40], [16.0, 22, 30]), -1).reshape(-1, 2)
    points = start[:, None] + np.arange(FRAMES)[:, None] * np.array(shift)
    occluded = np.zeros((len(start), FRAMES), bool)
    if hidden_from is not None:
        other = rng.integers(0, 255, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
        frames = [frame if t < hidden_from else other[t] for t, frame in enumerate(frames)]
        occluded[:, hidden_from:] = True
    return {"video": np.stack(frames), "points": (points / (WIDTH, HEIGHT)).astype(np.float32), "occluded": occluded}


def write(path: Path, videos: Mapping[str, Any], protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(dict(videos), protocol=protocol))
    return path


def measured(data: Path, output: Path, model: Backbone | None = None, **options: Any) -> EvalResult:
    sizes: dict[str, Any] = {"width": WIDTH, "height": HEIGHT, "patches": None, "stride": 2, "radius": 4.0}
    part = mvcore.api.build({"id": ID, "args": {"data": str(data), "picture": False, **sizes, **options}}, "evaluator")
    return evaluate(Model(Pipeline(model or Patches(), []).eval()), {ID: part}, {}, output)[ID]


@pytest.mark.parametrize("queries", ["first", "strided"])
@pytest.mark.parametrize("shift", [(2, 0), (-2, 2), (3, 1)])
def test_a_moving_texture_is_tracked_within_half_a_stride(tmp_path: Path, queries: str, shift: tuple[int, int]) -> None:
    data = write(tmp_path / "tapvid_davis.pkl", {"moving": moving(shift)})
    found = measured(data, tmp_path / "out", queries=queries)
    assert found[f"{ID}/occlusion_accuracy/{queries}"].value == 1
    # The metrics' frames are 256 x 256: a pixel here is 3.6 and 5.3 of theirs, half a stride is one pixel.
    assert found[f"{ID}/pts_within_8/{queries}"].value == 1
    assert found[f"{ID}/jaccard_8/{queries}"].value == 1


def test_tracks_lie_within_half_a_stride() -> None:
    entry = moving((3, 1))
    model = Patches(stride=2)
    values = model.encode(
        ViewBatch.make([FRAMES], images=torch.from_numpy(entry["video"]).permute(0, 3, 1, 2)), frozenset({"dense"})
    )["dense"].detach()
    maps = DenseMaps(values, model.dense_grid(WIDTH, HEIGHT))
    tracker = Tracker(maps, radius=4.0, temperature=0.02, anchor_similarity=0.7, similarity=0.6)
    truth = torch.from_numpy(entry["points"] * (WIDTH, HEIGHT)).float()
    tracks = tracker.track(torch.cat([torch.zeros(9, 1), truth[:, 0]], dim=1))
    assert float((tracks.points - truth).abs().max()) <= 1.0
    assert not bool(tracks.hidden.any())


def test_what_is_covered_is_called_hidden(tmp_path: Path) -> None:
    data = write(tmp_path / "tapvid_davis.pkl", {"moving": moving((2, 0), hidden_from=3)})
    found = measured(data, tmp_path / "out", queries="first", picture=True)
    assert found[f"{ID}/occlusion_accuracy/first"].value == 1
    assert found[f"{ID}/average_jaccard/first"].headline == "AJ first"
    assert found[f"{ID}/average_jaccard/first"].n == 1
    assert [path.name for path in found.pictures] == ["tracks-moving.png"]
    assert found.pictures[0].stat().st_size > 10_000
    assert found.tables[0].rows[0][0] == "moving"


def hidden_by_loops(tracker: Tracker, points: Tensor, queries: Tensor, similarity: float, anchor: float) -> NDArray:
    """The rule of occlusion, point by point."""
    hidden = np.zeros(points.shape[:2], bool)
    for n, track in enumerate(points):
        along = tracker._features(torch.arange(len(track)), track)
        own = along[int(queries[n, 0])]
        cosines = [float(nn.functional.cosine_similarity(own, feature, dim=0)) for feature in along]
        anchors = [t for t, cosine in enumerate(cosines) if cosine >= anchor]
        medians = []
        for t in range(len(track)):
            back = [tracker._find(along[t : t + 1], a)[0] for a in anchors]
            distances = sorted(float((b - track[a]).norm()) for a, b in zip(anchors, back, strict=True))
            medians.append(distances[(len(distances) - 1) // 2])
        limit = max(medians[a] for a in anchors)
        hidden[n] = [m > limit or c < similarity for m, c in zip(medians, cosines, strict=True)]
    return hidden


def test_occlusion_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 6, 7, 9, generator=generator)
    values = base + 0.5 * torch.randn(5, 6, 7, 9, generator=generator)
    tracker = Tracker(
        DenseMaps(values, DenseGrid.tiling(7, 9, 72, 56)),
        radius=9.0,
        temperature=1.0,
        anchor_similarity=0.7,
        similarity=0.6,
    )
    queries = torch.cat(
        [torch.randint(0, 5, (12, 1), generator=generator), torch.rand(12, 2, generator=generator) * 50], 1
    )
    found = tracker.track(queries)
    expected = hidden_by_loops(tracker, found.points, queries, 0.6, 0.7)
    assert np.array_equal(found.hidden.numpy(), expected)
    assert 0 < expected.mean() < 1


def test_a_place_is_the_softmax_over_the_disc() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, 6, 7, 9, generator=generator)
    grid = DenseGrid.tiling(7, 9, 72, 56)
    tracker = Tracker(DenseMaps(values, grid), radius=17.0, temperature=1.0, anchor_similarity=0.7, similarity=0.6)
    for feature in torch.randn(5, 6, generator=generator):
        cosine = nn.functional.cosine_similarity(feature[:, None, None], values[1], dim=0).relu()
        heat = (cosine.flatten().softmax(0)).view(7, 9)
        centres = grid.centres()
        best = centres.flatten(0, 1)[cosine.argmax()]
        heat = heat * ((centres - best).norm(dim=2) <= 17)
        expected = (centres * heat[:, :, None]).sum((0, 1)) / heat.sum()
        assert torch.allclose(tracker._find(feature[None], 1)[0], expected, atol=1e-4)


def test_queries_are_those_of_tap_vid() -> None:
    hidden = np.ones((3, 12), bool)
    hidden[0, [4, 5, 7]] = False
    hidden[1, [0, 10]] = False
    video = Video("v", np.zeros((12, 4, 4, 3), np.uint8), np.zeros((3, 12, 2)), hidden)
    first, strided = queries_of(video, "first"), queries_of(video, "strided")
    assert (first.rows.tolist(), first.frames.tolist()) == ([0, 1], [4, 0])
    assert sorted(zip(strided.rows.tolist(), strided.frames.tolist(), strict=True)) == [(0, 5), (1, 0), (1, 10)]


def test_settings_are_asked_for_and_given_back(tmp_path: Path) -> None:
    data = write(tmp_path / "tapvid_davis.pkl", {"moving": moving((2, 0))})
    model = Patches()
    measured(data, tmp_path / "a", model, patches=9)
    measured(data, tmp_path / "b", model, patches=9, features="prenorm")
    assert model.asked == [
        {"patches": 9, "stride": 2},
        {"patches": 9, "stride": 2, "layer": -1, "norm": False},
    ]
    assert model.stride == 8


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_arrays_is_read_without_running_it(tmp_path: Path, protocol: int) -> None:
    held = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "n": [1, 2.5, "x", None, True, np.float64(3.5)],
        "b": np.array([[True], [False]]),
        "u": np.zeros((0, 4), np.uint8),
        "o": np.arange(3, dtype=">f8"),
    }
    found = read_pickle(write(tmp_path / "x.pkl", held, protocol))
    for key in ("a", "f", "b", "u", "o"):
        assert np.array_equal(found[key], held[key])
        assert found[key].dtype == held[key].dtype
    assert found["n"] == [1, 2.5, "x", None, True, 3.5]


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (pickle.dumps({"v": Evil()}), r"it holds the name \S+\.\S+"),
        (pickle.dumps({"v": np.array([{}], dtype=object)}), "it holds arrays of"),
        (pickle.dumps({"v": {1, 2}}), "a set"),
        (b"\x80\x04", "is no pickle, or a damaged one; download it again"),
        (b"no pickle", "is no pickle"),
        (pickle.dumps({"v": moving((1, 0))})[:-20], "or a damaged one"),
        (pickle.dumps([1]), "must hold videos by name"),
        (pickle.dumps({"v": 1}), "video 'v' must have the arrays video, points and occluded; it has no video"),
        (pickle.dumps({"v": {**moving((1, 0)), "points": np.zeros((2, 3))}}), r"points \(N, T, 2\)"),
    ],
)
def test_a_file_that_is_no_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(DataError, match=text) as error:
        measured(tmp_path / "x.pkl", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_missing_files_and_unknown_videos_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"TAP-Vid-DAVIS '.*x\.pkl' does not exist"):
        measured(tmp_path / "x.pkl", tmp_path / "out")
    data = write(tmp_path / "tapvid_davis.pkl", {"moving": moving((2, 0)), "still": moving((0, 0))})
    with pytest.raises(ConfigError, match="no video 'bear'; there are: moving, still"):
        measured(data, tmp_path / "out", videos=("bear",))
    unseen = moving((2, 0), hidden_from=0)
    with pytest.raises(DataError, match=r"no video of .* has a visible point"):
        measured(write(tmp_path / "unseen.pkl", {"v": unseen}), tmp_path / "out")


def test_evaluation_leaves_a_tuned_model_as_it_was(tmp_path: Path, tuned: Model) -> None:
    data = write(tmp_path / "tapvid_davis.pkl", {"moving": moving((2, 0))})
    sizes = {"width": 64, "height": 48, "patches": 4, "stride": 8, "features": "prenorm", "picture": False}
    part = mvcore.api.build({"id": ID, "args": {"data": str(data), **sizes}}, "evaluator")
    found = evaluate(tuned, {ID: part}, {}, tmp_path / "out")[ID]
    assert np.isfinite(found[f"{ID}/average_jaccard/strided"].value)


def test_the_model_is_given_back_after_an_error(tmp_path: Path) -> None:
    class Broken(Patches):
        def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
            return {"dense": super().encode(batch, keys)["dense"] * torch.nan}

    model = Broken()
    data = write(tmp_path / "tapvid_davis.pkl", {"moving": moving((2, 0))})
    with pytest.raises(DataError, match="video 'moving': the model gives dense features that are not finite"):
        measured(data, tmp_path / "out", model)
    assert model.stride == 8


def test_the_command_needs_no_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "tapvid_davis.pkl", {"moving": moving((2, 0))})
    options = {ID: {"data": str(data), "width": 64, "height": 64, "patches": 4, "stride": None, "picture": False}}
    (tmp_path / "options.yaml").write_text(json.dumps(options))
    arguments = ["eval", "test_vit3", "--options", str(tmp_path / "options.yaml"), "-o", str(tmp_path / "out")]
    assert run(arguments) == 0
    assert "AJ strided" in capsys.readouterr().out
