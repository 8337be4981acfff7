"""`mvcore data check` reads the vectors beside a store, too; the command that made them mends them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mvcore.cli.main import run
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.check import check_store
from mvcore_data.embed import EmbedReport, embed_store
from mvcore_data.embeddings import folder_of

OBJECTS, VIEWS, WIDTH = 5, 3, 4


class Given:
    """Vectors as given, of all views and of the one caption of each object; the key is made up."""

    def __init__(self, store: ViewStore, images: np.ndarray, texts: np.ndarray) -> None:
        self._store, self._all = store, {"image": images, "text": texts}
        features = {kind: {"feature": kind, "width": WIDTH} for kind in self._all}
        self.key = {"model": {"id": "made-up"}, "features": features}

    def rows(self, kind: str, n: int) -> Iterator[Any]:
        shards = self._store.shards
        counts = [shard.n_views if kind == "image" else shard.n_captions for shard in shards]
        first = sum(counts[:n])
        yield self._all[kind][first : first + counts[n]]


def embedded(store: Path, zero: int | None = None) -> EmbedReport:
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((OBJECTS * VIEWS, WIDTH)), rng.standard_normal((OBJECTS, WIDTH))
    if zero is not None:
        images[zero] = 0
    with ViewStore(store) as opened:
        return embed_store(opened, Given(opened, images, texts), "clip")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of several shards with vectors."""
    rng = np.random.default_rng(1)
    with ViewStoreWriter(tmp_path / "store", codec="png", shard_bytes=1) as writer:
        for i in range(OBJECTS):
            writer.add_object(
                f"object-{i}", rng.integers(0, 256, (VIEWS, 8, 8, 3), dtype=np.uint8), captions=[f"thing {i}"]
            )
    embedded(tmp_path / "store")
    return tmp_path / "store"


def file_of(store: Path, n: int) -> Path:
    return folder_of(store, "clip") / f"shard-{n:05d}.safetensors"


def changed(store: Path, n: int, kind: str, row: int, value: bytes, *, sealed: bool = False) -> None:
    """Puts a float16 in the place of a vector's first, with a checksum that fits it or not."""
    path = file_of(store, n)
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    place = start + header[kind]["data_offsets"][0] + 2 * WIDTH * row
    data[place : place + 2] = value
    if sealed:
        crc = start + header[f"{kind}_crc32"]["data_offsets"][0] + 4 * row
        data[crc : crc + 4] = zlib.crc32(data[place : place + 2 * WIDTH]).to_bytes(4, "little")
    path.write_bytes(data)


NAN, ONE = b"\x01\x7e", b"\x00\x3c"


def test_sound_vectors_are_sound(store: Path) -> None:
    report = check_store(store)
    assert report.ok
    assert (report.objects, report.views) == (OBJECTS, OBJECTS * VIEWS)


@pytest.mark.parametrize("untrusted", [False, pytest.param(True, marks=pytest.mark.process)])
def test_each_bad_vector_is_a_line_that_names_it(store: Path, untrusted: bool) -> None:
    changed(store, 1, "image", 0, ONE)
    changed(store, 1, "image", 2, NAN, sealed=True)
    changed(store, 3, "text", 0, ONE)
    found = check_store(store, untrusted=untrusted).problems
    assert len(found) == 3
    assert "view 0 of object 'object-1': its vector is damaged" in found[0]
    assert "view 2 of object 'object-1': its stored vector is not finite" in found[1]
    assert "caption 'thing 3': its vector is damaged" in found[2]


def test_a_zero_vector_is_named(store: Path, tmp_path: Path) -> None:
    for path in folder_of(store, "clip").iterdir():
        path.unlink()
    embedded(store, zero=4)
    (problem,) = check_store(store).problems
    assert "view 1 of object 'object-1': its stored vector is zero, which has no direction" in problem


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda store: file_of(store, 2).unlink(), "unfinished: 1 of 5 shards have no vectors yet"),
        (lambda store: file_of(store, 2).write_bytes(file_of(store, 2).read_bytes()[:-3]), "truncated"),
        (lambda store: file_of(store, 2).write_bytes(file_of(store, 1).read_bytes()), "made for other data"),
        (lambda store: (folder_of(store, "clip") / "key.json").write_text("{"), "damaged: not JSON"),
    ],
)
def test_keys_and_sizes_are_checked(store: Path, harm: Any, said: str) -> None:
    harm(store)
    (problem,) = check_store(store).problems
    assert said in problem


def test_the_command_that_made_them_mends_them(store: Path) -> None:
    before = file_of(store, 1).read_bytes()
    changed(store, 1, "image", 0, ONE)
    report = embedded(store)
    assert (report.kept, report.views) == (OBJECTS - 1, VIEWS)
    assert file_of(store, 1).read_bytes() == before
    assert check_store(store).ok


def test_repair_says_what_to_do_about_vectors_alone(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(store, 1, "image", 0, ONE)
    out = store.with_name("repaired")
    assert run(["data", "check", str(store), "--repair", str(out)]) == 2
    said = capsys.readouterr().err
    assert "view 0 of object 'object-1': its vector is damaged" in said
    assert f"its objects are sound, so {out} was not made" in said
    assert not out.exists()


def test_lost_shards_are_the_problem_and_not_their_vectors(store: Path) -> None:
    shard = store / "shard-00001.h5"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert len(check_store(store).problems) == 1
