"""What a loading worker needs for itself while it reads every view of a large store.

    python benchmarks/store_memory.py [--views 1000000] [--views-per-object 12]

Makes a store of tiny images with captions and cameras, then lets a forked process read all of it: once by `ViewStore`
alone (`reader`), once as the worker of a `StepLoader` (`worker`) that draws every view in a random order. Counted is by
how much the memory that only this process has (`Private_*` of Linux's smaps_rollup) grows from its first steps to its
last; what stays shared with the parent is not. At most 24 bytes a view are wanted. Prints JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import psutil
import torch
from mvcore.training.loader import StepLoader
from mvcore.training.sampling import SourceSpecification
from mvcore_data import ViewStore, seal
from mvcore_data.views import Views
from PIL import Image

SIDE = 8
BATCH = 1024
SAMPLINGS: tuple[Literal["views", "objects"], ...] = ("views", "objects")


def write_store(path: Path, views: int, views_per_object: int) -> None:
    """A shard of the format, written by whole arrays: the writer takes minutes for so many views."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), "red").save(buffer, "JPEG")
    image = buffer.getvalue()
    objects = -(-views // views_per_object)
    captions = [f"view {v} of something that has a caption of its own" for v in range(views)]
    file: Any
    with h5py.File(path, "w", userblock_size=seal.USER_BLOCK) as file:
        file.attrs.update(schema="mvcore.views", version=1, complete=True, n_objects=objects, n_views=views)
        blob = file.create_dataset("views/blob", data=np.tile(np.frombuffer(image, "u1"), views))
        file["views/offset"] = np.arange(views + 1, dtype="i8") * len(image)
        file["views/crc32"] = np.full(views, zlib.crc32(image), "u4")
        file["views/size"] = np.full((views, 2), SIDE, "u2")
        file["views/codec"] = np.zeros(views, "u1")
        file["views/object"] = (np.arange(views) // views_per_object).astype("i4")
        file["objects/view_offset"] = np.minimum(np.arange(objects + 1) * views_per_object, views).astype("i8")
        ids = np.array([f"object-{i}".encode() for i in range(objects)])
        file["objects/id"] = ids.astype(h5py.string_dtype("utf-8", ids.dtype.itemsize))
        for table in ("category", "licence", "source", "creator"):
            file[f"objects/{table}"] = np.full(objects, -1, "i4")
        file["captions/blob"] = np.frombuffer("".join(captions).encode(), "u1")
        file["captions/offset"] = np.cumsum([0, *map(len, captions)]).astype("i8")
        file["captions/target"] = np.arange(views, dtype="i4")
        file["cameras/K"] = np.tile(np.eye(3, dtype="f4"), (views, 1, 1))
        file["cameras/w2c"] = np.tile(np.eye(4, dtype="f4"), (views, 1, 1))
        file["cameras/valid"] = np.ones(views, "?")
        place = (int(blob.id.get_offset()), int(blob.shape[0]))
    seal.write(path, (place,))


def private_bytes(process: int) -> int:
    """Memory that only this process has."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def reader(path: Path) -> float:
    """Bytes a view that a forked process needs to read all views, captions and cameras."""
    store = ViewStore(path)
    receive, send = os.pipe()
    if os.fork() == 0:
        first, before = store.n_views // 100, 0
        for v in range(store.n_views):
            if v == first:
                before = private_bytes(os.getpid())
            _ = store.image(v), store.camera(v), store.view_captions(v), store.captions(store.object_of(v))
        grown = private_bytes(os.getpid()) - before
        os.write(send, str(grown / (store.n_views - first)).encode())
        os._exit(0)
    os.wait()
    return float(os.read(receive, 64))


def worker(path: Path, sampling: Literal["views", "objects"]) -> float:
    """Bytes a view by which a worker of the loader grows over a pass in random order."""
    torch.set_num_threads(1)
    dataset = Views(path=str(path), image_size=SIDE)
    batch = BATCH if sampling == "views" else max(1, BATCH * len(dataset) // dataset.n_store_views)
    source = SourceSpecification(name="views", dataset=dataset, sampling=sampling, batch_size=batch)
    steps = len(dataset) // batch if sampling == "objects" else dataset.n_store_views // batch
    process, before = 0, 0
    for step, _ in enumerate(StepLoader([source], seed=0, workers=1, steps=steps)):
        if step == max(3, steps // 10):  # after what is needed once
            process = psutil.Process().children()[-1].pid
            before = private_bytes(process)
        if step == steps - 2:
            return (private_bytes(process) - before) / dataset.n_store_views
    raise ValueError("too few views")


def alone(measure: Callable[..., float], *arguments: Any) -> float:
    """Measures in a fresh process: what a parent frees after the fork would count as the child's own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return round(pool.submit(measure, *arguments).result(), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, default=1_000_000)
    parser.add_argument("--views-per-object", type=int, nargs="+", default=[12, 1])
    options = parser.parse_args()
    rows = []
    for views_per_object in options.views_per_object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store.h5"
            write_store(path, options.views, views_per_object)
            rows.append(
                {
                    "views": options.views,
                    "views_per_object": views_per_object,
                    "reader_bytes_a_view": alone(reader, path),
                    "worker_bytes_a_view": {sampling: alone(worker, path, sampling) for sampling in SAMPLINGS},
                }
            )
    print(json.dumps({"benchmark": "store_memory", "wanted": {"bytes_a_view": 24}, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
