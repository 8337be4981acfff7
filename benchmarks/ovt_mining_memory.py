"""Peak memory of mining over ragged objects, in units of the embeddings themselves.

Measures the process's resident set by the kernel's own high-water mark, which is reset before mining, after what the
allocator holds unused was given back. `total` counts the embeddings and everything that mining adds, the anchors too.
Prints JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from pathlib import Path
from typing import get_args

import torch
from mvcore_ovt import outlier_views, viewpoint_anchors
from mvcore_ovt.anchors import AnchorRule
from torch import Tensor
from torch.nn.functional import normalize


def resident(field: str) -> int:
    """Bytes by a field of /proc/self/status: `VmRSS` now, `VmHWM` at most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def ragged(n_views: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(N, D) unit views of objects with 2 to 100 views, and the (N,) object of each, mixed up."""
    rng = torch.Generator().manual_seed(0)
    counts = torch.randint(2, 101, (n_views // 40,), generator=rng)
    index = torch.arange(len(counts)).repeat_interleave(counts)[:n_views]
    index = index[torch.randperm(n_views, generator=rng)]
    centres = torch.randn(len(counts), width, generator=rng)
    views = torch.empty(n_views, width, dtype=dtype)
    for start in range(0, n_views, 4096):
        own = centres[index[start : start + 4096]]
        views[start : start + 4096] = normalize(own + 0.7 * torch.randn(own.shape, generator=rng), dim=-1)
    return views, index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--half", action="store_true", help="embeddings in float16, which are computed in float32")
    parser.add_argument("--rule", default="inverse_distance", choices=get_args(AnchorRule))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("this measurement reads /proc/self, so it runs on Linux only")
    torch.set_num_threads(options.threads)
    # What the libraries allocate once, at first use, is not mining's.
    warm, warm_index = ragged(4000, options.width, torch.float32)
    outlier_views(warm, warm_index, viewpoint_anchors(warm, warm_index, rule=options.rule), 5)
    views, index = ragged(options.views, options.width, torch.float16 if options.half else torch.float32)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    anchors = viewpoint_anchors(views, index, rule=options.rule)
    outliers = outlier_views(views, index, anchors, 5)
    growth = resident("VmHWM") - before
    report = {
        "benchmark": "ovt_mining_memory",
        "target_total": 2.0,
        **vars(options),
        "objects": len(anchors),
        "outliers": int(outliers.sum()),
        "embeddings_mb": round(views.nbytes / 1e6, 1),
        "growth_mb": round(growth / 1e6, 1),
        "anchors_mb": round(anchors.nbytes / 1e6, 1),
        "total": round(1 + growth / views.nbytes, 3),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
