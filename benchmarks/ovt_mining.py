"""Mining of anchors and outliers against the plain double loop of its definition, both in one run.

The loop takes objects and views one by one in PyTorch, as the definition reads. Prints JSON with the ratio and the
largest difference.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from mvcore_ovt import outlier_views, viewpoint_anchors
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

NEIGHBOURS = 5
K = 5
EPS = 1e-8


def definition(embeddings: Tensor, object_index: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Anchors (O, D) and outliers (N,) by two loops: over objects, and over the views of each."""
    objects = int(object_index.max()) + 1
    anchors = torch.zeros(objects, embeddings.shape[1])
    outliers = torch.zeros(len(embeddings), dtype=torch.bool)
    for o in range(objects):
        rows = (object_index == o).nonzero()[:, 0]
        views = embeddings[rows]
        weights = torch.zeros(len(rows))
        for j in range(len(rows)):
            if rule == "inverse_distance":
                distances = torch.linalg.vector_norm(views - views[j], dim=-1)
                weights[j] = 1 / (distances.topk(NEIGHBOURS, largest=False).values.sum() + EPS)
            else:
                cosines = views @ views[j]
                cosines[j] = -torch.inf
                weights[j] = 1 / (cosines.topk(NEIGHBOURS).values.mean() + EPS)
        anchors[o] = (weights / weights.sum()) @ views
        distances = torch.stack([1 - cosine_similarity(view, anchors[o], dim=0) for view in views])
        outliers[rows[distances.topk(K).indices]] = True
    return anchors, outliers


def mining(embeddings: Tensor, object_index: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    anchors = viewpoint_anchors(embeddings, object_index, rule=rule, neighbours=NEIGHBOURS)  # pyright: ignore[reportArgumentType]
    return anchors, outlier_views(embeddings, object_index, anchors, K)


def timed(run: Callable[[], tuple[Tensor, Tensor]], repeats: int) -> tuple[float, tuple[Tensor, Tensor]]:
    """Median seconds and the result."""
    seconds: list[float] = []
    result = run()
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=500)
    parser.add_argument("--views", type=int, default=50)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--repeats", type=int, default=7, help="of the batched form; the loop runs once after a warm-up"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = torch.Generator().manual_seed(0)
    index = torch.arange(options.objects).repeat_interleave(options.views)
    centres = torch.randn(options.objects, options.width, generator=rng)
    views = normalize(centres[index] + 0.7 * torch.randn(len(index), options.width, generator=rng), dim=-1)
    report: dict[str, object] = {"objects": options.objects, "views": options.views, "width": options.width}
    for rule in ("inverse_distance", "inverse_similarity"):
        fast, (anchors, outliers) = timed(lambda rule=rule: mining(views, index, rule), options.repeats)
        start = time.perf_counter()
        expected, chosen = definition(views, index, rule)
        slow = time.perf_counter() - start
        report[rule] = {
            "loop_seconds": round(slow, 3),
            "mining_seconds": round(fast, 4),
            "ratio": round(slow / fast, 1),
            "largest_anchor_difference": float((anchors - expected).abs().max()),
            "outliers_that_differ": int((outliers != chosen).sum()),
        }
    print(json.dumps({"benchmark": "ovt_mining", "threads": options.threads, "target_ratio": 100, **report}, indent=2))


if __name__ == "__main__":
    main()
