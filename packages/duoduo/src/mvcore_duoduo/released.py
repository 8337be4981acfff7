"""What stands for the authors' own: their checkpoints, and how their code prepares images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from mvcore.api import Adapter, Backbone, ConfigError, WeightsError
from torch import Tensor
from torch.nn import functional as F

_MODEL = "duoduoclip."
_SCALE = "contrastive_loss.logit_scale"


def released_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one of the authors' checkpoints under the names of the recipe `duoduo.released`.

    Args:
        state: the state dict of their module: a whole CLIP under `duoduoclip.`, and `contrastive_loss.logit_scale`.

    Raises:
        WeightsError: another key, or one of the two parts is missing.
    """
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith(_MODEL):
            found[f"backbone/{key.removeprefix(_MODEL)}"] = value
        elif key == _SCALE and value.numel() == 1:
            found["adapters/duoduo.log_scale/log_scale"] = value.reshape(())
        else:
            raise WeightsError(
                f"the tensor {key!r} of shape {tuple(value.shape)} is none of a released Duoduo CLIP, whose names "
                f"begin with {_MODEL!r} or are {_SCALE!r}"
            )
    if _SCALE not in state or len(found) < 2:
        missing = _SCALE if _SCALE not in state else f"{_MODEL}*"
        raise WeightsError(f"this is no released Duoduo CLIP: it holds no {missing}")
    return found


class CropAdapter(Adapter):
    """`duoduo.crop`: a square of each image, enlarged to the image's size again, between the images and the model.

    The released code crops 208 of 224 pixels at random and enlarges them bilinearly, when it measures as well. Here a
    vector never depends on chance: outside of training the square is the central one, or the whole image is taken. What
    `duoduo.image_target` copied always sees the whole, as in the released code.

    Args:
        size, training, evaluation: see `CropOptions`.
    """

    def __init__(self, size: int = 208, training: str = "random", evaluation: str = "whole") -> None:
        super().__init__()
        self.size = size
        self.place = {True: training, False: evaluation}

    def attach(self, backbone: Backbone) -> None:
        """Puts itself before the model.

        Raises:
            ConfigError: the model's images are smaller than the square, or it reads none.
        """
        if backbone.image_size is not None and backbone.image_size < self.size:
            raise ConfigError(
                f"duoduo.crop: size {self.size} is more than the {backbone.image_size} pixels of the model's images"
            )
        backbone.add_preprocessing(self.cropped)

    def cropped(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) floating -> the same shape; one place for all images of a call."""
        place = self.place[self.training]
        if place == "whole":
            return images
        height, width = images.shape[2:]
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        if place == "random":
            top, left = (int(torch.randint(side - self.size + 1, ())) for side in (height, width))
        square = images[:, :, top : top + self.size, left : left + self.size]
        with torch.autocast(images.device.type, enabled=False):
            return F.interpolate(square, (height, width), mode="bilinear", antialias=True, align_corners=False)

    def set_strength(self, strength: float) -> None:
        """Nothing to do: it was not learnt."""
