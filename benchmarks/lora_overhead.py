"""What low-rank tuning of q, k and v costs a training step of the vision tower, as a parametrization and as a branch.

    python benchmarks/lora_overhead.py [--model ViT-B-32] [--batch 8] [--repeat 5] [--threads 1]

One forward and backward pass of the tower at random weights, all variants taking turns in one process:

- `plain`: an update of the first block only, so that gradients pass through all blocks and nothing else is done;
- `parametrized`: `mvcore.lora` on every block inside `parametrize.cached()`, as mvcore trains;
- `uncached`: the same without `cached()`;
- `branch`: `x A' B'` beside the frozen projection, with an attention written for it, as adapters libraries do.

Prints JSON: operations (`gflop`), seconds of processor time (the least of the repeats, which other work on the machine
disturbs least), the ratios to `branch` and `plain`, and the largest difference of the outputs of `parametrized` and
`branch`, whose factors are equal. A parametrization computes the gradient of the whole weight, a branch only those of
its factors; but a branch needs an attention of its own, whose layout may be faster or slower than the library's.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from mvcore.api import apply_lora
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

RANK = 8


class BranchAttention(nn.Module):
    """nn.MultiheadAttention's self-attention with a low-rank branch beside its fused projection."""

    def __init__(self, attention: nn.MultiheadAttention, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.inner = attention
        self.a = nn.Parameter(a.detach().clone())
        self.b = nn.Parameter(b.detach().clone())

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> tuple[Tensor, None]:
        projected = F.linear(q, self.inner.in_proj_weight, self.inner.in_proj_bias)
        projected = projected + F.linear(F.linear(q, self.a), self.b)
        heads = projected.unflatten(-1, (3, self.inner.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2]).transpose(1, 2).flatten(2)
        return self.inner.out_proj(mixed), None


def variants(model: str) -> tuple[dict[str, nn.Module], int]:
    """The tower in each variant, with equal weights and factors."""
    config = open_clip.get_model_config(model)
    if config is None or "layers" not in config["vision_cfg"]:
        raise SystemExit(f"{model} is not one of open_clip's own vision transformers")
    torch.manual_seed(0)
    visual: Any = open_clip.model.CLIP(**config).visual.requires_grad_(False)  # pyright: ignore
    plain, branch = copy.deepcopy(visual), copy.deepcopy(visual)
    apply_lora(plain.transformer.resblocks[0].attn, "in_proj_weight", rank=RANK, alpha=RANK)
    for block, other in zip(visual.transformer.resblocks, branch.transformer.resblocks, strict=True):
        update = apply_lora(block.attn, "in_proj_weight", rank=RANK, alpha=RANK)
        nn.init.normal_(update.b, std=0.02)
        other.attn = BranchAttention(other.attn, update.a, update.b)
    towers = {"plain": plain, "parametrized": visual, "uncached": visual, "branch": branch}
    return towers, config["vision_cfg"]["image_size"]


def step(tower: nn.Module, images: Tensor, context: Callable[[], Any]) -> Tensor:
    tower.zero_grad(set_to_none=True)
    with context():
        output = tower(images)
    output.square().mean().backward()
    return output.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    towers, size = variants(arguments.model)
    images = torch.randn(arguments.batch, 3, size, size)
    contexts = {name: parametrize.cached if name == "parametrized" else nullcontext for name in towers}
    outputs: dict[str, Tensor] = {}
    gflop: dict[str, float] = {}
    for name, tower in towers.items():
        with FlopCounterMode(display=False) as counter:
            outputs[name] = step(tower, images, contexts[name])
        gflop[name] = round(counter.get_total_flops() / 1e9, 1)
    seconds: dict[str, list[float]] = {name: [] for name in towers}
    for turn in range(arguments.repeat):
        # Each variant is first in turn: what ran before leaves its memory and caches behind.
        names = list(towers)[turn % len(towers) :] + list(towers)[: turn % len(towers)]
        for name in names:
            tower = towers[name]
            start = time.process_time()
            step(tower, images, contexts[name])
            seconds[name].append(time.process_time() - start)
    least = {name: min(values) for name, values in seconds.items()}
    report = {
        "model": arguments.model,
        "batch": arguments.batch,
        "gflop": gflop,
        "cpu_seconds": {name: round(value, 3) for name, value in least.items()},
        "over_branch": round(least["parametrized"] / least["branch"], 3),
        "over_plain": round(least["parametrized"] / least["plain"], 3),
        "uncached_over_cached": round(least["uncached"] / least["parametrized"], 3),
        "largest_difference": float((outputs["parametrized"] - outputs["branch"]).abs().max()),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
