"""The contrastive loss from sums of unit vectors against the matrix of all pairs: at least 20 times as fast, in at most
a twentieth of the memory.

    python benchmarks/mvc_contrastive.py [--objects 1638] [--views 6] [--width 512] [--threads 2]

One process computes value and gradient of the same loss of the same vectors both ways, in turns:

- `blocks`: `mvcore_mvc_heads.contrastive_loss`;
- `direct`: the definition: unit vectors of all texts and views, their n x n matrix of cosines, and its sums over the
  pairs inside and across objects.

Prints JSON: medians of the time, by the wall clock and of processor time, the largest growth of the process's resident
memory during one call, by the kernel's own high-water mark, the ratios, and by how much values and gradients differ.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mvcore_mvc_heads import contrastive_loss
from torch import Tensor
from torch.nn.functional import normalize

TARGET_FASTER, TARGET_SMALLER = 20, 20
Loss = Callable[[Tensor, Tensor], Tensor]


def direct(text: Tensor, views: Tensor) -> Tensor:
    """`(D - S) / 2` from the matrix."""
    members = torch.cat([text[:, None], views], dim=1).flatten(0, 1)
    owner = torch.arange(len(text)).repeat_interleave(1 + views.shape[1])
    unit = normalize(members, dim=1)
    cosines = unit @ unit.T
    same = owner[:, None] == owner[None, :]
    n, own = len(members), 1 + views.shape[1]
    inside = cosines.masked_fill(~same, 0).sum() - cosines.diagonal().sum()
    across = cosines.masked_fill(same, 0).sum()
    return 0.5 * across / (n * (n - own)) - 0.5 * inside / (n * (own - 1))


def resident(field: str) -> int:
    """Bytes by a field of /proc/self/status: `VmRSS` now, `VmHWM` at most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def once(loss: Loss, text: Tensor, views: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
    """Seconds and bytes of one value with its gradient, and both."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, wall, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    value = loss(text, views)
    (gradient,) = torch.autograd.grad(value, views)
    spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return {**spent, "bytes": float(resident("VmHWM") - before)}, value.detach(), gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1638)
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("this measurement reads /proc/self, so it runs on Linux only")
    torch.set_num_threads(options.threads)
    rng = torch.Generator().manual_seed(0)
    centre = torch.randn(options.width, generator=rng)
    text = torch.randn(options.objects, options.width, generator=rng) + 0.3 * centre
    views = centre + torch.randn(options.objects, options.views, options.width, generator=rng)
    views.requires_grad_()
    sides: dict[str, Loss] = {"blocks": contrastive_loss, "direct": direct}
    for loss in sides.values():  # what the libraries allocate once, at first use, is nobody's
        once(loss, text[:50], views[:50])
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for _ in range(options.repeats):
        for name, loss in sides.items():
            spent, *found[name] = once(loss, text, views)  # pyright: ignore[reportArgumentType]
            runs[name].append(spent)
    medians = {n: {key: statistics.median(run[key] for run in some) for key in some[0]} for n, some in runs.items()}
    blocks, matrix = medians["blocks"], medians["direct"]
    report = {
        "benchmark": "mvc_contrastive",
        "target": {"times_as_fast": TARGET_FASTER, "times_less_memory": TARGET_SMALLER},
        **vars(options),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        **{name: {key: round(value, 4) for key, value in median.items()} for name, median in medians.items()},
        "times_as_fast": {key: round(matrix[key] / blocks[key], 1) for key in ("wall_s", "cpu_s")},
        "times_less_memory": round(matrix["bytes"] / blocks["bytes"], 1),
        "value_difference": float((found["blocks"][0] - found["direct"][0]).abs()),
        "gradient_difference": float((found["blocks"][1] - found["direct"][1]).norm() / found["direct"][1].norm()),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
