"""What an export has of each library: the names of its files, and vectors of the files alone to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

Vectors: TypeAlias = "list[Tensor]"


@dataclass(frozen=True)
class PlainLibrary:
    """A library that models go to.

    Args:
        weights, config: names of its files in a model folder.
        mine: vectors of a backbone's own module, for a few inputs.
        theirs: those of the folder, loaded strictly by the library without mvcore's classes.
        loads_as: how the library is told of the folder.
    """

    weights: str
    config: str
    mine: Callable[[Any], Vectors]
    theirs: Callable[[Any, Path], Vectors]
    loads_as: str = "local-dir:"


_TEXTS = ["a photo of a chair", "a red striped mug"]


def _pixels(backbone: Any) -> Tensor:
    size, seeded = backbone.image_size, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=seeded)
    return backbone.normalise(images.to(backbone.device))


def _open_clip_mine(backbone: Any) -> Vectors:
    return [backbone.model.encode_image(_pixels(backbone)), backbone.encode_text(_TEXTS)]


def _open_clip_theirs(backbone: Any, folder: Path) -> Vectors:
    import open_clip

    plain: Any = open_clip.create_model(f"local-dir:{folder.absolute()}", require_pretrained=True).eval()
    return [plain.encode_image(_pixels(backbone).cpu()), plain.encode_text(backbone.tokenizer(_TEXTS))]


def _timm_vectors(model: Any, pixels: Tensor) -> Vectors:
    """The pooled vectors, and all of the final map."""
    final = model.forward_features(pixels)
    return [model.forward_head(final, pre_logits=True), final]


def _timm_mine(backbone: Any) -> Vectors:
    return _timm_vectors(backbone.model, _pixels(backbone))


def _timm_theirs(backbone: Any, folder: Path) -> Vectors:
    import timm

    plain = timm.create_model(f"local-dir:{folder.absolute()}", pretrained=True).eval()
    return _timm_vectors(plain, _pixels(backbone).cpu())


LIBRARIES: Mapping[str, PlainLibrary] = MappingProxyType(
    {
        "open_clip": PlainLibrary(
            "open_clip_model.safetensors", "open_clip_config.json", _open_clip_mine, _open_clip_theirs
        ),
        "timm": PlainLibrary("model.safetensors", "config.json", _timm_mine, _timm_theirs),
    }
)
