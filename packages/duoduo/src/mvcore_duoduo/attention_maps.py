"""Where attention goes from one patch of one view: to the patches of every view (Duoduo CLIP, figure 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mvcore.api import ConfigError, Model, Stages, ViewBatch, ViewSegments, attention_inputs
from numpy.typing import NDArray
from torch import Tensor

from mvcore_duoduo.attention import CrossViewAdapter

_KEY = "duoduo.attention"


@dataclass(frozen=True)
class AttentionMaps:
    """The attention of one token of one view, the mean over heads.

    Args:
        patches: (F, h, w) share that goes to each patch of each view.
        others: (F,) share that goes to each view's tokens that are no patch, as its class token. All shares sum to 1.
        images: (F, S, S, 3) uint8, as the model was given them.
        view: the view that looks.
        patch: (row, column) of the patch that looks; None = the view's class token.
        block: the block that was looked at.
    """

    patches: NDArray[np.float32]
    others: NDArray[np.float32]
    images: NDArray[np.uint8]
    view: int
    patch: tuple[int, int] | None
    block: int

    @property
    def of_views(self) -> NDArray[np.float32]:
        """(F,) share that goes to each view."""
        return self.patches.sum(axis=(1, 2)) + self.others


def attention_maps(
    model: Model,
    views: Sequence[Any],
    *,
    view: int = 0,
    point: tuple[float, float] | None = None,
    block: int | None = None,
    cross_view_from: int | None = None,
) -> AttentionMaps:
    """The attention across views of one object in one block.

    Args:
        model: a model with `duoduo.cross_view`; any other, where `cross_view_from` is given.
        views: the object's images, as `Model.encode_images` takes them.
        view: number of the view that looks.
        point: (x, y) in pixels of that view's own image, from its top left corner; the patch there looks. None = the
            view's class token.
        block: the block to look at; None = the first that attends across views.
        cross_view_from: the first block that attends across views; None = the model's own.

    Raises:
        ConfigError: no such view, block or place, or a model that does not attend across views.
        PluginError: a tower, or attention in it, of a class that is not known.
    """
    start = _first_block(model, cross_view_from)
    block = start if block is None else block
    prepared = model.prepare(views)
    if not 0 <= view < len(prepared):
        raise ConfigError(f"view {view} is not one of the views 0 to {len(prepared) - 1}")

    def weights(stages: Stages, tokens: Tensor, batch: ViewBatch) -> Tensor:
        """(F, L) attention of the token that looks."""
        if not start <= block < len(stages.blocks):
            raise ConfigError(f"block {block} does not attend across views; those from {start} to {_last(stages)} do")
        segments = ViewSegments(batch.counts, tokens.device)
        tokens = stages.run(tokens, start, block, segments)
        with attention_inputs() as seen:
            stages.run(tokens, block, block + 1, segments)
        length = tokens.shape[1]
        looking = view * length + _token(length, point, views[view], prepared.shape[-1])
        return seen[-1].weights(looking).mean(dim=0).unflatten(0, (len(prepared), length))

    model.backbone.add_branch(_KEY, start, weights)
    batch = ViewBatch.make([len(prepared)], images=prepared).to(model.device)
    with torch.no_grad():
        shares = model.backbone.encode(batch, frozenset({_KEY}))[_KEY].cpu().numpy()
    side = math.isqrt(shares.shape[1])
    extra = shares.shape[1] - side * side
    return AttentionMaps(
        patches=shares[:, extra:].reshape(-1, side, side),
        others=shares[:, :extra].sum(axis=1),
        images=prepared.permute(0, 2, 3, 1).numpy(),
        view=view,
        patch=None if point is None else _patch(side, point, views[view], prepared.shape[-1]),
        block=block,
    )


def _first_block(model: Model, given: int | None) -> int:
    if given is not None:
        return given
    own = [adapter for adapter in model.adapters.values() if isinstance(adapter, CrossViewAdapter)]
    if not own:
        raise ConfigError(f"{model.name} has no duoduo.cross_view; say from which block on views shall attend across")
    return own[-1].cross_view_from


def _last(stages: Stages) -> int:
    return len(stages.blocks) - 1


def _token(length: int, point: tuple[float, float] | None, image: Any, size: int) -> int:
    """The place of the token that looks among its view's: what is no patch stands before the patches."""
    side = math.isqrt(length)
    extra = length - side * side
    if point is not None:
        row, column = _patch(side, point, image, size)
        return extra + row * side + column
    if extra == 0:
        raise ConfigError("this model has no class token; name a point")
    return 0


def _patch(side: int, point: tuple[float, float], image: Any, size: int) -> tuple[int, int]:
    """(row, column) of the patch at a place of the given image, which was resized and cut to its central square.

    Raises:
        ConfigError: the place is not in that square.
    """
    height, width = np.asarray(image).shape[:2]
    scale = size / min(height, width)
    x, y = (point[0] * scale - (width * scale - size) / 2, point[1] * scale - (height * scale - size) / 2)
    if not (0 <= x < size and 0 <= y < size):
        raise ConfigError(
            f"the point {point[0]:g},{point[1]:g} is not in what the model sees of the {width}x{height} image, its "
            "central square"
        )
    return int(y * side / size), int(x * side / size)
