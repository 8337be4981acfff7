"""Views a second that the loader gives at 64 px, and what a step of 256 views costs the training process.

    python benchmarks/loader.py [--steps 40] [--objects 256] [--size 64] [--batch 256] [--step-ms 170]

For each way of caching, augmenting and number of workers: `views_per_s`, how fast the loader alone runs by the clock;
`cpu_ms`, processor time that a step's batch takes from the training process (with 0 workers the loading itself, else
receiving it); `wait_ms`, how long it then waits by the clock when the step itself takes `--step-ms` (a plain wait, so
that a worker has the other core). `part_of_step` is `cpu_ms` over the step's time. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mvcore.training.loader import StepLoader
from mvcore.training.sampling import SourceSpecification
from mvcore_data import ViewStoreWriter
from mvcore_data.rigs import make_rig
from mvcore_data.views import Views

VIEWS_OF_OBJECT = 24
AUGMENT = [{"rotate": 20}, {"translate": 0.1}, {"colour": {"brightness": 0.2}}]


def write_store(path: Path, objects: int, size: int) -> None:
    """Smooth pictures, so that JPEG has about the work of renders."""
    rng = np.random.default_rng(0)
    intrinsics, extrinsics = make_rig("ring", VIEWS_OF_OBJECT).cameras(size)
    with ViewStoreWriter(path) as writer:
        for number in range(objects):
            coarse = torch.from_numpy(rng.uniform(0, 255, (VIEWS_OF_OBJECT, 3, 6, 6)))
            smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 255)
            writer.add_object(
                f"object-{number}",
                smooth.permute(0, 2, 3, 1).to(torch.uint8).numpy(),
                captions=[f"a picture of thing {number % 16}"],
                cameras=list(zip(intrinsics, extrinsics, strict=True)),
            )


def measure(path: Path, options: dict[str, Any], arguments: argparse.Namespace, workers: int) -> dict[str, Any]:
    """One row of the table."""

    def loader(steps: int) -> StepLoader:
        dataset = Views(path=str(path), image_size=arguments.size, **options)
        if options["cache"] == "memory":  # a run fills it in its first epoch
            dataset.load_many([(i, dataset.views_of(i)) for i in range(len(dataset))], None)
        source = SourceSpecification(name="views", dataset=dataset, sampling="views", batch_size=arguments.batch)
        return StepLoader([source], seed=0, workers=workers, steps=steps)

    steps = iter(loader(arguments.steps + 3))
    for _ in range(3):
        next(steps)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    views = sum(step["views"].n_views for step in steps)
    rate = views / (time.perf_counter() - begin)
    cpu = 1000 * (time.process_time() - begin_cpu) / arguments.steps

    waits: list[float] = []
    steps = iter(loader(arguments.steps))
    next(steps)
    for _ in range(arguments.steps - 1):
        time.sleep(arguments.step_ms / 1000)
        begin = time.perf_counter()
        next(steps)
        waits.append(1000 * (time.perf_counter() - begin))
    return {
        **options,
        "augment": bool(options["augment"]),
        "workers": workers,
        "views_per_s": round(rate),
        "cpu_ms": round(cpu, 2),
        "wait_ms": round(statistics.median(waits), 2),
        "part_of_step": round(cpu / arguments.step_ms, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--objects", type=int, default=256)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--step-ms", type=float, default=170.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        write_store(path, arguments.objects, arguments.size)
        rows = [
            measure(path, {"cache": cache, "augment": augment}, arguments, workers)
            for augment in ([], AUGMENT)
            for cache in ("memory", "none")
            for workers in (0, 1)
        ]
    print(json.dumps({"arguments": vars(arguments), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
