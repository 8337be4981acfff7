"""Tokens of overlapping patches, or of other positions, by an unmodified timm vision transformer.

With a stride below the patch's side the map has finer cells (Amir et al., Deep ViT Features as Dense Visual
Descriptors, arXiv 2112.05814). Here nothing of the model is replaced or written to: its own projection runs at another
stride, and every patch gets the position that its centre has among the model's own patches. A cell that is one of those
patches has the very token that the model itself gives it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3
from torch import Tensor, nn
from torch.nn import functional as F

from mvcore.encoders.positions import dinov2_positions
from mvcore.errors import ConfigError


def strided_tokens(trunk: Any, images: Tensor, stride: int, positions: str = "timm") -> Tensor:
    """Tokens (N, prefix + L, C) before `norm_pre` of a timm VisionTransformer or Eva.

    Args:
        trunk: the model, made with `dynamic_img_size`.
        images: (N, 3, H, W) normalised, H and W multiples of the patch's side.
        stride: pixels between patches; divides the patch's side.
        positions: `timm`, or `dinov2` for `dinov2_positions`.
    """
    embed: Any = trunk.patch_embed
    patch = embed.patch_size[0]
    cells = F.conv2d(images, embed.proj.weight, embed.proj.bias, stride=stride)
    rows, columns = cells.shape[2:]
    tokens = embed.norm(cells.flatten(2).transpose(1, 2))
    prefix = [token.expand(len(tokens), -1, -1) for token in (trunk.cls_token, trunk.reg_token) if token is not None]
    if trunk.pos_embed is None:
        return trunk.pos_drop(torch.cat([*prefix, tokens], dim=1))
    if positions == "dinov2":
        places = dinov2_positions(trunk.pos_embed, (rows, columns))
        return trunk.pos_drop(torch.cat([*prefix, tokens], dim=1) + places)
    n_prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
    whole = [side // patch for side in images.shape[2:]]
    own = resample_abs_pos_embed(trunk.pos_embed, whole, list(embed.grid_size), n_prefix)
    places = own[:, n_prefix:].unflatten(1, whole).permute(0, 3, 1, 2)
    # Aligned at the corners: the centres of the first and of the last patches stay where they are.
    places = F.interpolate(places.float(), size=(rows, columns), mode="bicubic", align_corners=True).to(own.dtype)
    places = places.flatten(2).transpose(1, 2)
    if n_prefix:
        tokens = torch.cat([*prefix, tokens], dim=1) + torch.cat([own[:, :n_prefix], places], dim=1)
    else:
        tokens = torch.cat([*prefix, tokens + places], dim=1)
    return trunk.pos_drop(tokens)


def strided_rope(rope: nn.Module | None, size: tuple[int, int], patch: int, stride: int) -> Tensor | None:
    """The rotary embedding (L, 2 * dim) of overlapping patches of an image of `size` (H, W) pixels.

    Raises:
        ConfigError: rotary positions of a kind whose places between the model's own are not known.
    """
    if rope is None:
        return None
    finer = patch // stride
    moved: Any = copy.copy(rope)  # shares the buffers; only the offset below is its own
    if isinstance(rope, RotaryEmbeddingDinoV3) and rope.normalize_coords == "separate":
        # (k + 1/2 + offset) / n with k in steps of 1 / finer, written as the formula for n * finer cells.
        moved.grid_offset = finer * rope.grid_offset + (finer - 1) / 2
    elif isinstance(rope, RotaryEmbeddingCat) and rope.grid_type == "index" and rope.ref_feat_shape is not None:
        moved.grid_offset = finer * rope.grid_offset
    else:
        raise ConfigError(f"stride: rotary positions of {type(rope).__name__} have no known places between patches")
    whole = [side // patch for side in size]
    embedded = moved.get_embed(shape=[side * finer for side in whole])
    rows, columns = ((side - 1) * finer + 1 for side in whole)
    return embedded.unflatten(0, [side * finer for side in whole])[:rows, :columns].flatten(0, 1)
