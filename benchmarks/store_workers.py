"""Two workers against one: views a second at 224 px, decoded from a store.

    python benchmarks/store_workers.py [--views 2400] [--repeats 5]

`loader` counts what a `StepLoader` gives the training process, from its third step on, when its workers have started;
`reading` counts views that forked processes decode for themselves, which is what the machine can do at most: two
processes that decode bytes in memory are slower than twice one where their cores share a memory bus or other programs
run, so `decode` says what to compare with. At least 1.8 is wanted. Medians of interleaved repeats with their ranges, by
the clock; prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from mvcore.training.loader import StepLoader
from mvcore.training.sampling import SourceSpecification
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.views import Views
from store_read import noisy_images, summary

SIDE, VIEWS, BATCH, WARM_UP = 224, 12, 48, 4


def loader(path: Path, workers: int, views: int) -> float:
    """Views a second that the training process receives."""
    dataset = Views(path=str(path), image_size=SIDE)
    source = SourceSpecification(name="views", dataset=dataset, sampling="views", batch_size=BATCH)
    steps = WARM_UP + views // BATCH
    batches = iter(StepLoader([source], seed=0, workers=workers, steps=steps))
    for _ in islice(batches, WARM_UP):
        pass
    begin = time.perf_counter()
    received = sum(batch["views"].n_views for batch in batches)
    return received / (time.perf_counter() - begin)


def forked(processes: int, views: int, read: Callable[[int], object], there: int) -> float:
    """Views a second of processes that read random views, each its part of them."""
    begin = time.perf_counter()
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            for v in np.random.default_rng(number).integers(0, there, views // processes).tolist():
                read(v)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return views / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, default=2_400)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        with ViewStoreWriter(path, quality=92) as writer:
            for i in range(40):
                writer.add_object(str(i), noisy_images(VIEWS, SIDE, seed=i))
        store = ViewStore(path)
        held = [store.encoded(v) for v in range(store.n_views)]
        ways: dict[str, Callable[[int], float]] = {
            "loader": lambda n: loader(path, n, options.views),
            "reading": lambda n: forked(n, options.views, store.image, store.n_views),
            "decode": lambda n: forked(
                n, options.views, lambda v: simplejpeg.decode_jpeg(held[v], "RGB"), store.n_views
            ),
        }
        rates: dict[str, list[list[float]]] = {way: [[], []] for way in ways}
        for _ in range(options.repeats):
            for way, measure in ways.items():
                for workers in (1, 2):
                    rates[way][workers - 1].append(measure(workers))
    result = {
        way: {
            "views_per_second": {"one": summary(one, 0), "two": summary(two, 0)},
            "ratio": summary([b / a for a, b in zip(one, two, strict=True)], 3),
        }
        for way, (one, two) in rates.items()
    }
    print(json.dumps({"benchmark": "store_workers", "wanted": {"ratio": 1.8}, "results": result}, indent=2))


if __name__ == "__main__":
    main()
