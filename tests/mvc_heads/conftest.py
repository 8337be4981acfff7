"""A small store of random views with stored vectors about one direction, as a CLIP's are, and short runs on it."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mvcore.config_layers import Layers, read_yaml
from mvcore.plugins import load_plugins
from mvcore.running import Session, open_session
from mvcore.training.fit import Training, fit, prepare
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.embed import embed_store
from numpy.typing import NDArray
from rich.console import Console

sys.path.append(str(Path(__file__).parent))  # for mvc_oracles

OBJECTS, VIEWS, WIDTH = 10, 8, 16


class Cone:
    """Vectors whose cosines are about 0.89 within an object and 0.71 between objects; the key names a made-up model."""

    def __init__(self, objects: int, views: int, width: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def draw(length: float, *shape: int) -> NDArray[np.float64]:
            found = rng.standard_normal((*shape, width))
            return length * found / np.linalg.norm(found, axis=-1, keepdims=True)

        centre, own = draw(0.84, 1, 1), draw(0.43, objects, 1)
        self.images = 10 * (centre + own + draw(0.33, objects, views))
        self.texts = 10 * (0.25 * centre[0] + 0.2 * own[:, 0] + draw(0.85, 1) + draw(0.45, objects))
        features = {"image": {"feature": "view", "width": width}, "text": {"feature": "text", "width": width}}
        self.key = {"model": {"id": "made-up"}, "architecture_sha256": "0" * 64, "features": features}

    def rows(self, kind: str, n: int) -> Iterator[NDArray[np.float64]]:
        yield self.images.reshape(-1, self.images.shape[-1]) if kind == "image" else self.texts


def merged(into: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merged(into[key], value)
        else:
            into[key] = copy.deepcopy(value)
    return into


@dataclass(frozen=True)
class Lab:
    """Recipes on the small store."""

    store: Path
    cone: Cone

    def recipe(self, name: str) -> dict[str, Any]:
        """The recipe as it stands in the package."""
        with as_file(files("mvcore_mvc_heads") / f"recipes/{name}.yaml") as path:
            return read_yaml(path)[0]

    def values(self, name: str, **changes: Any) -> dict[str, Any]:
        """The recipe on the small store, a few steps long."""
        found = merged(
            self.recipe(name),
            {
                "encoder": {"width": WIDTH},
                "data": {"objects": {"path": str(self.store)}},
                "run": {"max_steps": 3, "accelerator": "cpu", "log_every": 1},
                "validate": {
                    "data": {
                        "all": {"id": "data.views", "path": str(self.store), "embeddings": ["clip"], "images": False}
                    },
                    "on": {"core.consistency": {"picture": False}},
                },
            },
        )
        return merged(found, changes)

    def session(self, values: Mapping[str, Any]) -> Session:
        layers = Layers()
        layers.merge(values, "test")
        return open_session(layers.config(), load_plugins())

    def prepare(self, values: Mapping[str, Any], folder: Path) -> Training:
        session = self.session(values)
        return prepare(session.plan, session.sources, folder)

    def fit(self, values: Mapping[str, Any], folder: Path) -> Training:
        """Trains without evaluation."""
        training = self.prepare(values, folder)
        fit(training, folder, title="test", console=quiet())
        return training


def quiet() -> Console:
    """Prints nowhere."""
    return Console(file=io.StringIO(), force_terminal=False)


def write_store(folder: Path, cone: Cone) -> Path:
    objects, views, _ = cone.images.shape
    with ViewStoreWriter(folder, codec="png") as writer:
        for i in range(objects):
            writer.add_object(f"object-{i}", np.full((views, 8, 8, 3), i, np.uint8), captions=[f"thing {i}"])
    with ViewStore(folder) as store:
        embed_store(store, cone, "clip")
    return folder


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    cone = Cone(OBJECTS, VIEWS, WIDTH)
    return Lab(write_store(tmp_path_factory.mktemp("cone") / "store", cone), cone)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors go faster on one thread, and sums are then in one order."""
    torch.set_num_threads(1)
