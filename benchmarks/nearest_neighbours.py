"""Peak memory and time of the nearest features of every pixel, in tiles and as one product.

    python benchmarks/nearest_neighbours.py [--side 512] [--cell 8] [--width 384] [--threads 1]

Every pixel of one image (512 x 512) looks for its nearest feature among those of another at 1/8 of the resolution
(64 x 64), both read from dense maps of 64 x 64 cells at random values. `tiles` is
`mvcore_equivariance.matching.nearest`, which reads the descriptors tile by tile and multiplies in float64; `direct`
reads all descriptors at once, normalises them and takes one product in float32. Memory is what the process's resident
set grows by at most, by the kernel's own high-water mark, which is reset before each side. Prints JSON: bytes and
processor seconds of both, their ratios, and the share of equal answers (float32 sums may prefer another of two nearly
equal candidates).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mvcore.api import DenseGrid, sample_dense
from mvcore_equivariance.matching import Sampled, nearest, pixel_grid
from torch import Tensor
from torch.nn.functional import normalize

TARGET = 1 << 30


def resident(field: str) -> int:
    """Bytes by a field of /proc/self/status: `VmRSS` now, `VmHWM` at most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def measured(run: Callable[[], Tensor]) -> tuple[Tensor, int, float]:
    """What it gives, the bytes that it needs beyond what is there, and its processor seconds."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmRSS"), time.process_time()
    found = run()
    return found, resident("VmHWM") - before, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    parser.add_argument("--cell", type=int, default=8, help="pixels between the features that are searched")
    parser.add_argument("--width", type=int, default=384, help="numbers in a feature")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("this measurement reads /proc/self, so it runs on Linux only")
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    size = (options.side, options.side)
    cells = options.side // options.cell
    first, second = torch.randn(2, options.width, cells, cells, generator=generator)
    grid = DenseGrid.tiling(cells, cells, *size)
    queries, candidates = pixel_grid(size), pixel_grid(size, options.cell)

    def tiles() -> Tensor:
        return nearest(Sampled(first, queries, grid), Sampled(second, candidates, grid)).index

    def direct() -> Tensor:
        left, right = (
            normalize(sample_dense(dense[None], points[None], grid)[0], dim=1)
            for dense, points in ((first, queries), (second, candidates))
        )
        return (left @ right.T).argmax(1)

    small = Sampled(first, queries[:64], grid)
    nearest(small, small)  # what the libraries allocate once, at first use, is neither side's
    ours, our_bytes, our_seconds = measured(tiles)
    theirs, their_bytes, their_seconds = measured(direct)
    report = {
        "benchmark": "nearest_neighbours",
        "target_bytes": TARGET,
        **vars(options),
        "queries": len(queries),
        "candidates": len(candidates),
        "tiles_mb": round(our_bytes / 1e6, 1),
        "direct_mb": round(their_bytes / 1e6, 1),
        "memory_ratio": round(their_bytes / our_bytes, 2),
        "within_target": our_bytes <= TARGET,
        "tiles_seconds": round(our_seconds, 2),
        "direct_seconds": round(their_seconds, 2),
        "time_ratio": round(our_seconds / their_seconds, 2),
        "equal_answers": round(float((ours == theirs).double().mean()), 6),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
