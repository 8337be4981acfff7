"""A damaged or hostile store gives one clear line: never a crash, never other pixels."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mvcore.api import DataError
from mvcore_data import ViewStore, ViewStoreWriter, seal
from mvcore_data.check import check_store
from PIL import Image


def make(path: Path) -> Path:
    """A store of two objects with three views, every optional part present."""
    rng = np.random.default_rng(0)
    camera = (np.array([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]]), np.eye(4))
    with ViewStoreWriter(path, codec="png") as writer:
        for name, n in (("a", 1), ("b", 2)):
            writer.add_object(
                name,
                rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8),
                captions=["whole"],
                view_captions=[["one"]] * n,
                category="cup",
                licence="MIT",
                cameras=[camera] * n,
                depth=[np.ones((8, 8))] * n,
                masks=[np.ones((8, 8), bool)] * n,
                tracks=[(rng.uniform(0, 8, (3, 2)), np.arange(3), np.eye(3))] * n,
            )
    return path


def contents(path: Path) -> list[Any]:
    """Everything that a store gives."""
    with ViewStore(path) as store:
        found: list[Any] = [store.object_ids, store.splits()]
        for i in range(len(store)):
            found += [store.captions(i), store.category(i), store.licence(i), store.source(i), store.views_of(i)]
        for v in range(store.n_views):
            arrays = [store.image(v), *(store.camera(v) or ()), store.depth(v), store.mask(v), *(store.tracks(v) or ())]
            found += [None if a is None else a.tobytes() for a in arrays]
            found += [store.encoded(v), store.view_captions(v), store.size(v)]
        return found


def assert_refused_or_whole(path: Path, expected: list[Any]) -> bool:
    """Reading gives one clear line, or all that was written; True where it was refused."""
    try:
        found = contents(path)
    except DataError as error:
        line = str(error)
    else:
        assert found == expected
        return False
    assert "\n" not in line
    assert path.name in line
    return True


def edit(path: Path, change: Callable[[h5py.File], object]) -> None:
    """Changes a shard as a hostile writer would: with a seal that fits."""
    with h5py.File(path, "r+") as file:
        change(file)
    places: list[tuple[int, int]] = []
    with h5py.File(path) as file:
        for name in ("views/blob", "depth/blob", "masks/blob", "tracks/blob"):
            here = isinstance(file.get(name, getlink=True), h5py.HardLink)
            blob = file[name] if here else None
            if isinstance(blob, h5py.Dataset) and blob.id.get_offset() is not None and blob.shape[0]:
                places.append((blob.id.get_offset(), blob.shape[0]))
    seal.write(path, tuple(places))


def replace(name: str, value: Any, **options: Any) -> Callable[[h5py.File], None]:
    """An edit that puts another dataset in the place of one."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=value, **options)

    return change


def put(name: str, index: Any, value: Any) -> Callable[[h5py.File], None]:
    """An edit that changes entries of a dataset."""

    def change(file: Any) -> None:
        file[name][index] = value

    return change


def link(name: str, target: Any) -> Callable[[h5py.File], None]:
    """An edit that puts a link in the place of a dataset."""

    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = target

    return change


def external(file: h5py.File) -> None:
    length = file["views/blob"].size  # pyright: ignore[reportAttributeAccessIssue]
    del file["views/blob"]
    file.create_dataset("views/blob", (length,), "u1", external=[("other.bin", 0, length)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "u1")
    layout[:] = h5py.VirtualSource(".", "views/codec", (3,))
    del file["views/codec"]
    file.create_virtual_dataset("views/codec", layout)


HUGE = 1 << 40

EDITS: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "schema": (lambda f: f.attrs.__setitem__("schema", "other"), "not a mvcore.views shard"),
    "version": (lambda f: f.attrs.__setitem__("version", 2), "version 2"),
    "version type": (lambda f: f.attrs.__setitem__("version", "1"), "'version'"),
    "unfinished": (lambda f: f.attrs.__setitem__("complete", False), "never finished"),
    "no count": (lambda f: f.attrs.__delitem__("n_views"), "'n_views'"),
    "no objects": (lambda f: f.attrs.__setitem__("n_objects", 0), "empty"),
    "negative count": (lambda f: f.attrs.__setitem__("n_views", -1), "counts"),
    "huge count": (lambda f: f.attrs.__setitem__("n_views", HUGE), "counts"),
    "wrong count": (lambda f: f.attrs.__setitem__("n_views", 4), "shape"),
    "missing": (lambda f: f.__delitem__("views/crc32"), "/views/crc32 is missing"),
    "missing group": (lambda f: f.__delitem__("objects"), "is missing"),
    "group for dataset": (link("views/blob", h5py.SoftLink("/objects")), "link"),
    "soft link": (link("views/codec", h5py.SoftLink("/views/object")), "link"),
    "external link": (link("views/blob", h5py.ExternalLink("other.h5", "/x")), "link"),
    "external blob": (external, "external"),
    "virtual": (virtual, "virtual"),
    "chunked blob": (replace("views/blob", np.zeros(99, "u1"), chunks=(9,)), "chunked"),
    "empty blob": (replace("views/blob", np.zeros(0, "u1")), "contiguous|rise"),
    "compressed": (replace("views/offset", np.zeros(4, "i8"), compression="gzip"), "chunked"),
    "not stored": (lambda f: (f.__delitem__("views/codec"), f.create_dataset("views/codec", (3,), "u1")), "in full"),
    "other type": (replace("views/offset", np.zeros(4, "f8")), "float64"),
    "other byte order": (replace("views/crc32", np.zeros(3, ">u4")), "uint32|>u4"),
    "beyond the blob": (put("views/offset", -1, HUGE), "/views/offset"),
    "negative offset": (put("views/offset", 1, -5), "/views/offset"),
    "falling offset": (put("views/offset", slice(1, 3), [300, 200]), "/views/offset"),
    "no bytes": (lambda f: f["views/offset"].__setitem__(1, 0), "no bytes"),  # pyright: ignore[reportAttributeAccessIssue]
    "shifted offset": (lambda f: put("views/offset", 1, f["views/offset"][1] + 1)(f), "are damaged"),  # pyright: ignore
    "depth offset": (put("depth/offset", 1, HUGE), "/depth/offset"),
    "depth scale": (put("depth/scale", 0, np.nan), "/depth/scale"),
    "infinite depth": (put("depth/scale", 0, 1e36), "/depth/scale"),
    "unknown codec": (put("views/codec", 0, 9), "codec"),
    "wrong codec": (put("views/codec", 0, 0), "view 0 of object 'a'"),
    "wrong size": (put("views/size", 0, (8, 9)), "8x8"),
    "no pixels": (put("views/size", 0, (0, 8)), "/views/size"),
    "too many pixels": (put("views/size", 0, (16384, 16384)), "/views/size"),
    "view of another": (put("views/object", 0, 1), "/views/object"),
    "object without views": (put("objects/view_offset", 1, 0), "no views"),
    "object beyond": (put("objects/view_offset", -1, 9), "view_offset"),
    "overflowing object": (put("objects/view_offset", 1, -(1 << 62)), "no views|view_offset"),
    "category beyond": (put("objects/category", 0, 1), "/objects/category"),
    "category below": (put("objects/category", 0, -2), "/objects/category"),
    "repeated id": (put("objects/id", 0, b"b"), "repeated"),
    "empty id": (put("objects/id", 0, b""), "empty"),
    "id not UTF-8": (put("objects/id", 0, b"\xff"), "UTF-8"),
    "ids on the heap": (replace("objects/id", ["a", "b"], dtype=h5py.string_dtype()), "fixed length"),
    "caption offset": (put("captions/offset", 1, 99), "/captions/offset"),
    "caption of no view": (put("captions/target", 0, 3), "no object or view"),
    "caption of no object": (put("captions/target", 0, -3), "no object or view"),
    "caption not UTF-8": (put("captions/blob", 0, 255), "UTF-8"),
    "camera": (put("cameras/K", (0, 0, 0), np.inf), "camera"),
    "camera shape": (replace("cameras/w2c", np.zeros((3, 3, 4), "f4")), "/cameras/w2c"),
    "blob bytes": (put("views/blob", 60, 7), "bytes of view are damaged"),
    "mask bytes": (put("masks/blob", 60, 7), "mask of view"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_forged_shard_gets_one_clear_line(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "store.h5")
    change, words = EDITS[name]
    edit(path, change)
    with pytest.raises(DataError, match=words) as caught:
        contents(path)
    assert "\n" not in str(caught.value)
    assert "store.h5" in str(caught.value)
    report = check_store(path)
    assert not report.ok
    assert str(caught.value) in report.problems


def forge_view(path: Path, data: bytes) -> None:
    """Puts other bytes of at most the same length in the place of view 0, with a CRC that fits."""

    def change(file: Any) -> None:
        end = int(file["views/offset"][1])
        padded = data.ljust(end, b"\0")
        assert len(padded) == end
        file["views/blob"][:end] = np.frombuffer(padded, "u1")
        file["views/crc32"][0] = zlib.crc32(padded)

    edit(path, change)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\0\0IDAT"


@pytest.mark.parametrize("size", [(60_000, 60_000), (16_384, 16_384), (8, 9), (8, 8), (0, 8)])
def test_an_image_that_lies_about_itself(tmp_path: Path, size: tuple[int, int]) -> None:
    path = make(tmp_path / "store.h5")
    forge_view(path, png_header(*size))
    with pytest.raises(DataError, match="view 0 of object 'a'"):
        ViewStore(path).image(0)


def test_a_whole_image_of_another_size_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "store.h5")
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8)).save(buffer, "PNG")
    forge_view(path, buffer.getvalue())
    with pytest.raises(DataError, match="9x8, not the png of 8x8"):
        ViewStore(path).image(0)


@pytest.mark.parametrize("name", ["store", "store.h5"])
def test_flipped_bits(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name)
    expected = contents(path)
    file = path / "shard-00000.h5" if path.is_dir() else path
    sound = file.read_bytes()
    # A lone file's magic is left: without it, it is a file of another program, which the next tests read.
    positions = range(0 if path.is_dir() else 20, len(sound), 61)
    refused = 0
    for position in positions:
        damaged = bytearray(sound)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        refused += assert_refused_or_whole(path, expected)
    used = len([p for p in positions if p >= seal.USER_BLOCK])
    assert refused >= used


@pytest.mark.parametrize("name", ["store", "store.h5"])
def test_truncated_and_lengthened_files(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name)
    file = path / "shard-00000.h5" if path.is_dir() else path
    sound = file.read_bytes()
    for length in (*range(200, len(sound), 499), len(sound) - 1):
        file.write_bytes(sound[:length])
        with pytest.raises(DataError, match=r"truncated|damaged"):
            ViewStore(path)
    file.write_bytes(sound + b"\0")
    with pytest.raises(DataError, match="longer"):
        ViewStore(path)


def test_a_file_truncated_while_it_is_read(tmp_path: Path) -> None:
    path = make(tmp_path / "store.h5")
    store = ViewStore(path)
    with path.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(DataError, match="damaged"):
        store.image(2)


def test_a_file_replaced_while_it_is_closed(tmp_path: Path) -> None:
    path = make(tmp_path / "store.h5")
    with ViewStore(path) as store:
        pass
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match="changed since"):
        store.image(0)


@pytest.mark.process
def test_a_file_without_a_seal_is_tried_by_a_child(tmp_path: Path) -> None:
    path = make(tmp_path / "store.h5")
    expected = contents(path)
    unsealed = bytes(seal.USER_BLOCK) + path.read_bytes()[seal.USER_BLOCK :]
    path.write_bytes(unsealed)
    assert contents(path) == expected
    rng = np.random.default_rng(1)
    for _ in range(6):
        damaged = bytearray(unsealed)
        for position in rng.integers(seal.USER_BLOCK, 2500, 4):
            damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        assert_refused_or_whole(path, expected)


@pytest.mark.process
def test_check_of_unknown_origin_ends_whatever_the_child_does(tmp_path: Path) -> None:
    path = make(tmp_path / "store.h5")
    assert check_store(path, untrusted=True).ok
    late = check_store(path, untrusted=True, seconds=0.001)
    assert "took more than" in late.problems[0]
    greedy = check_store(path, untrusted=True, memory=1 << 26)
    assert not greedy.ok
    edit(path, put("views/blob", 60, 7))
    report = check_store(path, untrusted=True)
    assert (report.objects, report.views) == (2, 3)
    assert [("view 0 of object 'a'" in line) for line in report.problems] == [True]


INDEX_EDITS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "not an object": (lambda index: [index], "not the index"),
    "schema": (lambda index: index | {"schema": "x"}, "not the index"),
    "version": (lambda index: index | {"version": 2}, "version 2"),
    "empty": (lambda index: index | {"shards": []}, "empty"),
    "no shards": (lambda index: index | {"shards": None}, "shards"),
    "parent path": (lambda index: index["shards"][0].update(file="../store/shard-00000.h5") or index, "shard 0 is"),
    "absolute path": (lambda index: index["shards"][0].update(file="/etc/passwd") or index, "shard 0 is"),
    "no counts": (lambda index: index["shards"][0].pop("views") and index, "counts"),
    "other counts": (lambda index: index["shards"][0].update(views=9) or index, "not as the index says"),
    "size": (lambda index: index["shards"][0].update(bytes=10**9) or index, "truncated"),
    "digest": (lambda index: index["shards"][0].update(sha256="0" * 64) or index, "damaged"),
    "no digest": (lambda index: index["shards"][0].pop("sha256") and index, "digest"),
    "blobs": (lambda index: index["shards"][0].update(blobs=[[0, 1 << 60]]) or index, "do not fit"),
    "blob shape": (lambda index: index["shards"][0].update(blobs=[[1]]) or index, "digest"),
    "missing shard": (
        lambda index: index["shards"].append({**index["shards"][0], "file": "shard-00001.h5"}) or index,
        "shard-00001",
    ),
    "splits": (lambda index: index | {"splits": {"train": "a"}}, "splits"),
    "split of a stranger": (lambda index: index | {"splits": {"train": ["who"]}}, "'who'"),
}


@pytest.mark.parametrize("name", INDEX_EDITS)
def test_a_forged_index_gets_one_clear_line(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "store")
    change, words = INDEX_EDITS[name]
    index = change(json.loads((path / "index.json").read_text()))
    (path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=words) as caught:
        ViewStore(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", "null"])
def test_an_index_that_is_not_json(tmp_path: Path, text: str) -> None:
    path = make(tmp_path / "store")
    (path / "index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"index\.json"):
        ViewStore(path)


def test_things_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        ViewStore(tmp_path / "nothing")
    with pytest.raises(DataError, match="not a store"):
        ViewStore(tmp_path)
    (tmp_path / "empty.h5").touch()
    with pytest.raises(DataError, match=r"empty\.h5"):
        ViewStore(tmp_path / "empty.h5")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff" * 1000)
    with pytest.raises(DataError, match=r"photo\.jpg"):
        ViewStore(tmp_path / "photo.jpg")


def test_other_groups_are_ignored(tmp_path: Path) -> None:
    path = make(tmp_path / "store.h5")
    expected = contents(path)
    edit(path, lambda file: file.create_dataset("embeddings/clip/image", data=np.ones((3, 4), "f2"), chunks=(1, 4)))
    assert contents(path) == expected
