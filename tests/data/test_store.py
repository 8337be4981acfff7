"""The store gives back what was written, appears whole or not at all, and may be read from anywhere."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mvcore.api import DataError
from mvcore_data import ViewStore, ViewStoreWriter
from PIL import Image

K = np.array([[40.0, 0.0, 8.0], [0.0, 40.0, 6.0], [0.0, 0.0, 1.0]])
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
CAPTIONS = st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(str.strip), max_size=3)


def picture(seed: int, size: tuple[int, int] = (12, 16), codec: str = "JPEG") -> bytes:
    """An encoded image whose pixels depend on the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, codec, **({"lossless": True} if codec == "WEBP" else {}))
    return buffer.getvalue()


def pose(seed: int) -> np.ndarray:
    """A rigid world-to-camera matrix."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = q * np.sign(np.linalg.det(q))
    matrix[:3, 3] = seed
    return matrix


def small_store(path: Path, objects: int = 3, **options: Any) -> Path:
    """A store of objects with 1, 2, 3, ... views."""
    with ViewStoreWriter(path, **options) as writer:
        for i in range(objects):
            writer.add_object(f"object-{i}", [picture(100 * i + k) for k in range(i + 1)], captions=[f"caption {i}"])
    return path


@st.composite
def an_object(draw: st.DrawFn, seed: int) -> dict[str, Any]:
    """The arguments of one `add_object`: ragged, with or without each of the optional parts."""
    n = draw(st.integers(1, 4))
    rng = np.random.default_rng(seed)

    def some(make: Callable[[], Any]) -> Any:
        present = draw(st.none() | st.lists(st.booleans(), min_size=n, max_size=n))
        return present and [make() if there else None for there in present]

    return {
        "views": [picture(seed + k, codec=draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))) for k in range(n)],
        "captions": draw(CAPTIONS),
        "view_captions": draw(st.none() | st.lists(st.none() | CAPTIONS, min_size=n, max_size=n)),
        "category": draw(st.none() | NAMES),
        "licence": draw(st.none() | NAMES),
        "source": draw(st.none() | NAMES),
        "cameras": some(lambda: (K, pose(int(rng.integers(1000))))),
        "depth": some(lambda: rng.random((12, 16)) * (rng.random((12, 16)) > 0.3) * 10.0 ** rng.integers(-3, 4)),
        "masks": some(lambda: rng.random((12, 16)) > 0.5),
    }


@st.composite
def some_objects(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    return {name: draw(an_object(seed=10 * i)) for i, name in enumerate(names)}


def assert_holds(store: ViewStore, objects: dict[str, dict[str, Any]]) -> None:
    """The store holds exactly these objects."""
    assert store.object_ids == list(objects)
    assert len(store) == len(objects)
    assert store.n_views == sum(len(wanted["views"]) for wanted in objects.values())
    for i, wanted in enumerate(objects.values()):
        views = store.views_of(i)
        assert len(views) == len(wanted["views"])
        assert store.captions(i) == wanted["captions"]
        assert (store.category(i), store.licence(i), store.source(i)) == (
            wanted["category"],
            wanted["licence"],
            wanted["source"],
        )
        for k, v in enumerate(views):
            assert store.object_of(v) == i
            assert store.size(v) == (12, 16)
            assert store.encoded(v) == wanted["views"][k]
            np.testing.assert_array_equal(
                store.image(v), np.asarray(Image.open(io.BytesIO(wanted["views"][k])).convert("RGB"))
            )
            assert store.view_captions(v) == ((wanted["view_captions"] or {k: None})[k] or [])
            assert_extras(store, v, *((wanted[name] or {k: None})[k] for name in ("cameras", "depth", "masks")))


def assert_extras(store: ViewStore, v: int, camera: Any, depth: Any, mask: Any) -> None:
    """Camera, depth and mask of one view."""
    found = store.camera(v)
    assert (found is None) == (camera is None)
    if found is not None:
        np.testing.assert_array_equal(found[0], camera[0].astype(np.float32))
        np.testing.assert_array_equal(found[1], camera[1].astype(np.float32))
    found = store.depth(v)
    assert (found is None) == (depth is None) == (not store.has_depth(v))
    if found is not None:
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found == 0, depth == 0)
        np.testing.assert_allclose(found[depth > 0], depth[depth > 0], atol=depth.max() / 65535)
    found = store.mask(v)
    assert (found is None) == (mask is None) == (not store.has_mask(v))
    if found is not None:
        np.testing.assert_array_equal(found, mask)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(objects=some_objects(), shard_bytes=st.sampled_from([1, 3000, 1 << 30]), single=st.booleans())
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, objects: dict[str, dict[str, Any]], shard_bytes: int, single: bool
) -> None:
    path = tmp_path_factory.mktemp("store") / ("store.h5" if single else "store")
    with ViewStoreWriter(path, shard_bytes=shard_bytes) as writer:
        for name, given in objects.items():
            writer.add_object(name, **given)
    with ViewStore(path) as store:
        assert_holds(store, objects)
        assert_holds(pickle.loads(pickle.dumps(store)), objects)


def test_pixel_arrays_are_encoded(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
    for codec, quality, tolerance in (("png", 95, 0), ("webp", 100, 0), ("jpeg", 100, 8)):
        with ViewStoreWriter(tmp_path / codec, codec=codec, quality=quality) as writer:
            writer.add_object("a", pixels)
        store = ViewStore(tmp_path / codec)
        assert store.codec(0) == codec
        for v in range(2):
            assert np.abs(store.image(v).astype(int) - pixels[v]).max() <= tolerance


def test_equal_input_gives_equal_files(tmp_path: Path) -> None:
    one, two = small_store(tmp_path / "one"), small_store(tmp_path / "two")
    assert (one / "shard-00000.h5").read_bytes() == (two / "shard-00000.h5").read_bytes()
    assert (one / "index.json").read_bytes() == (two / "index.json").read_bytes()


def test_append_adds_a_shard_and_keeps_the_rest(tmp_path: Path) -> None:
    path = small_store(tmp_path / "store")
    before = (path / "shard-00000.h5").read_bytes()
    early = ViewStore(path)
    with ViewStoreWriter(path, append=True) as writer:
        assert writer.object_ids == {"object-0", "object-1", "object-2"}
        with pytest.raises(DataError, match="object-1"):
            writer.add_object("object-1", [picture(0)])
        writer.add_object("later", [picture(7)])
    store = ViewStore(path)
    assert store.object_ids == ["object-0", "object-1", "object-2", "later"]
    assert store.encoded(6) == picture(7)
    assert (path / "shard-00000.h5").read_bytes() == before
    assert len(early) == 3
    assert early.encoded(5) == picture(202)
    assert sorted(p.name for p in path.iterdir()) == ["index.json", "shard-00000.h5", "shard-00001.h5"]


def test_an_existing_store_is_not_overwritten(tmp_path: Path) -> None:
    path, single = small_store(tmp_path / "store"), small_store(tmp_path / "one.h5")
    with pytest.raises(DataError, match="holds a store already"):
        ViewStoreWriter(path)
    with pytest.raises(DataError, match="exists already"):
        ViewStoreWriter(single)
    assert len(ViewStore(path)) == len(ViewStore(single)) == 3


@pytest.mark.parametrize("name", ["store", "store.h5"])
def test_an_exception_publishes_nothing(tmp_path: Path, name: str) -> None:
    def write() -> None:
        with ViewStoreWriter(tmp_path / name, shard_bytes=1) as writer:
            for i in "aba":
                writer.add_object(i, [picture(0)], masks=[np.ones((12, 16))])

    with pytest.raises(DataError, match="'a' is there already"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_an_exception_while_appending_leaves_the_store(tmp_path: Path) -> None:
    path = small_store(tmp_path / "store")
    before = {p.name: p.read_bytes() for p in path.iterdir()}

    def append() -> None:
        with ViewStoreWriter(path, append=True, shard_bytes=1) as writer:
            for i in "aa":
                writer.add_object(i, [picture(0)])

    with pytest.raises(DataError, match="already"):
        append()
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_no_object_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no object was added"), ViewStoreWriter(tmp_path / "store"):
        pass
    assert not (tmp_path / "store").exists()


def test_a_refused_object_leaves_the_writer_usable(tmp_path: Path) -> None:
    with ViewStoreWriter(tmp_path / "store") as writer:
        writer.add_object("a", [picture(0)])
        with pytest.raises(DataError, match="view 1"):
            writer.add_object("b", [picture(1), b"no image"], captions=["lost"])
        writer.add_object("b", [picture(2)])
    store = ViewStore(tmp_path / "store")
    assert store.object_ids == ["a", "b"]
    assert store.encoded(1) == picture(2)
    assert store.captions(1) == []


def test_two_writers_at_once(tmp_path: Path) -> None:
    path = small_store(tmp_path / "store")
    with ViewStoreWriter(path, append=True) as writer:
        with pytest.raises(DataError, match="another process"):
            ViewStoreWriter(path, append=True)
        writer.add_object("x", [picture(1)])
    assert len(ViewStore(path)) == 4


def _read_all(path_or_store: Any) -> list[bytes]:
    store = path_or_store if isinstance(path_or_store, ViewStore) else ViewStore(path_or_store)
    return [store.encoded(v) for v in range(store.n_views)]


@pytest.mark.process
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_parent_opened(tmp_path: Path, method: str) -> None:
    store = ViewStore(small_store(tmp_path / "store", objects=6))
    expected = _read_all(store)
    with multiprocessing.get_context(method).Pool(2) as pool:
        # The library's own function: a spawned worker cannot import a test module.
        read = pool.starmap(ViewStore.encoded, [(store, view) for view in range(store.n_views)])
    assert read == expected
    assert _read_all(store) == expected


@pytest.mark.process
def test_forked_children_and_threads_share_an_open_store(tmp_path: Path) -> None:
    store = ViewStore(small_store(tmp_path / "store", objects=8))
    expected = _read_all(store)
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            right = all(_read_all(store) == expected for _ in range(20))
            os._exit(0 if right else 1)
        children.append(pid)
    wrong: list[int] = []

    def read() -> None:
        wrong.extend(1 for _ in range(20) if _read_all(store) != expected)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
    assert not wrong


KILLED = """
import os, signal, sys
import numpy as np
from mvcore_data import ViewStoreWriter
writer = ViewStoreWriter(sys.argv[1], append=True, shard_bytes=1)
for i in range(3):
    writer.add_object(f"lost-{i}", [np.full((8, 8, 3), i, np.uint8)], masks=[np.ones((8, 8))])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.process
@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_writer_leaves_only_temporary_files(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "store"
    if existing:
        small_store(path)
    before = {p.name for p in path.iterdir()} if existing else set()
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    left = {p.name for p in path.iterdir()} - before
    assert left
    assert all(name.endswith((".tmp", ".lock")) for name in left)
    if existing:
        assert len(ViewStore(path)) == 3
    else:
        with pytest.raises(DataError, match="never finished"):
            ViewStore(path)
    with ViewStoreWriter(path, append=True) as writer:
        writer.add_object("again", [picture(1)])
    assert ViewStore(path).object_ids[-1] == "again"
    assert not [p for p in path.iterdir() if p.suffix in {".tmp", ".lock"}]


@pytest.mark.process
@pytest.mark.parametrize("limit", [20_000, 60_000])
def test_a_write_that_fails_publishes_nothing(tmp_path: Path, limit: int) -> None:
    """A limit on file sizes stands in for a full disk: once while views stream, once while HDF5 writes."""
    script = f"""
import resource, sys
import numpy as np
from mvcore.api import DataError
from mvcore_data import ViewStoreWriter
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    with ViewStoreWriter(sys.argv[1], codec="png") as writer:
        writer.add_object("a", np.random.default_rng(0).integers(0, 256, (1, 138, 138, 3), dtype=np.uint8))
except DataError as error:
    print(error)
    sys.exit(2)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stdout
    assert "nothing was published" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_index_says_what_the_shards_hold(tmp_path: Path) -> None:
    path = small_store(tmp_path / "store", objects=4, shard_bytes=1)
    index = json.loads((path / "index.json").read_text())
    assert (index["schema"], index["version"]) == ("mvcore.views", 1)
    for n, record in enumerate(index["shards"]):
        shard = ViewStore(path / record["file"])
        assert (len(shard), shard.n_views) == (record["objects"], record["views"]) == (1, n + 1)
        assert shard.object_ids == [f"object-{n}"]
        assert record["bytes"] == (path / record["file"]).stat().st_size
    assert ViewStore(path).object_ids == [f"object-{n}" for n in range(4)]


def test_indices_out_of_range(tmp_path: Path) -> None:
    store = ViewStore(small_store(tmp_path / "store"))
    for read, index in ((store.encoded, 6), (store.image, -1), (store.views_of, 3), (store.captions, -1)):
        with pytest.raises(IndexError):
            read(index)


@pytest.mark.process
def test_importing_the_package_is_cheap() -> None:
    script = "import mvcore_data, sys; print(*(m for m in ('torch', 'h5py', 'PIL', 'numpy') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
