"""timm's own entry points with fewer and narrower blocks: the same classes, tokens, positions, pooling and norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models import register_model
from torch import nn

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
ROPE = {**VIT, "num_heads": 1}
"""Rotary positions need heads of a multiple of 4 and of more than 16 dimensions."""

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("vit_small_patch14_dinov2", {**VIT, "img_size": 28, "patch_size": 7}),
    "dinov2_reg4": ("vit_small_patch14_reg4_dinov2", {**VIT, "img_size": 28, "patch_size": 7}),
    "dinov3": ("vit_small_patch16_dinov3", ROPE),
    "deit3": ("deit3_small_patch16_224", VIT),
    "mae": ("vit_base_patch16_224", VIT),
    "clip": ("vit_base_patch16_clip_quickgelu_224", VIT),
    "siglip2": ("vit_base_patch16_siglip_224", VIT),
    "eva02": ("eva02_tiny_patch14_224", {**ROPE, "depth": 2}),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", {**ROPE, "depth": 2}),
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4)}),
    "convnext": ("convnext_nano", {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24)}),
    "resnet": ("resnet18", {"layers": (1, 1, 1, 1)}),
}
"""By a short name: timm's entry point, and what is smaller."""

NAMES = {short: f"mvcore_test_{short}" for short in SMALL}
"""The names under which timm knows the small models."""


def _register(name: str, base: str, small: dict[str, Any]) -> None:
    entry: Callable[..., nn.Module] = timm.model_entrypoint(base)

    def make(pretrained: bool = False, **options: Any) -> nn.Module:
        for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(key, None)
        network: Any = entry(pretrained=False, **{**small, **options})
        network._model_args = {**small}  # as timm.create_model notes them, for an export
        return network

    make.__name__ = name
    make.__module__ = __name__
    register_model(make)


__all__ = ["NAMES", "SMALL", "awake"]
for _short, (_base, _small) in SMALL.items():
    _register(NAMES[_short], _base, _small)


def awake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Larger random weights: as timm starts its models, blocks and positions hardly move anything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not torch.equal(parameter, torch.ones_like(parameter)):  # a norm's
                scale = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model
