"""`core.timm`: an unmodified timm model as the backbone of a run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from timm.data.config import resolve_model_data_config
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn
from torch.nn import functional as F

from mvcore.dense_grid import DenseGrid
from mvcore.encoders.image_backbone import ImageBackbone
from mvcore.encoders.options import TimmDenseOptions
from mvcore.encoders.timm_loading import load_timm
from mvcore.encoders.timm_vision import MapSettings, vision_of
from mvcore.errors import ConfigError
from mvcore.suggest import did_you_mean
from mvcore.types import ViewBatch


class Timm(ImageBackbone):
    """Features of a timm model: `view`, its own pooled vector before any classifier, and `dense`, its map of patches.

    Vectors are as the model gives them, not normalised. An image of another size than `image_size` is resized
    (bilinear, antialiased) so that its longer side has as many patches as fit into `image_size`, or `patches`, and its
    shorter side as many as fit; both sides then hold whole patches. At its own size a model gets the very pixels.

    Args:
        model, pretrained, train, image_size, patches, stride, positions, dense: see `TimmOptions`.

    Raises:
        WeightsError: unknown model or tag, unreadable or unfitting weights, or no way to the hub.
        ConfigError: a size, stride, layer or number of blocks that the model cannot have.
    """

    library = "timm"
    timm: Any

    def __init__(
        self,
        model: str,
        pretrained: bool | str | None = None,
        train: str = "none",
        image_size: int | None = None,
        patches: int | None = None,
        stride: int | None = None,
        positions: str = "timm",
        dense: TimmDenseOptions | dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.timm = load_timm(model, pretrained)
        data = resolve_model_data_config(self.timm)
        self._set_up(model, self.timm, data["mean"], data["std"])
        self._vision = vision_of(self.timm, model, self._branches)
        self.any_size = self._vision.any_size
        self._side = image_size or self._vision.native
        self.image_size = self._side
        if self._side != self._vision.native and not self.any_size:
            size = self._vision.native
            raise ConfigError(f"{model} takes images of {size}x{size} only; leave image_size out")
        if self._side < self._vision.patch:
            raise ConfigError(f"{model}: image_size {self._side} is less than a patch of {self._vision.patch} pixels")
        layer = dense if isinstance(dense, TimmDenseOptions) else TimmDenseOptions(**(dense or {}))
        self._settings = MapSettings(patches, stride, layer.layer, layer.norm, positions)
        self._vision.check(self._settings)
        width = getattr(self.timm, "head_hidden_size", None) or self.timm.num_features
        self.dims = {"view": width, "dense": self._vision.map_width(self._settings)}
        self.provides = frozenset(self.dims)
        self.set_trainable(train)

    @property
    def model(self) -> nn.Module:
        return self.timm

    @property
    def patch(self) -> int:
        """Side of a patch in pixels of the model's input."""
        return self._vision.patch

    @property
    def stride(self) -> int:
        """Pixels of the model's input between patches."""
        return self._settings.stride or self.patch

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self._vision.blocks

    def last_blocks(self, count: int) -> list[nn.Module | nn.Parameter]:
        return self._vision.last_blocks(count)

    def preprocessing(self) -> Mapping[str, Any]:
        """Mean and deviation in 0 to 1 and, where they are set, `patches`, `stride` and `positions`."""
        settings = self._settings
        positions = None if settings.positions == "timm" else settings.positions
        chosen = {"patches": settings.patches, "stride": settings.stride, "positions": positions}
        return {**super().preprocessing(), **{key: value for key, value in chosen.items() if value is not None}}

    def library_config(self) -> dict[str, Any]:
        """What timm needs to make the model again from a folder: `config.json`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            save_config_for_hf(self.timm, str(path))
            return json.loads(path.read_text(encoding="utf-8"))

    @contextmanager
    def dense_at(self, **changes: Any) -> Iterator[None]:
        """Other `patches`, `stride`, `positions`, `layer` or `norm` inside the context; see `Backbone.dense_at`."""
        known = [field.name for field in fields(MapSettings)]
        for key in changes:
            if key not in known:
                raise ConfigError(f"{self.name}: its map has no setting {key!r}{did_you_mean(key, known)}")
        before, other = self._settings, replace(self._settings, **changes)
        self._vision.check(other)
        if self._vision.map_width(other) != self.dims["dense"]:
            raise ConfigError(
                f"{self.name}: dense.layer {other.layer} has another width than the map that it stands for"
            )
        self._settings = other
        try:
            yield
        finally:
            self._settings = before

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of the model's input for images of a size: whole patches.

        Raises:
            ConfigError: images of that size are not taken.
        """
        patch = self._vision.patch
        if not self.any_size:
            return self._side, self._side
        if min(height, width) < patch:
            raise ConfigError(
                f"images of {height}x{width} pixels are smaller than a patch of {self.name}, {patch}x{patch}"
            )
        longer = self._settings.patches or self._side // patch
        rows, columns = (longer * side // max(height, width) for side in (height, width))
        if min(rows, columns) < 1:
            raise ConfigError(
                f"images of {height}x{width} pixels, with {longer} patches of {self.name} along the longer side, "
                "have none along the shorter"
            )
        return rows * patch, columns * patch

    def dense_grid(self, width: int, height: int) -> DenseGrid:
        size = self.input_size(height, width)
        grid = self._vision.grid(size[1], size[0], self._settings)
        return grid if self._is_cut(height, width) else grid.before((size[1] / width, size[0] / height))

    def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
        """The features `keys` of a batch, in one pass.

        Raises:
            ConfigError: a feature that the model has not, or images of a size that it does not take.
            DataError: no images in the batch.
        """
        self._check_keys(keys)
        return self._vision.encode(lambda: self._pixels(batch, keys), batch, keys, self._settings)

    def _is_cut(self, height: int, width: int) -> bool:
        """Whether a border that holds no whole patch is left out, as timm does at the model's own size."""
        own = self._vision.native
        return self._settings.patches is None and height == width == own == self._side

    def _fitted(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        if not self.any_size:
            self._check_square(pixels)
            return pixels
        size = self.input_size(height, width)
        if (height, width) == size:
            return pixels
        if self._is_cut(height, width):
            return pixels[:, :, : size[0], : size[1]]
        return F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
