"""How surely `mvcore data overlap` finds copies of images, and how often it calls different objects alike.

Objects of the embedded demo store are compared with copies of their own views, saved anew in several ways, and the
store's train split with its test split, which share no object. Prints JSON: for each way the share of copied objects
and of copied views that are found, and the share of the reported pairs whose objects are the same.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.demo import store_path
from mvcore_data.overlap import Side, find_overlap, open_side
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels], Pixels]


def recompressed(quality: int) -> Change:
    """Saved as JPEG."""

    def change(pixels: Pixels) -> Pixels:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    return change


def resized(factor: float) -> Change:
    """Scaled by a factor."""

    def change(pixels: Pixels) -> Pixels:
        height, width = (round(side * factor) for side in pixels.shape[:2])
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))

    return change


def cropped(share: float) -> Change:
    """A share of each side cut away, half of it on the left."""

    def change(pixels: Pixels) -> Pixels:
        k = max(1, round(share * len(pixels)))
        return pixels[k:-k, k // 2 : -k]

    return change


def brighter(factor: float) -> Change:
    """All values times a factor."""
    return lambda pixels: (pixels * factor).clip(0, 255).astype(np.uint8)


def all_of_it(pixels: Pixels) -> Pixels:
    """Cropped, darker, larger and recompressed."""
    return recompressed(75)(resized(1.5)(brighter(0.85)(cropped(0.04)(pixels))))


CHANGES: dict[str, Change] = {
    "jpeg 50": recompressed(50),
    "jpeg 30": recompressed(30),
    "x 0.5": resized(0.5),
    "x 2": resized(2.0),
    "crop 4 %": cropped(0.04),
    "crop 8 %": cropped(0.08),
    "brightness x 0.8": brighter(0.8),
    "brightness x 1.2": brighter(1.2),
    "all of it": all_of_it,
}


def measure(demo: ViewStore, objects: list[int], change: Change, step: int) -> dict[str, object]:
    """Originals against copies of each `step`-th of their views."""
    with tempfile.TemporaryDirectory() as folder:
        with ViewStoreWriter(Path(folder) / "copy", codec="png") as writer:
            for i in objects:
                views = list(demo.views_of(i))[::step]
                writer.add_object(f"copy of {demo.object_ids[i]}", [change(demo.image(v)) for v in views])
        copy = open_side(str(Path(folder) / "copy"))
        pairs = find_overlap(Side("demo", demo, objects), copy).pairs
    own = [pair for pair in pairs if pair.second.object == f"copy of {pair.first.object}"]
    return {
        "objects_found": round(len({pair.first.object for pair in own}) / len(objects), 3),
        "views_found": round(len({pair.second for pair in own}) / copy.store.n_views, 3),
        "precision": round(len(own) / max(len(pairs), 1), 4),
        "pairs": len(pairs),
    }


def main() -> None:
    """Measures copies, and two splits without a common object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=7, help="each so many of the demo's objects")
    parser.add_argument("--step", type=int, default=3, help="each so many of their views are copied")
    arguments = parser.parse_args()
    demo = ViewStore(store_path())
    objects = list(range(0, len(demo), arguments.every))
    copies = {name: measure(demo, objects, change, arguments.step) for name, change in CHANGES.items()}
    train, test = open_side("demo#train"), open_side("demo#test")
    begin = time.perf_counter()
    found = find_overlap(train, test)
    seconds = time.perf_counter() - begin
    views = sum(len(side.views()) for side in (train, test))
    splits = {
        "objects": [len(train.objects), len(test.objects)],
        "views": views,
        "pairs_of_views": len(found.pairs),
        "pairs_of_objects": len(found.by_object),
        "views_per_second": round(views / seconds),
    }
    print(json.dumps({"objects": len(objects), "copies": copies, "train and test": splits}, indent=1))


if __name__ == "__main__":
    main()
