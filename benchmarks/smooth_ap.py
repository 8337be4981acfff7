"""Smooth-AP in chunks against the direct formula, value and gradient: time, peak memory and agreement.

Each side is timed and measured in a process of its own. Memory is the growth of the process's resident set over its
inputs by the kernel's own high-water mark, on an accelerator what torch allocated. Agreement is in float64. Prints JSON
with the ratios direct / chunked.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mvcore_equivariance import smooth_ap
from torch import Tensor
from torch.nn.functional import normalize

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
TAU = 0.01


def gate(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(torch.clamp(-x / TAU, -50, 50)))


def direct(f1: Tensor, f2: Tensor, x1: Tensor, x2: Tensor, part: slice | None = None) -> Tensor:
    """The formula as the authors' code evaluates it; `part` of the positives only, in the mean over all."""
    similar, apart = f1 @ f2.T, torch.cdist(x1, x2)
    positives = (apart < 5e-3).nonzero()
    s, p = positives[part or slice(None)].unbind(1)
    others = (apart > 0.1)[s].to(f1.dtype)
    positive = similar[s, p]
    first, second = 1 + gate(positive - 1), 1 + gate(1 - positive)
    precision1 = first / (first + (gate(similar[s] - 1) * others).sum(1))
    precision2 = second / (second + (gate(similar[s] - positive[:, None]) * others).sum(1))
    return (1 - (precision1 + precision2) / 2).sum() / len(positives)


def scene(points: int, positives: int, width: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points of which about so many pairs are the same, in float64: up to one a point, or by several at one place."""
    generator = torch.Generator().manual_seed(0)
    shared = positives <= points
    places = torch.rand(2 * points if shared else round(points**2 / positives), 3, generator=generator).double()
    number = torch.arange(points)
    if shared:
        x1, x2 = places[:points], torch.where((number < positives)[:, None], places[:points], places[points:])
    else:
        x1 = x2 = places[number % len(places)]
    f1 = normalize(torch.randn(points, width, generator=generator).double(), dim=1)
    f2 = normalize(f1 + 6 * torch.randn(points, width, generator=generator).double() / width**0.5, dim=1)
    return tuple(value.to(device) for value in (f1, f2, x1, x2))  # pyright: ignore[reportReturnType]


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def measure(loss: Loss, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of value and gradient, the least of several (on a CPU, the processor's); bytes beside the inputs."""
    f1, f2, x1, x2 = (
        value.float() for value in scene(options.points, options.positives, options.width, options.device)
    )
    f1.requires_grad_()
    f2.requires_grad_()
    few = slice(0, 64)
    loss(f1[few], f2[few], x1[few], x2[few]).backward()  # what libraries allocate once
    f1.grad = f2.grad = None
    on_host = options.device == "cpu"
    if on_host:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    clock = time.process_time if on_host else time.perf_counter  # others on the machine do not count
    seconds = list[float]()
    memory = 0
    for _ in range(options.repeat):
        f1.grad = f2.grad = None
        begin = clock()
        loss(f1, f2, x1, x2).backward()
        if not on_host:
            torch.cuda.synchronize()
        seconds.append(clock() - begin)
        memory = memory or (resident("VmHWM") if on_host else torch.cuda.max_memory_allocated()) - before
    return {"seconds": min(seconds), "bytes": memory}


def agreement(options: argparse.Namespace) -> dict[str, float]:
    """Largest differences in float64; the direct formula a few thousand positives at a time, for want of memory."""
    f1, f2, x1, x2 = scene(options.points, options.positives, options.width, options.device)
    ours = f1.clone().requires_grad_(), f2.clone().requires_grad_()
    loss = smooth_ap(ours[0], ours[1], x1, x2)
    loss.backward()
    theirs = f1.requires_grad_(), f2.requires_grad_()
    count, value = int((torch.cdist(x1, x2) < 5e-3).sum()), 0.0
    for begin in range(0, count, 2000):
        part = direct(f1, f2, x1, x2, slice(begin, begin + 2000))
        part.backward()
        value += part.item()
    apart = [0.0]
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        apart.append(float((one.grad - other.grad).abs().max() / other.grad.abs().max()))
    return {"positives": count, "loss": value, "value": abs(value - loss.item()), "gradient_relative": max(apart)}


def side(name: str, options: argparse.Namespace) -> dict[str, float]:
    """A side's measurement, by a process of its own."""
    given = [f"--{key}={value}" for key, value in vars(options).items() if key != "only"]
    run = subprocess.run([sys.executable, __file__, *given, f"--only={name}"], capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return json.loads(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=3000)
    parser.add_argument("--positives", type=int, default=0, help="default: 1,000 and 50,000")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=["direct", "chunked", "agreement"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cpu" and sys.platform != "linux":
        sys.exit("this measurement reads /proc/self, so it runs on Linux only")
    torch.set_num_threads(options.threads)
    if options.only == "agreement":
        print(json.dumps(agreement(options)))
        return
    if options.only:
        print(json.dumps(measure(direct if options.only == "direct" else smooth_ap, options)))
        return
    report: dict[str, object] = {"benchmark": "smooth_ap", "target_speed": 2.0, "target_memory": 4.0}
    report |= {key: value for key, value in vars(options).items() if key not in ("only", "positives")}
    for positives in [options.positives] if options.positives else [1000, 50_000]:
        options.positives = positives
        found = {name: side(name, options) for name in ("direct", "chunked", "agreement")}
        report[f"positives_{positives}"] = {
            "difference_float64": found["agreement"],
            **{f"{name}_{key}": round(found[name][key], 4) for name in ("direct", "chunked") for key in found[name]},
            "speed": round(found["direct"]["seconds"] / found["chunked"]["seconds"], 2),
            "memory": round(found["direct"]["bytes"] / found["chunked"]["bytes"], 2),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
