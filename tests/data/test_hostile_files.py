"""Things in the place of a store or a shard that are none, or that reach for something else."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from mvcore.api import DataError
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.check import check_store
from PIL import Image
from zlib_ng import zlib_ng

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of one shard."""
    with ViewStoreWriter(tmp_path / "store") as writer:
        writer.add_object("a", np.zeros((2, 8, 8, 3), np.uint8))
    return tmp_path / "store"


class Touch:
    """Unpickling one makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for name in ("store.h5", "store.pt", "index.json"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(Touch(marker)))
        with pytest.raises(DataError, match=name):
            ViewStore(path if name != "index.json" else tmp_path)
    (tmp_path / "array.h5").write_bytes(b"")
    np.save(tmp_path / "array.h5.npy", np.array([Touch(marker)], object), allow_pickle=True)
    with pytest.raises(DataError, match="array"):
        ViewStore(tmp_path / "array.h5.npy")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Touch(marker)))
    assert marker.exists()


@pytest.mark.parametrize("name", ["shard-00000.h5", "index.json"])
@pytest.mark.parametrize("target", ["fifo", "/dev/zero", "folder", "/nothing/here"])
def test_what_is_no_regular_file_is_refused_at_once(store: Path, name: str, target: str) -> None:
    os.mkfifo(store / "fifo")
    (store / "folder").mkdir()
    (store / name).unlink()
    (store / name).symlink_to(target)
    with pytest.raises(DataError, match=name if target != "/nothing/here" else "store") as caught:
        ViewStore(store)
    assert "\n" not in str(caught.value)
    assert not check_store(store).ok


def test_a_store_may_be_reached_by_links(store: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(store)
    moved = shutil.move(store / "shard-00000.h5", tmp_path / "elsewhere.h5")
    (store / "shard-00000.h5").symlink_to(moved)
    assert ViewStore(tmp_path / "linked").image(1).shape == (8, 8, 3)


@pytest.mark.parametrize("name", ["../store/shard-00000.h5", "/etc/passwd", "shard-00000.h5/../shard-00000.h5", "\0"])
def test_a_path_that_escapes_is_never_opened(store: Path, name: str) -> None:
    index = json.loads((store / "index.json").read_text())
    index["shards"][0]["file"] = name
    (store / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"index.json: damaged: shard 0 is"):
        ViewStore(store)


def test_hdf5_files_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["imgs"] = np.zeros((2, 12, 3, 4, 4), np.uint8)
    with pytest.raises(DataError, match=r"other.h5: not a mvcore.views shard; make one with 'mvcore data pack'"):
        ViewStore(path)
    with h5py.File(path, "r+") as file:
        file.attrs.update(schema="mvcore.views", version=7)
    with pytest.raises(
        DataError, match=r"other.h5: mvcore.views version 7, but version 1 is read; upgrade mvcore-data"
    ):
        ViewStore(path)


def bomb(codec: str) -> bytes:
    """A small image whose header asks for 60,000 x 60,000 pixels."""
    if codec == "png":
        body = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        chunks = [body, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
        parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, codec, **({"lossless": True} if codec == "webp" else {}))
    data = bytearray(buffer.getvalue())
    if codec == "jpeg":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    else:
        at = data.index(b"VP8L") + 9  # 14 bits of width - 1, 14 of height - 1
        data[at : at + 4] = struct.pack("<I", (16_383) | (16_383 << 14))
    return bytes(data)


@pytest.mark.parametrize("codec", ["jpeg", "png", "webp"])
def test_an_image_that_asks_for_too_much_memory_is_not_taken(tmp_path: Path, codec: str) -> None:
    with pytest.raises(DataError, match="object 'a', view 0"), ViewStoreWriter(tmp_path / "store") as writer:
        writer.add_object("a", [bomb(codec)])
    assert not (tmp_path / "store").exists()


def test_the_fast_checksum_is_the_one_of_the_format() -> None:
    rng = np.random.default_rng(0)
    for length in (0, 1, 7, 63, 64, 65, 1000, 100_001):
        data = rng.bytes(length)
        assert zlib_ng.crc32(data) == zlib.crc32(data)
