"""`data.views`: what a store becomes as a source of a run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mvcore.errors import ConfigError, DataError
from mvcore.packing import concatenate
from mvcore.parts import IndexedDataset
from mvcore.training.loader import StepLoader
from mvcore.training.sampling import SourceSpecification
from mvcore.types import ViewBatch
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.index import read_index, write_index
from mvcore_data.rigs import make_rig
from mvcore_data.views import Views

SIZE, VIEWS, OBJECTS = 16, 6, 5
AUGMENT = (
    {"rotate": 40},
    {"translate": 0.2},
    {"flip": 0.5},
    {"colour": {"brightness": 0.3, "hue": 0.1}},
    {"blur": {}},
    {"iso_noise": {}},
    {"noise": {}},
    {"clahe": {"tiles": 2}},
    {"brightness_contrast": {}},
)


def write_store(path: Path, *, cameras: bool = True, captions: bool = True, size: int = SIZE) -> Path:
    rng = np.random.default_rng(0)
    rig = make_rig("ring", VIEWS)
    intrinsics, extrinsics = rig.cameras(size)
    with ViewStoreWriter(path) as writer:
        for number in range(OBJECTS):
            yes = [True] * VIEWS if number else [True] + [False] * (VIEWS - 1)
            writer.add_object(
                f"object-{number}",
                rng.integers(0, 256, (VIEWS, size, size, 3), dtype=np.uint8),
                captions=[f"a thing {number}", f"thing number {number}"] if captions else (),
                view_captions=[f"view {v} of {number}" if captions and v % 2 else None for v in range(VIEWS)],
                category="thing" if number % 2 else None,
                cameras=list(zip(intrinsics, extrinsics, strict=True)) if cameras else None,
                depth=[np.full((size, size), 2.0 + number) if one else None for one in yes],
                masks=[np.indices((size, size))[0] < size // 2 if number or v == 0 else None for v in range(VIEWS)],
            )
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_store(tmp_path_factory.mktemp("views") / "store")
    index = read_index(path)
    write_index(path, replace(index, splits={"train": ["object-3", "object-1"], "rest": ["object-0"], "none": []}))
    return path


def assert_equal(first: ViewBatch, second: ViewBatch) -> None:
    for name in ("images", "view_counts", "object_ids", "view_ids", "caption_object", "caption_view"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.captions == second.captions
    for name in ("depth", "depth_valid", "masks", "camera_valid"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other), name
    if first.cameras is not None and second.cameras is not None:
        assert torch.equal(first.cameras.intrinsics, second.cameras.intrinsics)
        assert torch.equal(first.cameras.world_to_camera, second.cameras.world_to_camera)


def test_evaluation_gives_what_the_store_holds(store: Path) -> None:
    views = Views(path=str(store), depth=True)
    reader = ViewStore(store)
    assert isinstance(views, IndexedDataset)
    assert views.image_size == SIZE
    assert views.provides == {"images", "object_ids", "view_ids", "captions", "cameras", "depth"}
    assert len(views) == OBJECTS == views.n_store_objects
    assert views.n_store_views == OBJECTS * VIEWS
    assert (views.object_name(1), views.category(1), views.category(0)) == ("object-1", "thing", None)
    chosen = [views.views_of(1)[k] for k in (4, 1)]
    batch = views.load(1, chosen, None)
    assert batch.object_ids.tolist() == [1]
    assert batch.view_ids.tolist() == chosen == [VIEWS + 4, VIEWS + 1]
    assert batch.images is not None
    for row, view in enumerate(chosen):
        assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy(), reader.image(view))
    assert batch.cameras is not None
    assert batch.camera_valid is not None
    assert batch.camera_valid.all()
    camera = reader.camera(chosen[0])
    assert camera is not None
    assert np.allclose(batch.cameras.intrinsics[0], camera[0])
    assert np.array_equal(batch.cameras.world_to_camera[0], camera[1])
    assert batch.depth is not None
    assert torch.allclose(batch.depth, torch.full((2, SIZE, SIZE), 3.0))
    assert batch.captions == ("a thing 1", "thing number 1", "view 1 of 1")
    assert batch.caption_object.tolist() == [0, 0, 0]
    assert batch.caption_view.tolist() == [-1, -1, 1]
    assert batch.positives().tolist() == [[True, True, False], [False, False, True]]


def test_depth_that_a_view_lacks_is_marked(store: Path) -> None:
    batch = Views(path=str(store), depth=True).load(0, [0, 1], None)
    assert batch.depth_valid is not None
    assert batch.depth is not None
    assert batch.depth_valid.tolist() == [True, False]
    assert (batch.depth[1] == 0).all()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("captions", ["all", "random"])
def test_many_objects_at_once_are_the_single_ones(store: Path, training: bool, captions: str) -> None:
    views = Views(path=str(store), image_size=12, depth=True, captions=captions, augment=AUGMENT if training else ())
    requests: list[tuple[int, Sequence[int]]] = [(2, [13, 17]), (0, [0]), (4, [24, 29, 26])]

    def rng_of(k: int) -> np.random.Generator:
        return np.random.default_rng(k)

    single = [views.load(i, ids, rng_of(k) if training else None) for k, (i, ids) in enumerate(requests)]
    assert_equal(views.load_many(requests, rng_of if training else None), concatenate(single))


@pytest.mark.parametrize("augment", [(), AUGMENT, ({"random_resized_crop": (0.3, 0.6)},)])
def test_the_cache_changes_no_pixel(store: Path, augment: Any) -> None:
    plain = Views(path=str(store), image_size=12, augment=augment)
    cached = Views(path=str(store), image_size=12, augment=augment, cache="memory")
    for seed in (None, 0, 1, None):
        for i in (3, 1):
            one, other = (
                each.load(i, each.views_of(i), None if seed is None else np.random.default_rng(seed))
                for each in (plain, cached)
            )
            assert_equal(one, other)


def test_the_cache_reads_each_view_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = Views(path=str(store), cache="memory", augment=AUGMENT)
    read: list[int] = []
    image = views.store.image
    monkeypatch.setattr(views.store, "image", lambda view, out=None: read.append(view) or image(view, out))
    for _ in range(3):
        for i in range(len(views)):
            views.load(i, views.views_of(i), np.random.default_rng(0))
    assert sorted(read) == list(range(OBJECTS * VIEWS))


def test_the_cache_draws_the_same_captions_and_reads_them_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cached = (Views(path=str(store), cache=cache, captions="random") for cache in ("none", "memory"))
    read: list[int] = []
    captions = cached.store.captions
    monkeypatch.setattr(cached.store, "captions", lambda number: read.append(number) or captions(number))
    for seed in range(4):
        for i in range(len(plain)):
            one, other = (each.load(i, each.views_of(i), np.random.default_rng(seed)) for each in (plain, cached))
            assert_equal(one, other)
    assert sorted(read) == list(range(OBJECTS))


@pytest.mark.process
@pytest.mark.parametrize("cache", ["none", "memory"])
def test_workers_give_the_same_augmented_pixels(store: Path, cache: str) -> None:
    def batches(workers: int, start: int = 0) -> list[ViewBatch]:
        views = Views(path=str(store), image_size=12, cache=cache, augment=AUGMENT, captions="random")
        source = SourceSpecification(name="v", dataset=views, sampling="views", batch_size=7)
        return [step["v"] for step in StepLoader([source], seed=1, workers=workers, start=start, steps=6)]

    whole = batches(0)
    for first, second in zip(whole, batches(2), strict=True):
        assert_equal(first, second)
    for first, second in zip(whole[4:], batches(1, start=4), strict=True):
        assert_equal(first, second)


@pytest.mark.process
def test_workers_fill_one_cache(store: Path) -> None:
    views = Views(path=str(store), cache="memory")
    source = SourceSpecification(name="v", dataset=views, sampling="views", batch_size=OBJECTS * VIEWS)
    list(StepLoader([source], seed=1, workers=1, steps=1))
    views.store.image = lambda v: pytest.fail("decoded again")  # type: ignore[method-assign]
    views.load(0, views.views_of(0), None)


def test_a_pickled_source_works_on(store: Path) -> None:
    views = Views(path=str(store), cache="memory")
    expected = views.load(1, views.views_of(1), None)
    again = pickle.loads(pickle.dumps(views))
    assert_equal(again.load(1, again.views_of(1), None), expected)


def test_splits_and_limits_choose_objects(store: Path) -> None:
    train = Views(path=str(store), split="train")
    assert [train.object_name(i) for i in range(len(train))] == ["object-1", "object-3"]
    assert train.load(1, train.views_of(1), None).object_ids.tolist() == [3]
    assert train.n_store_objects == OBJECTS
    assert len(Views(path=str(store), limit_objects=3)) == 3


def test_viewpoints_choose_views(store: Path) -> None:
    # The ring has azimuths 0, 60, 120, 180, 240 and 300 at elevation 15.
    frontal = Views(path=str(store), views={"azimuth": [[-20, 20]]})
    assert [list(frontal.views_of(i)) for i in range(OBJECTS)] == [[i * VIEWS] for i in range(OBJECTS)]
    behind = Views(path=str(store), views={"azimuth": [[115, -115]], "elevation": [[10, 20]]})
    assert behind.views_of(0) == [2, 3, 4]
    with pytest.raises(DataError, match="no view lies in"):
        Views(path=str(store), views={"elevation": [[30, 60]]})


def test_random_captions_are_one_of_each(store: Path) -> None:
    views = Views(path=str(store), captions="random")
    seen = {views.load(0, [0], np.random.default_rng(seed)).captions for seed in range(20)}
    assert seen == {("a thing 0",), ("thing number 0",)}
    assert views.load(0, [0], None).captions == ("a thing 0",)
    silent = Views(path=str(store), captions="none")
    assert silent.load(0, [0], None).captions == ()
    assert "captions" not in silent.provides


def test_masks_come_along_and_put_objects_on_a_background(store: Path, tmp_path: Path) -> None:
    views = Views(path=str(store), split="train", masks=True, background=(9, 8, 7))
    batch = views.load(0, views.views_of(0), None)
    assert batch.masks is not None
    assert batch.images is not None
    assert batch.masks[:, : SIZE // 2].all()
    assert not batch.masks[:, SIZE // 2 :].any()
    assert (batch.images.permute(0, 2, 3, 1)[:, SIZE // 2 :] == torch.tensor([9, 8, 7])).all()
    original = ViewStore(store).image(int(batch.view_ids[0]))
    assert np.array_equal(batch.images[0].permute(1, 2, 0)[: SIZE // 2].numpy(), original[: SIZE // 2])


def test_a_store_without_cameras_or_captions_does_not_promise_them(tmp_path: Path) -> None:
    path = write_store(tmp_path / "plain", cameras=False, captions=False)
    views = Views(path=str(path))
    assert views.provides == {"images", "object_ids", "view_ids"}
    batch = views.load(0, [0], None)
    assert batch.cameras is None
    assert batch.captions == ()
    with pytest.raises(DataError, match="'object-0' has views without a camera"):
        Views(path=str(path), views={"azimuth": [[0, 90]]})


def test_what_the_store_lacks_is_named(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no split 'trian' \(splits: train, rest, none\)"):
        Views(path=str(store), split="trian")
    with pytest.raises(DataError, match="split 'none' is empty"):
        Views(path=str(store), split="none")
    with pytest.raises(DataError, match="masks: true, but 5 of the 6 views of object 'object-0' have no mask"):
        Views(path=str(store), masks=True)
    with pytest.raises(DataError, match="does not exist"):
        Views(path=str(tmp_path / "nowhere"))
    views = Views(path=str(store))
    source = SourceSpecification(name="mvcap", dataset=views, batch_size=2, views_per_object=VIEWS + 1)
    with pytest.raises(ConfigError, match=r"data\.mvcap: .*needs 7 views of every object, but object 'object-0' has 6"):
        StepLoader([source], seed=0, steps=1)


def test_a_cache_beyond_the_machine_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    with pytest.raises(DataError, match=r"cache: memory needs .* GiB for 30 views"):
        Views(path=str(store), cache="memory")


def test_a_damaged_view_is_named(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    path.mkdir()
    for file in store.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    shard = next(path.glob("*.h5"))
    data = bytearray(shard.read_bytes())
    encoded = ViewStore(store).encoded(8)
    data[data.index(encoded) + len(encoded) // 2] ^= 0xFF
    shard.write_bytes(data)
    views = Views(path=str(path))
    views.load(1, [7], None)
    with pytest.raises(DataError, match="view 2 of object 'object-1'"):
        views.load(1, [8], None)


def test_options_are_strict(store: Path) -> None:
    with pytest.raises(ValueError, match="imagesize"):
        Views(path=str(store), imagesize=64)
    assert json.loads(Views(path=str(store)).options.model_dump_json())["cache"] == "none"


def test_depth_only_leaves_the_views_that_have_depth() -> None:
    every, some = Views(path="demo", split="train", depth=True), Views(path="demo", split="train", depth="only")
    assert (len(every), len(some)) == (420, 12)
    batch = some.load(3, some.views_of(3), None)
    assert batch.depth is not None
    assert batch.depth_valid is not None
    assert batch.depth_valid.all()
    assert (batch.depth.flatten(1).amax(1) > 0).all()
    with pytest.raises(DataError, match="no view of split 'val' has depth"):
        Views(path="demo", split="val", depth="only")
