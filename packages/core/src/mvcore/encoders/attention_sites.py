"""Where the attention of a vision tower keeps its query, key and value weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import open_clip.transformer
import timm.models.eva
import timm.models.fastvit
from timm.layers.attention import Attention, AttentionRope
from torch import nn

from mvcore.errors import ConfigError, PluginError

_FUSED = (
    Attention,
    AttentionRope,
    timm.models.eva.EvaAttention,
    timm.models.fastvit.Attention,
)
"""timm's classes whose `qkv` Linear stacks q, k and v in this order, each `heads x head_dim` rows."""


@dataclass(frozen=True)
class AttentionSite:
    """One weight that makes queries, keys or values: fused towers have one per block, split ones three.

    Args:
        name: `<block>.<module>.<parameter>` within the blocks, as `3.attn.in_proj_weight`.
        module, parameter: the weight is `getattr(module, parameter)`, (out, in).
        rows: which of its rows make `q`, `k` and `v`; only those that it makes.
    """

    name: str
    module: nn.Module
    parameter: str
    rows: Mapping[str, range]


def attention_sites(blocks: Iterable[nn.Module], owner: str) -> list[AttentionSite]:
    """The sites of all self-attention in `blocks`, in order.

    Args:
        blocks: the vision blocks.
        owner: the model's name, for the text of errors.

    Raises:
        ConfigError: the blocks hold no attention.
        PluginError: attention of a class that is not known, whose rows might mean anything.
    """
    found: list[AttentionSite] = []
    named_so: list[nn.Module] = []
    for index, block in enumerate(blocks):
        for name, module in block.named_modules():
            sites = _sites_of(module, f"{index}.{name}" if name else str(index))
            found += sites
            if not sites and "attention" in type(module).__name__.lower():
                named_so.append(module)
    accounted = {id(site.module) for site in found} | {id(module) for module in named_so}
    for module in named_so:
        # Only the innermost is attention itself; around it are blocks, as ResidualAttentionBlock or AttentionBlock.
        if not any(id(child) in accounted for child in module.modules() if child is not module):
            kind = type(module).__name__
            raise PluginError(f"{owner}: attention of class {kind} is not known; its q, k and v rows cannot be told")
    if not found:
        raise ConfigError(f"{owner}: its vision blocks hold no attention, so there are no q, k and v weights to tune")
    return found


def _sites_of(module: nn.Module, name: str) -> list[AttentionSite]:
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            return [_fused(name, module, "in_proj_weight", module.in_proj_weight.shape[0])]
        return [
            AttentionSite(f"{name}.{key}_proj_weight", module, f"{key}_proj_weight", {key: range(module.embed_dim)})
            for key in "qkv"
        ]
    if isinstance(module, open_clip.transformer.Attention):
        return [_fused(name, module, "in_proj_weight", module.in_proj_weight.shape[0])]
    if isinstance(module, _FUSED) and isinstance(module.qkv, nn.Linear):
        return [_fused(f"{name}.qkv", module.qkv, "weight", module.qkv.out_features)]
    if isinstance(module, timm.models.eva.EvaAttention):
        return [_split(f"{name}.{key}_proj", getattr(module, f"{key}_proj"), key) for key in "qkv"]
    return []


def _fused(name: str, module: nn.Module, parameter: str, n_rows: int) -> AttentionSite:
    third = n_rows // 3
    rows = {key: range(i * third, (i + 1) * third) for i, key in enumerate("qkv")}
    return AttentionSite(f"{name}.{parameter}", module, parameter, rows)


def _split(name: str, linear: nn.Linear, key: str) -> AttentionSite:
    return AttentionSite(f"{name}.weight", linear, "weight", {key: range(linear.out_features)})
