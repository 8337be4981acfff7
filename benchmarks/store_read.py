"""Reading views from a store against decoding alone: what the store costs beside the JPEG decoder.

Both sides decode the same images on one core, interleaved in one run, warm page cache; prints JSON. `ratio` is the rate
with the store over the rate of decoding bytes that are in memory already; at least 0.9 is wanted.
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
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.decode import decode_image
from numpy.typing import NDArray
from PIL import Image


def noisy_images(count: int, size: int) -> NDArray[np.uint8]:
    """(count, size, size, 3) smooth colour fields with noise: JPEGs of the weight of renders."""
    rng = np.random.default_rng(0)
    images = np.empty((count, size, size, 3), np.uint8)
    for image in images:
        field = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((size, size))
        image[:] = (np.asarray(field, np.int16) + rng.normal(0, 4, image.shape)).clip(0, 255)
    return images


def rate(read: Callable[[int], object], order: Sequence[int]) -> float:
    """Views per second."""
    begin = time.perf_counter()
    for v in order:
        read(v)
    return len(order) / (time.perf_counter() - begin)


def measure(size: int, objects: int, views: int, repeats: int) -> dict[str, object]:
    """Rates at one image size, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        with ViewStoreWriter(path, quality=92) as writer:
            for i in range(objects):
                writer.add_object(str(i), noisy_images(views, size))
        store = ViewStore(path)
        held = [store.encoded(v) for v in range(store.n_views)]
        order = np.random.default_rng(1).permutation(store.n_views).tolist()
        sides: dict[str, Callable[[int], object]] = {
            "store": store.image,
            "decode": lambda v: decode_image(held[v], "jpeg", (size, size), ""),
            "read": store.encoded,
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, read in sides.items():
                rates[name].append(rate(read, order))
    median = {name: statistics.median(values) for name, values in rates.items()}
    paired = [a / b for a, b in zip(rates["store"], rates["decode"], strict=True)]
    return {
        "size": size,
        "views": objects * views,
        "mean_bytes": round(statistics.mean(map(len, held))),
        "views_per_second": {name: round(value) for name, value in median.items()},
        "overhead_us": round(1e6 / median["read"], 1),
        "ratio": round(statistics.median(paired), 3),
        "ratio_range": [round(min(paired), 3), round(max(paired), 3)],
    }


def main() -> None:
    """Measures 64 and 224 px."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--objects", type=int, default=50)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    results = [measure(size, options.objects, options.views, options.repeats) for size in options.sizes]
    print(json.dumps({"benchmark": "store_read", "wanted": {"ratio": 0.9}, "results": results}, indent=2))


if __name__ == "__main__":
    main()
