"""Whether the cells of a network's maps are the tiles of its input."""

from __future__ import annotations

from typing import Any

from torch import nn


def not_tiling(model: nn.Module) -> str:
    """Why the cells of a model's maps are not the tiles of its input; empty where they are.

    Where every step down takes windows that do not overlap, a cell stands for one square of pixels and lies in its
    middle. Steps that overlap, as a ResNet's, shift the centres by what their padding is.
    """
    for name, part in model.named_modules():
        if not isinstance(part, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            continue
        sizes = [_pair(getattr(part, key)) for key in ("kernel_size", "stride", "padding")]
        for window, step, padding in zip(*sizes, strict=True):
            whole = window == step and padding == 0
            centred = step == 1 and window % 2 == 1 and padding == window // 2
            if not (whole or centred):
                return f"{type(part).__name__} {name} takes windows of {window} at a stride of {step}"
    return ""


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
