"""How a timm model gives its vector and its map: block by block where it is a plain vision transformer, else whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from mvcore.dense_grid import DenseGrid
from mvcore.encoders.block_rows import block_index, last_of
from mvcore.encoders.branches import Branch, Branches
from mvcore.encoders.cells import not_tiling
from mvcore.encoders.positions import check_dinov2_positions
from mvcore.encoders.stages import Stages, TimmStages
from mvcore.encoders.strided import strided_rope
from mvcore.errors import ConfigError, PluginError
from mvcore.types import ViewBatch


@dataclass(frozen=True)
class MapSettings:
    """What may change from pass to pass; see `TimmOptions` and `TimmDenseOptions`."""

    patches: int | None = None
    stride: int | None = None
    layer: int | None = None
    norm: bool | None = None
    positions: str = "timm"


class TimmVision(ABC):
    """A timm model without a classifier.

    Attributes:
        blocks: its blocks in order (a hierarchical model's stages); empty where it has no such row.
        tail: modules that follow the blocks.
        patch: pixels of its input, along a side, that one cell of the final map stands for.
        native: the side of the images that its weights were made for.
        any_size: whether it takes images of other sizes, of whole patches.
    """

    blocks: Sequence[nn.Module]
    tail: Sequence[nn.Module]
    patch: int
    any_size: bool

    def __init__(self, model: nn.Module, owner: str) -> None:
        self.model: Any = model
        self.owner = owner
        # A transformer made for another size than its weights' says so itself.
        embed = getattr(self.model, "patch_embed", None)
        sides = getattr(embed, "img_size", None) or self.model.pretrained_cfg["input_size"][1:]
        if len(set(sides)) != 1:
            raise ConfigError(f"{owner} takes images of {sides[0]}x{sides[1]}; only square ones work")
        self.native: int = sides[0]
        name = next((name for name in ("blocks", "stages", "layers") if hasattr(self.model, name)), None)
        self.blocks = [] if name is None else list(getattr(self.model, name).children())
        children = [child for child, _ in self.model.named_children()]
        after = children[children.index(name) + 1 :] if name in children else []
        self.tail = [getattr(self.model, child) for child in after]

    @abstractmethod
    def encode(
        self, pixels: Callable[[], Tensor], batch: ViewBatch, keys: frozenset[str], settings: MapSettings
    ) -> dict[str, Tensor]:
        """The features `keys` in one pass over normalised images (N, 3, H, W)."""

    @abstractmethod
    def map_width(self, settings: MapSettings) -> int:
        """C of the maps."""

    @abstractmethod
    def grid(self, width: int, height: int, settings: MapSettings) -> DenseGrid:
        """Where the cells lie in an input of `width` x `height` pixels.

        Raises:
            ConfigError: the places of the cells are not known.
        """

    def check(self, settings: MapSettings) -> None:
        """Whether the model can do what the settings ask for.

        Raises:
            ConfigError: it cannot.
        """
        self.layer_index(settings)

    def layer_index(self, settings: MapSettings) -> int | None:
        """The block whose output is the map, from 0; None = the final map."""
        return block_index(settings.layer, self.blocks, self.owner)

    def last_blocks(self, count: int) -> list[nn.Module | nn.Parameter]:
        """The last `count` blocks and what follows them.

        Raises:
            ConfigError: more blocks than there are.
        """
        return last_of(self.blocks, count, self.tail, self.owner)


class PlainTransformer(TimmVision):
    """timm's VisionTransformer and Eva (DINOv2, DINOv3, DeiT III, MAE, CLIP, SigLIP): blocks that run one by one."""

    any_size = True

    def __init__(self, model: nn.Module, owner: str, branches: Branches) -> None:
        super().__init__(model, owner)
        self.branches = branches
        self.patch = _side(self.model.patch_embed.patch_size, owner)

    def check(self, settings: MapSettings) -> None:
        super().check(settings)
        if settings.positions == "dinov2":
            check_dinov2_positions(self.model, self.owner)
        stride = settings.stride
        if stride is None or stride == self.patch:
            return
        if self.patch % stride:
            raise ConfigError(f"{self.owner}: stride {stride} is no divisor of the patch's side, {self.patch}")
        rope = getattr(self.model, "rope", None)
        if rope is not None:
            strided_rope(rope, (self.patch, self.patch), self.patch, stride)  # refuses positions that it does not know

    def map_width(self, settings: MapSettings) -> int:
        return self.model.embed_dim

    def grid(self, width: int, height: int, settings: MapSettings) -> DenseGrid:
        return DenseGrid.of_patches(width, height, self.patch, settings.stride or self.patch)

    def encode(
        self, pixels: Callable[[], Tensor], batch: ViewBatch, keys: frozenset[str], settings: MapSettings
    ) -> dict[str, Tensor]:
        stages: Any = self.branches.stages
        stages.stride = None if settings.stride == self.patch else settings.stride
        stages.positions = settings.positions
        size: list[int] = []

        def measured() -> Tensor:
            images = pixels()
            size[:] = images.shape[2:]
            return images

        def to_map(_: Stages, tokens: Tensor, __: ViewBatch) -> Tensor:
            if settings.norm if settings.norm is not None else settings.layer is None:
                tokens = self.model.norm(tokens)
            grid = self.grid(size[1], size[0], settings)
            return tokens[:, self.model.num_prefix_tokens :].transpose(1, 2).unflatten(2, (grid.rows, grid.columns))

        layer = self.layer_index(settings)
        after = len(self.blocks) if layer is None else layer + 1
        taps = {"dense": Branch(after, to_map)} if "dense" in keys else {}
        return self.branches.encode(measured, batch, keys & self.branches.keys, view="view" in keys, taps=taps)


class WholeModel(TimmVision):
    """Any other timm model, by its own passes."""

    def __init__(self, model: nn.Module, owner: str) -> None:
        super().__init__(model, owner)
        self.levels: list[Any] = list(getattr(self.model, "feature_info", ()))
        self.embed: Any = getattr(self.model, "patch_embed", None)
        dynamic = getattr(self.model, "dynamic_img_size", False)
        self.any_size = bool(self.levels) and (dynamic or not self.model.pretrained_cfg.get("fixed_input_size", False))
        self.patch = int(self.levels[-1]["reduction"]) if self.levels else self.native

    def check(self, settings: MapSettings) -> None:
        super().check(settings)
        kind = type(self.model).__name__
        if settings.stride is not None:
            raise ConfigError(f"{self.owner}: stride cannot be set: {kind} is no plain vision transformer")
        if settings.positions != "timm":
            raise ConfigError(
                f"{self.owner}: positions cannot be {settings.positions}: {kind} is no plain vision transformer"
            )
        if settings.patches is not None and not self.any_size:
            raise ConfigError(f"{self.owner}: patches cannot be set: {kind} takes {self.native}x{self.native} only")
        if settings.layer is None and settings.norm is not None:
            raise ConfigError(f"{self.owner}: dense.norm cannot be set for the final map of {kind}")
        if settings.layer is not None and (
            len(self.levels) != len(self.blocks) or not hasattr(self.model, "forward_intermediates")
        ):
            raise ConfigError(f"{self.owner}: dense.layer cannot be had: {kind} does not tell its blocks' maps apart")

    def map_width(self, settings: MapSettings) -> int:
        layer = self.layer_index(settings)
        return self.model.num_features if layer is None else int(self.levels[layer]["num_chs"])

    def grid(self, width: int, height: int, settings: MapSettings) -> DenseGrid:
        layer = self.layer_index(settings)
        cell = self.patch if layer is None else int(self.levels[layer]["reduction"])
        fault = not_tiling(self.model)
        if fault:
            raise ConfigError(f"{self.owner}: the places of the cells of its map are not known: {fault}")
        return DenseGrid.of_patches(width, height, cell, cell)

    def encode(
        self, pixels: Callable[[], Tensor], batch: ViewBatch, keys: frozenset[str], settings: MapSettings
    ) -> dict[str, Tensor]:
        if not keys:
            return {}
        images, layer = pixels(), self.layer_index(settings)
        found: dict[str, Tensor] = {}
        if "dense" in keys and layer is not None:
            final, maps = self.model.forward_intermediates(
                images, indices=[layer], norm=bool(settings.norm), output_fmt="NCHW"
            )
            found["dense"] = maps[0]
        else:
            final = self.model.forward_features(images)
            if "dense" in keys:
                found["dense"] = self._map(final, images)
        if "view" in keys:
            found["view"] = self.model.forward_head(final, pre_logits=True)
        return found

    def _map(self, final: Tensor, images: Tensor) -> Tensor:
        """(N, C, h, w) from the model's final tokens (N, prefix + L, C) or its final map."""
        if final.ndim == 4:
            last = str(getattr(self.model, "output_fmt", "NCHW")) == "NHWC"
            return final.permute(0, 3, 1, 2) if last else final
        prefix = getattr(self.model, "num_prefix_tokens", None)
        sized = getattr(self.embed, "dynamic_feat_size", None)
        rows, columns = sized(images.shape[-2:]) if sized is not None else (0, 0)
        if final.ndim != 3 or prefix is None or final.shape[1] != prefix + rows * columns:
            shape = tuple(final.shape)
            raise ConfigError(f"{self.owner}: dense cannot be had: {type(self.model).__name__} ends in {shape}, no map")
        return final[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns))


def vision_of(model: nn.Module, owner: str, branches: Branches) -> TimmVision:
    """The way through a timm model.

    Raises:
        ConfigError: it takes no square images.
    """
    try:
        plain = isinstance(branches.stages, TimmStages)
    except PluginError:
        plain = False
    embed = getattr(model, "patch_embed", None)
    if plain and type(embed) is PatchEmbed and getattr(model, "dynamic_img_size", False):
        return PlainTransformer(model, owner, branches)
    return WholeModel(model, owner)


def _side(patch: tuple[int, int], owner: str) -> int:
    if patch[0] != patch[1]:
        raise ConfigError(f"{owner}: patches of {patch[0]}x{patch[1]} pixels are not square")
    return patch[0]
