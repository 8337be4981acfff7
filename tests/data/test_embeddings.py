"""Stored vectors: those that the model gives, of the very views and captions that a batch holds, or a refusal."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import DataError, Model, MvcoreError, load_encoder, model_key
from mvcore.packing import concatenate, split_objects
from mvcore.parts import StoredEmbeddings
from mvcore.training.loader import StepLoader
from mvcore.training.sampling import SourceSpecification
from mvcore.types import ViewBatch
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.embed import EmbedReport, Encoded, embed_store
from mvcore_data.embed_cli import embed
from mvcore_data.embedding_files import VectorFile
from mvcore_data.embeddings import EmbeddingCache, file_metadata, folder_of, read_key, shapes_of, tags_of
from mvcore_data.views import Views
from numpy.typing import NDArray
from safetensors.numpy import load_file

SIZE, OBJECTS, VIEWS, WIDTH = 16, 7, 4, 8
CLIP = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": SIZE, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def add_objects(writer: ViewStoreWriter, numbers: range) -> None:
    for number in numbers:
        rng = np.random.default_rng(number)
        writer.add_object(
            f"object-{number}",
            rng.integers(0, 256, (VIEWS, SIZE, SIZE + number % 2, 3), dtype=np.uint8),
            captions=[f"a thing {number}", "a thing", f"thing number {number}"][: 1 + number % 3],
            view_captions=[f"view {v} of {number}" if v % 2 else None for v in range(VIEWS)],
            category="thing",
        )


def write_store(path: Path, numbers: range = range(OBJECTS)) -> Path:
    """A store of several shards."""
    with ViewStoreWriter(path, codec="png", shard_bytes=6000) as writer:
        add_objects(writer, numbers)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.json"
    path.write_text(json.dumps(CLIP), "utf-8")
    return path


@pytest.fixture(scope="module")
def model(clip: Path) -> Model:
    torch.set_num_threads(1)
    return load_encoder("core.open_clip", {"model": str(clip)})


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    """A store with vectors of all its views and captions."""
    path = write_store(tmp_path_factory.mktemp("embedded") / "store")
    made(path, model)
    return path


@pytest.fixture
def store(embedded: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(embedded, tmp_path / "store"))


def made(path: Path, model: Model, tag: str = "clip", **options: Any) -> EmbedReport:
    call = {key: options.pop(key) for key in ("replace", "on_progress") if key in options}
    with ViewStore(path) as store:
        return embed_store(store, Encoded(store, model, views_per_batch=5, **options), tag, **call)


@pytest.fixture(scope="module", autouse=True)
def _close_stores() -> Iterator[None]:
    yield
    for kept in (evaluated, view_vector, text_vector):
        kept.cache_clear()


@cache
def evaluated(path: Path) -> Views:
    return Views(path=str(path), image_size=SIZE)


@cache
def view_vector(model: Model, path: Path, view: int) -> torch.Tensor:
    """The vector of one view alone, with the evaluation transforms."""
    source = evaluated(path)
    return model.features(source.load(source.store.object_of(view), [view], None), frozenset({"view"})).view[0]


@cache
def text_vector(model: Model, text: str) -> torch.Tensor:
    return model.encode_text([text])[0]


def assert_half(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal within the rounding to float16, which is 2^-11 of a value, and the last bits of a batched product."""
    torch.testing.assert_close(found, wanted.float(), rtol=2**-11 + 1e-5, atol=1e-6)


def assert_matches(batch: ViewBatch, model: Model, store: ViewStore, name: str = "clip") -> None:
    """Every row is the vector of its view or caption, encoded alone."""
    assert batch.embeddings[f"{name}/image"].dtype == torch.float32
    for row, view in zip(batch.embeddings[f"{name}/image"], batch.view_ids.tolist(), strict=True):
        assert_half(row, view_vector(model, store.path, view))
    for row, caption in zip(batch.embeddings[f"{name}/text"], batch.captions, strict=True):
        assert_half(row, text_vector(model, caption))


# -- what is stored --------------------------------------------------------------------------------------------------


def test_every_view_and_caption_has_the_vector_that_the_model_gives(embedded: Path, model: Model) -> None:
    source = Views(path=str(embedded), image_size=SIZE, embeddings=["clip"])
    assert len(source.store.shards) > 2
    assert isinstance(source, StoredEmbeddings)
    assert {"images", "embeddings", "captions"} <= source.provides
    batch = source.load_many([(i, source.views_of(i)) for i in range(OBJECTS)], None)
    assert batch.n_views == OBJECTS * VIEWS
    assert len(batch.captions) == sum(1 + i % 3 + 2 for i in range(OBJECTS))
    assert_matches(batch, model, source.store)
    pairwise = torch.cdist(batch.embeddings["clip/image"], batch.embeddings["clip/image"]) + torch.eye(batch.n_views)
    assert pairwise.min() > 1e-2  # vectors that differ: a mixed-up row would be seen


def test_vectors_follow_the_views_and_captions_drawn(embedded: Path, model: Model) -> None:
    source = Views(path=str(embedded), image_size=SIZE, embeddings=["clip"], captions="random")
    requests = [(5, [22, 20]), (2, [11]), (6, [27, 24, 26])]
    seen: set[tuple[str, ...]] = set()
    for seed in range(4):
        batch = source.load_many(requests, lambda k, seed=seed: np.random.default_rng([seed, k]))
        assert batch.view_ids.tolist() == [22, 20, 11, 27, 24, 26]
        assert_matches(batch, model, source.store)
        seen.add(batch.captions)
    assert len(seen) > 1


def test_vectors_stay_with_their_rows_when_batches_are_joined_and_split(embedded: Path, model: Model) -> None:
    source = Views(path=str(embedded), image_size=SIZE, embeddings={"teacher": "clip"})
    parts = [source.load(i, list(source.views_of(i))[: 1 + i % 3], None) for i in range(OBJECTS)]
    joined = concatenate(parts)
    assert_matches(joined, model, source.store, "teacher")
    pieces = split_objects(joined, 4)
    assert len(pieces) > 2
    for piece in pieces:
        assert_matches(piece, model, source.store, "teacher")


@pytest.mark.parametrize("sampling", ["objects", "views", "pairs"])
def test_two_workers_give_the_same_vectors_as_none(embedded: Path, model: Model, sampling: Any) -> None:
    def batches(workers: int) -> list[ViewBatch]:
        source = Views(path=str(embedded), embeddings=["clip"], images=False, captions="random")
        specified = SourceSpecification(
            name="s",
            dataset=source,
            sampling=sampling,
            batch_size=3,
            views_per_object=2 if sampling == "objects" else 1,
        )
        return [step["s"] for step in StepLoader([specified], seed=0, workers=workers, steps=3)]

    with ViewStore(embedded) as store:
        for one, other in zip(batches(0), batches(2), strict=True):
            assert one.images is None
            assert_matches(one, model, store)
            assert one.captions == other.captions
            for key, vectors in one.embeddings.items():
                assert torch.equal(vectors, other.embeddings[key])


def test_a_pickled_source_reads_the_same(embedded: Path, model: Model) -> None:
    source = Views(path=str(embedded), embeddings=["clip"], images=False)
    source.load(0, [0], None)
    batch = pickle.loads(pickle.dumps(source)).load(3, [13, 12], None)
    assert_matches(batch, model, source.store)


def test_without_images_no_pixel_is_read(store: Path, model: Model) -> None:
    source = Views(path=str(store), embeddings=["clip"], images=False)
    wanted = [view_vector(model, store, v) for v in (0, 9)]
    for shard in source.store.shards:  # no image can be decoded any more
        data = bytearray(shard.path.read_bytes())
        data[shard.views.start : shard.views.start + shard.views.length] = bytes(shard.views.length)
        shard.close()
        shard._stamp = (0, 0)
        shard.path.write_bytes(data)
    batch = source.load_many([(0, [0]), (2, [9])], None)
    assert batch.images is None
    for row, vector in zip(batch.embeddings["clip/image"], wanted, strict=True):
        assert_half(row, vector)
    with pytest.raises(DataError, match="damaged"):
        source.store.image(0)


@pytest.mark.parametrize(
    "change", [{"augment": [{"rotate": 5}]}, {"masks": True}, {"depth": True}, {"cache": "memory", "embeddings": ()}]
)
def test_what_needs_images_is_refused_without_them(embedded: Path, change: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="set images to true"):
        Views(**{"path": str(embedded), "embeddings": ["clip"], "images": False, **change})


@pytest.mark.parametrize("images", [False, True])
def test_vectors_in_memory_are_those_of_the_files_which_are_read_once(
    store: Path, model: Model, images: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"path": str(store), "embeddings": ["clip"], "images": images, "captions": "random"}
    plain, kept = Views(**options), Views(**options, cache="memory")
    requests = [(5, [22, 20]), (2, [11]), (6, [27, 24, 26])]
    for seed in range(3):
        one, other = (
            each.load_many(requests, lambda k, seed=seed: np.random.default_rng([seed, k])) for each in (plain, kept)
        )
        assert (one.captions, one.images is None) == (other.captions, other.images is None)
        assert one.embeddings.keys() == other.embeddings.keys() == {"clip/image", "clip/text"}
        for key, vectors in one.embeddings.items():
            assert torch.equal(vectors, other.embeddings[key])
            assert other.embeddings[key].dtype == torch.float32
    monkeypatch.setattr(VectorFile, "read", None)
    again = kept.load_many(requests, None)
    assert_matches(again, model, kept.store)


def test_a_damaged_vector_is_found_when_all_are_brought_into_memory(store: Path) -> None:
    file = next(folder_of(store, "clip").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="its vector is damaged"):
        Views(path=str(store), embeddings=["clip"], images=False, cache="memory")


def test_vectors_beyond_the_machine_are_not_brought_into_memory(
    embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvcore_data.cache._LARGEST_PART_OF_MEMORY", 1e-12)
    with pytest.raises(DataError, match=r"cache: memory needs .* GiB for stored vectors"):
        Views(path=str(embedded), embeddings=["clip"], images=False, cache="memory")


def test_augmented_images_come_with_vectors_of_the_untouched_view(embedded: Path, model: Model) -> None:
    source = Views(path=str(embedded), image_size=SIZE, embeddings=["clip"], augment=[{"rotate": 90}])
    batch = source.load(1, [6, 4], np.random.default_rng(0))
    assert batch.images is not None
    assert not torch.equal(batch.images, source.load(1, [6, 4], None).images)  # pyright: ignore[reportArgumentType]
    assert_matches(batch, model, source.store)


def test_files_are_float16_safetensors_beside_the_store(embedded: Path) -> None:
    folder = folder_of(embedded, "clip")
    assert folder == embedded / "embeddings" / "clip"
    assert tags_of(embedded) == ["clip"]
    with ViewStore(embedded) as store:
        for n, shard in enumerate(store.shards):
            arrays = load_file(folder / f"shard-{n:05d}.safetensors")
            assert arrays["image"].shape == (shard.n_views, WIDTH)
            assert arrays["text"].shape == (shard.n_captions, WIDTH)
            assert {arrays[kind].dtype for kind in ("image", "text")} == {np.dtype(np.float16)}
            vectors = EmbeddingCache(store, "clip").read("image", [store.views_of(0)[0]])
            if n == 0:
                assert np.array_equal(arrays["image"][:1].astype(np.float32), vectors)


def test_a_single_shard_has_them_beside_itself(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "one.h5"
    with ViewStoreWriter(path) as writer:
        add_objects(writer, range(3))
    report = made(path, model)
    assert report.folder == tmp_path / "one.h5.embeddings" / "clip"
    assert (report.views, report.captions) == (12, 12)
    assert_matches(
        Views(path=str(path), image_size=SIZE, embeddings=["clip"]).load(2, [9], None), model, ViewStore(path)
    )


def test_only_images_where_captions_or_texts_are_not_wanted(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "plain"
    with ViewStoreWriter(path) as writer:
        writer.add_object("a", np.zeros((2, SIZE, SIZE, 3), np.uint8))
    assert made(path, model).captions == 0
    with pytest.raises(DataError, match="has no caption to embed"):
        made(path, model, "both", on=["text"])
    batch = Views(path=str(path), embeddings=["clip"]).load(0, [0, 1], None)
    assert set(batch.embeddings) == {"clip/image"}


# -- resuming --------------------------------------------------------------------------------------------------------


def test_an_interrupt_keeps_finished_shards_and_the_rest_is_the_same(embedded: Path, store: Path, model: Model) -> None:
    whole = {path.name: path.read_bytes() for path in folder_of(embedded, "clip").iterdir()}
    shutil.rmtree(store / "embeddings")
    with ViewStore(store) as opened:
        first = opened.shards[0].n_views + opened.shards[0].n_captions

    def stop(done: int, total: int) -> None:
        if done > first:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(store, model, on_progress=stop)
    folder = folder_of(store, "clip")
    assert sorted(path.name for path in folder.iterdir()) == ["key.json", "shard-00000.safetensors"]
    with pytest.raises(DataError, match=r"unfinished: 3 of 4 shards have no vectors yet; go on with"):
        Views(path=str(store), embeddings=["clip"])
    before = (folder / "shard-00000.safetensors").stat().st_mtime_ns
    report = made(store, model)
    assert (report.shards, report.kept) == (4, 1)
    assert (folder / "shard-00000.safetensors").stat().st_mtime_ns == before
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_store_that_grew_is_gone_on_with(store: Path, model: Model) -> None:
    with ViewStoreWriter(store, append=True, codec="png") as writer:
        add_objects(writer, range(OBJECTS, OBJECTS + 1))
    with pytest.raises(DataError, match="unfinished: 1 of 5 shards"):
        Views(path=str(store), embeddings=["clip"])
    report = made(store, model)
    assert (report.shards, report.kept, report.views) == (5, 4, VIEWS)
    source = Views(path=str(store), image_size=SIZE, embeddings=["clip"])
    assert_matches(source.load(OBJECTS, list(source.views_of(OBJECTS)), None), model, source.store)


def test_vectors_of_another_store_are_refused(store: Path, tmp_path: Path) -> None:
    other = write_store(tmp_path / "other", range(20, 20 + OBJECTS))
    shutil.copytree(store / "embeddings", other / "embeddings")
    with pytest.raises(DataError, match=r"embeddings/clip: made for other data than .*other holds now"):
        Views(path=str(other), embeddings=["clip"])


def test_a_file_of_another_shard_or_key_is_refused(store: Path, model: Model) -> None:
    folder = folder_of(store, "clip")
    made(store, model, "padded", fit="pad")
    for source in (folder / "shard-00001.safetensors", folder_of(store, "padded") / "shard-00000.safetensors"):
        shutil.copy(source, folder / "shard-00000.safetensors")
        with pytest.raises(DataError, match=r"shard-00000\.safetensors: .*; make it anew with"):
            Views(path=str(store), embeddings=["clip"])


# -- keys ------------------------------------------------------------------------------------------------------------


def other_model(clip: Path, **vision: Any) -> Model:
    """A model of the same width in another folder."""
    path = clip.with_name(f"other-{len(list(clip.parent.iterdir()))}.json")
    path.write_text(json.dumps({**CLIP, "vision_cfg": {**CLIP["vision_cfg"], **vision}}), "utf-8")
    return load_encoder("core.open_clip", {"model": str(path)})


def test_another_model_or_transform_is_refused_with_both_values(embedded: Path, model: Model, clip: Path) -> None:
    source = Views(path=str(embedded), image_size=SIZE)
    source.check_stored("clip", model_key(model))
    assert source.stored_views("clip", model_key(model)).load(0, [1], None).embeddings["clip/image"].shape == (1, WIDTH)
    key, other = model_key(model), model_key(other_model(clip, layers=2))
    with pytest.raises(DataError) as caught:
        source.check_stored("clip", other)
    said = str(caught.value)
    assert f"weights_sha256 is {key['weights_sha256'][:12]} there and {other['weights_sha256'][:12]} here" in said
    assert f"model is core.open_clip(model={clip}" in said
    assert said.endswith(
        f"mvcore data embed {embedded} --encoder core.open_clip --model {other['model']['model']} --tag clip --replace"
    )
    assert "\n" not in said
    padded = Views(path=str(embedded), image_size=SIZE, fit="pad")
    with pytest.raises(DataError, match='fit is "crop" there and "pad" here'):
        padded.stored_views("clip", key)
    with pytest.raises(DataError, match="image_size is 16 there and 32 here"):
        Views(path=str(embedded), image_size=32).stored_views("clip", key)


def test_weights_that_change_are_another_key(clip: Path) -> None:
    one = load_encoder("core.open_clip", {"model": str(clip)})
    key = model_key(one)
    assert key == model_key(load_encoder("core.open_clip", {"model": str(clip), "text_cache": False})) | {
        "model": key["model"]
    }
    with torch.no_grad():
        next(one.pipeline.parameters()).view(-1)[0] += 1e-6
    assert {name for name, value in model_key(one).items() if value != key[name]} == {"weights_sha256"}


def test_a_tag_is_not_written_over_with_other_vectors(store: Path, model: Model, clip: Path) -> None:
    before = folder_of(store, "clip").joinpath("shard-00000.safetensors").read_bytes()
    with pytest.raises(DataError, match=r'was made otherwise: fit is "crop" there and "pad" here; give another --tag'):
        made(store, model, fit="pad")
    with pytest.raises(DataError, match=r"features is .*image.* there and"):
        made(store, model, on=["image"])
    assert folder_of(store, "clip").joinpath("shard-00000.safetensors").read_bytes() == before
    other = other_model(clip, layers=2)
    assert made(store, other, replace=True).kept == 0
    source = Views(path=str(store), image_size=SIZE, embeddings=["clip"])
    assert_matches(source.load(0, [3], None), other, source.store)


@pytest.mark.parametrize("tag", ["", "..", "a/b", "a..b", ".hidden", "a b", "x" * 101, "a\n"])
def test_tags_that_are_no_names_are_refused(embedded: Path, tag: str) -> None:
    with pytest.raises(DataError, match="give letters, digits"):
        folder_of(embedded, tag)


def test_an_unknown_tag_names_those_that_are_there(embedded: Path) -> None:
    with pytest.raises(DataError, match=r"no embeddings 'clop' \(there are: clip\); make them with 'mvcore data embed"):
        Views(path=str(embedded), embeddings=["clop"])
    assert Views(path=str(embedded)).stored_embeddings("clop") == {}
    assert Views(path=str(embedded)).stored_embeddings("clip") == {"image": WIDTH, "text": WIDTH}


# -- damage ----------------------------------------------------------------------------------------------------------


class Given:
    """Vectors from arrays."""

    def __init__(self, store: ViewStore, vectors: NDArray[Any]) -> None:
        self._store, self._vectors = store, vectors
        self.key = {"model": {"id": "test"}, "features": {"image": {"feature": "view", "width": vectors.shape[1]}}}

    def rows(self, kind: str, n: int) -> Iterator[NDArray[Any]]:
        first = sum(shard.n_views for shard in self._store.shards[:n])
        yield self._vectors[first : first + self._store.shards[n].n_views]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "its vector is not finite"),
        (-np.inf, "its vector is not finite"),
        (65536.0, "its vector reaches 65536, but float16 holds 65504 at most"),
    ],
)
def test_vectors_that_float16_cannot_hold_are_named(store: Path, value: float, said: str) -> None:
    with ViewStore(store) as opened:
        vectors = np.ones((opened.n_views, 3), np.float32)
        vectors[10, 1] = value
        with pytest.raises(DataError, match=rf"view 2 of object 'object-2': {said}"):
            embed_store(opened, Given(opened, vectors), "bad")
        vectors[10, 1] = 65504
        embed_store(opened, Given(opened, vectors), "bad")
        assert EmbeddingCache(opened, "bad").read("image", [10])[0, 1] == 65504


@pytest.fixture(scope="module")
def vector_file(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, Any]:
    """A copy of the first shard's file, its bytes, and what opens it."""
    path = tmp_path_factory.mktemp("file") / "shard-00000.safetensors"
    shutil.copy(folder_of(embedded, "clip") / path.name, path)
    with ViewStore(embedded) as store:
        key, shard = EmbeddingCache(store, "clip").key, store.shards[0]
        shapes, metadata = shapes_of(key, shard), file_metadata(key, shard)
    return path, path.read_bytes(), lambda: VectorFile(path, shapes, metadata)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_truncated_files_are_one_line(vector_file: tuple[Path, bytes, Any], data: st.DataObject) -> None:
    path, whole, opened = vector_file
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DataError, match=r"shard-00000\.safetensors: .*make it anew with 'mvcore data embed'$"):
        opened()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_byte_never_gives_other_vectors(vector_file: tuple[Path, bytes, Any], data: st.DataObject) -> None:
    path, whole, opened = vector_file
    path.write_bytes(whole)
    rows = np.arange(4)
    wanted = opened().read("image", rows, str)
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    with suppress(DataError):
        assert np.array_equal(opened().read("image", rows, str), wanted)


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@pytest.mark.parametrize(
    "change",
    [
        {"image": {"dtype": "F16", "shape": [2**40, 8], "data_offsets": [0, 2**44]}},
        {"image": {"dtype": "F16", "shape": [4, 8], "data_offsets": [-64, 0]}},
        {"image": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}},
        {"image": {"dtype": "F16", "shape": [True, 8], "data_offsets": [0, 16]}},
        {"image": {"dtype": "F16", "shape": [4, 8], "data_offsets": []}},
        {"image": {"dtype": "F16", "shape": [4, 8], "data_offsets": [0.0, 64.0]}},
        {"image": [1]},
        {"image": None},
        {"__metadata__": {}},
        {"__metadata__": None},
    ],
)
def test_hostile_headers_are_refused(store: Path, change: dict[str, Any]) -> None:
    path = folder_of(store, "clip") / "shard-00000.safetensors"
    header, arrays = header_of(path)
    text = json.dumps({**header, **change}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + arrays)
    with pytest.raises(DataError, match=r"shard-00000\.safetensors: "):
        Views(path=str(store), embeddings=["clip"])


@pytest.mark.parametrize("length", [0, 2**63, 2**64 - 1, 1 << 21])
def test_impossible_header_lengths_are_refused(store: Path, length: int) -> None:
    path = folder_of(store, "clip") / "shard-00000.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(DataError, match="truncated, or no safetensors file"):
        Views(path=str(store), embeddings=["clip"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged: not JSON"),
        ("[" * 100_000, "damaged: not JSON"),
        ("[]", "not the key of mvcore.embeddings"),
        ('{"schema": "mvcore.embeddings", "version": 2}', "version 2, but 1 is read"),
        ('{"schema": "mvcore.embeddings", "version": 1}', "no features with widths"),
        ('{"schema": "mvcore.embeddings", "version": 1, "features": {"image": {"width": 0}}}', "no features with"),
        ('{"schema": "mvcore.embeddings", "version": 1, "features": {"image": {"width": true}}}', "no features with"),
        ('{"schema": "mvcore.embeddings", "version": 1, "features": {"../x": {"width": 8}}}', "no features with"),
        ('{"schema": "mvcore.embeddings", "version": 1, "features": {"image": {"width": 8}}}', "no dtype float16"),
    ],
)
def test_damaged_keys_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(DataError, match=said):
        read_key(tmp_path)


def test_damaged_keys_can_be_replaced(store: Path, model: Model) -> None:
    (folder_of(store, "clip") / "key.json").write_text("{")
    with pytest.raises(DataError, match="damaged: not JSON"):
        Views(path=str(store), embeddings=["clip"])
    with pytest.raises(DataError, match="damaged: not JSON"):
        made(store, model)
    made(store, model, replace=True)
    Views(path=str(store), embeddings=["clip"])


def test_a_file_that_shrinks_while_it_is_open_is_an_error(store: Path) -> None:
    source = Views(path=str(store), embeddings=["clip"], images=False)
    path = folder_of(store, "clip") / "shard-00000.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 2 * WIDTH)
    with ViewStore(store) as opened:
        last = opened.shards[0].n_captions - 1
    with pytest.raises(DataError, match="truncated while it was read"):
        EmbeddingCache.read(source._stored["clip"], "text", [last])


# -- files of others -------------------------------------------------------------------------------------------------


def duoduo(folder: Path, names: list[str], views: int = VIEWS, *, zero: int | None = None) -> tuple[Path, NDArray[Any]]:
    """A file of Duoduo CLIP's layout, rows in another order than the store's."""
    vectors = np.random.default_rng(0).standard_normal((len(names), views, 5)).astype(np.float16)
    if zero is not None:
        vectors[zero] = 0
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / "image_embeddings.h5", "w") as file:
        file["img_feat"] = vectors
    (folder / "model_to_idx.json").write_text(json.dumps({name: row for row, name in enumerate(names)}))
    return folder / "image_embeddings.h5", vectors


def test_duoduos_vectors_are_taken_by_object_id(store: Path, tmp_path: Path) -> None:
    names = [f"object-{i}" for i in (3, 1, 6, 0, 2, 5, 4)]
    path, vectors = duoduo(tmp_path / "duoduo", [*names, "another"])
    embed(store, imported=path, tag="released")
    source = Views(path=str(store), embeddings=["released"], images=False)
    batch = source.load_many([(6, [26, 25]), (0, [3])], None)
    wanted = [vectors[2, 2], vectors[2, 1], vectors[3, 3]]
    assert np.array_equal(batch.embeddings["released/image"].numpy(), np.stack(wanted).astype(np.float32))
    assert "released/text" not in batch.embeddings


def test_a_vector_for_the_caption_of_each_view_is_taken_too(store: Path, tmp_path: Path) -> None:
    path, _ = duoduo(tmp_path / "duoduo", ["b", "a"], views=2)
    texts = np.random.default_rng(1).standard_normal((2, 2, 6)).astype(np.float16)
    with h5py.File(path, "r+") as file:
        file["text_feat"] = texts
    captioned = tmp_path / "captioned"
    with ViewStoreWriter(captioned) as writer:
        for name in "ab":
            pixels = np.zeros((2, SIZE, SIZE, 3), np.uint8)
            writer.add_object(name, pixels, view_captions=[f"{name} {v}" for v in range(2)])
    embed(captioned, imported=path, tag="released", on="image,text")
    batch = Views(path=str(captioned), embeddings=["released"], images=False).load(1, [3, 2], None)
    assert batch.captions == ("b 1", "b 0")
    assert np.array_equal(batch.embeddings["released/text"].numpy(), texts[0, ::-1].astype(np.float32))
    path, _ = duoduo(tmp_path / "other", [f"object-{i}" for i in range(OBJECTS)])
    with h5py.File(path, "r+") as file:
        file["text_feat"] = np.ones((OBJECTS, VIEWS, 6), np.float16)
    with pytest.raises(DataError, match=r"the one caption of each view, but object 'object-0' of .* has others"):
        embed(store, imported=path, tag="released", on="text")


def test_duoduos_vectors_stand_for_no_model(store: Path, tmp_path: Path, model: Model) -> None:
    embed(store, imported=duoduo(tmp_path / "duoduo", [f"object-{i}" for i in range(OBJECTS)])[0], tag="released")
    with pytest.raises(DataError, match=r"model is import\(\) there and core.open_clip"):
        Views(path=str(store), image_size=SIZE).stored_views("released", model_key(model))


def test_what_does_not_fit_the_store_is_named(store: Path, tmp_path: Path) -> None:
    names = [f"object-{i}" for i in range(OBJECTS)]
    with pytest.raises(DataError, match=r"no vectors of 2 of 7 objects of .*, first 'object-5'"):
        embed(store, imported=duoduo(tmp_path / "a", names[:5])[0])
    with pytest.raises(DataError, match=r"3 vectors an object, but 'object-0' of .* has 4 views"):
        embed(store, imported=duoduo(tmp_path / "b", names, 3)[0])
    with pytest.raises(DataError, match="object 'object-2': never written"):
        embed(store, imported=duoduo(tmp_path / "c", names, zero=2)[0])


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_names_what_it_made(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_store(tmp_path / "store", range(2))
    embed(path, encoder="core.open_clip", model=str(clip), workers=2)
    said = capsys.readouterr()
    assert said.out == f"{path}/embeddings/clip: 8 views, 7 captions\n"
    assert "embeddings=[clip]" in said.err
    embed(path, encoder=str(clip), tag="clip")
    assert capsys.readouterr().out.endswith("0 views, 0 captions; 1 of 1 shards were there\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give either --encoder"),
        ({"encoder": "core.open_clip", "imported": Path("x.h5")}, "give either --encoder"),
        ({"encoder": "core.open_clip", "on": "images"}, "--on images: write image, text or image,text"),
        ({"encoder": "clip.json", "model": "ViT-B-32"}, "--model and --pretrained go with a backbone's id"),
        ({"encoder": "core.open_clip", "device": "gpu"}, "--device gpu: write cpu or cuda"),
        ({"encoder": "core.open_clap"}, "unknown encoder 'core.open_clap', did you mean 'core.open_clip'"),
        ({"encoder": "vit_nosuch_patch16.tag"}, "timm .*vit_nosuch_patch16"),
    ],
)
def test_options_that_do_not_go_together_are_refused(embedded: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(MvcoreError, match=said):
        embed(embedded, **options)
