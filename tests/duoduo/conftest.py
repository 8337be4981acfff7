"""Small models and images for the tests of `duoduo`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip.model
import pytest
import torch
from torch import Tensor

SIZE = 32
LAYERS = 4


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Any]:
    """Makes a random open_clip model of 4 vision blocks in float64."""

    def make(**vision: Any) -> Any:
        config: Any = {"image_size": SIZE, "layers": LAYERS, "width": 32, "head_width": 16, "patch_size": 8, **vision}
        text: Any = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
        torch.manual_seed(0)
        return open_clip.model.CLIP(embed_dim=12, vision_cfg=config, text_cfg=text).double().eval()

    return make


@pytest.fixture(scope="session")
def clip(make_clip: Callable[..., Any]) -> Any:
    """One such model, which no test may change."""
    return make_clip()


@pytest.fixture(scope="session")
def images() -> Callable[..., Tensor]:
    """Random normalised images by number and seed."""

    def make(count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)

    return make


def _by_reference(clip: Any, images: Tensor, start: int, frames: int) -> Tensor:
    """The authors' formulation: LND layout, tokens of an object's frames in one sequence, mean of class tokens."""
    visual = clip.visual
    x = visual._embeds(images).permute(1, 0, 2)
    tokens, rows, width = x.shape
    for index, block in enumerate(visual.transformer.resblocks):
        normed = block.ln_1(x)
        group = frames if index >= start else 1
        # L (B F) D -> (L F) B D
        normed = normed.reshape(tokens, rows // group, group, width).permute(0, 2, 1, 3)
        normed = normed.reshape(tokens * group, rows // group, width).transpose(0, 1)
        out = block.attn(normed, normed, normed, need_weights=False)[0].transpose(0, 1)
        out = out.reshape(tokens, group, rows // group, width).permute(0, 2, 1, 3).reshape(tokens, rows, width)
        x = x + out
        x = x + block.mlp(block.ln_2(x))
    pooled = visual.ln_post(x.permute(1, 0, 2))[:, 0]
    return pooled.unflatten(0, (rows // frames, frames)).mean(dim=1) @ visual.proj


@pytest.fixture(scope="session")
def by_reference() -> Callable[..., Tensor]:
    """Vectors of objects of equally many frames, as the authors' code makes them: (clip, images, start, frames)."""
    return _by_reference
