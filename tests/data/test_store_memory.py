"""What a forked worker shares stays shared, and pixels go straight to where they are wanted."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import DataError
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.decode import decode_image, decode_jpeg
from PIL import Image

OBJECTS, VIEWS = 2_000, 10


def private_bytes() -> int:
    """Memory of this process that no other one shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) * 1024


def grown_by_reading(store: ViewStore) -> int:
    """By how much a forked child's own memory grows while it reads every view and every caption."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        for v in range(64):  # what is needed once, whatever the number of views
            store.image(v)
        before = private_bytes()
        for i in range(len(store)):
            store.captions(i)
            for v in store.views_of(i):
                store.image(v)
                store.view_captions(v)
                store.camera(v)
        os.write(send, str(private_bytes() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(receive, 64))


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of private memory")
def test_a_worker_needs_at_most_24_bytes_a_view(tmp_path: Path) -> None:
    pixels = np.zeros((VIEWS, 8, 8, 3), np.uint8)
    camera = (np.array([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]]), np.eye(4))
    with ViewStoreWriter(tmp_path / "store") as writer:
        for i in range(OBJECTS):
            captions = [f"caption {v} of object {i}" for v in range(VIEWS)]
            writer.add_object(
                f"object-{i}", pixels, captions="a whole", view_captions=captions, cameras=[camera] * VIEWS
            )
    assert grown_by_reading(ViewStore(tmp_path / "store")) / (OBJECTS * VIEWS) <= 24


def jpeg(height: int, width: int, **options: object) -> bytes:
    """Noise as a JPEG."""
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 20}])
def test_a_jpeg_decoded_into_place_has_the_pixels_of_pillow(options: dict[str, object]) -> None:
    data = jpeg(24, 40, **options)
    batch = np.full((3, 24, 40, 3), 77, np.uint8)
    assert decode_jpeg(data, batch[1])
    assert np.array_equal(batch[1], np.array(Image.open(io.BytesIO(data)).convert("RGB")))
    assert (batch[[0, 2]] == 77).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_a_jpeg_of_another_size_is_refused_and_nothing_beside_it_is_written(
    h: int, w: int, height: int, width: int
) -> None:
    data = jpeg(h, w)
    batch = np.full((3, height, width, 3), 77, np.uint8)
    assert decode_jpeg(data, batch[1]) == ((h, w) == (height, width))
    assert (batch[[0, 2]] == 77).all()
    if (h, w) != (height, width):
        with pytest.raises(DataError, match=f"the view: a JPEG image of {w}x{h}, not the jpeg of {width}x{height}"):
            decode_image(data, "jpeg", (height, width), "the view")


def test_a_jpeg_that_claims_to_be_huge_asks_for_no_memory() -> None:
    data = bytearray(jpeg(8, 8))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xdc\xff\xdc"  # 65,500 x 65,500
    out = np.full((8, 8, 3), 77, np.uint8)
    assert not decode_jpeg(bytes(data), out)
    assert (out == 77).all()
    with pytest.raises(DataError, match="the view: "):
        decode_image(bytes(data), "jpeg", (8, 8), "the view")


def test_a_jpeg_of_endless_scans_is_refused_by_name() -> None:
    data = jpeg(4096, 4096, progressive=True, quality=1)
    scan = data.rindex(b"\xff\xda")
    bomb = data[:scan] + data[scan:-2] * 600 + data[-2:]
    with pytest.raises(DataError, match="the view: a JPEG of more than 500 scans"):
        decode_image(bomb, "jpeg", (4096, 4096), "the view")


def test_a_store_decodes_into_place_and_gives_the_place_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for codec in ("jpeg", "png", "webp"):
        path = tmp_path / f"{codec}.h5"
        with ViewStoreWriter(path, codec=codec) as writer:
            writer.add_object("a", rng.integers(0, 256, (2, 8, 9, 3), dtype=np.uint8))
        with ViewStore(path) as store:
            batch = np.zeros((2, 8, 9, 3), np.uint8)
            assert store.image(1, batch[0]).base is batch
            assert np.array_equal(batch[0], store.image(1))
            assert not batch[1].any()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_captions_are_those_of_their_view_and_object(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5).filter(str.strip)
    texts = st.lists(text, max_size=3)
    given_texts = data.draw(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=4))
    path = tmp_path_factory.mktemp("captions") / "store.h5"
    with ViewStoreWriter(path) as writer:
        for i, (whole, views) in enumerate(given_texts):
            pixels = np.zeros((len(views), 2, 2, 3), np.uint8)
            writer.add_object(str(i), pixels, captions=whole, view_captions=views)
    with ViewStore(path) as store:
        for i, (whole, views) in enumerate(given_texts):
            assert store.captions(i) == whole
            assert [store.view_captions(v) for v in store.views_of(i)] == views
