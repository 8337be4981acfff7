"""Mining of anchors and outliers against the plain double loop of its definition, both in one run.

The definition weighs view j by its distances (or cosines) to the other views of its object. `double_loop` reads it as
it stands: a loop over the pairs of views of each object. `view_loop` loops over the views alone and takes all distances
of one view in a tensor operation, as the authors' released code does. Prints JSON with ratios and largest differences.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from mvcore_ovt import outlier_views, viewpoint_anchors
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

Rule = Literal["inverse_distance", "inverse_similarity"]
Mined = tuple[Tensor, Tensor]

NEIGHBOURS = 5
K = 5
EPS = 1e-8


def pair_weights(views: Tensor, rule: Rule) -> Tensor:
    """(V,) weights by two loops over the views."""
    weights = torch.zeros(len(views))
    for j in range(len(views)):
        found: list[float] = []
        for i in range(len(views)):
            if rule == "inverse_distance":
                found.append(float(torch.dist(views[j], views[i])))
            elif i != j:
                found.append(float(torch.dot(views[j], views[i])))
        if rule == "inverse_distance":
            weights[j] = 1 / (sum(sorted(found)[:NEIGHBOURS]) + EPS)
        else:
            weights[j] = 1 / (sum(sorted(found, reverse=True)[:NEIGHBOURS]) / NEIGHBOURS + EPS)
    return weights


def view_weights(views: Tensor, rule: Rule) -> Tensor:
    """(V,) weights by one loop over the views."""
    weights = torch.zeros(len(views))
    for j in range(len(views)):
        if rule == "inverse_distance":
            distances = torch.linalg.vector_norm(views - views[j], dim=-1)
            weights[j] = 1 / (distances.topk(NEIGHBOURS, largest=False).values.sum() + EPS)
        else:
            cosines = views @ views[j]
            cosines[j] = -torch.inf
            weights[j] = 1 / (cosines.topk(NEIGHBOURS).values.mean() + EPS)
    return weights


def definition(views: Tensor, index: Tensor, rule: Rule, weights_of: Callable[[Tensor, Rule], Tensor]) -> Mined:
    """Anchors (O, D) and outliers (N,) object by object."""
    objects = int(index.max()) + 1
    anchors = torch.zeros(objects, views.shape[1])
    outliers = torch.zeros(len(views), dtype=torch.bool)
    for o in range(objects):
        rows = (index == o).nonzero()[:, 0]
        own = views[rows]
        weights = weights_of(own, rule)
        anchors[o] = (weights / weights.sum()) @ own
        distances = torch.stack([1 - cosine_similarity(view, anchors[o], dim=0) for view in own])
        outliers[rows[distances.topk(K).indices]] = True
    return anchors, outliers


def mining(views: Tensor, index: Tensor, rule: Rule) -> Mined:
    anchors = viewpoint_anchors(views, index, rule=rule, neighbours=NEIGHBOURS)
    return anchors, outlier_views(views, index, anchors, K)


class Seconds(NamedTuple):
    """By the wall clock, and of processor time in all threads, which other programs on the machine disturb less."""

    wall: float
    cpu: float


def seconds_of(run: Callable[[], Mined]) -> tuple[Seconds, Mined]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu), result


def compared(name: str, slow: Seconds, fast: Seconds, expected: Mined, found: Mined) -> dict[str, float]:
    return {
        f"{name}_seconds": round(slow.wall, 3),
        f"ratio_to_{name}": round(slow.wall / fast.wall, 1),
        f"cpu_ratio_to_{name}": round(slow.cpu / fast.cpu, 1),
        f"largest_anchor_difference_to_{name}": float((found[0] - expected[0]).abs().max()),
        f"outliers_that_differ_from_{name}": int((found[1] != expected[1]).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=500)
    parser.add_argument("--views", type=int, default=50)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9, help="of the batched form, of which the median counts")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = torch.Generator().manual_seed(0)
    index = torch.arange(options.objects).repeat_interleave(options.views)
    centres = torch.randn(options.objects, options.width, generator=rng)
    views = normalize(centres[index] + 0.7 * torch.randn(len(index), options.width, generator=rng), dim=-1)
    report: dict[str, object] = {"benchmark": "ovt_mining", "target_ratio_to_double_loop": 100, **vars(options)}
    rules: tuple[Rule, ...] = ("inverse_distance", "inverse_similarity")
    for rule in rules:
        found = mining(views, index, rule)
        times = [seconds_of(lambda rule=rule: mining(views, index, rule))[0] for _ in range(options.repeats)]
        fast = Seconds(statistics.median(t.wall for t in times), statistics.median(t.cpu for t in times))
        rows: dict[str, float] = {"mining_seconds": round(fast.wall, 4), "mining_cpu_seconds": round(fast.cpu, 4)}
        for name, weights_of in (("view_loop", view_weights), ("double_loop", pair_weights)):
            slow, expected = seconds_of(
                lambda rule=rule, weights_of=weights_of: definition(views, index, rule, weights_of)
            )
            rows |= compared(name, slow, fast, expected, found)
        report[rule] = rows
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
