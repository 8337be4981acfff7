"""Indexes: what is found and in what order, what is kept on disk, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mvcore
import mvcore.index
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.cli.main import run
from mvcore.config import Part
from mvcore.errors import ConfigError, DataError, MvcoreError
from mvcore.index.nearest import Nearest
from mvcore.index.searching import Index
from mvcore.index.sheet import draw_hits
from mvcore.loading import load_encoder, make_run_pipeline
from mvcore.model import Model
from mvcore_data import ViewStoreWriter
from PIL import Image
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from conftest import Lab

RNG = np.random.default_rng(5)
BACKENDS = ("faiss", "numpy")


@pytest.fixture(scope="module")
def model(lab: Lab) -> Model:
    return mvcore.load(lab.clip)


@pytest.fixture(scope="module")
def index(lab: Lab, model: Model) -> Index:
    return mvcore.index.build(lab.store, model)


@pytest.fixture(scope="module")
def views(lab: Lab) -> list[np.ndarray]:
    """Six views of each object."""
    from mvcore_data import ViewStore

    with ViewStore(lab.store) as store:
        return [np.stack([store.image(v) for v in store.views_of(i)]) for i in range(len(store))]


@pytest.fixture
def saved(index: Index, tmp_path: Path) -> Path:
    return index.save(tmp_path / "saved.index")


def told(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# -- order -------------------------------------------------------------------------------------------------------------


def brute_force(vectors: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    """The k rows of largest inner product in exact arithmetic, ties by row."""
    products = [sum(float(a) * float(b) for a, b in zip(row, query, strict=True)) for row in vectors]
    return sorted(range(len(vectors)), key=lambda row: (-products[row], row))[:k]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 90), dim=st.integers(1, 9), k=st.integers(1, 40), levels=st.integers(2, 5), seed=st.integers(0)
)
def test_hits_are_those_of_brute_force(backend: Any, rows: int, dim: int, k: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Few levels, in powers of two: sums are exact, and many rows tie.
    vectors = rng.choice(2.0 ** -np.arange(levels), (rows, dim)).astype(np.float32)
    queries = rng.choice(2.0 ** -np.arange(levels), (3, dim)).astype(np.float32)
    scores, found = Nearest(vectors, backend).search(queries, k)
    assert found.shape == (3, min(k, rows))
    for query, own, products in zip(queries, found, scores, strict=True):
        assert own.tolist() == brute_force(vectors, query, k)
        np.testing.assert_allclose(products, vectors[own] @ query, rtol=1e-5)


def test_both_backends_give_the_same_hits_where_float32_cannot_tell_rows_apart() -> None:
    base = RNG.normal(size=(40, 64))
    near = np.concatenate([base + 1e-7 * RNG.normal(size=base.shape) for _ in range(50)])
    vectors = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    queries = vectors[::97]
    (faiss_scores, faiss_rows), (scores, rows) = (Nearest(vectors, b).search(queries, 30) for b in BACKENDS)
    np.testing.assert_array_equal(faiss_rows, rows)
    np.testing.assert_array_equal(faiss_scores, scores)
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :30], atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_rows_come_in_their_order_however_many_they_are(backend: Any) -> None:
    vectors = np.tile(np.array([[0.6, 0.8]], np.float32), (500, 1))
    _, rows = Nearest(vectors, backend).search(np.array([[1, 0], [0.6, 0.8]], np.float32), 20)
    np.testing.assert_array_equal(rows, [np.arange(20)] * 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_queries_and_rows_in_pieces(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mvcore.index import nearest

    monkeypatch.setattr(nearest, "_CELLS", 100)
    monkeypatch.setattr(nearest, "_QUERIES", 7)
    vectors, queries = (normalize(torch.randn(n, 6), dim=1).numpy() for n in (90, 20))
    _, rows = Nearest(vectors, backend).search(queries, 5)
    assert rows.tolist() == [brute_force(vectors, query, 5) for query in queries]


def test_without_faiss_numpy_takes_its_place(index: Index, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert index.nearest.backend == "faiss"
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(mvcore.index.nearest.importlib.util, "find_spec", lambda name: None)  # pyright: ignore
    plain = mvcore.index.load(saved)
    assert plain.nearest.backend == "numpy"
    assert plain.search(index.vectors, k=8) == index.search(index.vectors, k=8)
    with pytest.raises(ConfigError) as error:
        mvcore.index.load(saved, backend="faiss")
    assert "mvcore[index]" in told(error)


@pytest.mark.process
def test_naming_the_package_loads_nothing_heavy() -> None:
    code = "import sys, mvcore; mvcore.index; print(sorted({'torch', 'faiss', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- vectors -----------------------------------------------------------------------------------------------------------


def test_an_object_is_the_direction_of_its_encoded_views(index: Index, model: Model, views: list[np.ndarray]) -> None:
    expected = normalize(model.encode_views(views), dim=1).numpy()
    assert index.vectors.dtype == np.float32
    np.testing.assert_allclose(index.vectors, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(index.vectors, axis=1), 1, atol=1e-6)


def test_a_models_object_feature_is_what_is_indexed(lab: Lab, views: list[np.ndarray]) -> None:
    encoder = Part(id="core.open_clip", args={"model": str(lab.clip), "pretrained": None})
    adapters = {"cross": Part(id="duoduo.cross_view", args={"cross_view_from": 0})}
    crossing = Model(make_run_pipeline(encoder, adapters, seed=0).eval(), name="crossing")
    found = mvcore.index.build(lab.store, crossing)
    expected = normalize(crossing.encode_views(views), dim=1).numpy()
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
    means = normalize(normalize(crossing.encode_images(np.concatenate(views)), dim=1).view(8, 6, 16).mean(1), dim=1)
    assert np.abs(found.vectors - means.numpy()).max() > 1e-4  # attention across views is another thing than averaging


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_finds_itself(saved: Path, backend: Any, views: list[np.ndarray]) -> None:
    index = mvcore.index.load(saved, backend=backend)
    for queries in (index.search(index.vectors, k=3), index.search(images=views, k=3)):
        assert [hits[0].id for hits in queries] == index.ids
        assert all(abs(hits[0].score - 1) < 1e-4 for hits in queries)
        assert all([hit.rank for hit in hits] == [1, 2, 3] for hits in queries)


def test_views_are_rows_of_their_own(lab: Lab, model: Model, views: list[np.ndarray], tmp_path: Path) -> None:
    index = mvcore.index.build(lab.store, model, of="view")
    assert len(index) == 48
    index = mvcore.index.load(index.save(tmp_path / "views.index"))
    hits = index.search(images=[views[3][4]], k=48)[0]
    assert (hits[0].id, hits[0].view) == ("lamp-3", 4)
    assert abs(hits[0].score - 1) < 1e-4
    assert len({(hit.id, hit.view) for hit in hits}) == 48


def test_texts_and_vectors_are_queries_alike(index: Index, model: Model) -> None:
    texts = ["a cup 0", "the boat 2"]
    by_text = index.search(texts=texts, k=8)
    assert by_text == index.search(model.encode_text(texts), k=8)
    assert by_text == index.search(3 * model.encode_text(texts).double().numpy(), k=8)
    assert by_text[:1] == index.search(texts="a cup 0", k=8)
    unit = normalize(model.encode_text(texts).double(), dim=1).numpy()
    cosines = unit @ index.vectors.T.astype(np.float64)
    for hits, row in zip(by_text, cosines, strict=True):
        assert [hit.row for hit in hits] == np.argsort(-row, kind="stable").tolist()
        np.testing.assert_allclose([hit.score for hit in hits], -np.sort(-row), atol=1e-6)


def test_a_model_of_stored_vectors_indexes_them_without_an_image(lab: Lab, index: Index, tmp_path: Path) -> None:
    from mvcore_data import ViewStore
    from mvcore_data.embed import Encoded, embed_store

    path = Path(shutil.copytree(lab.store, tmp_path / "store"))
    with ViewStore(path) as store:
        embed_store(store, Encoded(store, mvcore.load(lab.clip)), "clip")
    stored = load_encoder("core.embeddings", {"tag": "clip", "width": 16})
    found = mvcore.index.build(path, stored)
    np.testing.assert_allclose(found.vectors, index.vectors, atol=2e-3)  # they are stored in 16 bits
    hits = found.search(texts="a cup 0", k=3)[0]
    assert [hit.id for hit in hits] == [hit.id for hit in index.search(texts="a cup 0", k=3)[0]]
    draw_hits(found, hits, tmp_path / "hits.png", query="a cup 0")
    assert found.changes() == ""
    with pytest.raises(DataError, match="no vector is stored for the text 'a ship'"):
        found.search(texts="a ship")
    with pytest.raises(DataError, match="which the batch lacks"):
        found.search(images=[np.zeros((1, 32, 32, 3), np.uint8)])


def test_a_model_without_texts_is_searched_by_images(lab: Lab, views: list[np.ndarray]) -> None:
    silent = mvcore.load(lab.clip)
    silent.backbone.provides = frozenset({"view"})
    found = mvcore.index.build(lab.store, silent)
    assert found.search(images=views[2], k=1)[0][0].id == "boat-2"
    with pytest.raises(ConfigError) as error:
        found.search(texts="a cup")
    assert "encodes no text" in told(error)


def test_hits_carry_what_is_known_of_an_object(lab: Lab, model: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(2)]
    with ViewStoreWriter(tmp_path / "store", codec="png") as store:
        store.add_object("a", pictures, captions=["whole"], category="cup", licence="CC-BY-4.0")
        store.add_object("b", pictures[::-1], view_captions=[["front"], ["back", "rear"]])
        store.add_object("c", [pictures[0] // 2])
    index = mvcore.index.build(tmp_path / "store", model)
    a, b, c = sorted(index.search(texts="x", k=9)[0], key=lambda hit: hit.id)
    assert (a.category, a.licence, a.captions, a.view) == ("cup", "CC-BY-4.0", ("whole",), None)
    assert (b.category, b.licence, b.captions) == (None, None, ("front", "back", "rear"))
    assert c.captions == ()
    of_views = mvcore.index.build(tmp_path / "store", model, of="view")
    found = {(hit.id, hit.view): hit.captions for hit in of_views.search(texts="x", k=9)[0]}
    assert found == {
        ("a", 0): ("whole",),
        ("a", 1): ("whole",),
        ("b", 0): ("front",),
        ("b", 1): ("back", "rear"),
        ("c", 0): (),
    }


def test_queries_that_cannot_be_are_one_line(index: Index) -> None:
    vectors = index.vectors
    for call, words in (
        (lambda: index.search(), "0 are given"),
        (lambda: index.search(vectors, texts="a"), "2 are given"),
        (lambda: index.search("a cup"), "texts="),
        (lambda: index.search(vectors, k=0), "at least 1"),
        (lambda: index.search(vectors[:, :3]), "(Q, 16)"),
        (lambda: index.search(vectors.astype(np.int64)), "floating"),
        (lambda: index.search(vectors[:0]), "no query"),
        (lambda: index.search(0 * vectors), "query 0 has length 0"),
        (lambda: index.search(np.full(16, np.nan)), "query 0 has length nan"),
        (lambda: index.search(texts=[]), "no query"),
        (lambda: index.search(images=[[]]), "no view"),
    ):
        with pytest.raises((ConfigError, DataError)) as error:
            call()
        assert words in told(error)


# -- on disk -----------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_what_is_loaded(index: Index, saved: Path, tmp_path: Path) -> None:
    loaded = mvcore.index.load(saved)
    np.testing.assert_array_equal(loaded.vectors, index.vectors)
    assert loaded.catalogue == index.catalogue
    assert loaded.search(texts="a cup 0") == index.search(texts="a cup 0")
    again = loaded.save(tmp_path / "again.index")
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in saved.iterdir()}


def test_a_folder_is_never_overwritten_unless_asked(index: Index, saved: Path, lab: Lab, model: Model) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(ConfigError) as error:
        index.save(saved)
    assert str(saved) in told(error)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    mvcore.index.build(lab.store, model, of="view").save(saved, replace=True)
    assert len(mvcore.index.load(saved)) == 48
    assert len(list(saved.iterdir())) == 2


def test_what_is_no_index_is_never_replaced(index: Index, lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target in (lab.store, tmp_path / "notes", tmp_path / "file"):
        with pytest.raises(ConfigError) as error:
            index.save(target, replace=True)
        assert str(target) in told(error)
    assert (tmp_path / "notes" / "a.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_an_interrupt_while_replacing_leaves_the_old_index(
    index: Index, saved: Path, lab: Lab, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, payload: bytes) -> None:
        raise KeyboardInterrupt

    other = mvcore.index.build(lab.store, model, of="view")
    with monkeypatch.context() as patch:
        patch.setattr(mvcore.index.folder, "write_atomic", interrupted)  # pyright: ignore
        with pytest.raises(KeyboardInterrupt):
            other.save(saved, replace=True)
    assert len(mvcore.index.load(saved)) == 8
    other.save(saved, replace=True)
    assert len(mvcore.index.load(saved)) == 48


def damage(folder: Path, how: str) -> None:
    catalogue = folder / "index.json"
    vectors = next(folder.glob("vectors-*"))
    values = json.loads(catalogue.read_text())
    payload = bytearray(vectors.read_bytes())
    match how:
        case "cut vectors":
            vectors.write_bytes(payload[:-5])
        case "flipped bit":
            payload[-3] ^= 1
            vectors.write_bytes(payload)
        case "no vectors":
            vectors.unlink()
        case "cut catalogue":
            catalogue.write_text(catalogue.read_text()[:-100])
        case "binary catalogue":
            catalogue.write_bytes(b"\xff\xfe\x00")
        case "another format":
            catalogue.write_text(json.dumps({**values, "format": "other"}))
        case "another version":
            catalogue.write_text(json.dumps({**values, "version": 2}))
        case "another place":
            catalogue.write_text(json.dumps({**values, "vectors": "../../elsewhere.safetensors"}))
        case "fewer objects":
            catalogue.write_text(json.dumps({**values, "objects": values["objects"][:3]}))
        case "another width":
            catalogue.write_text(json.dumps({**values, "dim": 17}))
        case _:
            shutil.rmtree(folder)


@pytest.mark.parametrize(
    "how",
    [
        "cut vectors", "flipped bit", "no vectors", "cut catalogue", "binary catalogue", "another format",
        "another version", "another place", "fewer objects", "another width", "nothing",
    ],
)  # fmt: skip
def test_damage_is_one_line_that_names_the_file(saved: Path, how: str) -> None:
    damage(saved, how)
    with pytest.raises(MvcoreError) as error:
        mvcore.index.load(saved)
    assert str(saved) in told(error)


# -- models and stores that changed ------------------------------------------------------------------------------------


def test_another_model_is_refused_and_both_are_named(saved: Path, lab: Lab, tmp_path: Path) -> None:
    config = json.loads(lab.clip.read_text())
    config["vision_cfg"]["layers"] = 1
    other = tmp_path / "other.json"
    other.write_text(json.dumps(config))
    with pytest.raises(ConfigError) as error:
        mvcore.index.load(saved, other)
    assert str(lab.clip) in told(error)
    assert str(other) in told(error)
    assert "weights" in told(error)


def test_a_model_that_changed_under_its_name_is_refused_when_it_is_needed(lab: Lab, tmp_path: Path) -> None:
    clip = tmp_path / "clip.json"
    shutil.copy(lab.clip, clip)
    folder = mvcore.index.build(lab.store, clip).save(tmp_path / "a.index")
    config = json.loads(clip.read_text())
    config["vision_cfg"]["width"] = 48
    clip.write_text(json.dumps(config))
    index = mvcore.index.load(folder)
    assert index.search(index.vectors[:1], k=1)[0][0].id == "cup-0"
    with pytest.raises(ConfigError) as error:
        index.search(texts="a cup")
    assert "another" not in told(error)
    assert "architecture" in told(error)
    clip.unlink()
    with pytest.raises(MvcoreError) as error:
        mvcore.index.load(folder).search(texts="a cup")
    assert "clip.json" in told(error)


def test_an_index_is_searched_from_another_folder_than_it_was_built_in(
    lab: Lab, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mvcore.checkpoint import save_weights

    shutil.copy(lab.clip, tmp_path / "clip.json")
    save_weights(tmp_path / "clip.safetensors", model.backbone.model.state_dict())
    shutil.copytree(lab.store, tmp_path / "shapes")
    monkeypatch.chdir(tmp_path)
    mvcore.index.build("shapes", "clip.json:clip.safetensors").save("a.index")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    index = mvcore.index.load("../a.index")
    assert len(index.search(texts="a cup", k=3)[0]) == 3
    assert index.changes() == ""


def write_store(path: Path, objects: dict[str, int], seed: int = 0) -> None:
    shutil.rmtree(path, ignore_errors=True)
    rng = np.random.default_rng(seed)
    with ViewStoreWriter(path, codec="png") as store:
        for name, count in objects.items():
            store.add_object(name, [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(count)])


def test_what_changed_in_a_store_is_named(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "store"
    write_store(path, {"a": 2, "b": 2, "c": 1})
    index = mvcore.index.build(path, model)
    assert index.changes() == ""
    write_store(path, {"a": 2, "b": 3, "d": 1, "e": 1, "f": 1, "g": 1})
    assert "gone: c; new: d, e, f and 1 more; other views: b" in index.changes()
    assert str(path) in index.changes()
    write_store(path, {"a": 2, "b": 2, "c": 1}, seed=1)
    assert "images" in index.changes()
    shutil.rmtree(path)
    assert "cannot be read" in index.changes()
    assert "\n" not in index.changes()


def test_a_feature_without_direction_is_refused_by_the_objects_name(lab: Lab) -> None:
    broken = mvcore.load(lab.clip)
    with torch.no_grad():
        broken.backbone.model.visual.proj.zero_()  # pyright: ignore
    with pytest.raises(DataError) as error:
        mvcore.index.build(lab.store, broken)
    assert "'cup-0'" in told(error)


# -- the program -------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path, views: list[np.ndarray]) -> list[Path]:
    """Two views of object 5: one with a transparent edge, one larger than the store's."""
    first = Image.fromarray(views[5][0])
    alpha = np.full((32, 32), 255, np.uint8)
    alpha[0] = 0
    first.putalpha(Image.fromarray(alpha))
    first.save(tmp_path / "a.png")
    Image.fromarray(views[5][1]).resize((96, 96), Image.Resampling.NEAREST).save(tmp_path / "b.png")
    return [tmp_path / "a.png", tmp_path / "b.png"]


def test_build_and_search(
    lab: Lab, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["index", "build", str(lab.store), "--model", str(lab.clip)]) == 0
    assert "8 objects" in capsys.readouterr().out
    assert (tmp_path / "store.index" / "index.json").is_file()
    assert run(["index", "build", str(lab.store), "--model", str(lab.clip)]) == 2
    assert "store.index: is there already" in capsys.readouterr().err
    assert run(["search", "store.index", "a", "white", "couch", "-k", "3"]) == 0
    words = capsys.readouterr()
    assert words.out.splitlines()[0].split() == ["rank", "score", "id", "category", "caption"]
    assert len(words.out.splitlines()) == 5
    assert words.err == ""
    assert run(["index", "search", "store.index", "a white couch", "-k", "3"]) == 0
    assert capsys.readouterr().out == words.out
    arguments = ["search", "store.index", "--image", *map(str, photos), "-k", "2", "--json", "--sheet", "hits.png"]
    assert run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["query"] == {"images": [str(photo) for photo in photos]}
    assert [hit["rank"] for hit in found["hits"]] == [1, 2]
    assert found["hits"][0]["id"] == "chair-5"
    assert found["hits"][0]["captions"] == ["a chair 5", "the chair 5"]
    with Image.open("hits.png") as sheet:
        assert sheet.width > 300
        pixels = np.asarray(sheet.convert("RGB"))
    # Of both query images and of both hits something is to be seen.
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_a_background_changes_what_is_searched(lab: Lab, saved: Path, photos: list[Path], capsys: Any) -> None:
    scores = []
    for colour in ("white", "#000000", "white"):
        assert run(["search", str(saved), "--image", str(photos[0]), "--background", colour, "--json"]) == 0
        scores.append([hit["score"] for hit in json.loads(capsys.readouterr().out)["hits"]])
    assert scores[0] == scores[2] != scores[1]


def test_a_changed_store_is_a_warning(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "store"
    write_store(path, {"a": 2, "b": 2})
    target = str(tmp_path / "x.index")
    assert run(["index", "build", str(path), "--model", str(lab.clip), "-o", target, "--of", "view"]) == 0
    write_store(path, {"a": 2})
    capsys.readouterr()
    assert run(["search", target, "a cup"]) == 0
    words = capsys.readouterr()
    assert "gone: b" in words.err
    assert words.err.startswith("warning: ")
    assert len(words.out.splitlines()) == 6
    assert "view" in words.out.splitlines()[0]
    assert run(["search", target, "a cup", "--sheet", str(tmp_path / "no.png")]) == 2
    assert "no longer holds 'b'" in capsys.readouterr().err
    assert not (tmp_path / "no.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "INDEX"], "name what to search for"),
        (["search", "nowhere", "a cup"], "no index there"),
        (["search", "INDEX", "--image", "nowhere.png"], "no such image"),
        (["search", "INDEX", "--image", "CLIP"], "cannot be read as an image"),
        (["search", "INDEX", "a cup", "--background", "whiteish"], "no colour"),
        (["search", "INDEX", "a cup", "-k", "0"], "-k"),
        (["search", "INDEX", "a cup", "--device", "tpux"], "--device"),
        (["search", "INDEX", "a cup", "--model", "nowhere"], "nowhere"),
        (["index", "build", "STORE", "--model", "CLIP", "--of", "scene"], "--of 'scene'"),
        (["index", "build", "nowhere", "--model", "CLIP", "-o", "NEW"], "nowhere"),
        (["index", "build", "STORE", "--model", "CLIP", "-o", "NEW", "--split", "test"], "split 'test'"),
        (["index", "build", "STORE", "--model", "CLIP", "-o", "STORE", "--replace"], "no index"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    lab: Lab, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    places = {"INDEX": saved, "STORE": lab.store, "CLIP": lab.clip, "NEW": tmp_path / "new.index"}
    assert run([str(places.get(word, word)) for word in arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "new.index").exists()
