"""Self-attention of a block over the tokens of all views of an object, with the block's own weights.

The attention classes of open_clip and timm do three things: project tokens to queries, keys and values; attend; project
back. While `attending_across` is open the middle part runs over packed segments, one for each object; what stands
around it (norms of queries and keys, rotary positions, gates, inner norms) is done as the class does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import open_clip.transformer
import timm.layers.attention
import timm.models.eva
import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import type_before_parametrizations

from mvcore.attention import Segments, attend
from mvcore.errors import PluginError


class ViewSegments:
    """The segments that objects with these view counts make of tokens; each is made once for a number of tokens.

    Args:
        view_counts: views of each object, at least 1.
        device: where the tokens are.

    Raises:
        ValueError: no object, or one without views.
    """

    def __init__(self, view_counts: Sequence[int], device: torch.device | str) -> None:
        self.views = Segments.of(view_counts, device)
        self._by_tokens: dict[int, Segments] = {}

    def of_tokens(self, tokens: int) -> Segments:
        """Segments where each view has so many tokens."""
        if tokens not in self._by_tokens:
            self._by_tokens[tokens] = Segments.of([tokens * n for n in self.views.lengths], self.views.device)
        return self._by_tokens[tokens]

    def mean(self, rows: Tensor) -> Tensor:
        """(B, D) mean of the rows (N, D) of each object's views."""
        sums = rows.new_zeros(len(self.views.lengths), rows.shape[1]).index_add(0, self.views.segment_of, rows)
        bounds = self.views.bounds
        return sums / (bounds[1:] - bounds[:-1])[:, None].to(rows.dtype)


@contextmanager
def attending_across(attention: nn.Module, views: ViewSegments) -> Iterator[None]:
    """Within it this attention module sees an object's views as one sequence; afterwards it is as before.

    Args:
        attention: of a class that `attention_over` knows.
        views: whose tokens the module is called with.

    Raises:
        PluginError: a class that is not known, or what only some members of a class do.
        RuntimeError: it is open for this module already.
    """
    run = attention_over(attention)
    if "forward" in vars(attention):
        raise RuntimeError(f"{type(attention).__name__} attends across views already")
    attention.forward = partial(run, attention, views)
    try:
        yield
    finally:
        del attention.forward


def attention_over(attention: nn.Module) -> Callable[..., Any]:
    """The function that stands for the `forward` of an attention module.

    Raises:
        PluginError: a class that is not known, or attention that is no plain softmax over dot products.
    """
    # Low-rank weights make a class of their own of each module that they are on.
    run = _KNOWN.get(type_before_parametrizations(attention))
    if run is None:
        known = ", ".join(kind.__name__ for kind in _KNOWN)
        raise PluginError(f"attention of class {type(attention).__name__} cannot cross views (known: {known})")
    if isinstance(attention, nn.MultiheadAttention) and (
        attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn
    ):
        raise PluginError("attention with separate key and value widths or extra tokens cannot cross views")
    if getattr(attention, "scaled_cosine", False):
        raise PluginError("attention by scaled cosines cannot cross views; only dot products can")
    dropout: Any = getattr(attention, "attn_drop", None)
    if getattr(dropout, "p", 0) or getattr(attention, "dropout", 0):
        raise PluginError("attention with dropout of its weights cannot cross views")
    return run


def _multihead(self: Any, views: ViewSegments, query: Tensor, *others: Any, attn_mask: Any = None, **_: Any) -> Any:
    _no_mask(attn_mask)
    x = query if self.batch_first else query.transpose(0, 1)
    q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
    out = self.out_proj(_attended(q, k, v, views))
    return (out if self.batch_first else out.transpose(0, 1)), None


def _open_clip(self: Any, views: ViewSegments, x: Tensor, attn_mask: Any = None) -> Tensor:
    _no_mask(attn_mask)
    q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
    out = _attended(self.ln_q(q), self.ln_k(k), v, views, heads_apart=True)
    if self.head_scale is not None:
        out = out * self.head_scale.view(1, 1, -1, 1)
    return self.out_drop(self.out_proj(self.ln_inner(out.flatten(2))))


def _timm(self: Any, views: ViewSegments, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
    _no_mask(attn_mask, is_causal)
    q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
    return _closed(self, x, _attended(self.q_norm(q), self.k_norm(k), v, views))


def _timm_rope(
    self: Any, views: ViewSegments, x: Tensor, rope: Any = None, attn_mask: Any = None, is_causal: bool = False
) -> Tensor:
    _no_mask(attn_mask, is_causal)
    q, k, v = _eva_projections(self, x)
    q, k = self.q_norm(q), self.k_norm(k)
    if rope is not None:
        q, k = (_rotated(self, rows, rope).type_as(v) for rows in (q, k))
    return _closed(self, x, _attended(q, k, v, views))


def _eva_projections(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if self.qkv is None:
        q, k, v = (getattr(self, f"{name}_proj")(x).unflatten(-1, (-1, self.head_dim)) for name in "qkv")
        groups = q.shape[2] // k.shape[2]
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
        return q, k, v
    bias = self.qkv.bias
    if getattr(self, "q_bias", None) is not None:
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
    q, k, v = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
    return q, k, v


def _rotated(self: Any, rows: Tensor, rope: Tensor) -> Tensor:
    """Rotary positions of (N, L, heads, head_dim), each view with its own grid; prefix tokens have none."""
    half = getattr(self, "rotate_half", False)
    prefix, patches = rows[:, : self.num_prefix_tokens], rows[:, self.num_prefix_tokens :]
    turned = apply_rot_embed_cat(patches.transpose(1, 2), rope, half=half).transpose(1, 2)
    return torch.cat([prefix, turned], dim=1)


def _closed(self: Any, x: Tensor, out: Tensor) -> Tensor:
    """What timm's classes do after attention."""
    out = self.norm(out)
    if self.gate is not None:
        out = out * self.gate(x).sigmoid()
    return self.proj_drop(self.proj(out))


def _attended(q: Tensor, k: Tensor, v: Tensor, views: ViewSegments, *, heads_apart: bool = False) -> Tensor:
    """(N, L, heads * head_dim) from (N, L, heads, head_dim); an object's views are one segment."""
    rows, tokens = q.shape[:2]
    out = attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), views.of_tokens(tokens)).unflatten(
        0, (rows, tokens)
    )
    return out if heads_apart else out.flatten(2)


def _no_mask(mask: Any, is_causal: bool = False) -> None:
    if mask is not None or is_causal:
        raise PluginError("attention under a mask cannot cross views")


_KNOWN: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: _multihead,
    open_clip.transformer.Attention: _open_clip,
    timm.layers.attention.Attention: _timm,
    timm.layers.attention.AttentionRope: _timm_rope,
    timm.models.eva.EvaAttention: _timm_rope,
}
