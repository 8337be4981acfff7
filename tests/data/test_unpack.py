"""Exports: what is unpacked packs to the same store, tar shards read as the webdataset library reads them."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import ConfigError, DataError
from mvcore.cli.main import run
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.exporters.base import safe_name
from mvcore_data.exporters.webdataset import WebDatasetExporter
from mvcore_data.packing import pack
from mvcore_data.split import split_store
from mvcore_data.tracks import RECORD
from mvcore_data.unpack import unpack
from PIL import Image

IDS = [
    "cup/17",
    "..",
    ".hidden",
    "a b|c%2F",
    "README.md",
    "split-x.txt",
    "茶碗",
    "~tilde",
    "x" * 1000,
    "x" * 999 + "y",
    "é/" * 300,
]


def encoded(rng: np.random.Generator, kind: str, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def camera(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = rotation * np.sign(np.linalg.det(rotation))
    world_to_camera[:3, 3] = rng.normal(size=3)
    intrinsics = np.array([[rng.uniform(9, 20), 0, 4.1], [0, rng.uniform(9, 20), 3.3], [0, 0, 1]])
    return intrinsics, world_to_camera


def tracks(k: int, v: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some of object k's nine points of space, and where its view v shows them."""
    places = np.random.default_rng(k).normal(size=(9, 3))
    rng = np.random.default_rng([k, v])
    ids = rng.permutation(9)[:5]
    return rng.uniform(0, 1, (5, 2)) * size[::-1], ids, places[ids]


def write_store(path: Path, ids: list[str], **writer: Any) -> Path:
    """Objects of every kind: with and without cameras, depth, masks, captions of odd shapes, licences."""
    rng = np.random.default_rng(0)
    captions = [["a red cup", "a mug"], ["two\nlines"], [" spaces "], ["\ufeffmark"], [], ["line\u2028separator", "x"]]
    with ViewStoreWriter(path, shard_bytes=2_000, **writer) as store:
        for k, name in enumerate(ids):
            n = 12 if k == 1 else 1 + k % 3
            size = (8 + k, 10)
            store.add_object(
                name,
                [encoded(rng, ("JPEG", "PNG", "WEBP")[(k + v) % 3], size) for v in range(n)],
                captions=captions[k % len(captions)],
                view_captions=[[f"view {v}", "second\nline"] if (k + v) % 2 else None for v in range(n)],
                cameras=[camera(rng) if (k + v) % 3 else None for v in range(n)],
                depth=[rng.uniform(0, 7, size) * (rng.random(size) < 0.7) if (k + v) % 2 else None for v in range(n)],
                masks=[rng.random(size) < 0.5 if (k + v) % 4 else None for v in range(n)],
                tracks=[tracks(k, v, size) if (k + v) % 3 else None for v in range(n)],
                category=(None, "cup", "jug")[k % 3],
                licence=("CC-BY-4.0", None, "by-nc", "CC0-1.0")[k % 4],
                source=("objaverse", None)[k % 2],
                creator=("Ada, L.", None, "Bo|b")[k % 3],
            )
    return path


def contents(path: Path) -> dict[str, Any]:
    """All that a store holds, by object id."""
    found: dict[str, Any] = {}
    with ViewStore(path) as store:
        for i, name in enumerate(store.object_ids):
            views = [
                {
                    "bytes": store.encoded(v),
                    "codec": store.codec(v),
                    "captions": store.view_captions(v),
                    "camera": camera and [matrix.tolist() for matrix in camera],
                    "mask": None if (mask := store.mask(v)) is None else mask.tolist(),
                    "depth": None if (depth := store.encoded_depth(v)) is None else depth[0],
                    "tracks": store.encoded_tracks(v),
                }
                for v in store.views_of(i)
                for camera in [store.camera(v)]
            ]
            names = (store.category(i), store.licence(i), store.source(i), store.creator(i))
            found[name] = {"views": views, "captions": store.captions(i), "names": names}
    return found


def records(file: bytes | None) -> bytes | None:
    """What a file of tracks holds."""
    return None if file is None else np.load(io.BytesIO(file), allow_pickle=False).tobytes()


def scales(path: Path) -> dict[str, list[float]]:
    with ViewStore(path) as store:
        return {
            name: [depth[1] for v in store.views_of(i) if (depth := store.encoded_depth(v)) is not None]
            for i, name in enumerate(store.object_ids)
        }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_store(tmp_path_factory.mktemp("data") / "store", IDS)
    split_store(path, {"train": IDS[:8], "te/st": IDS[8:]})
    return path


def test_folders_pack_to_the_same_store(store: Path, tmp_path: Path) -> None:
    report = unpack(store, tmp_path / "out")
    assert (report.objects, report.left_out) == (len(IDS), "")
    packed = pack(tmp_path / "out", tmp_path / "again", strict=True)
    assert (packed.format, packed.objects, packed.views) == ("folders", report.objects, report.views)
    assert packed.reencoded == {}
    assert contents(tmp_path / "again") == contents(store)
    assert scales(tmp_path / "again") == {name: pytest.approx(of, rel=2e-7) for name, of in scales(store).items()}


def test_a_folder_is_laid_out_for_people(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first = camera(rng)
    images = [encoded(rng, kind, (4, 6)) for kind in ("JPEG", "PNG")]
    depth = np.full((4, 6), 2.0)
    with ViewStoreWriter(tmp_path / "store") as writer:
        writer.add_object(
            "cup/17", images, captions=["a red cup", "a mug"], cameras=[first, None], masks=[None, depth > 0],
            depth=[depth, None], licence="CC0-1.0", view_captions=[None, "seen from above"],
        )  # fmt: skip
    unpack(tmp_path / "store", tmp_path / "out")
    folder = tmp_path / "out/cup%2F17"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["LICENCES.csv", "README.md", "cup%2F17"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "000.jpg", "001.png", "cameras.json", "captions.txt", "depth_000.png", "mask_001.png", "metadata.json",
    ]  # fmt: skip
    assert [(folder / name).read_bytes() for name in ("000.jpg", "001.png")] == images
    assert (folder / "captions.txt").read_text() == "a red cup\na mug\n"
    cameras = json.loads((folder / "cameras.json").read_text())
    assert list(cameras) == ["000.jpg"]
    np.testing.assert_allclose(cameras["000.jpg"]["intrinsics"], first[0], rtol=1e-6)
    np.testing.assert_allclose(cameras["000.jpg"]["world_to_camera"], first[1], rtol=1e-6)
    assert json.loads((folder / "metadata.json").read_text()) == {
        "id": "cup/17",
        "licence": "CC0-1.0",
        "view_captions": {"001.png": ["seen from above"]},
        "masks": {"001.png": "mask_001.png"},
        "depth": {"000.jpg": {"file": "depth_000.png", "scale": pytest.approx(2 / 65535)}},
    }
    assert np.asarray(Image.open(folder / "mask_001.png")).min() == 255


def test_masks_and_depth_of_a_users_own_folder(tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "src/cup"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encoded(rng, "JPEG", (4, 6)))
    Image.fromarray(np.array([[0, 200, 1, 0, 0, 0]] * 4, np.uint8)).save(folder / "m.png")
    millimetres = rng.integers(0, 3000, (4, 6)).astype(np.uint16)
    Image.fromarray(millimetres).save(folder / "d.png")
    metadata = {"id": "jug", "masks": {"a.jpg": "m.png"}, "depth": {"a.jpg": {"file": "d.png", "scale": 0.001}}}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    assert pack(tmp_path / "src", tmp_path / "store", strict=True).views == 1
    with ViewStore(tmp_path / "store") as opened:
        assert opened.object_ids == ["jug"]
        mask, depth = opened.mask(0), opened.depth(0)
    assert mask is not None
    assert depth is not None
    assert mask.tolist() == [[False, True, True, False, False, False]] * 4
    np.testing.assert_allclose(depth, millimetres / 1000, atol=3 / 65535 / 2 + 1e-6)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"masks": {"a.jpg": "../a.png"}}, "names the image '../a.png', which is not in the folder"),
        ({"masks": {"b.jpg": "m.png"}}, "names the image 'b.jpg', which is not in the folder"),
        ({"depth": {"a.jpg": {"file": "/etc/passwd", "scale": 1.0}}}, "names the image '/etc/passwd'"),
        ({"depth": {"a.jpg": {"file": "m.png", "scale": 0}}}, "depth.a.jpg.scale: input should be greater than 0"),
        ({"depth": {"a.jpg": "m.png"}}, "depth.a.jpg"),
        ({"tracks": {"a.jpg": "../a.npy"}}, "names the tracks '../a.npy', which are not in the folder"),
        ({"tracks": {"a.jpg": "m.png"}}, "names the tracks 'm.png', which are not in the folder"),
        ({"tracks": {"b.jpg": "t.npy"}}, "names the image 'b.jpg', which is not in the folder"),
    ],
)
def test_metadata_that_names_other_files_is_refused(tmp_path: Path, metadata: dict[str, Any], words: str) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "src/cup"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encoded(rng, "JPEG", (4, 6)))
    (folder / "m.png").write_bytes(encoded(rng, "PNG", (4, 6)))
    (tmp_path / "src/a.png").write_bytes(encoded(rng, "PNG", (4, 6)))
    (folder / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=r"metadata.json") as error:
        pack(tmp_path / "src", tmp_path / "store")
    assert words in str(error.value)


def huge() -> bytes:
    """A file whose header promises 10^15 records."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(RECORD), "fortran_order": False, "shape": (10**15,)}
    )
    return buffer.getvalue() + bytes(280)


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=array.dtype == object)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be read as tracks"),
        (b"PK\x03\x04 no archive", "cannot be read as tracks"),
        (huge(), "cannot be read as tracks"),
        (saved(np.array([{"a": 1}], object)), "cannot be read as tracks"),
        (saved(np.zeros((3, 6))), "holds no tracks"),
        (saved(np.zeros((2, 2), RECORD)), "holds no tracks"),
        (saved(np.array([((9, 1), (0, 0, 0), 1)], RECORD)), "a point outside of the image"),
        (saved(np.array([((1, 1), (np.nan, 0, 0), 1)], RECORD)), "a number that is not finite"),
        (saved(np.zeros(2, RECORD)), "an id twice"),
    ],
)
def test_a_file_that_holds_no_tracks_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    folder = tmp_path / "src/cup"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encoded(np.random.default_rng(0), "JPEG", (4, 6)))
    (folder / "t.npy").write_bytes(data)
    (folder / "metadata.json").write_text(json.dumps({"tracks": {"a.jpg": "t.npy"}}))
    with pytest.raises(DataError, match=words) as error:
        pack(tmp_path / "src", tmp_path / "store")
    assert "cup" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mask_of_another_size_leaves_its_view_out(tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "src/cup"
    folder.mkdir(parents=True)
    for name, size in (("a.jpg", (4, 6)), ("b.jpg", (4, 6)), ("m.png", (6, 4))):
        (folder / name).write_bytes(encoded(rng, "PNG" if name == "m.png" else "JPEG", size))
    (folder / "metadata.json").write_text(json.dumps({"masks": {"a.jpg": "m.png"}}))
    report = pack(tmp_path / "src", tmp_path / "store")
    assert (report.views, report.skipped.counts) == (1, {"its mask is of another size than its image": 1})


@given(st.text(st.characters(codec="utf-8"), min_size=1))
@settings(max_examples=300, deadline=None)
def test_file_names_are_safe_and_give_the_id_back(name: str) -> None:
    safe = safe_name(name)
    assert safe.isascii()
    assert safe.isprintable()
    assert not set(safe) & set('/\\:*?"<>| ')
    assert not safe.startswith(".")
    assert len(safe) <= 255
    if "~" not in safe:
        assert unquote(safe) == name


@given(st.lists(st.text("ab/%.~é", min_size=1, max_size=120), unique=True, min_size=2, max_size=20))
@settings(max_examples=200, deadline=None)
def test_different_ids_have_different_file_names(names: list[str]) -> None:
    assert len({safe_name(name) for name in names}) == len(names)


def test_long_ids_that_begin_alike_have_different_names() -> None:
    assert safe_name("x" * 1000) != safe_name("x" * 999 + "y")
    assert len(safe_name("é" * 500)) < 220


def samples(folder: Path) -> list[dict[str, Any]]:
    from webdataset.compat import WebDataset

    shards = sorted(map(str, folder.glob("shard-*.tar")))
    return list(cast(Any, WebDataset(shards, shardshuffle=False)))


def test_webdataset_samples_are_objects(store: Path, tmp_path: Path) -> None:
    unpack(store, tmp_path / "out", format="webdataset")
    wanted, found = contents(store), samples(tmp_path / "out")
    assert len(found) == len(IDS)
    for sample in found:
        meta = json.loads(sample["json"])
        item = wanted.pop(meta["id"])
        assert item["captions"] == meta["captions"]
        assert item["names"] == tuple(meta.get(key) for key in ("category", "licence", "source", "creator"))
        assert len(meta["views"]) == len(item["views"])
        for view, stored in zip(meta["views"], item["views"], strict=True):
            assert sample[view["image"]] == stored["bytes"]
            assert view["captions"] == stored["captions"]
            shown = view["camera"] and [view["camera"][key] for key in ("intrinsics", "world_to_camera")]
            assert shown == stored["camera"]
            assert sample.get(view.get("depth")) == stored["depth"]
            assert records(sample.get(view.get("tracks"))) == stored["tracks"]
            mask = sample.get(view.get("mask"))
            assert (mask and (np.asarray(Image.open(io.BytesIO(mask))) > 0).tolist()) == stored["mask"]
    assert not wanted


def test_webdataset_samples_are_views(store: Path, tmp_path: Path) -> None:
    report = unpack(store, tmp_path / "out", format="webdataset", sample="view")
    wanted, found = contents(store), samples(tmp_path / "out")
    assert len(found) == report.views
    assert len({sample["__key__"] for sample in found}) == report.views
    for sample in found:
        meta = json.loads(sample["json"])
        item = wanted[meta["id"]]
        stored = item["views"][meta["view"]]
        image = next(sample[kind] for kind in ("jpg", "png", "webp") if kind in sample)
        assert image == stored["bytes"]
        assert (meta["captions"], meta["view_captions"]) == (item["captions"], stored["captions"])
        texts = [*stored["captions"], *item["captions"]]
        assert sample.get("txt") == (texts[0].encode() if texts else None)
        assert sample.get("depth.png") == stored["depth"]
        assert records(sample.get("tracks.npy")) == stored["tracks"]
        assert ("depth_scale" in meta) == (stored["depth"] is not None)


def test_webdataset_decodes_and_batches_an_export(tmp_path: Path) -> None:
    from webdataset.compat import WebDataset

    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    with ViewStoreWriter(tmp_path / "store", codec="png") as writer:
        for k in range(4):
            writer.add_object(f"cup.v{k}/x", pixels[k : k + 1], captions=f"cup {k}")
    unpack(tmp_path / "store", tmp_path / "out", format="webdataset", sample="view")
    shards = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    pipeline: Any = WebDataset(shards, shardshuffle=False).decode("rgb8").to_tuple("png", "txt").batched(4)
    ((images, texts),) = list(cast(Any, pipeline))
    np.testing.assert_array_equal(np.stack(images), pixels)
    assert list(texts) == [f"cup {k}" for k in range(4)]


@pytest.mark.parametrize("sample", ["object", "view"])
@pytest.mark.parametrize("limit", [20_480, 30_720])
def test_shards_are_bounded_and_hold_all(store: Path, tmp_path: Path, sample: Any, limit: int) -> None:
    unpack(store, tmp_path / "out", format="webdataset", sample=sample, shard_bytes=limit)
    shards = sorted((tmp_path / "out").glob("shard-*.tar"))
    assert [shard.name for shard in shards] == [f"shard-{k:06d}.tar" for k in range(len(shards))]
    assert len(shards) > 1
    sizes = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            keys = {name.rpartition("/")[0] + "/" + name.rpartition("/")[2].split(".")[0] for name in tar.getnames()}
        assert shard.stat().st_size <= limit or len(keys) == 1
        sizes.append(shard.stat().st_size)
    assert max(sizes) > limit - 3 * 10_240  # they are filled
    whole = tmp_path / "whole"
    unpack(store, whole, format="webdataset", sample=sample)
    assert samples_of(samples(tmp_path / "out")) == samples_of(samples(whole))


def samples_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in sample.items() if key not in ("__url__", "__local_path__")} for sample in found
    ]


@pytest.mark.parametrize("options", [{"format": "folders"}, {"format": "webdataset"}])
def test_an_export_is_the_same_every_time(store: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    for name in ("a", "b"):
        unpack(store, tmp_path / name, **options)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_split_alone_and_its_lists(store: Path, tmp_path: Path) -> None:
    unpack(store, tmp_path / "all")
    assert (tmp_path / "all/split-te%2Fst.txt").read_text() == "".join(f"{name}\n" for name in IDS[8:])
    report = unpack(store, tmp_path / "test", split="te/st")
    assert report.objects == 3
    pack(tmp_path / "test", tmp_path / "again", strict=True)
    whole = contents(store)
    assert contents(tmp_path / "again") == {name: whole[name] for name in IDS[8:]}
    assert (tmp_path / "test/split-train.txt").read_text() == ""
    with pytest.raises(DataError, match=r"has no split 'val' \(train, te/st\)"):
        unpack(store, tmp_path / "val", split="val")


def test_licences_are_counted_and_chosen(store: Path, tmp_path: Path) -> None:
    unpack(store, tmp_path / "all", format="webdataset")
    with (tmp_path / "all/LICENCES.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = contents(store)
    assert sum(int(row["objects"]) for row in rows) == len(IDS)
    for row in rows:
        same = [
            item
            for item in wanted.values()
            if [text or "" for text in item["names"][1:]] == [row["licence"], row["source"], row["creator"]]
        ]
        assert int(row["objects"]) == len(same) > 0
        assert int(row["views"]) == sum(len(item["views"]) for item in same)
    readme = (tmp_path / "all/README.md").read_text()
    for line in ("| CC-BY-NC-4.0 | 3 |", "| unknown | 3 |", "| objaverse | 6 |", "| Bo\\|b | 3 |"):
        assert line in readme
    report = unpack(store, tmp_path / "free", allow_licences=["CC0-1.0", "CC-BY"])
    assert report.objects == 5
    assert "6 of 11 objects left out" in report.left_out
    assert "CC-BY-NC-4.0 3" in report.left_out
    with (tmp_path / "free/LICENCES.csv").open() as file:
        assert {row["licence"] for row in csv.DictReader(file)} == {"CC0-1.0", "CC-BY-4.0"}


def test_the_command(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = [str(store), str(out), "--format", "webdataset", "--split", "train", "--shard-size", "1"]
    assert run(["data", "unpack", *arguments, "--sample", "view", "--allow-licence", "CC0-1.0"]) == 0
    stdout, stderr = capsys.readouterr()
    assert stdout == f"{out}: 2 objects, 3 views\n"
    assert "6 of 8 objects left out" in stderr
    assert run(["data", "unpack", *arguments]) == 2
    assert f"{out}: exists already; give another name" in capsys.readouterr().err
    assert run(["data", "unpack", str(store), str(tmp_path / "x"), "--shard-size", "1"]) == 2
    assert "options of the format webdataset" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_options_of_another_format_are_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="options of the format webdataset"):
        unpack(store, tmp_path / "out", sample="view")


def test_a_damaged_view_ends_the_export_and_nothing_is_made(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", IDS[:3])
    with ViewStore(path) as opened:
        data = opened.encoded(opened.n_views - 1)
    shard = max(path.glob("shard-*.h5"))
    raw = shard.read_bytes()
    at = raw.index(data) + len(data) // 2
    shard.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    for layout in ("folders", "webdataset"):
        with pytest.raises(DataError, match=r"view \d+ of object '.hidden'"):
            unpack(path, tmp_path / "out", format=layout)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["store"]


def test_a_full_disk_says_how_much_was_needed(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: WebDatasetExporter, item: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(WebDatasetExporter, "add", full)
    with ViewStore(store) as opened:
        size = opened.n_bytes
    with pytest.raises(DataError, match=rf"no space left.*about {size / 1e6:.1f} MB\); nothing was made"):
        unpack(store, tmp_path / "out", format="webdataset")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled_and_another_is_kept(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    unpack(store, tmp_path / "empty")
    assert (tmp_path / "empty/README.md").exists()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    unpack(store, ".")
    assert tree(tmp_path / "here") == tree(tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(DataError, match="exists already"):
        unpack(store, tmp_path / "mine")
    assert tree(tmp_path / "mine") == {"notes.txt": b"x"}


SLOW = """
import sys, time
from mvcore_data.unpack import unpack
def wait(done, total):
    print(done, flush=True)
    time.sleep(0.2)
unpack(sys.argv[1], sys.argv[2], on_object=wait)
"""


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_an_ended_process_leaves_is_cleared_by_the_next(store: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(store), str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(3)] == [b"1\n", b"2\n", b"3\n"]
    with pytest.raises(DataError, match="another process is writing"):
        unpack(store, out)
    process.send_signal(number)
    process.communicate()
    assert not out.exists()
    assert (tmp_path / "out.partial").exists() == (number == signal.SIGKILL)
    unpack(store, out)
    unpack(store, tmp_path / "other")
    assert tree(out) == tree(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]
