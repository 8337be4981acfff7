"""The authors' eleven released checkpoints: what they hold, and what they were trained over.

A file holds what was trained and no backbone: `w_a_000`, `w_b_000`, ... at its top, two pairs a block (q, then v) of
the last four blocks in order, and `state_dict` with the convolution alone, as `{"refine_conv": {"weight", "bias"}}`.
Neither the size of the backbone nor whether it has registers is written in it. The size shows in the shapes; a backbone
with registers has the shapes of the one without, and only the file's name tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, cast

from mvcore.api import WeightsError
from torch import Tensor

BACKBONES: dict[str, str] = {
    **{f"dinov2_{size}": f"vit_{size}_patch14_dinov2.lvd142m" for size in ("small", "base", "large", "giant")},
    **{f"dinov2_reg_{size}": f"vit_{size}_patch14_reg4_dinov2.lvd142m" for size in ("small", "base", "large", "giant")},
    "mae": "vit_base_patch16_224.mae",
    "clip": "vit_base_patch16_clip_384.laion2b_ft_in12k_in1k",
    "deit": "deit3_base_patch16_224.fb_in1k",
}
"""The timm model under each released file, by the file's name without its suffix."""

_DEPTHS = {384: 12, 768: 12, 1024: 24, 1536: 40}
"""How many blocks the released backbones have, by their width."""
_FACTOR = re.compile(r"w_[ab]_\d{3}")
_HEAD = {"refine_conv.weight", "refine_conv.bias"}


@dataclass(frozen=True)
class Released:
    """The tensors of a released checkpoint.

    Args:
        factors: (A, B) of each update: q and v of each block, in order; A is (rank, width), B (width, rank).
        weight, bias: of the convolution.
    """

    factors: list[tuple[Tensor, Tensor]]
    weight: Tensor
    bias: Tensor

    @property
    def width(self) -> int:
        """Of the backbone."""
        return self.weight.shape[0]


def parse(checkpoint: Mapping[str, Any]) -> Released:
    """Reads a checkpoint of the authors' schema; what Lightning writes beside is passed over.

    Args:
        checkpoint: as `torch.load` gives it, or its tensors by name with `refine_conv.weight` at the top.

    Raises:
        WeightsError: a tensor is missing, one too many, or of a shape that does not belong there.
    """
    held = {key: value for key, value in checkpoint.items() if isinstance(value, Tensor)}
    state: Any = checkpoint.get("state_dict", {})
    for key, value in state.items():
        inner = cast("Mapping[str, Any]", value if isinstance(value, Mapping) else {"": value})
        held |= {f"{key}.{name}".rstrip("."): tensor for name, tensor in inner.items()}
    n_updates = sum(key.startswith("w_a_") for key in held)
    names = [(f"w_a_{i:03d}", f"w_b_{i:03d}") for i in range(n_updates)]
    expected = {name for pair in names for name in pair} | _HEAD
    if not n_updates or n_updates % 2 or held.keys() != expected:
        odd = ", ".join(sorted(held.keys() ^ expected)[:3]) or f"{n_updates} factors w_a_*"
        raise WeightsError(
            "not a released checkpoint of 3D-equivariance tuning, which holds w_a_000, w_b_000, ... in pairs of q and "
            f"v, and refine_conv in its state_dict (at odds: {odd})"
        )
    found = Released([(held[a], held[b]) for a, b in names], held["refine_conv.weight"], held["refine_conv.bias"])
    width, rank = found.width, held["w_a_000"].shape[0]
    shapes = {"refine_conv.weight": (width, width, 3, 3), "refine_conv.bias": (width,)}
    for a, b in names:
        shapes |= {a: (rank, width), b: (width, rank)}
    for name, shape in shapes.items():
        if tuple(held[name].shape) != shape:
            raise WeightsError(f"{name} is {tuple(held[name].shape)} where the convolution's width asks for {shape}")
    return found


def released_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a released checkpoint under the names of the recipe `equivariance.released`.

    Args:
        state: as `parse` takes it.

    Raises:
        WeightsError: another schema, or a width that none of the released backbones has.
    """
    found = parse(state)
    if found.width not in _DEPTHS:
        raise WeightsError(f"released checkpoints are of width {', '.join(map(str, _DEPTHS))}, not {found.width}")
    first = _DEPTHS[found.width] - len(found.factors) // 2
    weights: dict[str, Tensor] = {}
    for i, (a, b) in enumerate(found.factors):
        name = f"blocks.{first + i // 2}.attn.qkv.weight.{'qv'[i % 2]}"
        weights |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
    weights |= {"head.weight": found.weight, "head.bias": found.bias}
    return {f"adapters/equivariance.dense/{name}": value for name, value in weights.items()}


def released_base(file: str) -> dict[str, Any]:
    """The encoder's options under a released file, by its name; nothing for another name.

    Positions are resampled as the authors' code did: DINOv2's own for its models without registers. For all others that
    is what timm does.
    """
    stem = PurePath(file).stem
    if stem not in BACKBONES:
        return {}
    hub = stem.startswith("dinov2_") and "_reg_" not in stem
    return {"model": BACKBONES[stem], "positions": "dinov2" if hub else "timm"}
