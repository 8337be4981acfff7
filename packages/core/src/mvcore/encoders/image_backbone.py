"""What the backbones that read images have in common: uint8 in, what trains, and what adapters may add."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from mvcore.encoders.attention_sites import AttentionSite, attention_sites
from mvcore.encoders.branches import Branches, Known, Run
from mvcore.errors import ConfigError, DataError
from mvcore.parts import Backbone
from mvcore.types import ViewBatch


class ImageBackbone(Backbone):
    """A library's model that reads images.

    Images come in as uint8 and are normalised on the device with the model's own mean and deviation. What does not
    train stays in eval mode. With parametrized weights (LoRA) the caller encodes inside
    `torch.nn.utils.parametrize.cached()`.
    """

    name: str
    _branches: Branches
    _mean: Tensor
    _std: Tensor

    def _set_up(
        self, name: str, visual: nn.Module, mean: Sequence[float], std: Sequence[float], never: Sequence[str] = ()
    ) -> None:
        """To be called when the library's model is there.

        Args:
            name: the model's, for the text of errors.
            visual: the vision tower.
            mean, std: of each channel, in 0 to 1.
            never: prefixes of parameters that give no feature and never train.
        """
        self.name = name
        self._branches = Branches(visual, name)
        self._preprocessing: list[Callable[[Tensor], Tensor]] = []
        self._active: list[nn.Module] = []
        for buffer, values in (("_mean", mean), ("_std", std)):
            self.register_buffer(buffer, 255 * torch.tensor(list(values)).view(1, 3, 1, 1), persistent=False)
        self._scales = {"mean": list(mean), "std": list(std)}
        # What the library itself keeps fixed (a sine position table) and what gives no feature never trains.
        self._can_train = {
            parameter: parameter.requires_grad and not key.startswith(tuple(never))
            for key, parameter in self.model.named_parameters()
        }

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The vision blocks in order; a hierarchical tower's stages count as blocks."""

    @abstractmethod
    def last_blocks(self, count: int) -> list[nn.Module | nn.Parameter]:
        """The last `count` blocks and what follows them in the vision tower.

        Raises:
            ConfigError: more blocks than there are.
        """

    @abstractmethod
    def _fitted(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) in 0 to 255 as the model takes them.

        Raises:
            ConfigError: it takes none of that size.
        """

    @property
    def n_blocks(self) -> int:
        """How many vision blocks there are."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        return self._mean.device

    def preprocessing(self) -> Mapping[str, Any]:
        """The mean and the deviation that images are normalised with, in 0 to 1."""
        return dict(self._scales)

    def add_branch(self, key: str, first_block: int, run: Run, known: Known | None = None) -> None:
        self._branches.add(key, first_block, run, known)
        self.dims = {**self.dims, key: self.dims["view"]}
        self.provides |= {key}

    def add_preprocessing(self, run: Callable[[Tensor], Tensor]) -> None:
        self._preprocessing.append(run)

    def attention_sites(self) -> list[AttentionSite]:
        """The query, key and value weights of the vision blocks, in order.

        Raises:
            ConfigError: the blocks hold no attention.
            PluginError: attention of an unknown class.
        """
        return attention_sites(self.blocks, self.name)

    def set_trainable(self, mode: str) -> None:
        kind, _, count = mode.partition(":")
        if kind not in ("none", "all", "last") or (kind == "last") != count.isdigit():
            raise ConfigError(f"{self.name}: train must be none, all or last:N, not {mode!r}")
        parts: list[nn.Module | nn.Parameter] = {"none": [], "all": [self.model]}.get(kind) or []
        if kind == "last":
            parts = self.last_blocks(int(count))
        chosen: set[int] = set()
        for part in parts:
            chosen |= {id(part)} if isinstance(part, nn.Parameter) else {id(p) for p in part.parameters()}
        # Not an adapter's factors, which may stand among the model's parameters by now.
        for parameter, can_train in self._can_train.items():
            parameter.requires_grad_(can_train and id(parameter) in chosen)
        self._active = [part for part in parts if isinstance(part, nn.Module)]
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training mode for what trains only: a frozen part draws no dropout and updates no running statistics."""
        super().train(mode)
        if mode:
            self.model.eval()
            for part in self._active:
                part.train()
        return self

    def normalise(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> the same in the model's type and size, with its mean and deviation, on its device.

        Raises:
            ConfigError: not RGB uint8, or a size that the model does not take.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ConfigError(f"images must be (N, 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}")
        # Sources give their pixels as they were decoded, channels last; the type's copy puts them in order as well.
        pixels = images.to(self.device, non_blocking=True)
        pixels = self._fitted(pixels.to(self._mean.dtype, memory_format=torch.contiguous_format))
        return (pixels - self._mean) / self._std

    def _pixels(self, batch: ViewBatch, keys: frozenset[str]) -> Tensor:
        """The model's input of a batch, for the features `keys`.

        Raises:
            DataError: no images in the batch.
        """
        if batch.images is None:
            made = ", ".join(sorted(keys & ({"view", "dense"} | self._branches.keys)))
            raise DataError(f"{self.name} makes {made} from images; there are none")
        pixels = self.normalise(batch.images)
        for run in self._preprocessing:
            pixels = run(pixels)
        return pixels

    def _check_keys(self, keys: frozenset[str]) -> None:
        unknown = keys - self.provides
        if unknown:
            has = ", ".join(sorted(self.provides))
            raise ConfigError(f"{self.name} has no feature {', '.join(sorted(unknown))} (it has: {has})")

    def _check_square(self, images: Tensor) -> None:
        """Whether images are of the one size that the model takes.

        Raises:
            ConfigError: they are not.
        """
        if tuple(images.shape[2:]) != (self.image_size, self.image_size):
            size = "x".join(str(side) for side in images.shape[2:])
            raise ConfigError(
                f"images are {size} but {self.name} takes {self.image_size}x{self.image_size}; set image_size"
            )
