"""What two stores share: ids, names, and copies of images however they were saved; not what merely looks related."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import ConfigError, DataError
from mvcore_data import ViewStore, ViewStoreWriter, fingerprints
from mvcore_data.cli import app
from mvcore_data.demo import store_path
from mvcore_data.hamming import distance, near_pairs
from mvcore_data.overlap import Side, find_overlap, open_side
from mvcore_data.split import split_store
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels], Pixels]

# -- near pairs of hashes ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(0, 40), m=st.integers(0, 40), radius=st.integers(0, 11))
def test_near_pairs_are_those_of_a_loop(seed: int, n: int, m: int, radius: int) -> None:
    rng = np.random.default_rng(seed)
    base = [int(word) for word in rng.integers(0, 1 << 63, 4, dtype=np.uint64)]

    def near_one_of_them() -> int:
        value = base[rng.integers(4)]
        for bit in rng.permutation(64)[: rng.integers(0, 13)]:
            value ^= 1 << int(bit)
        return value

    first, second = [near_one_of_them() for _ in range(n)], [near_one_of_them() for _ in range(m)]
    naive = [
        (i, j, (a ^ b).bit_count())
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if (a ^ b).bit_count() <= radius
    ]
    rows, others, distances = near_pairs(np.array(first, np.uint64), np.array(second, np.uint64), radius)
    assert list(zip(rows.tolist(), others.tolist(), distances.tolist(), strict=True)) == naive


def test_near_pairs_refuses_what_its_bands_would_miss() -> None:
    with pytest.raises(ValueError, match="radius 12"):
        near_pairs(np.zeros(1, np.uint64), np.zeros(1, np.uint64), 12)


def test_distance_counts_bits() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 1 << 63, (2, 100), dtype=np.uint64)
    assert distance(a, b).tolist() == [(int(x) ^ int(y)).bit_count() for x, y in zip(a, b, strict=True)]


def test_the_hash_is_that_of_a_plain_dct() -> None:
    thumbnail = fingerprints.thumbnail(ViewStore(store_path()).image(5))
    there = thumbnail[..., 3] / 255
    grey = thumbnail[..., :3] @ np.array([0.299, 0.587, 0.114])
    mean = (grey * there).sum() / there.sum()
    spread = np.sqrt((there * (grey - mean) ** 2).sum() / there.sum())
    picture = np.clip((grey - mean) / spread, -3, 3) * there + 2 * (1 - there)
    found: dict[tuple[int, int], float] = {}
    for u in range(11):
        for v in range(11 - u + 1):
            waves = [np.cos(np.pi * k * (2 * np.arange(32) + 1) / 64) * (0.5**0.5 if k == 0 else 1) for k in (u, v)]
            found[u, v] = float(waves[0] @ picture @ waves[1])
    low = [found[key] for key in sorted(found, key=lambda key: (sum(key), key))[1:65]]
    bits = [value > np.median(low) for value in low]
    word = np.packbits(bits).view(np.uint64)[0]
    assert (int(word) ^ int(fingerprints.hashes(thumbnail[None])[0])).bit_count() <= 1  # float32 beside float64


# -- copies ------------------------------------------------------------------------------------------------------------


def jpeg(quality: int) -> Change:
    def change(pixels: Pixels) -> Pixels:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    return change


def scaled(factor: float) -> Change:
    def change(pixels: Pixels) -> Pixels:
        height, width = (round(side * factor) for side in pixels.shape[:2])
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))

    return change


def cropped(pixels: Pixels) -> Pixels:
    k = max(1, round(0.04 * len(pixels)))
    return pixels[k:-k, k // 2 : -k]


def brighter(factor: float) -> Change:
    return lambda pixels: (pixels * factor).clip(0, 255).astype(np.uint8)


def everything(pixels: Pixels) -> Pixels:
    return jpeg(75)(scaled(1.5)(brighter(0.85)(cropped(pixels))))


COPIES = [jpeg(50), scaled(0.6), scaled(2.0), cropped, brighter(0.8), brighter(1.15), everything]
NAMES = ["recompressed", "smaller", "larger", "cropped", "darker", "brighter", "everything"]
EVERY = 40
"""Each so many of the demo's objects, of 20 categories."""


def copy_of(
    store: ViewStore, objects: list[int], path: Path, change: Change, *, views: slice = slice(0, 24, 4)
) -> Path:
    with ViewStoreWriter(path, codec="png") as writer:
        for i in objects:
            writer.add_object(
                f"copy-of/{store.object_ids[i]}x", [change(store.image(v)) for v in store.views_of(i)[views]]
            )
    return path


@pytest.fixture(scope="module")
def demo() -> ViewStore:
    return ViewStore(store_path())


@pytest.mark.parametrize("change", COPIES, ids=NAMES)
def test_copies_are_found_and_others_are_not(demo: ViewStore, tmp_path: Path, change: Change) -> None:
    objects = list(range(0, len(demo), EVERY))
    copy = open_side(str(copy_of(demo, objects, tmp_path / "copy", change)))
    originals = Side("demo", demo, objects)
    found = find_overlap(originals, copy)
    own = {(demo.object_ids[i], f"copy-of/{demo.object_ids[i]}x") for i in objects}
    assert found.by_object.keys() == own
    assert (found.ids, found.names, found.empty) == ([], [], (0, 0))
    exact = {(pair.first.object, pair.first.view) for pair in found.pairs if pair.first.view == 4 * pair.second.view}
    assert len(exact) >= 0.7 * copy.store.n_views


def test_different_objects_of_the_same_kinds_are_not_near_identical(demo: ViewStore) -> None:
    side = Side("some", demo, list(range(0, len(demo), EVERY)))
    other = Side("others", demo, list(range(5, len(demo), EVERY)))
    found = find_overlap(side, other)
    assert not found
    assert found.pairs == []


def photo(seed: int) -> Pixels:
    """A picture whose border has many colours."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((96, 96)), np.float32)
        for n in (3, 6, 12)
    ]
    return (0.5 * layers[0] + 0.3 * layers[1] + 0.2 * layers[2]).astype(np.uint8)


def test_photographs(tmp_path: Path) -> None:
    for name, change in (("a", lambda pixels: pixels), ("b", everything)):
        with ViewStoreWriter(tmp_path / name, codec="png") as writer:
            for i in range(12):
                writer.add_object(f"{name}-{i}", [change(photo(2 * i)), photo(1000 + i if name == "a" else 2000 + i)])
    found = find_overlap(open_side(str(tmp_path / "a")), open_side(str(tmp_path / "b")))
    assert found.by_object.keys() <= {(f"a-{i}", f"b-{i}") for i in range(12)}
    assert len(found.by_object) >= 10
    assert all(pair.first.view == pair.second.view == 0 for pair in found.pairs)


def disc(colour: tuple[int, int, int], *, square: bool = False, ground: int = 255) -> Pixels:
    y, x = np.mgrid[:64, :64] - 31.5
    there = np.maximum(abs(x), abs(y)) < 10 if square else x**2 + y**2 < 120
    return np.where(there[..., None], np.array(colour, np.uint8), np.uint8(ground))


def test_white_backgrounds_make_nothing_alike(tmp_path: Path) -> None:
    """Small things before white: nearly all of their pixels are equal, and none of the things is."""
    things = [disc((200, 40, 40)), disc((40, 40, 200)), disc((40, 200, 40)), disc((200, 40, 40), square=True)]
    with ViewStoreWriter(tmp_path / "a", codec="png") as writer:
        for i, thing in enumerate(things[:2]):
            writer.add_object(f"a-{i}", [thing])
    with ViewStoreWriter(tmp_path / "b", codec="png") as writer:
        for i, thing in enumerate(things[2:]):
            writer.add_object(f"b-{i}", [thing])
        writer.add_object("moved", [np.roll(things[0], (7, -12), (0, 1))])
        writer.add_object("other-ground", [disc((200, 40, 40), ground=235)])
    found = find_overlap(open_side(str(tmp_path / "a")), open_side(str(tmp_path / "b")))
    assert found.by_object.keys() == {("a-0", "moved"), ("a-0", "other-ground")}


def test_empty_views_are_counted_and_not_compared(tmp_path: Path) -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    for name in ("a", "b"):
        with ViewStoreWriter(tmp_path / name, codec="png") as writer:
            writer.add_object(name, [white, disc((200, 40, 40) if name == "a" else (40, 200, 40))])
    found = find_overlap(open_side(str(tmp_path / "a")), open_side(str(tmp_path / "b")))
    assert (found.pairs, found.empty) == ([], (1, 1))


def test_a_placeholder_in_many_objects_does_not_blow_up(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with ViewStoreWriter(tmp_path / name, codec="png") as writer:
            for i in range(60):
                writer.add_object(f"{name}-{i}", [disc((200, 40, 40))])
    assert len(find_overlap(open_side(str(tmp_path / "a")), open_side(str(tmp_path / "b"))).pairs) == 16 * 16


# -- ids, splits and the command ---------------------------------------------------------------------------------------


def named(path: Path, ids: list[str], first: int = 0) -> Path:
    with ViewStoreWriter(path, codec="png") as writer:
        for k, name in enumerate(ids):
            writer.add_object(name, [photo(first + k)])
    return path


def test_ids_and_last_components(tmp_path: Path) -> None:
    a = named(tmp_path / "a", ["cup", "train/7f3a", "chair/0001", "lamp/0001"])
    b = named(tmp_path / "b", ["lvis/7f3a", "cup", "boat/0001", "plane"], first=100)
    found = find_overlap(open_side(str(a)), open_side(str(b)), images=False)
    # "0001" names two objects of a: it identifies none.
    assert (found.ids, found.names, found.pairs) == (["cup"], [("train/7f3a", "lvis/7f3a")], [])


def test_splits_of_one_store(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with ViewStoreWriter(path, codec="png") as writer:
        for name, seed in (("one", 1), ("two", 2), ("again", 1), ("three", 3)):
            writer.add_object(name, [photo(seed)], category="c")
    split_store(path, {"train": ["one", "two"], "test": ["again"], "val": ["three"]})
    done = CliRunner().invoke(app, ["overlap", f"{path}#train", f"{path}#test"])
    assert done.exit_code == 0, done.output
    assert "same id     0 objects" in done.output
    assert "same image  1 pairs of views: 1 objects of A, 1 of B" in done.output
    assert "one = again" in done.output
    assert not find_overlap(open_side(f"{path}#train"), open_side(f"{path}#val"))
    with pytest.raises(ConfigError, match=r"no split 'tset' \(splits: train, test, val\)"):
        open_side(f"{path}#tset")


def test_the_command_fails_when_asked_and_draws(tmp_path: Path) -> None:
    a, b = named(tmp_path / "a", ["x", "y"]), named(tmp_path / "b", ["z", "y"])
    sheet = tmp_path / "pictures" / "pairs.png"
    done = CliRunner().invoke(app, ["overlap", str(a), str(b), "--fail", "--json", "--sheet", str(sheet)])
    assert isinstance(done.exception, DataError)
    assert "share 1 ids, 0 names, 2 pairs of objects that look alike" in str(done.exception)
    said = json.loads(done.stdout)
    assert said["ids"] == ["y"]
    assert {(o["first"], o["second"], o["pairs"]) for o in said["objects"]} == {("x", "z", 1), ("y", "y", 1)}
    assert said["pairs"][0].keys() == {"first", "second", "distance", "residual"}
    drawn = np.asarray(Image.open(sheet))
    assert drawn.shape == (146, 472, 3)
    # Left and right of a pair are the same picture.
    left, right = drawn[30:126, 4:100], drawn[30:126, 120:216]
    assert np.array_equal(left, right)
    assert left.std() > 20
    c = named(tmp_path / "c", ["other"], first=50)
    assert CliRunner().invoke(app, ["overlap", str(a), str(c), "--fail"]).exit_code == 0


@pytest.mark.slow
@pytest.mark.process
def test_workers_find_the_same(demo: ViewStore, tmp_path: Path) -> None:
    objects = list(range(0, len(demo), 40))
    copy = open_side(str(copy_of(demo, objects, tmp_path / "copy", jpeg(60), views=slice(0, 24))))
    side = Side("demo", demo, objects)
    assert find_overlap(side, copy, workers=2).pairs == find_overlap(side, copy).pairs
