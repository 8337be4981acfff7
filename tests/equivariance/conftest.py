"""Small vision transformers for the tests of `equivariance`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mvcore
import numpy as np
import pytest
import timm.models.vision_transformer
import torch
from mvcore.encoders.open_clip import OpenClip
from mvcore.model import Link, Model, Pipeline
from mvcore_data import ViewStoreWriter

PATCH = 8

SMALL_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 5, "width": 32, "head_width": 8, "patch_size": PATCH},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def make_vit() -> Callable[..., Any]:
    """Makes a random timm ViT of 5 blocks for images of any size; the same for the same options."""

    def make(**options: Any) -> Any:
        settings: dict[str, Any] = {"img_size": 32, "patch_size": PATCH, "embed_dim": 32, "depth": 5, "num_heads": 4}
        settings |= {"num_classes": 0, "dynamic_img_size": True, "init_values": 0.5, **options}
        torch.manual_seed(0)
        vit = timm.models.vision_transformer.VisionTransformer(**settings).eval()
        with torch.no_grad():
            for parameter in vit.parameters():  # so that no bias and no norm is at its neutral value
                parameter += 0.15 * torch.randn_like(parameter)
        return vit

    return make


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., OpenClip]:
    """Makes the same small open_clip backbone anew at each call."""
    path: Path = tmp_path_factory.mktemp("clip") / "small.json"
    path.write_text(json.dumps(SMALL_CLIP))

    def make(**options: Any) -> OpenClip:
        torch.manual_seed(0)
        return OpenClip(model=str(path), pretrained=None, **options).eval()

    return make


@pytest.fixture(scope="session")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of four painted walls, each seen straight on by four cameras side by side, 4 pixels apart."""
    path = tmp_path_factory.mktemp("walls") / "store"
    rng = np.random.default_rng(0)
    size, focal, distance, step = 64, 64.0, 2.0, 4
    intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    with ViewStoreWriter(path, codec="png") as writer:
        for i in range(4):
            wall = np.kron(rng.integers(0, 256, (16, 20, 3)), np.ones((4, 4, 1))).astype(np.uint8)
            views, cameras = [], []
            for k in range(4):
                views.append(wall[:, k * step : k * step + size].copy())
                place = np.eye(4)
                place[0, 3] = -k * step * distance / focal
                cameras.append((intrinsics, place))
            depth = [np.full((size, size), distance, np.float32)] * 4
            writer.add_object(f"wall{i}", views, cameras=cameras, depth=depth, masks=[plane > 0 for plane in depth])
    return path


def _state(model: Model) -> tuple[Any, ...]:
    """Digest of the weights; modes, gradients asked for and classes of parts; settings of the map; random numbers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.pipeline.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    parts = [(name, part.training, type(part).__name__) for name, part in model.pipeline.named_modules()]
    asked = [(name, value.requires_grad) for name, value in model.pipeline.named_parameters()]
    backbone: Any = model.backbone
    map_settings = (backbone.dense_grid(64, 48), backbone.stride, backbone.preprocessing())
    return digest.hexdigest(), parts, asked, map_settings, torch.random.get_rng_state().tolist()


@pytest.fixture
def tuned() -> Iterator[Model]:
    """A timm transformer with the method's adapter in training mode, which must be as it was when the test is over."""
    encoder = {"id": "core.timm", "args": {"model": "test_vit3", "image_size": 48, "train": "last:1"}}
    backbone = mvcore.api.build(encoder, "encoder")
    adapter = mvcore.api.build({"id": "equivariance.dense", "args": {"last_blocks": 1}}, "encoder")
    adapter.attach(backbone)
    link = Link("equivariance.dense", adapter, frozenset({"dense"}), frozenset({"dense"}))
    model = Model(Pipeline(backbone, [link]))
    model.pipeline.train()
    before = _state(model)
    yield model
    assert _state(model) == before
