"""What differs between the vision towers of open_clip: their blocks, their maps and what follows the blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import open_clip.modified_resnet
import open_clip.timm_model
import open_clip.transformer
from torch import Tensor, nn
from torch.nn import functional as F

from mvcore.dense_grid import DenseGrid
from mvcore.encoders.block_rows import block_index, last_of
from mvcore.encoders.cells import not_tiling
from mvcore.encoders.options import DenseOptions
from mvcore.encoders.stages import OpenClipStages
from mvcore.errors import ConfigError, PluginError


class VisionTower(ABC):
    """One of open_clip's vision towers, with the pass that gives its pooled vector and its map together.

    Attributes:
        blocks: its blocks in order (a hierarchical tower's stages); empty where the tower has no such row.
        tail: modules and parameters that follow the blocks.
        no_text_map: why patches cannot be projected into the space of the texts; empty where they can.
        any_grid: it makes maps of any number of patches.
    """

    blocks: Sequence[nn.Module]
    tail: Sequence[nn.Module | nn.Parameter]
    no_text_map: str = ""
    any_grid: bool = False

    def __init__(self, owner: str, dense: DenseOptions) -> None:
        self.owner = owner
        self.dense = dense

    @abstractmethod
    def encode(self, images: Tensor, *, view: bool) -> tuple[Tensor | None, Tensor]:
        """Pooled vectors (N, D), or None where `view` is false, and maps (N, C, h, w), in one pass."""

    @abstractmethod
    def map_width(self) -> int:
        """C of the maps in the tower's own space."""

    def grid(self, size: int) -> DenseGrid:
        """Where the cells of the maps lie in images of `size` x `size` pixels.

        Raises:
            ConfigError: their places are not known.
        """
        raise ConfigError(f"{self.owner}: the places of the cells of its map are not known: its steps down overlap")

    def check_dense(self) -> None:
        """Whether the maps asked for can be had.

        Raises:
            ConfigError: no such layer, or no projection into the space of the texts.
        """
        if self.dense.patches is not None and not self.any_grid:
            raise ConfigError(f"{self.owner}: dense.patches: its vision tower makes maps of one size; leave it out")
        if self.dense.space == "text" and self.no_text_map:
            raise ConfigError(f"{self.owner}: dense with space: text cannot be had: {self.no_text_map}")
        self.layer_index()

    def layer_index(self) -> int | None:
        """The block whose output is the map, from 0; None = the final map."""
        return block_index(self.dense.layer, self.blocks, self.owner)

    def last_blocks(self, count: int) -> list[nn.Module | nn.Parameter]:
        """The last `count` blocks and what follows them.

        Raises:
            ConfigError: more blocks than there are.
        """
        return last_of(self.blocks, count, self.tail, self.owner)


class ClassTokenTower(VisionTower):
    """open_clip's VisionTransformer: a class token or the mean of patches, or CoCa's attentional pooling."""

    any_grid = True

    def __init__(self, visual: open_clip.transformer.VisionTransformer, owner: str, dense: DenseOptions) -> None:
        super().__init__(owner, dense)
        self.visual: Any = visual
        self.blocks = list(visual.transformer.resblocks)
        pools = [getattr(visual, name, None) for name in ("attn_pool", "attn_pool_contrastive")]
        parts = [*pools, visual.ln_post, visual.proj]
        self.tail = [part for part in parts if isinstance(part, (nn.Module, nn.Parameter))]
        if visual.attn_pool is not None:
            self.no_text_map = "its vector is pooled by attention over all patches, so a single patch has no projection"

    def map_width(self) -> int:
        return self.visual.conv1.out_channels

    def grid(self, size: int) -> DenseGrid:
        if self.dense.patches is not None:
            return DenseGrid.tiling(self.dense.patches, self.dense.patches, size, size)
        patch = self.visual.conv1.kernel_size[0]
        return DenseGrid.of_patches(size, size, patch, patch)

    def encode(self, images: Tensor, *, view: bool) -> tuple[Tensor | None, Tensor]:
        dropout = self.visual.patch_dropout
        if dropout.training and getattr(dropout, "prob", 0) > 0:
            raise ConfigError(f"{self.owner}: dense needs all patches, but the model config drops some in training")
        if self.dense.patches is not None:
            stages = OpenClipStages(self.visual)
            vectors = stages.finish(stages.run(stages.embed(images), 0, len(self.blocks))) if view else None
            return vectors, self._projected(self._map_of(images, stages, self.dense.patches))
        layer = self.layer_index()
        found = self.visual.forward_intermediates(
            images,
            indices=[len(self.blocks) - 1 if layer is None else layer],
            # CoCa's last norm acts on what its pooling gives, not on patches.
            normalize_intermediates=layer is None and self.visual.attn_pool is None,
            intermediates_only=not view,
            stop_early=not view,
        )
        return found.get("image_features"), self._projected(found["image_intermediates"][0])

    def _map_of(self, images: Tensor, stages: OpenClipStages, patches: int) -> Tensor:
        """(N, C, patches, patches) of the images at the size that has so many patches."""
        layer = self.layer_index()
        side = patches * self.visual.conv1.kernel_size[0]
        tokens = stages.embed(F.interpolate(images, (side, side), mode="bilinear", antialias=True))
        tokens = stages.run(tokens, 0, len(self.blocks) if layer is None else layer + 1)
        if layer is None and self.visual.attn_pool is None:
            tokens = self.visual.ln_post(tokens)
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (patches, patches))

    def _projected(self, patches: Tensor) -> Tensor:
        """In the space of the texts where that is asked for, the way of the class token: ln_post, then proj."""
        if self.dense.space == "visual":
            return patches
        return (patches.movedim(1, -1) @ self.visual.proj).movedim(-1, 1)


class ResNetTower(VisionTower):
    """CLIP's ResNet with attention pooling; its four stages count as blocks."""

    no_text_map = "its vector is pooled by attention over all cells, so a single cell has no projection"

    def __init__(self, visual: open_clip.modified_resnet.ModifiedResNet, owner: str, dense: DenseOptions) -> None:
        super().__init__(owner, dense)
        self.visual: Any = visual
        self.blocks = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
        self.tail = [visual.attnpool]

    def map_width(self) -> int:
        layer = self.layer_index()
        bottleneck: Any = list(self.blocks[-1 if layer is None else layer].children())[-1]
        return bottleneck.conv3.out_channels

    def encode(self, images: Tensor, *, view: bool) -> tuple[Tensor | None, Tensor]:
        layer = self.layer_index()
        # The library counts the stem as 0, and pools whatever came last of the layers asked for.
        wanted = len(self.blocks) if layer is None else layer + 1
        indices = sorted({wanted, len(self.blocks)}) if view else [wanted]
        found = self.visual.forward_intermediates(images, indices=indices, intermediates_only=not view)
        return found.get("image_features"), found["image_intermediates"][0]


class TimmTower(VisionTower):
    """A timm model as the vision tower: ViT, EVA, FastViT, ConvNeXt and their kin."""

    def __init__(self, visual: open_clip.timm_model.TimmModel, owner: str, dense: DenseOptions) -> None:
        super().__init__(owner, dense)
        self.visual: Any = visual
        self.trunk: Any = visual.trunk
        name = next((name for name in ("blocks", "stages") if hasattr(self.trunk, name)), None)
        self.blocks = [] if name is None else list(getattr(self.trunk, name).children())
        children = [child for child, _ in self.trunk.named_children()]
        after = children[children.index(name) + 1 :] if name in children else []
        self.tail = [*(getattr(self.trunk, child) for child in after), visual.head]
        if getattr(self.trunk, "attn_pool", None) is not None or "pool" in dict(visual.head.named_children()):
            self.no_text_map = "its vector is pooled by attention over all patches, so a single patch has no projection"

    def map_width(self) -> int:
        layer = self.layer_index()
        if layer is None:
            return self.trunk.num_features
        return self.trunk.feature_info[layer]["num_chs"]

    def grid(self, size: int) -> DenseGrid:
        layer = self.layer_index()
        fault = not_tiling(self.trunk)
        if fault:
            raise ConfigError(f"{self.owner}: the places of the cells of its map are not known: {fault}")
        cell = int(self.trunk.feature_info[-1 if layer is None else layer]["reduction"])
        return DenseGrid.of_patches(size, size, cell, cell)

    def encode(self, images: Tensor, *, view: bool) -> tuple[Tensor | None, Tensor]:
        layer = self.layer_index()
        if layer is None:
            final = self.trunk.forward_features(images)
            vectors = self.visual.head(self.trunk.forward_head(final)) if view else None
            return vectors, self._map(final, images)
        found = self.visual.forward_intermediates(
            images, indices=[layer], intermediates_only=not view, stop_early=not view, output_fmt="NCHW"
        )
        return found.get("image_features"), found["image_intermediates"][0]

    def _map(self, final: Tensor, images: Tensor) -> Tensor:
        """(N, C, h, w) from the trunk's final tokens (N, prefix + L, C) or its final map."""
        if final.ndim == 4:
            if getattr(self.trunk, "output_fmt", "NCHW") != "NCHW":
                raise ConfigError(f"{self.owner}: dense cannot be had: {type(self.trunk).__name__} keeps channels last")
            return self._project_cells(final) if self.dense.space == "text" else final
        prefix = self.trunk.num_prefix_tokens
        patches = final[:, prefix:]
        if self.dense.space == "text":
            # Each patch goes through the head as if the image were nothing else, whatever the head pools.
            alone = patches.reshape(-1, 1, patches.shape[-1]).expand(-1, prefix + 1, -1)
            patches = self.visual.head(self.trunk.forward_head(alone)).unflatten(0, patches.shape[:2])
        height, width = self.trunk.patch_embed.dynamic_feat_size(images.shape[-2:])
        return patches.transpose(1, 2).unflatten(2, (height, width))

    def _project_cells(self, final: Tensor) -> Tensor:
        cells = final.permute(0, 2, 3, 1)
        projected = self.visual.head(self.trunk.forward_head(cells.reshape(-1, final.shape[1], 1, 1)))
        return projected.unflatten(0, cells.shape[:3]).permute(0, 3, 1, 2)


def vision_tower(visual: nn.Module, owner: str, dense: DenseOptions) -> VisionTower:
    """The tower's own kind.

    Raises:
        PluginError: a class that is not known.
    """
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        return ClassTokenTower(visual, owner, dense)
    if isinstance(visual, open_clip.modified_resnet.ModifiedResNet):
        return ResNetTower(visual, owner, dense)
    if isinstance(visual, open_clip.timm_model.TimmModel):
        return TimmTower(visual, owner, dense)
    raise PluginError(f"{owner}: vision towers of class {type(visual).__name__} are not known to core.open_clip")
