"""Reading views from a store against decoding alone: what the store costs beside the JPEG decoder.

Both sides decode the same images on one core, interleaved in one run, warm page cache; prints JSON. `ratio` is the rate
with the store over the rate of a bare call of the decoder on bytes that are in memory already; at least 0.95 is wanted.
`read` is what reading takes without decoding, `checksum` the part of it that goes into the CRC, `own` what is left of
reading and decoding when the decoder's own time is taken off; at most 25 microseconds of it are wanted. `batch` does
the same for whole batches: `Views.load_many` against the decoder filling an array of the batch's size. Medians of
interleaved repeats, each with the least and the largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from mvcore_data import ViewStoreWriter
from mvcore_data.views import Views
from numpy.typing import NDArray
from PIL import Image
from zlib_ng.zlib_ng import crc32


def noisy_images(count: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    """(count, size, size, 3) smooth colour fields with noise: JPEGs of the weight of renders."""
    rng = np.random.default_rng(seed)
    images = np.empty((count, size, size, 3), np.uint8)
    for image in images:
        field = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((size, size))
        image[:] = (np.asarray(field, np.int16) + rng.normal(0, 4, image.shape)).clip(0, 255)
    return images


def measure(size: int, objects: int, views: int, repeats: int) -> dict[str, object]:
    """Rates at one image size, and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        with ViewStoreWriter(path, quality=92) as writer:
            for i in range(objects):
                writer.add_object(str(i), noisy_images(views, size, seed=i))
        dataset = Views(path=str(path), image_size=size)
        store = dataset.store
        held = [store.encoded(v) for v in range(store.n_views)]
        order = np.random.default_rng(1).permutation(store.n_views).tolist()
        requests = [(i, dataset.views_of(i)) for i in range(len(dataset))]

        def fill(_: Sequence[int]) -> None:
            batch = np.empty((len(held), size, size, 3), np.uint8)
            for data, place in zip(held, batch, strict=True):
                simplejpeg.decode_jpeg(data, "RGB", buffer=place)

        sides: dict[str, Callable[[Sequence[int]], object]] = {
            "store": each(store.image),
            "decode": each(lambda v: simplejpeg.decode_jpeg(held[v], "RGB")),
            "read": each(store.encoded),
            "checksum": each(lambda v: crc32(held[v])),
            "batch": lambda _: dataset.load_many(requests, None),
            "batch_decode": fill,
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, run in sides.items():
                times[name].append(microseconds(run, order))
    pairs = list(zip(times["store"], times["decode"], strict=True))
    batches = list(zip(times["batch"], times["batch_decode"], strict=True))
    return {
        "size": size,
        "views": objects * views,
        "mean_bytes": round(statistics.mean(map(len, held))),
        "microseconds_a_view": {name: summary(values, 1) for name, values in times.items()},
        "ratio": summary([decode / store for store, decode in pairs], 3),
        "own_microseconds": summary([store - decode for store, decode in pairs], 1),
        "batch_ratio": summary([decode / batch for batch, decode in batches], 3),
        "batch_own_microseconds": summary([batch - decode for batch, decode in batches], 1),
    }


def each(read: Callable[[int], object]) -> Callable[[Sequence[int]], None]:
    """Reads views one by one."""

    def run(order: Sequence[int]) -> None:
        for v in order:
            read(v)

    return run


def microseconds(run: Callable[[Sequence[int]], object], order: Sequence[int]) -> float:
    """Microseconds a view."""
    begin = time.perf_counter()
    run(order)
    return 1e6 * (time.perf_counter() - begin) / len(order)


def summary(values: list[float], digits: int) -> list[float]:
    """Median, least and largest."""
    return [round(value, digits) for value in (statistics.median(values), min(values), max(values))]


def main() -> None:
    """Measures 64 and 224 px."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(size, options.objects, options.views, options.repeats) for size in options.sizes]
    wanted = {"ratio": 0.95, "own_microseconds": 25}
    print(json.dumps({"benchmark": "store_read", "wanted": wanted, "results": results}, indent=2))


if __name__ == "__main__":
    main()
