"""Memory and exactness of the ledger on many objects, in mebibytes beside the embeddings themselves.

One run measures both sides: the ledger over all objects (the kernel's own high-water mark of the resident set, reset
before, after what the allocator holds unused was given back), and its means and deviations against direct formulas in
float64: same-object cosines pair by pair, and different-object cosines on a part that can be held as an N x N matrix.
Prints JSON. Runs on Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from pathlib import Path

import torch
from mvcore.evaluation.ledger_views import measure_views
from mvcore.evaluation.moments import object_blocks
from mvcore.evaluation.similarity import Similarity
from torch import Tensor
from torch.nn.functional import normalize

ROWS = 4096


def resident(field: str) -> int:
    """Bytes by a field of /proc/self/status: `VmRSS` now, `VmHWM` at most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def embeddings(objects: int, views: int, width: int) -> Tensor:
    """(N, D) views: a common direction, each object's own, and noise, of unequal lengths."""
    rng = torch.Generator().manual_seed(0)
    common = torch.randn(width, generator=rng)
    found = torch.empty(objects * views, width)
    for start in range(0, objects, 1000):
        some = min(1000, objects - start)
        own = torch.randn(some, 1, width, generator=rng)
        noise = 0.7 * torch.randn(some, views, width, generator=rng)
        lengths = 1 + torch.rand(some, views, 1, generator=rng)
        found[start * views : (start + some) * views] = ((common + own + noise) * lengths).flatten(0, 1)
    return found


def rig(objects: int, views: int) -> tuple[Tensor, Tensor]:
    """(N, 3) optical axes and (N,) elevations of cameras in a circle, 20 degrees up."""
    turn = torch.arange(views, dtype=torch.float64) * (2 * torch.pi / views)
    axes = normalize(-torch.stack([turn.sin(), torch.full_like(turn, 0.364), turn.cos()], dim=1), dim=1)
    return axes.repeat(objects, 1), torch.full((objects * views,), 20.0, dtype=torch.float64)


def ledger(packed: Tensor, views: int, *, cameras: bool) -> dict[str, Similarity]:
    """The ledger's quantities of objects of equally many views."""
    objects = len(packed) // views
    counts = torch.full((objects,), views)
    axes, elevations = rig(objects, views) if cameras else (None, None)
    blocks = lambda: object_blocks(packed, counts, ROWS)  # noqa: E731
    return measure_views(blocks, objects, packed.shape[1], axes=axes, elevations=elevations)


def direct(packed: Tensor, views: int) -> dict[str, tuple[float, float]]:
    """Mean and deviation with ddof 1 from every pair at once, in float64."""
    unit = normalize(packed.double(), dim=1)
    cosines = unit @ unit.T
    owner = torch.arange(len(packed)) // views
    same = owner[:, None] == owner
    itself = torch.eye(len(packed), dtype=torch.bool)
    pairs = {"same_object": cosines[same & ~itself], "different_object": cosines[~same]}
    return {name: (float(values.mean()), float(values.std())) for name, values in pairs.items()}


def direct_same(packed: Tensor, views: int) -> tuple[float, float]:
    """Mean and deviation over the same-object pairs of all objects, from every one of them, in two passes."""
    off = ~torch.eye(views, dtype=torch.bool)

    def cosines(start: int) -> Tensor:
        unit = normalize(packed[start : start + 1000 * views].double(), dim=1).view(-1, views, packed.shape[1])
        return (unit @ unit.mT)[:, off]

    starts = range(0, len(packed), 1000 * views)
    n = len(packed) * (views - 1)
    mean = sum(float(cosines(start).sum()) for start in starts) / n
    squares = sum(float((cosines(start) - mean).square().sum()) for start in starts)
    return mean, (squares / (n - 1)) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--part", type=int, default=400, help="objects whose pairs are all held at once")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("this measurement reads /proc/self, so it runs on Linux only")
    torch.set_num_threads(options.threads)
    # What the libraries allocate once, at first use, is not the ledger's.
    ledger(embeddings(50, options.views, options.width), options.views, cameras=True)
    packed = embeddings(options.objects, options.views, options.width)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    started = time.perf_counter()
    found = ledger(packed, options.views, cameras=True)
    seconds = time.perf_counter() - started
    growth = resident("VmHWM") - before
    part = packed[: options.part * options.views]
    of_part, expected = ledger(part, options.views, cameras=False), direct(part, options.views)
    mean, std = direct_same(packed, options.views)
    error = max(
        *(abs(of_part[name].mean - value[0]) for name, value in expected.items()),
        *(abs(of_part[name].std - value[1]) for name, value in expected.items()),
        abs(found["same_object"].mean - mean),
        abs(found["same_object"].std - std),
    )
    report = {
        "benchmark": "ledger_memory",
        "target_mib": 1024,
        "target_error": 1e-6,
        **vars(options),
        "embeddings_mib": round(packed.nbytes / 2**20, 1),
        "growth_mib": round(growth / 2**20, 1),
        "all_pairs_mib": round(8 * len(packed) ** 2 / 2**20),
        "ratio_to_all_pairs": growth / (8 * len(packed) ** 2),
        "largest_error": error,
        "seconds": round(seconds, 1),
        "quantities": len(found),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
