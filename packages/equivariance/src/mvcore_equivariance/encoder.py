"""The method on any timm vision transformer, without the rest of mvcore: images in, dense maps out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from mvcore.api import MvcoreError, WeightsError, attention_sites, check_dinov2_positions, stages_of
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mvcore_equivariance.attention import AttentionUpdates
from mvcore_equivariance.heads import Head, apply_head, fold_strength, make_head
from mvcore_equivariance.released import BACKBONES, parse


class DenseEncoder(nn.Module):
    """A frozen timm ViT with low-rank updates of q and v in its last blocks and a head on its patch map (section 3.2).

    The map is that of the patch tokens after the model's final norm; class token and registers are left out, as many as
    the model itself says. The updates and the head train, all else does not. The model is changed in place and stays
    the library's: `merge` leaves it with its own keys.

    Args:
        vit: a timm ViT (`VisionTransformer`, `Eva`). It takes images of any whole number of patches, to which its
            position embeddings are resampled as timm does; others than a plain `VisionTransformer` must be made with
            `dynamic_img_size=True` for that.
        rank: of each update.
        last_blocks: how many blocks from the end are tuned.
        head: `conv`, the authors' 3 x 3 convolution; `residual`, which starts as the identity; or `none`.
        positions: how position embeddings are resampled: as `timm` does, or as DINOv2's own code, which the authors ran
            for its models without registers (`dinov2`).

    Raises:
        ValueError: not a ViT whose attention is known, fewer blocks than asked for, a rank that does not fit, or
            `positions` that the model has not.
    """

    def __init__(
        self,
        vit: nn.Module,
        *,
        rank: int = 4,
        last_blocks: int = 4,
        head: Head = "conv",
        positions: Literal["timm", "dinov2"] = "timm",
    ) -> None:
        super().__init__()
        parts = ("blocks", "patch_embed", "num_prefix_tokens", "forward_features")
        missing = [part for part in parts if not hasattr(vit, part)]
        if missing:
            raise ValueError(f"{type(vit).__name__} is no timm vision transformer: it has no {', '.join(missing)}")
        self.vit: Any = vit
        try:
            sites = attention_sites(self.vit.blocks, type(vit).__name__)
            if positions == "dinov2":
                check_dinov2_positions(vit, type(vit).__name__)
        except MvcoreError as error:
            raise ValueError(str(error)) from error
        self.positions = positions
        vit.requires_grad_(False)
        names = {id(parameter): name for name, parameter in vit.named_parameters()}
        self.updates = AttentionUpdates(sites, rank=rank, last_blocks=last_blocks, name_of=lambda p: names[id(p)])
        self.head = make_head(head, self.vit.embed_dim)
        self.strength = 1.0

    def forward(self, images: Tensor) -> Tensor:
        """Dense maps of images.

        Args:
            images: (B, 3, H, W) normalised with the model's own mean and deviation.

        Returns:
            (B, C, h, w), not normalised.

        Raises:
            ValueError: images of another shape or size than the model takes.
        """
        self._check(images)
        with parametrize.cached():
            tokens = self._tokens(images)[:, self.vit.num_prefix_tokens :]
        grid = self.vit.patch_embed.dynamic_feat_size(images.shape[2:])
        return apply_head(self.head, tokens.transpose(1, 2).unflatten(2, grid), self.strength)

    def _tokens(self, images: Tensor) -> Tensor:
        embed = self.vit.patch_embed
        fits = not embed.strict_img_size or tuple(images.shape[2:]) == tuple(embed.img_size)
        if fits and self.positions == "timm":
            return self.vit.forward_features(images)
        # A model made for one size, or other positions: its parts one by one, with patches that just do not overlap.
        stages: Any = stages_of(self.vit, type(self.vit).__name__)
        stages.stride, stages.positions = embed.patch_size[0], self.positions
        return self.vit.norm(stages.run(stages.embed(images), 0, len(stages.blocks)))

    def set_strength(self, strength: float) -> None:
        """How much of what was learnt is applied: 0 gives the untouched model's map bit for bit, 1 the trained one."""
        self.strength = float(strength)
        self.updates.set_strength(strength)

    def merge(self) -> None:
        """Folds the updates into the model's weights, bit for bit those that were read; the head stays beside."""
        self.updates.merge()
        fold_strength(self.head, self.strength)
        self.strength = 1.0

    def load_released(self, checkpoint: Mapping[str, Any], *, name: str | None = None) -> None:
        """Loads one of the authors' checkpoints, strictly: all of it fits or nothing is changed.

        Args:
            checkpoint: as `torch.load(file, weights_only=True)` gives it.
            name: the file's name, as `dinov2_reg_base.ckpt`. Whether a backbone with registers is meant cannot be seen
                in a checkpoint, only in that name, so give it where it is at hand.

        Raises:
            ValueError: another schema, backbone, rank, number of blocks or head than this encoder's.
        """
        released = parse(checkpoint)
        if name is not None:
            self._check_backbone(name)
        if type(self.head) is not nn.Conv2d:
            raise WeightsError("a released checkpoint has a convolution; make the encoder with head='conv'")
        factors = iter(self.updates.factors().values())
        mine = list(zip(factors, factors, strict=True))
        if len(mine) != len(released.factors):
            raise WeightsError(
                f"the checkpoint tunes {len(released.factors) // 2} blocks, this encoder {len(mine) // 2}"
            )
        into = [tensor for pair in mine for tensor in pair] + list(self.head.parameters())
        values = [tensor for pair in released.factors for tensor in pair] + [released.weight, released.bias]
        for target, value in zip(into, values, strict=True):
            if target.shape != value.shape:
                raise WeightsError(
                    f"the checkpoint is of another size: {tuple(value.shape)} where this encoder, of width "
                    f"{self.vit.embed_dim}, has {tuple(target.shape)}"
                )
        with torch.no_grad():
            for target, value in zip(into, values, strict=True):
                target.copy_(value)

    def _check_backbone(self, name: str) -> None:
        """Refuses a released file whose backbone has another patch or another number of registers."""
        stem = name.rsplit("/", 1)[-1].removesuffix(".ckpt")
        if stem not in BACKBONES:
            raise WeightsError(f"{name} is none of the released files: {', '.join(BACKBONES)}")
        prefix, patch = (5 if "_reg_" in stem else 1), (14 if stem.startswith("dinov2") else 16)
        mine = self.vit.num_prefix_tokens, self.vit.patch_embed.patch_size[0]
        if mine != (prefix, patch):
            raise WeightsError(
                f"{name} was trained over {BACKBONES[stem]}, with {prefix - 1} registers and patches of {patch} "
                f"pixels; this backbone has {mine[0] - 1} and {mine[1]}"
            )

    def _check(self, images: Tensor) -> None:
        embed = self.vit.patch_embed
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images must be (B, 3, H, W) floating, got {tuple(images.shape)} {images.dtype}")
        height, width = images.shape[2:]
        rows, columns = embed.patch_size
        if min(height // rows, width // columns) < 1:
            raise ValueError(f"images of {height}x{width} are smaller than a patch of {rows}x{columns}")
        own = embed.strict_img_size and (height, width) == tuple(embed.img_size)
        if embed.strict_img_size and not own and type(self.vit) is not VisionTransformer:
            raise ValueError(
                f"images of {height}x{width} do not fit a {type(self.vit).__name__} made for {embed.img_size}; make it "
                "with dynamic_img_size=True"
            )
        padded = embed.dynamic_img_pad and self.positions == "timm"
        if not (own or padded) and (height % rows or width % columns):
            raise ValueError(f"images of {height}x{width} are not whole patches of {rows}x{columns}; resize them")
