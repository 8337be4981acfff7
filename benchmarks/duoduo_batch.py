"""A training step of Duoduo CLIP on ragged objects: packed, padded to the largest number of views, and one by one.

    python benchmarks/duoduo_batch.py [--objects 24] [--device cpu] [--dtype float32] [--repeat 5] [--threads 1]

ViT-B/32 at random weights; the attention of the blocks from 6 on crosses views and trains. Objects have 1 to 6 views,
as many of each number. All ways take turns in one process and give the same vectors and gradients:

- `packed`: `mvcore_duoduo.cross_view`, whose tokens of all objects stand one after another;
- `padded`: every object filled up to 6 views, which go through all blocks and are masked in attention and in the mean;
- `loop`: the packed way, object by object.

Prints JSON: seconds of a step (processor time on the CPU, the clock on a GPU; median with the least and the largest),
the rates of `packed` over the others (the median of the rounds' ratios), the operations of each way, the operations a
second of the packed way, the largest differences, and the bytes that each way keeps for the backward pass, where the
authors' formulation at equal numbers of views (`reference`) stands beside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from mvcore import attention
from mvcore_duoduo import CrossView, cross_view
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

CROSS, MOST = 6, 6
Way = Callable[[], Tensor]


def padded(clip: Any, images: Tensor, counts: list[int]) -> Tensor:
    """The authors' formulation with a mask: all objects have `MOST` views, some of them empty."""
    device = images.device
    there = torch.tensor([[view < count for view in range(MOST)] for count in counts], device=device)
    filled = images.new_zeros(len(counts) * MOST, *images.shape[1:])
    filled[there.flatten()] = images
    visual = clip.visual
    x = visual._embeds(filled)
    tokens, width = x.shape[1:]
    keys = there[:, None, None, :, None].expand(-1, 1, 1, -1, tokens).flatten(3)  # (B, 1, 1, MOST L)
    for index, block in enumerate(visual.transformer.resblocks):
        normed, mask = block.ln_1(x), None
        if index >= CROSS:
            normed, mask = normed.reshape(len(counts), MOST * tokens, width), keys
        x = x + attended(block.attn, normed, mask).reshape(x.shape)
        x = x + block.mlp(block.ln_2(x))
    vectors = (visual._pool(x)[0] @ visual.proj).unflatten(0, (len(counts), MOST))
    weights = there.to(vectors.dtype)
    return (vectors * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


def attended(module: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = F.linear(x, module.in_proj_weight, module.in_proj_bias).unflatten(-1, (3, module.num_heads, -1)).unbind(2)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return module.out_proj(out.transpose(1, 2).flatten(2))


def reference(clip: Any, images: Tensor, frames: int) -> Tensor:
    """The authors' formulation: tokens first, an object's frames in one sequence of torch's own attention."""
    visual = clip.visual
    x = visual._embeds(images).permute(1, 0, 2)
    tokens, rows, width = x.shape
    for index, block in enumerate(visual.transformer.resblocks):
        group = frames if index >= CROSS else 1
        normed = block.ln_1(x).reshape(tokens, rows // group, group, width).permute(1, 0, 2, 3)
        normed = normed.reshape(rows // group, tokens * group, width)
        out = block.attn(normed, normed, normed, need_weights=False)[0]
        out = out.reshape(rows // group, tokens, group, width).permute(1, 0, 2, 3).reshape(tokens, rows, width)
        x = x + out
        x = x + block.mlp(block.ln_2(x))
    pooled = visual.ln_post(x.permute(1, 0, 2))[:, 0]
    return pooled.unflatten(0, (rows // frames, frames)).mean(dim=1) @ visual.proj


def looped(crossing: CrossView, images: Tensor, counts: list[int]) -> Tensor:
    return torch.cat([crossing.encode(part, [len(part)]) for part in images.split(counts)])


def step(clip: Any, way: Way, autocast: torch.dtype | None) -> Tensor:
    clip.zero_grad(set_to_none=True)
    device = clip.logit_scale.device.type
    with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
        out = way()
    out.float().square().mean().backward()
    return out.detach()


def kept_bytes(way: Way) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass, each storage once, without the weights."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and not tensor.is_leaf:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = way()
    del out
    return sum(storages.values())


def seconds_of(clip: Any, way: Way, autocast: torch.dtype | None) -> float:
    gpu = clip.logit_scale.device.type == "cuda"
    if gpu:
        torch.cuda.synchronize()
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    step(clip, way, autocast)
    if gpu:
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    clip: Any = open_clip.create_model("ViT-B-32", pretrained=None).to(arguments.device).eval()
    counts = [1 + k % MOST for k in range(arguments.objects)]
    images = torch.randn(sum(counts), 3, 224, 224, device=arguments.device)
    autocast = torch.bfloat16 if arguments.dtype == "bfloat16" else None
    crossing = cross_view(clip, cross_view_from=CROSS, train_from=CROSS)
    ways: dict[str, Way] = {
        "packed": lambda: crossing.encode(images, counts),
        "padded": lambda: padded(clip, images, counts),
        "loop": lambda: looped(crossing, images, counts),
    }
    outputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    flop: dict[str, float] = {}
    weight = clip.visual.transformer.resblocks[-1].attn.in_proj_weight
    for name, way in ways.items():
        with FlopCounterMode(display=False) as counter:
            outputs[name] = step(clip, way, autocast)
        flop[name], gradients[name] = counter.get_total_flops(), weight.grad.clone()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.repeat):
        order = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
        for name in order:
            times[name].append(seconds_of(clip, ways[name], autocast))
    equal = images[: 4 * 3]
    kept = {
        "packed": kept_bytes(lambda: crossing.encode(equal, [3] * 4)),
        "reference": kept_bytes(lambda: reference(clip, equal, 3)),
    }
    median = statistics.median(times["packed"])
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    report = {
        "device": device,
        "dtype": arguments.dtype,
        "backend": attention.preferred(arguments.device, autocast or torch.float32),
        "objects": len(counts),
        "views": sum(counts),
        "seconds": {name: [round(f(v), 4) for f in (statistics.median, min, max)] for name, v in times.items()},
        "packed_over": {name: _rate(times[name], times["packed"]) for name in ("padded", "loop")},
        "gflop": {name: round(value / 1e9, 1) for name, value in flop.items()},
        "packed_gflop_a_second": round(flop["packed"] / 1e9 / median, 1),
        "largest_difference": {name: float((outputs["packed"] - outputs[name]).abs().max()) for name in ways},
        "largest_difference_of_gradients": {
            name: float((gradients["packed"] - gradients[name]).abs().max()) for name in ways
        },
        "kept_for_backward_bytes": kept,
        "kept_over_reference": round(kept["packed"] / kept["reference"], 3),
    }
    print(json.dumps(report, indent=2))


def _rate(others: list[float], own: list[float]) -> list[float]:
    ratios = sorted(a / b for a, b in zip(others, own, strict=True))
    return [round(value, 2) for value in (statistics.median(ratios), ratios[0], ratios[-1])]


if __name__ == "__main__":
    main()
