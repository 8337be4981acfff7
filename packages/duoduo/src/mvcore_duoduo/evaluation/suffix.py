"""Objects' vectors from the tokens of their views before the first block that crosses views.

Many subsets of the same views go through the same blocks, so what does not hang on the subset is computed once for a
view, and what nobody reads is not computed at all:

- queries, keys and values of the first crossing block hang on a view's own tokens alone;
- of the last block only the class tokens' outputs are read: other tokens need neither query, out-projection nor MLP;
- where no block crosses views, each view is finished once.
"""

from __future__ import annotations

from typing import Any, Protocol

import open_clip.transformer
import torch
from mvcore.api import Embedder, Stages, ViewBatch, stages_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from mvcore_duoduo.attention import PREFIX, CrossViewAdapter

OBJECT = frozenset({"object"})


class Suffix(Protocol):
    """From tokens to vectors of objects."""

    def prepare(self, tokens: Tensor) -> Any:
        """What all subsets of these views share, from their tokens (N, L, C)."""
        ...

    def objects(self, shared: Any, rows: Tensor) -> Tensor:
        """(K, D) vectors of K objects of F views each, by rows (K, F) of the views that were prepared."""
        ...


def suffix_of(model: Embedder) -> Suffix:
    """The fast way where the tower is one whose blocks are known to the last product, else the model's own."""
    crossing = [link.module for link in model.pipeline.links if isinstance(link.module, CrossViewAdapter)]
    replaced = any("object" in link.provides for link in model.pipeline.links)
    visual = getattr(model.backbone.model, "visual", None)
    if len(crossing) == 1 and not replaced and visual is not None and _is_plain(visual):
        return PlainClipSuffix(stages_of(visual, "duoduo"), crossing[0].cross_view_from)
    return ModelSuffix(model)


class ModelSuffix:
    """The model's own way from tokens to objects."""

    def __init__(self, model: Embedder) -> None:
        self.model = model

    def prepare(self, tokens: Tensor) -> Tensor:
        return tokens

    def objects(self, shared: Tensor, rows: Tensor) -> Tensor:
        batch = ViewBatch.make([rows.shape[1]] * len(rows)).with_state({PREFIX: shared[rows.flatten()]})
        return self.model.features(batch, OBJECT).object


class PlainClipSuffix:
    """open_clip's vision transformer with plain blocks, whose vector is that of its class token.

    Its blocks drop nothing at random, so they do the same in training mode.
    """

    def __init__(self, stages: Stages, first_block: int) -> None:
        self.stages = stages
        self.blocks: list[Any] = list(stages.blocks[first_block:])

    @torch.no_grad()
    def prepare(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.blocks:
            return self.stages.finish(tokens), None
        with parametrize.cached():
            block = self.blocks[0]
            return tokens, _projected(block.attn, block.ln_1(tokens), 0, 3)

    @torch.no_grad()
    def objects(self, shared: tuple[Tensor, Tensor | None], rows: Tensor) -> Tensor:
        tokens, projected = shared
        if projected is None:
            return tokens[rows].mean(dim=1)
        flat = rows.flatten()
        x, qkv = tokens[flat], projected[flat]
        with parametrize.cached():
            for index, block in enumerate(self.blocks):
                last = index == len(self.blocks) - 1
                if index:
                    normed = block.ln_1(x)
                    if last:
                        q, kv = _projected(block.attn, normed[:, :1], 0, 1), _projected(block.attn, normed, 1, 3)
                    else:
                        qkv = _projected(block.attn, normed, 0, 3)
                        q, kv = qkv[:, :, :1], qkv[:, :, 1:]
                else:
                    q, kv = qkv[:, : 1 if last else None, :1], qkv[:, :, 1:]
                x = x[:, :1] if last else x
                x = x + block.ls_1(block.attn.out_proj(_attended(q, kv, rows.shape[1])))
                x = x + block.ls_2(block.mlp(block.ln_2(x)))
            vectors = self.stages.finish(x)
        return vectors.unflatten(0, tuple(rows.shape)).mean(dim=1)


def _projected(attention: Any, x: Tensor, first: int, stop: int) -> Tensor:
    """(N, L, stop - first, heads, head_dim): those of queries (0), keys (1) and values (2)."""
    width = attention.embed_dim
    weight, bias = attention.in_proj_weight[first * width : stop * width], attention.in_proj_bias
    made = F.linear(x, weight, None if bias is None else bias[first * width : stop * width])
    return made.unflatten(-1, (stop - first, attention.num_heads, -1))


def _attended(q: Tensor, kv: Tensor, views: int) -> Tensor:
    """(K * F, Lq, C) from queries (K * F, Lq, 1, h, d) over the keys and values (K * F, L, 2, h, d) of F views."""

    def across(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, views)).flatten(1, 2).transpose(1, 2)

    k, v = kv.unbind(2)
    out = F.scaled_dot_product_attention(across(q.squeeze(2)), across(k), across(v))
    return out.transpose(1, 2).flatten(2).unflatten(1, (views, -1)).flatten(0, 1)


def _is_plain(visual: nn.Module) -> bool:
    """Whether the tower does nothing but what `PlainClipSuffix` repeats."""
    if type(visual) is not open_clip.transformer.VisionTransformer:
        return False
    tower: Any = visual
    if tower.attn_pool is not None or tower.pool_type != "tok":
        return False
    return all(
        type(block) is open_clip.transformer.ResidualAttentionBlock
        # A parametrized module is of a class of its own, made from the one that it was.
        and isinstance(block.attn, nn.MultiheadAttention)
        and not hasattr(block, "ln_1_kv")
        for block in tower.transformer.resblocks
    )
