"""A small store, a small CLIP and short runs on them, as the tests of training need them."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mvcore.config import RunConfig
from mvcore.config_layers import Layers
from mvcore.plugins import load_plugins
from mvcore.running import Session, open_session
from mvcore.training.fit import Training, fit, prepare
from mvcore_data import ViewStoreWriter
from rich.console import Console

OBJECTS, VIEWS, SIZE = 8, 6, 32
WORDS = ("cup", "chair", "boat", "lamp")


def quiet_console() -> Console:
    """Prints nowhere."""
    return Console(file=io.StringIO(), force_terminal=False)


def merge(into: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with others laid over them."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)
    return into


@dataclass(frozen=True)
class Lab:
    """Short runs on the small store with the small CLIP."""

    store: Path
    clip: Path

    def values(self, **changes: Any) -> dict[str, Any]:
        """A run as nested values: LoRA and VIFormer, image-text contrast, viewpoint consistency, 4 steps an epoch."""
        base: dict[str, Any] = {
            "encoder": {"id": "core.open_clip", "model": str(self.clip), "pretrained": None, "train": "none"},
            "adapters": {
                "ovt.lora": {"rank": 2},
                "ovt.viformer": {"feedforward": 16, "dropout": 0.1},
                "ovt.logit_scale": {},
            },
            "data": {
                "objects": {
                    "id": "data.views",
                    "path": str(self.store),
                    "sampling": "views",
                    "batch_size": 12,
                    "captions": "random",
                    "augment": [{"rotate": 20}],
                }
            },
            "losses": {"core.itc": {}, "ovt.vc": {}},
            "trainers": {"ovt.outlier_mining": {"k": 2, "neighbours": 3}},
            "optimizer": {"lr": 3e-3},
            "run": {"max_steps": 10, "accelerator": "cpu", "devices": 1, "log_every": 1, "checkpoint_every": 100},
        }
        return merge(base, changes)

    def changed(self, values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """The same run with other values laid over it."""
        return merge(values, changes)

    def session(self, values: Mapping[str, Any]) -> Session:
        """The run with its data opened."""
        return open_session(self.config(values), load_plugins())

    def config(self, values: Mapping[str, Any]) -> RunConfig:
        """The validated configuration."""
        layers = Layers()
        layers.merge(values, "test")
        return layers.config()

    def prepare(self, values: Mapping[str, Any], folder: Path) -> Training:
        """All parts of a run, ready to train."""
        session = self.session(values)
        return prepare(session.plan, session.sources, folder)

    def fit(
        self, values: Mapping[str, Any], folder: Path, *, resume: Path | None = None, callbacks: tuple[Any, ...] = ()
    ) -> Training:
        """Trains without evaluation."""
        training = self.prepare(values, folder)
        training.trainers.extend(callbacks)
        self.train(training, folder, resume=resume)
        return training

    def train(self, training: Training, folder: Path, **options: Any) -> None:
        """Trains what was prepared."""
        fit(training, folder, title="test", console=quiet_console(), **options)


def patches(rng: np.random.Generator, views: int) -> np.ndarray:
    """(views, SIZE, SIZE, 3) uint8 of large patches: an object's own pattern, changed in each view."""
    own, change = rng.integers(0, 256, (1, 4, 4, 3)), rng.integers(0, 256, (views, 4, 4, 3))
    return np.kron((0.7 * own + 0.3 * change).astype(np.uint8), np.ones((1, SIZE // 4, SIZE // 4, 1), np.uint8))


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Eight objects of six views with two captions each, and an open_clip model of two narrow blocks."""
    folder = tmp_path_factory.mktemp("lab")
    rng = np.random.default_rng(0)
    with ViewStoreWriter(folder / "store", codec="png") as store:
        for i in range(OBJECTS):
            word = WORDS[i % len(WORDS)]
            store.add_object(
                f"{word}-{i}", patches(rng, VIEWS), captions=[f"a {word} {i}", f"the {word} {i}"], category=word
            )
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "clip.json").write_text(json.dumps(config), encoding="utf-8")
    return Lab(folder / "store", folder / "clip.json")


@pytest.fixture(scope="session")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, Path]:
    """An uninterrupted run of two and a half epochs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    torch.set_num_threads(1)
    return lab.fit(lab.values(), folder), folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors go faster on one thread, and sums are then in one order."""
    torch.set_num_threads(1)
