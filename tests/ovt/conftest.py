"""A tiny open_clip model at random weights, as every test of adapters needs one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mvcore.encoders.open_clip import OpenClip

SMALL_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], OpenClip]:
    """Makes the same small model anew at each call."""
    path: Path = tmp_path_factory.mktemp("clip") / "small.json"
    path.write_text(json.dumps(SMALL_CLIP))

    def make() -> OpenClip:
        torch.manual_seed(0)
        return OpenClip(model=str(path), pretrained=None).eval()

    return make
