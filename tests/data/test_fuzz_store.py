"""Damages a small store in many ways and reads it: one clear line, or exactly the pixels that were written.

    python tests/data/test_fuzz_store.py [--mutations 20000] [--seed 0]

prints JSON with the outcomes of each kind of mutation; the tests run fewer. A shard stands alone, or in a folder with
its index. The kinds:

- `file`: any of its bytes, or its length, as bad media and broken copies do it;
- `payload`: bytes of images, depth maps, masks and tracks;
- `images`: the same with checksums that fit, so that the decoders see it;
- `tables`: offsets, sizes, checksums, ids and all other tables, with a seal that fits, so that our own checks see it;
- `hdf5`: HDF5's own metadata, with a seal that fits, so that HDF5 sees it: first in a child process, as ever;
- `layout`: other schemas and versions, links, external, virtual, chunked and huge datasets, with a seal that fits;
- `records`: what the seal and the index say.

Images are compared with those that were written, by view and object. In `images` another image is what was asked for:
there it must only have the size that is recorded.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import signal
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from mvcore.api import DataError
from mvcore_data import ViewStore, ViewStoreWriter, sandbox, seal
from PIL import Image

SHARES = {"file": 3, "payload": 4, "images": 4, "tables": 8, "hdf5": 5, "layout": 2, "records": 2}
"""How often each kind is drawn."""

BLOBS = ("views", "depth", "masks", "tracks")
SECONDS = 60
MORE_MEMORY = 1 << 30
HUGE = (2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63), 0, 1, 255, 65535)
FILE = "shard-00000.h5"


def encoded(pixels: np.ndarray, codec: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, codec, **options)
    return buffer.getvalue()


class Sound:
    """The store that is damaged, and what it holds."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        camera = (np.array([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]]), np.eye(4))
        with tempfile.TemporaryDirectory() as folder:
            with ViewStoreWriter(Path(folder) / "store") as writer:
                for name, codecs in (("a", ["jpeg"]), ("bb", ["png", "jpeg", "webp"]), ("c", ["jpeg", "png"])):
                    n = len(codecs)
                    pixels = rng.integers(0, 256, (n, 12, 8, 3), dtype=np.uint8)
                    writer.add_object(
                        name,
                        [
                            encoded(p, c, **({"progressive": True} if n == 2 else {}))
                            for p, c in zip(pixels, codecs, strict=True)
                        ],
                        captions=[f"all of {name}"],
                        view_captions=[[f"{name} {v}"] for v in range(n)],
                        category=name * 2,
                        licence="MIT",
                        cameras=[camera] * n,
                        depth=[rng.uniform(1, 2, (12, 8)) for _ in range(n)],
                        masks=list(rng.random((n, 12, 8)) > 0.5),
                        tracks=[(rng.uniform(0, 8, (3, 2)), np.arange(3), np.eye(3)) for _ in range(n)],
                    )
            with ViewStore(Path(folder) / "store") as store:
                views = range(store.n_views)
                self.pixels = [store.image(v).tobytes() for v in views]
                self.stored = {
                    "depth": [(store.encoded_depth(v) or (b"",))[0] for v in views],
                    "mask": [store.encoded_mask(v) for v in views],
                    "tracks": [store.encoded_tracks(v) for v in views],
                }
                self.size = [store.size(v) for v in views]
                self.object_of = [store.object_of(v) for v in views]
            self.data = (Path(folder) / "store" / FILE).read_bytes()
            self.index = json.loads((Path(folder) / "store" / "index.json").read_text())
        self._places()

    def _places(self) -> None:
        self.payload: list[tuple[int, int]] = []
        self.tables: list[tuple[int, int]] = []
        self.crc: dict[str, int] = {}
        self.offsets: dict[str, list[int]] = {}

        def note(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.id.get_offset() is not None:
                place = (item.id.get_offset(), item.id.get_offset() + item.nbytes)
                (self.payload if name in {f"{blob}/blob" for blob in BLOBS} else self.tables).append(place)

        with h5py.File(io.BytesIO(self.data)) as file:
            contents: Any = file
            contents.visititems(note)
            for blob in BLOBS:
                self.crc[blob] = contents[f"{blob}/crc32"].id.get_offset()
                start = contents[f"{blob}/blob"].id.get_offset()
                self.offsets[blob] = (contents[f"{blob}/offset"][()] + start).tolist()
        self.payload.sort()
        taken = sorted([*self.payload, *self.tables])
        edges = [seal.USER_BLOCK, *(edge for place in taken for edge in place), len(self.data)]
        self.hdf5 = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]
        self.blobs = tuple((start, stop - start) for start, stop in self.payload)


@cache
def sound() -> Sound:
    """Made once."""
    return Sound()


# Mutations: functions of the shard's bytes, drawn by hypothesis.


@st.composite
def byte_edits(draw: st.DrawFn, regions: list[tuple[int, int]]) -> Callable[[bytearray], None]:
    """One to four changes inside some regions of the file."""

    def place() -> tuple[int, int, int]:
        start, stop = draw(st.sampled_from(regions))
        return draw(st.integers(start, stop - 1)), start, stop

    edits: list[tuple[str, int, Any]] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["flip", "write", "run", "number", "copy", "swap"]))
        at, start, stop = place()
        room = stop - at
        if kind == "flip":
            edits.append((kind, at, 1 << draw(st.integers(0, 7))))
        elif kind == "write":
            edits.append((kind, at, draw(st.binary(min_size=1, max_size=min(16, room)))))
        elif kind == "run":
            filler = draw(st.sampled_from([b"\0", b"\xff"]))
            edits.append(("write", at, filler * min(room, draw(st.integers(2, 600)))))
        elif kind == "number":  # where a table has one
            width = draw(st.sampled_from([width for width in (1, 2, 4, 8) if width <= room]))
            number = draw(st.sampled_from(HUGE)) % 256**width
            edits.append(("write", at - (at - start) % width, number.to_bytes(width, "little")))
        else:
            other, _, other_stop = place()
            edits.append((kind, at, (other, min(16, room, other_stop - other))))

    def change(data: bytearray) -> None:
        for kind, at, value in edits:
            if kind == "flip":
                data[at] ^= value
            elif kind == "write":
                data[at : at + len(value)] = value
            else:
                other, length = value
                here, there = data[at : at + length], data[other : other + length]
                data[at : at + length] = there
                if kind == "swap":
                    data[other : other + length] = here

    return change


@st.composite
def file_edits(draw: st.DrawFn) -> Callable[[bytearray], None]:
    """Bytes anywhere, or another length."""
    size = len(sound().data)
    if draw(st.booleans()):
        return draw(byte_edits([(0, size)]))
    length = draw(st.integers(0, size + 100))
    return lambda data: data.__setitem__(slice(None), data[:length].ljust(length, b"\0"))


def swap_datasets(a: str, b: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file.move(a, "aside")
        file.move(b, a)
        file.move("aside", b)

    return change


def remade(name: str, **options: Any) -> Callable[[Any], None]:
    """The same values in a dataset of another kind."""

    def change(file: Any) -> None:
        value = options.pop("data", file[name][()])
        del file[name]
        file.create_dataset(name, data=value, **options)

    return change


def linked(name: str, target: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        file[name] = target

    return change


def virtual(name: str, other: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        layout = h5py.VirtualLayout(file[name].shape, file[name].dtype)
        layout[:] = h5py.VirtualSource(other, name, file[name].shape)
        del file[name]
        file.create_virtual_dataset(name, layout)

    return change


def claimed(name: str, shape: tuple[int, ...], dtype: Any, **options: Any) -> Callable[[Any], None]:
    """A dataset that says to be huge and stores nothing."""

    def change(file: Any) -> None:
        del file[name]
        file.create_dataset(name, shape, dtype, **options)

    return change


DATASETS = (
    *(f"{blob}/{part}" for blob in BLOBS for part in ("blob", "offset", "crc32")),
    *("views/codec", "views/size", "views/object", "objects/id", "objects/view_offset", "objects/category"),
    *("cameras/K", "cameras/valid", "captions/blob", "captions/offset", "captions/target", "depth/scale"),
)
GROUPS = ("views", "objects", "meta", "captions", "cameras", "depth", "masks", "tracks")


@st.composite
def layout_edits(draw: st.DrawFn) -> Callable[[Any], None]:
    """One change to the structure of the HDF5 file."""
    name = draw(st.sampled_from(DATASETS))
    where = draw(st.sampled_from([name, name, name, draw(st.sampled_from(GROUPS))]))
    attribute = draw(st.sampled_from(["schema", "version", "complete", "n_objects", "n_views"]))
    value = draw(st.sampled_from([*HUGE[:8], "mvcore.views", "other", "", 1.5, True, False, [1, 2], np.zeros(9)]))
    other = draw(st.sampled_from(["/etc/passwd", "/dev/zero", "../outside.h5", FILE, ".", "/proc/self/mem", "fifo"]))
    shape = draw(st.sampled_from([(2**62,), (2**31, 3, 3), (2**40, 2), (7,), (0,), (6, 4, 4)]))
    dtype = draw(st.sampled_from(["u1", "i8", "u4", "f4", "S9", h5py.string_dtype(), h5py.string_dtype("utf-8", 9)]))
    return draw(
        st.sampled_from(
            [
                lambda file: file.attrs.__setitem__(attribute, value),
                lambda file: file.attrs.__delitem__(attribute),
                lambda file: file.__delitem__(where),
                linked(where, h5py.SoftLink(f"/{draw(st.sampled_from(DATASETS))}")),
                linked(where, h5py.SoftLink(f"/{where}")),
                linked(where, h5py.ExternalLink(other, f"/{where}")),
                remade(name, chunks=True),
                remade(name, chunks=True, compression="gzip"),
                remade(name, data=np.zeros(3)),
                remade(name, data="text"),
                claimed(name, shape, dtype, chunks=True),
                claimed(name, (5,), "u1", external=[(other, 0, 5)]),
                virtual(name, other),
                swap_datasets(name, draw(st.sampled_from(DATASETS))),
            ]
        )
    )


def nested_values() -> st.SearchStrategy[Any]:
    plain = st.sampled_from([*HUGE, None, True, 1.5, "", "x", "0" * 64, FILE, "../x.h5", "/etc/passwd", 1e308])
    return st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("file"), inner))


@st.composite
def record_edits(draw: st.DrawFn) -> Callable[[dict[str, Any]], None]:
    """Other values in the seal of a shard, which is also its record in the index."""
    changes = draw(st.lists(st.tuples(st.sampled_from(["bytes", "blobs", "sha256"]), nested_values()), max_size=2))
    deeper = draw(st.none() | st.tuples(st.integers(0, 2), st.integers(0, 1), st.sampled_from(HUGE)))

    def change(record: dict[str, Any]) -> None:
        if deeper is not None:
            record["blobs"][deeper[0]][deeper[1]] += deeper[2]
        record.update(changes)

    return change


# Reading what became of it.


def sealed(path: Path, blobs: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Puts a seal that fits into a file, without waiting for the disk."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        made = seal.Seal(size, blobs, seal.compute(file.fileno(), size, blobs)).as_json()
        file.write((b"mvcore.views seal 1\n" + json.dumps(made).encode()).ljust(seal.USER_BLOCK, b"\0"))
    return made


@contextmanager
def time_limit() -> Iterator[None]:
    """A hang is a failure, not a wait."""

    def late(*_: object) -> None:
        raise AssertionError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def outcome(path: Path, *, other_images: bool) -> str:
    """Reads everything and says how it went; a crash, a hang or a wrong pixel is a failure.

    `refused` whole, `views refused` in part, `read` with the right pixels; `child killed` and `child too slow` are
    refusals too, because opening the shard killed or held up the child that tried it first.
    """
    expected, refused = sound(), 0
    try:
        store = ViewStore(path)
    except DataError as error:
        check_line(error, path.name)
        line = str(error)
        return "child killed" if "kills the library" in line else "child too slow" if "took more" in line else "refused"
    with store:
        assert store.n_views == len(expected.pixels)
        for v in range(store.n_views):
            assert store.object_of(v) == expected.object_of[v]
            assert v in store.views_of(store.object_of(v))
            readers = {"image": store.image, "depth": store.depth, "mask": store.mask, "tracks": store.tracks}
            for what, read in readers.items():
                try:
                    found = read(v)
                except DataError as error:
                    check_line(error, path.name, "view ", " of object ")
                    refused += 1
                    continue
                if what == "image":
                    assert isinstance(found, np.ndarray)
                    assert found.shape[:2] == expected.size[v]
                    assert other_images or found.tobytes() == expected.pixels[v]
                elif found is not None and not other_images:
                    assert stored_bytes(store, what, v) == expected.stored[what][v]
            store.camera(v)
            store.view_captions(v)
        for i in range(len(store)):
            for name in (store.captions, store.category, store.licence, store.source, store.creator):
                name(i)
    return "views refused" if refused else "read"


def stored_bytes(store: ViewStore, what: str, v: int) -> bytes | None:
    if what == "depth":
        return (store.encoded_depth(v) or (b"",))[0]
    return store.encoded_mask(v) if what == "mask" else store.encoded_tracks(v)


def check_line(error: DataError, *words: str) -> None:
    assert "\n" not in str(error)
    assert all(word in str(error) for word in words), str(error)


def mutate(kind: str, change: Callable[[Any], None], path: Path) -> bool:
    """Writes the damaged store, a lone shard or a folder of one shard and its index; False where HDF5 cannot."""
    good = sound()
    data, record = bytearray(good.data), good.index["shards"][0]
    if kind not in {"layout", "records"}:
        change(data)
    if kind == "images":
        for blob in BLOBS:
            for v, (start, stop) in enumerate(zip(good.offsets[blob], good.offsets[blob][1:], strict=False)):
                at = good.crc[blob] + 4 * v
                data[at : at + 4] = zlib.crc32(data[start:stop]).to_bytes(4, "little")
    file = path / FILE if path.suffix == "" else path
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    blobs = good.blobs
    if kind == "layout":
        try:
            with h5py.File(file, "r+") as opened:
                change(opened)
        except (OSError, TypeError, ValueError, KeyError, RuntimeError):
            return False
        blobs = blobs_of(file)
    record = {key: record[key] for key in ("bytes", "blobs", "sha256")}
    if kind in {"images", "tables", "hdf5", "layout"}:
        record = sealed(file, blobs)
    elif kind == "records":
        record = json.loads(json.dumps(record))
        change(record)
        with file.open("r+b") as raw:
            raw.write((b"mvcore.views seal 1\n" + json.dumps(record).encode()).ljust(seal.USER_BLOCK, b"\0"))
    if file != path:
        index = good.index | {"shards": [good.index["shards"][0] | record]}
        (path / "index.json").write_text(json.dumps(index))
    return True


def blobs_of(path: Path) -> tuple[tuple[int, int], ...]:
    """Where the blobs are after a change of the layout, as far as there are any."""
    places: list[tuple[int, int]] = []
    with h5py.File(path) as file:
        for name in BLOBS:
            group = plain_child(file, name)
            blob = plain_child(group, "blob") if isinstance(group, h5py.Group) else None
            if isinstance(blob, h5py.Dataset) and blob.id.get_offset() is not None and blob.ndim == 1:
                places.append((blob.id.get_offset(), blob.nbytes))
    return tuple(sorted(places))


def plain_child(group: Any, name: str) -> Any:
    """What a group holds under a name, unless it is a link: to look at that would open another file."""
    links = group.id.links
    hard = links.exists(name.encode()) and links.get_info(name.encode()).type == 0
    return group[name] if hard else None


def edits_of(kind: str) -> st.SearchStrategy[Callable[[Any], None]]:
    """Mutations of a kind."""
    good = sound()
    regions = {"payload": good.payload, "images": good.payload, "tables": good.tables, "hdf5": good.hdf5}
    if kind in regions:
        return byte_edits(regions[kind])
    return {"file": file_edits, "layout": layout_edits, "records": record_edits}[kind]()


def mutations() -> st.SearchStrategy[tuple[str, Callable[[Any], None], bool]]:
    """A kind, a change, and whether the shard stands alone."""
    kinds = st.sampled_from([kind for kind, share in SHARES.items() for _ in range(share)])
    return kinds.flatmap(lambda kind: st.tuples(st.just(kind), edits_of(kind), st.booleans()))


def fuzz(folder: Path, count: int, number: int) -> dict[str, Counter[str]]:
    """Reads so many damaged stores; the outcomes by kind."""
    found: dict[str, Counter[str]] = {kind: Counter() for kind in SHARES}
    (folder / "store").mkdir()
    for pipe in (folder / "fifo", folder / "store" / "fifo"):
        os.mkfifo(pipe)  # who opens it waits for ever

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
    )
    @given(mutations())
    def one(mutation: tuple[str, Callable[[Any], None], bool]) -> None:
        kind, change, alone = mutation
        path = folder / ("store.h5" if alone else "store")
        # Payload and tables are read in this very process: nothing there is for HDF5 to interpret.
        sandbox.inside = kind in {"payload", "images", "tables"}
        try:
            with time_limit():
                if not mutate(kind, change, path):
                    return
                found[kind][outcome(path, other_images=kind == "images")] += 1
        finally:
            sandbox.inside = False

    one()
    return found


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.process
def test_damage_gives_one_clear_line_or_the_right_pixels(tmp_path: Path) -> None:
    sound()
    before = peak_memory()
    found = fuzz(tmp_path, 300, 1)
    assert peak_memory() - before < MORE_MEMORY
    assert sum(counts.total() for counts in found.values()) > 200
    for kind in ("payload", "images", "tables"):  # what is damaged in part is refused in part
        assert found[kind]["views refused"] > 0
    whole = ("file", "tables", "layout", "records", "hdf5")
    assert all(found[kind].total() > 0 for kind in whole)
    assert sum(found[kind]["refused"] for kind in whole) > 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sound()
    before = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        found = fuzz(Path(folder), options.mutations, options.seed)
    total = sum(counts.total() for counts in found.values())
    grown = (peak_memory() - before) / 2**20
    print(json.dumps({"mutations": total, "outcomes": found, "peak_memory_growth_mib": round(grown)}, indent=1))


if __name__ == "__main__":
    main()
