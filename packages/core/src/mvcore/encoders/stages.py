"""A vision transformer taken apart: images to tokens, block after block, tokens to vectors.

The parts together give exactly what the library's own forward gives; taken one by one they let two ways through the
blocks share what is common to both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import open_clip.timm_model
import open_clip.transformer
import timm.models.eva
import timm.models.vision_transformer
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvcore.encoders.across_views import ViewSegments, attending_across, attention_over
from mvcore.encoders.strided import strided_rope, strided_tokens
from mvcore.errors import ConfigError, PluginError


class Stages(ABC):
    """A vision transformer's parts. Tokens are (N, L, C), one row for each view.

    Attributes:
        blocks: its blocks in order.
    """

    blocks: list[nn.Module]

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Tokens before the first block of normalised images (N, 3, H, W)."""

    @abstractmethod
    def finish(self, tokens: Tensor) -> Tensor:
        """(N, D) vectors, in the space that the model's own vectors have, of the tokens after the last block."""

    @abstractmethod
    def attention(self, index: int) -> nn.Module:
        """The self-attention of a block."""

    @property
    @abstractmethod
    def checkpointing(self) -> bool:
        """Whether the library recomputes each block in the backward pass."""

    def _call(self, block: nn.Module, tokens: Tensor) -> Tensor:
        return block(tokens)

    def run(self, tokens: Tensor, start: int, stop: int, views: ViewSegments | None = None) -> Tensor:
        """Tokens after the blocks `start` to `stop - 1`; with `views` they attend across the views of an object."""
        for index in range(start, stop):
            if self.checkpointing and tokens.requires_grad:
                # The block runs again in the backward pass, and must then attend as it did: so `views` goes inside.
                tokens = checkpoint(self._block, tokens, index, views, use_reentrant=False)  # pyright: ignore
            else:
                tokens = self._block(tokens, index, views)
        return tokens

    def _block(self, tokens: Tensor, index: int, views: ViewSegments | None) -> Tensor:
        block = self.blocks[index]
        if views is None:
            return self._call(block, tokens)
        with attending_across(self.attention(index), views):
            return self._call(block, tokens)

    def check_crossing(self, start: int, owner: str) -> None:
        """Whether attention can cross views from block `start` on.

        Raises:
            ConfigError: there is no such block (the number of blocks itself is allowed: then none crosses).
            PluginError: attention of a class that is not known.
        """
        if not 0 <= start <= len(self.blocks):
            raise ConfigError(f"{owner}: block {start} is not one of its vision blocks 0 to {len(self.blocks) - 1}")
        for index in range(start, len(self.blocks)):
            try:
                attention_over(self.attention(index))
            except PluginError as error:
                raise PluginError(f"{owner}: block {index}: {error}") from None


class OpenClipStages(Stages):
    """open_clip's VisionTransformer."""

    def __init__(self, visual: open_clip.transformer.VisionTransformer) -> None:
        self.visual: Any = visual
        self.blocks = list(self.visual.transformer.resblocks)

    @property
    def checkpointing(self) -> bool:
        return self.visual.transformer.grad_checkpointing

    def embed(self, images: Tensor) -> Tensor:
        visual = self.visual
        grid = [side // patch for side, patch in zip(images.shape[2:], visual.conv1.kernel_size, strict=True)]
        if grid == list(visual.grid_size):
            return visual._embeds(images)
        # As its `_embeds`, which knows the positions of one grid alone.
        patches = visual.conv1(images).flatten(2).transpose(1, 2)
        first = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        places = resample_abs_pos_embed(visual.positional_embedding[None], grid, num_prefix_tokens=1)
        return visual.ln_pre(visual.patch_dropout(torch.cat([first, patches], dim=1) + places.to(patches.dtype)))

    def finish(self, tokens: Tensor) -> Tensor:
        pooled = self.visual._pool(tokens)[0]
        return pooled if self.visual.proj is None else pooled @ self.visual.proj

    def attention(self, index: int) -> nn.Module:
        block: Any = self.blocks[index]
        return block.attn

    def _call(self, block: nn.Module, tokens: Tensor) -> Tensor:
        if self.visual.transformer.batch_first:
            return block(tokens)
        return block(tokens.transpose(0, 1)).transpose(0, 1)


class TimmStages(Stages):
    """timm's VisionTransformer, alone or as the trunk of an open_clip model with a head of its own.

    Attributes:
        stride: pixels between patches; None = the model's own, without overlap.
        positions: how position embeddings are resampled, as `timm` or as `dinov2` does.
    """

    stride: int | None = None
    positions: str = "timm"

    def __init__(self, trunk: nn.Module, head: nn.Module | None = None) -> None:
        self.trunk: Any = trunk
        self.head = head
        self.blocks = list(self.trunk.blocks)

    @property
    def checkpointing(self) -> bool:
        return self.trunk.grad_checkpointing

    def embed(self, images: Tensor) -> Tensor:
        trunk = self.trunk
        if self.stride is None and self.positions == "timm":
            tokens = trunk._pos_embed(trunk.patch_embed(images))
        else:
            tokens = strided_tokens(trunk, images, self.stride or trunk.patch_embed.patch_size[0], self.positions)
        return trunk.norm_pre(trunk.patch_drop(tokens))

    def finish(self, tokens: Tensor) -> Tensor:
        normed = self.trunk.norm(tokens)
        if self.head is None:
            return self.trunk.forward_head(normed, pre_logits=True)
        return self.head(self.trunk.forward_head(normed))

    def attention(self, index: int) -> nn.Module:
        block: Any = self.blocks[index]
        return block.attn


class EvaStages(TimmStages):
    """timm's Eva (EVA02, DINOv3), whose attention turns queries and keys by their place in the view's own grid.

    The places are those of the images that were embedded last; all images of a run have one size.
    """

    _rope: Tensor | None = None

    def embed(self, images: Tensor) -> Tensor:
        trunk = self.trunk
        if self.stride is None:
            tokens, self._rope = trunk._pos_embed(trunk.patch_embed(images))
        else:
            patch, size = trunk.patch_embed.patch_size[0], (images.shape[2], images.shape[3])
            self._rope = strided_rope(trunk.rope, size, patch, self.stride)
            tokens = strided_tokens(trunk, images, self.stride)
        return trunk.norm_pre(tokens)

    def _call(self, block: nn.Module, tokens: Tensor) -> Tensor:
        return block(tokens, rope=self._rope)


def stages_of(visual: nn.Module, owner: str) -> Stages:
    """The parts of a vision tower: an open_clip `visual`, or a timm model.

    Raises:
        PluginError: a tower that is no plain vision transformer.
    """
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        return OpenClipStages(visual)
    head = None
    trunk: Any = visual
    if isinstance(visual, open_clip.timm_model.TimmModel):
        trunk, head = visual.trunk, visual.head
    if type(trunk) is timm.models.vision_transformer.VisionTransformer:
        return TimmStages(trunk, head)
    if type(trunk) is timm.models.eva.Eva and not trunk.rope_mixed and trunk.patch_drop is None:
        return EvaStages(trunk, head)
    raise PluginError(
        f"{owner}: its vision tower ({type(trunk).__name__}) is no plain vision transformer, so its blocks cannot be "
        "run one by one"
    )
