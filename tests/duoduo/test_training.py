"""Duoduo through the program: its recipe, the cache of prefixes, and what a run may ask for."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import mvcore
import numpy as np
import pytest
import torch
import yaml
from mvcore.checkpoint import WEIGHTS, load_weights
from mvcore.cli.main import run
from mvcore.config_layers import Layers
from mvcore.plugins import load_plugins
from mvcore.run_folder import checkpoint_of
from mvcore.running import open_session
from mvcore.training.fit import prepare
from mvcore_data import ViewStoreWriter

VIEWS = 4
CACHED = {
    "adapters__duoduo.cross_view": {"cross_view_from": 1, "prefix_cache": True},
    "trainers": {"duoduo.prefix_cache": {}},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six objects of four random views, each with a caption."""
    path = tmp_path_factory.mktemp("store") / "store"
    rng = np.random.default_rng(0)
    with ViewStoreWriter(path, codec="png") as writer:
        for i in range(6):
            views = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(VIEWS)]
            writer.add_object(f"o{i}", views, captions=[f"thing {i}"], category=f"c{i % 2}")
    return path


@pytest.fixture
def config(store: Path, tiny_clip_json: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a run on that store with the changes given, and names the file."""

    def write(**changes: Any) -> Path:
        values: dict[str, Any] = {
            "plugins": ["duoduo"],
            "encoder": {"id": "core.open_clip", "model": str(tiny_clip_json), "pretrained": None},
            "adapters": {
                "duoduo.image_target": {},
                "duoduo.cross_view": {"cross_view_from": 1},
                "duoduo.log_scale": {},
            },
            "data": {
                "objects": {
                    "id": "data.views",
                    "path": str(store),
                    "batch_size": 3,
                    "views_per_object": [1, VIEWS],
                    "captions": "random",
                }
            },
            "losses": {"duoduo.shape_image": {}, "duoduo.shape_text": {}},
            "optimizer": {"lr": 0.01},
            "run": {"max_steps": 4, "log_every": 1, "workers": 0, "accelerator": "cpu"},
        }
        for path, value in changes.items():
            section, _, name = path.partition("__")
            values[section] = {**values[section], name: value} if name else value
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    return write


def losses(folder: Path) -> np.ndarray:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(row[f"train/duoduo.{name}"]) for name in ("shape_image", "shape_text")] for row in rows])


def test_a_run_trains_the_attention_and_the_scale_alone(config: Callable[..., Path], tmp_path: Path) -> None:
    assert run(["train", str(config()), "-o", str(tmp_path / "run")]) == 0
    saved = load_weights(checkpoint_of(tmp_path / "run") / WEIGHTS)
    block = "backbone/visual.transformer.resblocks.1.attn."
    names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    assert saved.keys() == {f"{block}{name}" for name in names} | {"adapters/duoduo.log_scale/log_scale"}
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "finished"
    model = mvcore.load(tmp_path / "run")
    objects = [np.zeros((n, 40, 50, 3), np.uint8) for n in (1, 3)]
    vectors = model.encode_views(objects)
    assert vectors.shape == (2, 16)
    torch.testing.assert_close(vectors[0], vectors[1], atol=1e-6, rtol=0)  # three copies of a view are that view


def test_cached_prefixes_change_nothing(config: Callable[..., Path], tmp_path: Path) -> None:
    for name, changes in (("plain", {}), ("cached", CACHED)):
        assert run(["train", str(config(**changes)), "-o", str(tmp_path / name)]) == 0
    assert losses(tmp_path / "plain").shape == (4, 2)
    np.testing.assert_allclose(losses(tmp_path / "cached"), losses(tmp_path / "plain"), atol=2e-5)


def test_a_cached_step_takes_no_view_below_the_blocks_that_cross_views(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    layers = Layers()
    layers.merge(yaml.safe_load(config(**CACHED).read_text()), "test")
    session = open_session(layers.config(), load_plugins())
    training = prepare(session.plan, session.sources, tmp_path / "run")
    clip: Any = training.pipeline.backbone.model
    passes: list[str] = []
    for name, block in zip(("below", "above"), clip.visual.transformer.resblocks, strict=True):
        block.register_forward_hook(lambda *_, name=name: passes.append(name))
    assert training.module.make_loader is not None
    batches = next(iter(training.module.make_loader(0, 1, 0)))
    for _ in range(2):  # the first step fills the cache, and looks whether anything below trains
        passes.clear()
        training.module.objective.step(batches, lambda total: total.backward())
    assert passes == ["above"]


def test_stored_targets_take_the_place_of_a_copy(config: Callable[..., Path], store: Path, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((6, VIEWS, 16)).astype(np.float16)
    with h5py.File(tmp_path / "image_embeddings.h5", "w") as file:
        file["img_feat"] = vectors
    (tmp_path / "model_to_idx.json").write_text(json.dumps({f"o{i}": i for i in range(6)}))
    command = ["data", "embed", str(store), "--import", str(tmp_path / "image_embeddings.h5"), "--tag", "released"]
    assert run(command) == 0
    sets = ["data[objects].embeddings=[released]", "adapters[duoduo.image_target].embeddings=released"]
    arguments = ["train", str(config()), *(word for text in sets for word in ("--set", text))]
    assert run([*arguments, "-o", str(tmp_path / "stored")]) == 0
    assert run(["train", str(config()), "-o", str(tmp_path / "copied")]) == 0
    stored, copied = losses(tmp_path / "stored"), losses(tmp_path / "copied")
    assert stored[0, 1] == pytest.approx(copied[0, 1], rel=1e-5)  # texts have nothing to do with it
    assert abs(stored[0, 0] - copied[0, 0]) > 1e-3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"adapters__duoduo.cross_view": {"cross_view_from": 1, "prefix_cache": True}},
            "needs state:duoduo.prefix, which no trainer of this run publishes; duoduo.prefix_cache publishes it",
        ),
        (
            {
                "adapters__duoduo.cross_view": {"cross_view_from": 1, "train_from": 0, "prefix_cache": True},
                "trainers": {"duoduo.prefix_cache": {}},
            },
            "something below block 1 trains",
        ),
        ({"adapters__duoduo.cross_view": {"cross_view_from": 7}}, "block 7 is not one of its vision blocks 0 to 1"),
        ({"data__objects": "no captions"}, "captions"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    config: Callable[..., Path],
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    text: str,
) -> None:
    if changes.get("data__objects"):
        part = {"id": "data.views", "path": str(store), "batch_size": 3, "views_per_object": 2, "captions": "none"}
        changes = {"data__objects": part}
    assert run(["train", str(config(**changes)), "-o", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line


def test_a_cache_refuses_augmentation(
    config: Callable[..., Path], store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = {"id": "data.views", "path": str(store), "batch_size": 3, "augment": [{"rotate": 30}]}
    assert run(["train", str(config(**CACHED, data__objects=part)), "-o", str(tmp_path / "run")]) == 2
    assert "data.objects augments its images" in capsys.readouterr().err
