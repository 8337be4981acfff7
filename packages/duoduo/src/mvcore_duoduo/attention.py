"""Attention across the views of an object in the upper blocks of a vision transformer (Duoduo CLIP, section 3.1).

Below `cross_view_from` each view goes through the blocks by itself; from there on all tokens of an object's views
attend to each other, with the blocks' own weights. Norms and MLPs stay per token, each view keeps its class token, and
the object's vector is the mean of its views' vectors. Nothing tells views apart, so their order has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any

import torch
from mvcore.api import Adapter, Backbone, ConfigError, Stages, ViewBatch, ViewSegments, stages_of
from torch import Tensor, nn

PREFIX = "duoduo.prefix"
"""The tokens before the first block that crosses views: a feature, and the published state that stands in for it."""


def cross_views(stages: Stages, tokens: Tensor, views: ViewSegments, cross_view_from: int) -> Tensor:
    """(B, D) vectors of objects, not normalised, from the tokens (N, L, C) before block `cross_view_from`."""
    tokens = stages.run(tokens, cross_view_from, len(stages.blocks), views)
    return views.mean(stages.finish(tokens))


class CrossView:
    """What `cross_view` gives: encodes objects, and takes back what it changed; also as a context manager."""

    def __init__(self, model: nn.Module, cross_view_from: int, train_from: int | None) -> None:
        name = type(model).__name__
        self._model = model
        self._stages = stages_of(getattr(model, "visual", model), name)
        self._stages.check_crossing(cross_view_from, name)
        self._cross_view_from = cross_view_from
        self._before = {id(p): p.requires_grad for p in model.parameters()}
        self._open = True
        if train_from is not None:
            self._stages.check_crossing(train_from, name)
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            for parameter in attention_weights(self._stages, train_from):
                parameter.requires_grad_(True)

    def encode(self, images: Tensor, view_counts: Tensor | Iterable[int], *, normalize: bool = False) -> Tensor:
        """Vectors of objects from their views.

        Args:
            images: (N, 3, H, W) floating, normalised as the model wants, views of an object adjacent.
            view_counts: (B,) integers, each at least 1, with the sum N.
            normalize: give unit vectors.

        Returns:
            (B, D).

        Raises:
            ValueError: an object without views, counts that do not sum to N, or a handle that was removed.
        """
        if not self._open:
            raise ValueError("cross-view attention was removed from this model; attach it again")
        counts = _checked_counts(view_counts, images)
        tokens = self._stages.run(self._stages.embed(images), 0, self._cross_view_from)
        objects = cross_views(self._stages, tokens, ViewSegments(counts, images.device), self._cross_view_from)
        return nn.functional.normalize(objects, dim=-1) if normalize else objects

    def remove(self) -> None:
        """Restores what trains; the model was otherwise never changed."""
        for parameter in self._model.parameters():
            parameter.requires_grad_(self._before.get(id(parameter), parameter.requires_grad))
        self._open = False

    def __enter__(self) -> CrossView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def cross_view(model: nn.Module, *, cross_view_from: int, train_from: int | None = None) -> CrossView:
    """Lets an unmodified open_clip model, or a timm vision transformer, encode objects from any number of views.

    No parameter is added and the state dict keeps its keys; the model's own `encode_image` stays what it was.

    Args:
        model: an open_clip model, its `visual`, or a timm vision transformer.
        cross_view_from: the first block that attends across views, 0 to the number of blocks (then none does, and an
            object is the mean of its views).
        train_from: exactly the attention weights of the blocks from this one on train; None changes nothing.

    Raises:
        ConfigError: no such block.
        PluginError: a model without a vision transformer, or attention of a class that is not known.
    """
    return CrossView(model, cross_view_from, train_from)


class CrossViewAdapter(Adapter):
    """`duoduo.cross_view`: the feature `object`, (B, D), beside `view`; both share the blocks below `cross_view_from`.

    The tokens before that block are the feature `duoduo.prefix`, (N, L, C). Where a batch brings them as published
    state of that name, `object` is made from them, and images are not read.

    Args:
        cross_view_from, train_from, prefix_cache: see `CrossViewOptions`.
    """

    def __init__(self, cross_view_from: int = 6, train_from: int | None = None, prefix_cache: bool = False) -> None:
        super().__init__()
        self.cross_view_from = cross_view_from
        self.train_from = cross_view_from if train_from is None else train_from
        self.prefix_cache = prefix_cache
        self._prefix_trains: Callable[[], bool] | None = None

    def attach(self, backbone: Backbone) -> None:
        """Branches `object` off the backbone's blocks and lets the attention weights train.

        Raises:
            ConfigError: no such block, or a backbone whose blocks cannot be branched.
            PluginError: a tower, or attention in it, of a class that is not known.
        """
        backbone.add_branch("object", self.cross_view_from, self._run, known=self._known_tokens)
        backbone.add_branch(PREFIX, self.cross_view_from, lambda stages, tokens, batch: tokens)
        visual: nn.Module = getattr(backbone.model, "visual", backbone.model)
        stages = stages_of(visual, type(backbone).__name__)
        stages.check_crossing(self.train_from, type(backbone).__name__)
        for parameter in attention_weights(stages, self.train_from):
            parameter.requires_grad_(True)
        if self.prefix_cache:
            self._prefix_trains = partial(_has_graph, stages, backbone, self.cross_view_from)

    def set_strength(self, strength: float) -> None:
        """Nothing to do: what it trains are the model's own weights, which are scaled where they are loaded."""

    def _known_tokens(self, batch: ViewBatch) -> Tensor | None:
        tokens = batch.state.get(PREFIX)
        if tokens is not None and self._prefix_trains is not None and torch.is_grad_enabled():
            if self._prefix_trains():
                raise ConfigError(
                    f"duoduo.cross_view: prefix_cache: something below block {self.cross_view_from} trains, so its "
                    "tokens change; leave prefix_cache out, or train from that block on"
                )
            self._prefix_trains = None
        return tokens

    def _run(self, stages: Stages, tokens: Tensor, batch: ViewBatch) -> Tensor:
        return cross_views(stages, tokens, ViewSegments(batch.counts, tokens.device), self.cross_view_from)


def attention_weights(stages: Stages, first: int) -> list[nn.Parameter]:
    """The weights of the attention of the blocks from `first` on; low-rank factors over them are not among them."""
    found: list[nn.Parameter] = []
    for index in range(first, len(stages.blocks)):
        for name, parameter in stages.attention(index).named_parameters():
            if "parametrizations" not in name or name.endswith(".original"):
                found.append(parameter)
    return found


def _has_graph(stages: Stages, backbone: Backbone, first_block: int) -> bool:
    """Whether the tokens before a block depend on anything that trains."""
    size = backbone.image_size or 32
    parameter = next(backbone.model.parameters())
    pixels = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    return stages.run(stages.embed(pixels), 0, first_block).requires_grad


def _checked_counts(view_counts: Tensor | Iterable[int], images: Tensor) -> list[int]:
    given: Any = view_counts.tolist() if isinstance(view_counts, Tensor) else list(view_counts)
    if not given or not all(isinstance(count, int) and count >= 1 for count in given):
        raise ValueError(f"every object needs at least one view, got view counts {given}")
    if images.ndim != 4 or images.shape[0] != sum(given):
        raise ValueError(f"view counts {given} sum to {sum(given)}, but images are {tuple(images.shape)}")
    if not torch.is_floating_point(images):
        raise ValueError(f"images must be floating and normalised, not {images.dtype}")
    return given
