"""The same images from a store, a folder of JPEGs, WebDataset's tar files and raw pixels in HDF5; and three decoders.

    python benchmarks/store_formats.py [--objects 60] [--repeats 9]

Objects of 12 views at 224 px in a random order, 4 random views of each, in one process, from a warm page cache. JPEGs
of all layouts are decoded by the same decoder, that of the store. WebDataset reads in the order of its files, an object
a sample, so it reads all 12 views to give 4. Raw pixels are the layout of Duoduo CLIP, `imgs (O, 12, 3, 224, 224)`,
read a view at a time; `bytes_a_view` says what each costs on the disk. `ratio` is the store's rate over the other's;
`simplejpeg`, `torchvision` and `pillow` decode bytes that are in memory. Medians of interleaved repeats, each with the
least and the largest; prints JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import simplejpeg
import torch
import torchvision
from mvcore_data import ViewStore, ViewStoreWriter
from PIL import Image
from store_read import noisy_images, summary
from webdataset.compat import WebDataset

SIDE, VIEWS, TAKEN = 224, 12, 4
Draw = Sequence[tuple[int, Sequence[int]]]


def write_all(folder: Path, objects: int) -> None:
    """The same images in each layout."""
    with ViewStoreWriter(folder / "store", quality=92) as writer:
        for i in range(objects):
            writer.add_object(str(i), noisy_images(VIEWS, SIDE, seed=i))
    with (
        ViewStore(folder / "store") as store,
        h5py.File(folder / "raw.h5", "w") as file,
        tarfile.open(folder / "shard-000000.tar", "w") as tar,
    ):
        raw = file.create_dataset("imgs", (objects, VIEWS, 3, SIDE, SIDE), "u1")
        for i in range(objects):
            (folder / "jpegs" / str(i)).mkdir(parents=True)
            for k, v in enumerate(store.views_of(i)):
                data = store.encoded(v)
                (folder / "jpegs" / str(i) / f"{k:02d}.jpg").write_bytes(data)
                entry = tarfile.TarInfo(f"{i:06d}.{k:02d}.jpg")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
                raw[i, k] = store.image(v).transpose(2, 0, 1)


def decode(data: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(data, "RGB")


def readers(folder: Path) -> dict[str, Callable[[Draw], Iterator[np.ndarray]]]:
    """How each layout gives the views that are drawn."""
    store = ViewStore(folder / "store")
    raw: Any = h5py.File(folder / "raw.h5")["imgs"]

    def from_store(draw: Draw) -> Iterator[np.ndarray]:
        for i, views in draw:
            first = store.views_of(i).start
            for k in views:
                yield store.image(first + k)

    def from_folder(draw: Draw) -> Iterator[np.ndarray]:
        for i, views in draw:
            for k in views:
                yield decode((folder / "jpegs" / str(i) / f"{k:02d}.jpg").read_bytes())

    def from_webdataset(draw: Draw) -> Iterator[np.ndarray]:
        samples = WebDataset(str(folder / "shard-000000.tar"), shardshuffle=False, empty_check=False)
        for sample, (_, views) in zip(samples, draw, strict=True):
            for k in views:
                yield decode(sample[f"{k:02d}.jpg"])

    def from_raw(draw: Draw) -> Iterator[np.ndarray]:
        for i, views in draw:
            for k in views:
                yield raw[i, k]

    return {"store": from_store, "folder": from_folder, "webdataset": from_webdataset, "raw_h5": from_raw}


def decoders(folder: Path) -> dict[str, Callable[[Draw], Iterator[Any]]]:
    """Decoding alone, of bytes that are in memory."""
    with ViewStore(folder / "store") as store:
        held = [[store.encoded(v) for v in store.views_of(i)] for i in range(len(store))]
    tensors = [[torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in views] for views in held]
    mode = torchvision.io.ImageReadMode.RGB

    def by(decode_one: Callable[[Any], Any], data: Any) -> Callable[[Draw], Iterator[Any]]:
        return lambda draw: (decode_one(data[i][k]) for i, views in draw for k in views)

    return {
        "simplejpeg": by(decode, held),
        "torchvision": by(lambda data: torchvision.io.decode_jpeg(data, mode), tensors),
        "pillow": by(lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), held),
    }


def rate(give: Callable[[Draw], Iterator[Any]], draw: Draw) -> float:
    """Views a second."""
    begin = time.perf_counter()
    views = sum(1 for _ in give(draw))
    return views / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_all(folder, options.objects)
        sides = {**readers(folder), **decoders(folder)}
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.repeats):
            order = rng.permutation(options.objects).tolist()
            draw = [(i, rng.permutation(VIEWS)[:TAKEN].tolist()) for i in order]
            for side, give in sides.items():
                rates[side].append(rate(give, draw))
        sizes = {
            "store": sum(path.stat().st_size for path in (folder / "store").iterdir()),
            "folder": sum(path.stat().st_size for path in (folder / "jpegs").rglob("*.jpg")),
            "webdataset": (folder / "shard-000000.tar").stat().st_size,
            "raw_h5": (folder / "raw.h5").stat().st_size,
        }
    ratios = {side: [a / b for a, b in zip(rates["store"], rates[side], strict=True)] for side in sides}
    result = {
        "benchmark": "store_formats",
        "views_per_second": {side: summary(rates[side], 0) for side in sides},
        "ratio": {side: summary(ratios[side], 3) for side in sides if side != "store"},
        "bytes_a_view": {side: round(size / options.objects / VIEWS) for side, size in sizes.items()},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
