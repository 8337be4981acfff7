"""Nine numbers of views by three seeds, with the tokens below the crossing blocks kept and without: target 4x.

    python benchmarks/duoduo_view_count.py [--model ViT-B-32 --cross-view-from 6 | --demo] [--objects 4] [--rounds 3]

Objects of twelve views in a store, a model at random weights (or the demo's own) with `duoduo.cross_view`, the draws of
`duoduo.view_count` at its defaults (1 to 12 views, three seeds). Three ways make the vector of every draw, in turn, in
one process, each from the store to the vectors:

- `cached`: each view is read, decoded and taken through the blocks below once (`prefix_cache: true`);
- `uncached`: each draw is read and encoded from its images (`prefix_cache: false`); equal draws once, as above;
- `passes`: a pass for each number of views and seed that reads all twelve views and encodes those drawn, as the
  authors' code does; equal draws again and again.

Prints JSON: the largest difference of unit vectors (the run stops where it is above 1e-5), seconds of each way by the
wall clock and of processor time, medians over the rounds of the ratios to `cached` with their range, what the
passes of views through blocks alone would give (`blocks`), and where the time of `cached` goes (`parts`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mvcore.api import Embedder, Model, concatenate
from mvcore.config import Part
from mvcore.loading import make_run_pipeline
from mvcore_data import ViewStoreWriter
from mvcore_data.views import Views
from mvcore_duoduo.attention import PREFIX
from mvcore_duoduo.evaluation.encoding import Job, SubsetEncoder
from mvcore_duoduo.evaluation.options import ViewCountOptions
from mvcore_duoduo.evaluation.subsets import view_subset
from mvcore_duoduo.evaluation.suffix import OBJECT, suffix_of
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

TARGET = 4.0
TOLERANCE = 1e-5
VIEWS = 12
Vectors = dict[Job, Tensor]


def made_model(arguments: argparse.Namespace) -> Embedder:
    """The model with attention across views."""
    args: dict[str, Any] = {"model": arguments.model, "pretrained": None}
    if arguments.demo:
        args = {
            "model": "package:mvcore_data/demo/clip.json",
            "pretrained": "package:mvcore_data/demo/clip.safetensors",
        }
    adapter = Part(id="duoduo.cross_view", args={"cross_view_from": arguments.cross_view_from})
    pipeline = make_run_pipeline(Part(id="core.open_clip", args=args), {"duoduo.cross_view": adapter}, 0)
    return Embedder(Model(pipeline.eval().requires_grad_(False), views_per_batch=arguments.views_per_batch))


def made_store(path: Path, objects: int, size: int) -> Views:
    """Objects of the demo, twelve views each, at the model's size."""
    demo = Views(path="demo", image_size=64)
    with ViewStoreWriter(path) as writer:
        for i in range(objects):
            batch = demo.load(i, demo.views_of(i)[:VIEWS], None)
            assert batch.images is not None
            images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in batch.images]
            writer.add_object(f"o{i}", [np.asarray(image.resize((size, size))) for image in images])
    return Views(path=str(path), image_size=size)


def draws(dataset: Views, options: ViewCountOptions) -> dict[tuple[int, int], list[Job]]:
    """By number of views and seed the draw of each object."""
    return {
        (count, seed): [(i, view_subset(seed, dataset.object_name(i), count, VIEWS)) for i in range(len(dataset))]
        for count in options.counts
        for seed in options.seeds
    }


def by_encoder(model: Embedder, dataset: Views, *, cached: bool) -> Vectors:
    """Every different draw once."""
    options = ViewCountOptions(prefix_cache=cached)
    wanted: dict[int, list[tuple[int, ...]]] = {}
    for i, subset in dict.fromkeys(job for jobs in draws(dataset, options).values() for job in jobs):
        wanted.setdefault(i, []).append(subset)
    chunks = SubsetEncoder(model, options).encode("s", dataset, wanted, whole=True)
    return {job: vector for jobs, vectors in chunks for job, vector in zip(jobs, vectors, strict=True)}


def by_passes(model: Embedder, dataset: Views) -> Vectors:
    """A pass over the data for each number of views and seed."""
    found: Vectors = {}
    for (count, _), jobs in draws(dataset, ViewCountOptions()).items():
        step = max(1, model.views_per_batch // count)
        for start in range(0, len(jobs), step):
            some = jobs[start : start + step]
            whole = [dataset.load(i, dataset.views_of(i), None) for i, _ in some]
            kept = [_only(batch, subset) for batch, (_, subset) in zip(whole, some, strict=True)]
            objects = model.features(concatenate(kept), OBJECT).object
            found |= dict(zip(some, objects, strict=True))
    return found


def _only(batch: Any, subset: Sequence[int]) -> Any:
    return type(batch).make([len(subset)], images=batch.images[list(subset)])


def timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock and of the processor, and what came out."""
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - wall, time.process_time() - processor, result


def parts_of_cached(model: Embedder, dataset: Views) -> dict[str, float]:
    """Processor seconds of one cached pass: reading, the blocks below, and the blocks above."""
    _, reading, batch = timed(
        lambda: concatenate([dataset.load(i, dataset.views_of(i), None) for i in range(len(dataset))])
    )
    chunk = max(1, model.views_per_batch // VIEWS) * VIEWS
    batches = [type(batch).make([1] * len(part), images=part) for part in batch.images.split(chunk)]
    _, below, _ = timed(lambda: [model.features(one, frozenset({PREFIX}))[PREFIX] for one in batches])
    whole = timed(lambda: by_encoder(model, dataset, cached=True))[1]
    return {"reading": round(reading, 3), "below": round(below, 3), "above": round(whole - reading - below, 3)}


def passes_through_blocks(model: Embedder, dataset: Views) -> dict[str, float]:
    """Views times blocks of each way, and the ratios that follow, were all blocks equally dear and reading free.

    Of the 12 products of a width squared that a token needs in a block, `cached` leaves out the 3 of queries, keys and
    values in the first crossing block, and all but those of keys and values in the last.
    """
    suffix: Any = suffix_of(model)
    depth, above = len(suffix.stages.blocks), len(suffix.blocks)
    jobs = draws(dataset, ViewCountOptions())
    every = sum(len(subset) for some in jobs.values() for _, subset in some)
    different = sum(len(subset) for _, subset in {job for some in jobs.values() for job in some})
    once = len(dataset) * VIEWS
    cached = once * (depth - above) + different * above
    skipping = once * (depth - above + 3 / 12) + different * (above - 3 / 12 - 10 / 12)
    return {
        "views_of_different_draws": different,
        "views_of_all_draws": every,
        "ratio_uncached": round(different * depth / cached, 2),
        "ratio_passes": round(every * depth / cached, 2),
        "ratio_uncached_skipping": round(different * depth / skipping, 2),
        "ratio_passes_skipping": round(every * depth / skipping, 2),
    }


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and range."""
    listed = sorted(values)
    return {
        "median": round(statistics.median(listed), 3),
        "low": round(listed[0], 3),
        "high": round(listed[-1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--cross-view-from", type=int, default=None, help="default: 6, or 2 of the demo")
    parser.add_argument("--demo", action="store_true", help="the demo's model")
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--views-per-batch", type=int, default=96)
    arguments = parser.parse_args()
    if arguments.cross_view_from is None:
        arguments.cross_view_from = 2 if arguments.demo else 6
    torch.set_num_threads(arguments.threads)
    model = made_model(arguments)
    size = model.backbone.image_size or 224
    ways: dict[str, Callable[[Views], Vectors]] = {
        "cached": lambda dataset: by_encoder(model, dataset, cached=True),
        "uncached": lambda dataset: by_encoder(model, dataset, cached=False),
        "passes": lambda dataset: by_passes(model, dataset),
    }
    with tempfile.TemporaryDirectory() as folder:
        dataset = made_store(Path(folder) / "store", arguments.objects, size)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        difference = 0.0
        for _ in range(arguments.rounds):
            first: Vectors = {}
            for name, way in ways.items():
                wall, processor, vectors = timed(lambda way=way: way(dataset))
                seconds[name].append((wall, processor))
                first = first or vectors
                difference = max(
                    difference,
                    max(
                        float((normalize(v, dim=0) - normalize(first[j], dim=0)).abs().max())
                        for j, v in vectors.items()
                    ),
                )
            if difference > TOLERANCE:
                raise SystemExit(f"the ways disagree by {difference:.1e}")
        report: dict[str, Any] = {
            "model": "demo" if arguments.demo else arguments.model,
            "cross_view_from": arguments.cross_view_from,
            "objects": len(dataset),
            "threads": arguments.threads,
            "largest_difference": difference,
            "seconds": {name: spread(wall for wall, _ in times) for name, times in seconds.items()},
            "processor_seconds": {name: spread(used for _, used in times) for name, times in seconds.items()},
            "blocks": passes_through_blocks(model, dataset),
            "parts": parts_of_cached(model, dataset),
            "target": TARGET,
        }
        for name in ("uncached", "passes"):
            pairs = list(zip(seconds[name], seconds["cached"], strict=True))
            report[f"ratio_{name}"] = spread(way[0] / cached[0] for way, cached in pairs)
            report[f"processor_ratio_{name}"] = spread(way[1] / cached[1] for way, cached in pairs)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
