"""Packing folders of JPEGs against copying the same files, hashing them with SHA-256 and reading the copies back.

Both sides handle the same files in one run, in turns, on one core, warm page cache; prints JSON. `ratio` is the rate of
packing over the rate of the copy by the clock, `processor_ratio` of the process's own time; at least 0.5 is wanted. The
copy writes a file for each file and flushes nothing to the disk; the pack flushes each shard, and reads it back against
its checksums. `stream_ratio` compares with writing the same bytes to one file, which asks for more on small files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mvcore_data.packing import pack
from PIL import Image


def make_source(folder: Path, objects: int, views: int, size: int) -> int:
    """Folders of JPEGs of smooth colour fields with noise; gives their bytes in all."""
    rng = np.random.default_rng(0)
    total = 0
    for i in range(objects):
        path = folder / f"object-{i:05d}"
        path.mkdir(parents=True)
        for k in range(views):
            field = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((size, size))
            pixels = (np.asarray(field, np.int16) + rng.normal(0, 4, (size, size, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path / f"{k:03d}.jpg", quality=92)
            total += (path / f"{k:03d}.jpg").stat().st_size
    return total


def copy_and_hash(source: Path, target: Path) -> None:
    """Copies each file, hashes its bytes, and reads the copy back to hash it again."""
    digests: list[tuple[Path, bytes]] = []
    for path in sorted(source.rglob("*.jpg")):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        digests.append((copy, hashlib.sha256(data).digest()))
        copy.write_bytes(data)
    for copy, digest in digests:
        if hashlib.sha256(copy.read_bytes()).digest() != digest:
            raise RuntimeError(f"{copy}: not what was written")


def stream_and_hash(source: Path, target: Path) -> None:
    """Writes the bytes of all files to one file, hashes them, and reads that file back to hash it again."""
    target.mkdir()
    digest, again = hashlib.sha256(), hashlib.sha256()
    with (target / "all").open("wb") as file:
        for path in sorted(source.rglob("*.jpg")):
            data = path.read_bytes()
            digest.update(data)
            file.write(data)
    with (target / "all").open("rb") as file:
        while part := file.read(1 << 20):
            again.update(part)
    if again.digest() != digest.digest():
        raise RuntimeError("not what was written")


def seconds(work: Callable[[Path, Path], object], source: Path, target: Path) -> tuple[float, float]:
    """How long one side takes, by the clock and of the processor; what it made is removed."""
    begin = time.perf_counter(), time.process_time()
    work(source, target)
    taken = time.perf_counter() - begin[0], time.process_time() - begin[1]
    shutil.rmtree(target)
    return taken


def measure(size: int, objects: int, views: int, repeats: int) -> dict[str, object]:
    """Rates at one image size, and their ratio."""
    sides: dict[str, Callable[[Path, Path], object]] = {
        "pack": pack,
        "copy": copy_and_hash,
        "stream": stream_and_hash,
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        total = make_source(source, objects, views, size)
        for _ in range(repeats):
            for name, work in sides.items():
                taken[name].append(seconds(work, source, Path(folder) / name))

    def against(side: str, kind: int) -> list[float]:
        return [b[kind] / a[kind] for a, b in zip(taken["pack"], taken[side], strict=True)]

    median = {name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in taken.items()}
    return {
        "size": size,
        "files": objects * views,
        "megabytes": round(total / 1e6, 1),
        "megabytes_per_second": {name: round(total / 1e6 / times[0], 1) for name, times in median.items()},
        "processor_us_a_file": {name: round(1e6 * times[1] / (objects * views)) for name, times in median.items()},
        **_ratio("ratio", against("copy", 0)),
        **_ratio("processor_ratio", against("copy", 1)),
        **_ratio("stream_ratio", against("stream", 0)),
        **_ratio("stream_processor_ratio", against("stream", 1)),
    }


def _ratio(name: str, values: list[float]) -> dict[str, object]:
    return {
        name: round(statistics.median(values), 3),
        f"{name}_range": [round(min(values), 3), round(max(values), 3)],
    }


def main() -> None:
    """Measures small and larger images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 1024])
    parser.add_argument("--objects", type=int, default=100)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    results = [measure(size, options.objects, options.views, options.repeats) for size in options.sizes]
    print(json.dumps({"benchmark": "pack", "wanted": {"ratio": 0.5}, "results": results}, indent=2))


if __name__ == "__main__":
    main()
