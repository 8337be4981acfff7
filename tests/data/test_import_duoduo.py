"""Duoduo CLIP's raw H5 files: the right pixels under the right id, and every other file refused by name."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mvcore.api import ConfigError, DataError
from mvcore.cli.main import run
from mvcore_data import ViewStore
from mvcore_data.importers.base import Skipped, SourceObject, SourceView
from mvcore_data.importers.duoduo import FORMAT, DuoduoOptions
from mvcore_data.importers.duoduo_embeddings import DuoduoEmbeddings
from mvcore_data.source_images import UnusableError
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile, get_sampling

SIDE = 8


def pixels_of(rows: int, views: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (rows, views, 3, SIDE, SIDE), dtype=np.uint8)


def write_four(folder: Path, imgs: np.ndarray, ids: dict[str, int], **layout: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "mv_images.h5", "w") as file:
        file.create_dataset("imgs", data=imgs, **layout)
    (folder / "model_to_idx.json").write_text(json.dumps(ids))
    return folder


def objects(path: Path, **options: Any) -> tuple[list[SourceObject], Skipped]:
    skipped = Skipped()
    source = FORMAT.open(path, DuoduoOptions(**options))
    found = list(source.objects(skipped))
    assert source.total == len(found)
    return found, skipped


def pixels(view: SourceView) -> np.ndarray:
    data = view.read()
    assert isinstance(data, bytes)
    return np.asarray(Image.open(io.BytesIO(data)))


def write_texts(path: Path, texts: dict[str, Any]) -> Path:
    np.save(path, np.array(texts, dtype=object), allow_pickle=True)
    return path


@pytest.mark.parametrize(
    "layout",
    [{}, {"chunks": (1, 1, 3, SIDE, SIDE)}, {"chunks": (2, 12, 3, SIDE, SIDE), "compression": "gzip", "shuffle": True}],
    ids=["contiguous", "chunk per view", "gzip"],
)
def test_each_view_is_the_pixels_of_its_row(tmp_path: Path, layout: dict[str, Any]) -> None:
    imgs = pixels_of(3)
    folder = write_four(tmp_path, imgs, {"c": 2, "a": 0, "b": 1}, **layout)
    for path in (folder, folder / "mv_images.h5"):
        found, skipped = objects(path, codec="png")
        assert [item.id for item in found] == ["a", "b", "c"]
        assert not skipped.counts
        for row, item in enumerate(found):
            assert len(item.views) == 12
            for view, source_view in enumerate(item.views):
                image = pixels(source_view)
                assert image.shape == (SIDE, SIDE, 3)
                for y, x in ((0, 0), (3, 5), (SIDE - 1, 1)):
                    assert image[y, x].tolist() == imgs[row, view, :, y, x].tolist()
    assert found[1].views[4].name.endswith("mv_images.h5: imgs[1, 4]")


def test_pixels_are_jpegs_of_quality_95_without_subsampling_unless_asked(tmp_path: Path) -> None:
    imgs = pixels_of(1)
    folder = write_four(tmp_path, imgs, {"a": 0})
    upright = imgs[0, 2].transpose(1, 2, 0)
    wanted = io.BytesIO()
    Image.fromarray(upright).save(wanted, "JPEG", quality=95, subsampling=0)
    found = objects(folder)[0][0].views[2].read()
    assert isinstance(found, bytes)
    jpegs = [JpegImageFile(io.BytesIO(data)) for data in (found, wanted.getvalue())]
    assert jpegs[0].quantization == jpegs[1].quantization
    assert get_sampling(jpegs[0]) == get_sampling(jpegs[1]) == 0
    assert np.abs(np.asarray(jpegs[0]).astype(int) - upright).mean() < 8
    low = objects(folder, quality=10)[0][0].views[2].read()
    assert len(low) < len(objects(folder)[0][0].views[2].read())
    webp = objects(folder, codec="webp", quality=100)[0][0].views[2]
    np.testing.assert_array_equal(pixels(webp), upright)


def test_the_folder_is_recognised_by_its_marks(tmp_path: Path) -> None:
    folder = write_four(tmp_path / "four", pixels_of(1), {"a": 0})
    assert FORMAT.detect(folder) == "mv_images.h5 with model_to_idx.json"
    assert FORMAT.detect(folder / "mv_images.h5") == "mv_images.h5 with model_to_idx.json"
    assert FORMAT.detect(folder / "model_to_idx.json") is None
    (folder / "model_to_idx.json").unlink()
    assert FORMAT.detect(folder) is None
    assert FORMAT.detect(tmp_path / "missing") is None


def test_rows_that_were_never_written_are_left_out(tmp_path: Path) -> None:
    imgs = pixels_of(4)
    imgs[1] = 0
    imgs[2, 3] = 0  # one black view is a view
    found, skipped = objects(write_four(tmp_path, imgs, {"a": 0, "gap": 1, "b": 2}))
    with pytest.raises(UnusableError, match="never written"):
        found[1].views[0].read()
    assert not pixels(found[2].views[3]).any()
    assert skipped.counts == {"a row that the index does not name": 1}
    assert skipped.first["a row that the index does not name"].endswith("mv_images.h5: imgs[3]")


def test_a_chunk_that_was_never_written_is_left_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "mv_images.h5", "w") as file:
        imgs = file.create_dataset("imgs", (2, 12, 3, SIDE, SIDE), "u1", chunks=(1, 12, 3, SIDE, SIDE))
        imgs[0] = 7
    (tmp_path / "model_to_idx.json").write_text('{"a": 0, "b": 1}')
    found, _ = objects(tmp_path)
    assert pixels(found[0].views[0]).tolist() == np.full((SIDE, SIDE, 3), 7).tolist()
    with pytest.raises(UnusableError, match="never written"):
        found[1].views[0].read()


def test_the_index_of_an_array_is_never_guessed(tmp_path: Path) -> None:
    folder = write_four(tmp_path, pixels_of(1), {"four": 0})
    with h5py.File(folder / "lvis_images.h5", "w") as file:
        file["imgs"] = pixels_of(1)
    with pytest.raises(ConfigError, match=r"2 HDF5 files \(lvis_images.h5, mv_images.h5\).*images=FILE"):
        objects(folder)
    assert objects(folder, images="mv_images.h5")[0][0].id == "four"
    with pytest.raises(DataError, match=r"lvis_images.h5: which model_to_idx.json is its index"):
        objects(folder, images="lvis_images.h5")
    (folder / "lvis_model_to_idx.json").write_text('{"lvis": 0}')
    assert objects(folder, images="lvis_images.h5")[0][0].id == "lvis"
    assert objects(folder, images="lvis_images.h5", index="model_to_idx.json")[0][0].id == "four"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 0, "b": 3}', "object 'b' is in row 3, but the array has rows 0 to 2"),
        ('{"a": -1}', "object 'a' is in row -1"),
        ('{"a": true}', "object 'a' is in row True"),
        ('{"a": 1e0}', "object 'a' is in row 1.0"),
        ('{"a": 1, "b": 1}', "row 1 is of two objects, 'a' and 'b'"),
        ('{"a": 0, "a": 1}', "names an object twice"),
        ("{}", "names no object"),
        ("[1]", "holds no JSON object"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, text: str, words: str) -> None:
    folder = write_four(tmp_path, pixels_of(3), {})
    (folder / "model_to_idx.json").write_text(text)
    with pytest.raises(DataError, match=r"model_to_idx.json") as error:
        objects(folder)
    assert words in str(error.value)


def _soft(file: h5py.File, folder: Path) -> None:
    file["else"] = pixels_of(1)
    file["imgs"] = h5py.SoftLink("/else")


def _external_link(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.bin", "w") as other:
        other["imgs"] = pixels_of(1)
    file["imgs"] = h5py.ExternalLink("other.bin", "/imgs")


def _external_storage(file: h5py.File, folder: Path) -> None:
    shape = (1, 12, 3, SIDE, SIDE)
    (folder / "raw.bin").write_bytes(bytes(int(np.prod(shape))))
    file.create_dataset("imgs", shape, "u1", external=[(folder / "raw.bin", 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File, folder: Path) -> None:
    shape = (1, 12, 3, SIDE, SIDE)
    layout = h5py.VirtualLayout(shape, "u1")
    layout[:] = h5py.VirtualSource(folder / "other.bin", "imgs", shape)
    file.create_virtual_dataset("imgs", layout)


def _unwritten(file: h5py.File, folder: Path) -> None:
    file.create_dataset("imgs", (1, 12, 3, SIDE, SIDE), "u1")


def _huge_row(file: h5py.File, folder: Path) -> None:
    file.create_dataset("imgs", (1, 12_000, 3, 1000, 1000), "u1", chunks=(1, 1, 3, 1000, 1000))


def _huge_chunk(file: h5py.File, folder: Path) -> None:
    file.create_dataset("imgs", (1000, 12, 3, 1000, 1000), "u1", chunks=(40, 12, 3, 1000, 1000))


REFUSED = [
    (
        lambda file, folder: file.create_dataset("img_feat", data=np.ones((1, 12, 4))),
        "no dataset 'imgs' .it has img_feat",
    ),
    (lambda file, folder: file.create_group("imgs"), "/imgs is not a dataset"),
    (lambda file, folder: file.create_dataset("imgs", data=pixels_of(1)[0]), "not uint8 of 5 dimensions"),
    (lambda file, folder: file.create_dataset("imgs", data=pixels_of(1).astype("f4")), "/imgs is float32"),
    (lambda file, folder: file.create_dataset("imgs", data=np.ones((1, 2, 4, 8, 8), "u1")), r"not \(objects, views, 3"),
    (lambda file, folder: file.create_dataset("imgs", data=np.ones((0, 2, 3, 8, 8), "u1")), "stored in full|of shape"),
    (lambda file, folder: file.create_dataset("imgs", data=[b"text"]), "/imgs is"),
    (_soft, "is a link to another place"),
    (_external_link, "is a link to another place"),
    (_external_storage, "lies in other files"),
    (_virtual, "lies in other files"),
    (_unwritten, "not stored in full"),
    (_huge_row, "a row of /imgs has 36000000000 bytes"),
    (_huge_chunk, "has chunks of shape"),
]


@pytest.mark.parametrize(("make", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_an_h5_of_another_schema_is_refused(tmp_path: Path, make: Any, words: str) -> None:
    with h5py.File(tmp_path / "mv_images.h5", "w") as file:
        make(file, tmp_path)
    (tmp_path / "model_to_idx.json").write_text('{"a": 0}')
    with pytest.raises(DataError, match=f"mv_images.h5.*{words}"):
        objects(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 2000, 4000])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_four(tmp_path, pixels_of(2), {"a": 0}) / "mv_images.h5"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"mv_images.h5"):
        objects(tmp_path)


def test_a_file_that_is_cut_off_while_it_is_read_gives_no_pixels(tmp_path: Path) -> None:
    path = write_four(tmp_path, pixels_of(2), {"a": 0, "b": 1}) / "mv_images.h5"
    found, _ = objects(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    found[0].views[0].read()
    with pytest.raises(UnusableError, match="the file ends before the row does"):
        found[1].views[0].read()


def test_damaged_metadata_is_an_error_never_a_crash(tmp_path: Path) -> None:
    path = write_four(tmp_path, pixels_of(1), {"a": 0}) / "mv_images.h5"
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    end = whole.index(pixels_of(1).tobytes())
    for _ in range(6):
        data = bytearray(whole)
        for place in rng.integers(0, end, 4):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            for view in objects(tmp_path)[0][0].views:
                view.read()
        except (DataError, UnusableError):
            pass


ENTRIES = {
    "a": {
        "text": ["a red cup "],
        "msft_caption": "a cup on a table",
        "blip_caption": "",
        "retrieval_text": ["mug", "mug"],
        "text_feat": [{"original": np.ones((1, 4))}],
    },
    "b": "a green jug",
    "elsewhere": "not in the images",
}
TEXTS_OF_A = ["a red cup", "a cup on a table", "mug"]


def test_a_pickle_is_read_only_when_the_user_says_so(tmp_path: Path) -> None:
    folder = write_four(tmp_path, pixels_of(3), {"a": 0, "b": 1, "c": 2})
    write_texts(folder / "text_embeddings.npy", ENTRIES)
    with pytest.raises(ConfigError, match=r"text_embeddings.npy: is a pickle, which can run any code.*--allow-pickle"):
        objects(folder, texts="text_embeddings.npy")
    found, _ = objects(folder, texts="text_embeddings.npy", allow_pickle=True)
    assert [list(item.captions) for item in found] == [TEXTS_OF_A, ["a green jug"], []]
    assert [list(item.captions) for item in objects(folder)[0]] == [[], [], []]


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_refused_pickle_runs_nothing(tmp_path: Path) -> None:
    folder = write_four(tmp_path, pixels_of(1), {"a": 0})
    np.save(folder / "texts.npy", np.array({"a": _Bomb(tmp_path / "ran")}, dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError):
        objects(folder, texts="texts.npy")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_texts_may_be_json(tmp_path: Path, suffix: str) -> None:
    folder = write_four(tmp_path, pixels_of(1), {"a": 0})
    data = json.dumps(
        {"a": {"text": ["a red cup"], "msft_caption": "a cup on a table", "retrieval_text": "mug"}}
    ).encode()
    (folder / f"texts{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert list(objects(folder, texts=f"texts{suffix}")[0][0].captions) == TEXTS_OF_A


def test_texts_of_views(tmp_path: Path) -> None:
    folder = write_four(tmp_path, pixels_of(3, views=2), {"a": 0, "b": 1, "c": 2})
    (folder / "texts.json").write_text(json.dumps({"a": ["front", ["back", "rear"]], "b": ["one only"]}))
    found, skipped = objects(folder, texts="texts.json", texts_of="views")
    assert [[list(view.captions) for view in item.views] for item in found] == [
        [["front"], ["back", "rear"]],
        [[], []],
        [[], []],
    ]
    assert not any(item.captions for item in found)
    assert skipped.counts == {"texts that are not one for each of the 2 views": 1}
    assert skipped.first["texts that are not one for each of the 2 views"] == "b"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.array(["no", "dictionary"]), "no dictionary by object id"),
        (np.array({1: "a"}, dtype=object), "no dictionary by object id"),
        (np.array({"a": {"text_feat": [1.0]}}, dtype=object), "holds no texts; features"),
    ],
)
def test_another_dictionary_is_refused(tmp_path: Path, data: np.ndarray, words: str) -> None:
    folder = write_four(tmp_path, pixels_of(1), {"a": 0})
    np.save(folder / "texts.npy", data, allow_pickle=True)
    with pytest.raises(DataError, match=words):
        objects(folder, texts="texts.npy", allow_pickle=True)


def test_a_damaged_pickle_is_an_error(tmp_path: Path) -> None:
    folder = write_four(tmp_path, pixels_of(1), {"a": 0})
    path = write_texts(folder / "texts.npy", ENTRIES)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"texts.npy: cannot be read"):
        objects(folder, texts="texts.npy", allow_pickle=True)
    path.write_bytes(pickle.dumps("not an npy file")[:5])
    with pytest.raises(DataError, match=r"texts.npy: cannot be read"):
        objects(folder, texts="texts.npy", allow_pickle=True)
    with pytest.raises(DataError, match=r"missing.json: no such file"):
        objects(folder, texts="missing.json")


def test_categories_come_from_the_csv_of_lvis(tmp_path: Path) -> None:
    folder = write_four(tmp_path, pixels_of(2), {"a": 0, "b": 1})
    (folder / "lvis.csv").write_text("class_idx,class_name,uid\n3,cup,a\n4,jug,other\n")
    assert [item.category for item in objects(folder, categories="lvis.csv")[0]] == ["cup", None]
    (folder / "val.csv").write_text("idx,name,id\n3,jug,b\n")
    assert [item.category for item in objects(folder, categories="val.csv")[0]] == [None, "jug"]
    (folder / "bad.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match=r"bad.csv: has no columns 'uid' and 'class_name'"):
        objects(folder, categories="bad.csv")


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_embeddings_by_object(tmp_path: Path, dtype: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 12, 6)).astype(dtype)
    vectors[1] = 0
    vectors[3, 0, 0] = np.inf
    with h5py.File(tmp_path / "image_embeddings.h5", "w") as file:
        file["img_feat"] = vectors
    (tmp_path / "model_to_idx.json").write_text('{"c": 2, "a": 0, "gap": 1, "inf": 3}')
    opened = DuoduoEmbeddings(tmp_path / "image_embeddings.h5")
    assert (opened.views, opened.dim, opened.ids) == (12, 6, ["a", "gap", "c", "inf"])
    for name, row in (("a", 0), ("c", 2)):
        assert opened.of(name).dtype == np.float16
        np.testing.assert_array_equal(opened.of(name), vectors[row].astype(np.float16))
    with pytest.raises(UnusableError, match="never written"):
        opened.of("gap")
    with pytest.raises(UnusableError, match="not finite in float16"):
        opened.of("inf")


def test_embeddings_of_another_kind_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "image_embeddings.h5", "w") as file:
        file["img_feat"] = np.ones((2, 4))
        file["text_feat"] = np.ones((2, 3, 4), "f2")
    (tmp_path / "model_to_idx.json").write_text('{"a": 0, "b": 1}')
    with pytest.raises(
        DataError, match=r"/img_feat is float64 of shape .2, 4., not float16 or float32 of 3 dimensions"
    ):
        DuoduoEmbeddings(tmp_path / "image_embeddings.h5")
    assert DuoduoEmbeddings(tmp_path / "image_embeddings.h5", "text_feat").views == 3


def test_the_command_packs_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imgs = pixels_of(3)
    imgs[1] = 0
    folder, store = write_four(tmp_path / "four", imgs, {"c": 2, "gap": 1, "a": 0}), str(tmp_path / "store")
    write_texts(folder / "texts.npy", ENTRIES)
    options = ["--option", "texts=texts.npy", "--option", "codec=png"]
    assert run(["data", "pack", str(folder), store, *options]) == 2
    assert "texts.npy: is a pickle" in capsys.readouterr().err
    assert run(["data", "pack", str(folder), store, *options, "--allow-pickle"]) == 0
    stdout, stderr = capsys.readouterr()
    assert stdout == f"{store}: 2 objects, 24 views\n"
    assert "format: duoduo (mv_images.h5 with model_to_idx.json)" in stderr
    assert "skipped: 12 (never written: all pixels of the object are zero)" in stderr
    with ViewStore(store) as opened:
        assert opened.object_ids == ["a", "c"]
        assert (opened.captions(0), opened.captions(1)) == (TEXTS_OF_A, [])
        for i, row in enumerate((0, 2)):
            for k, v in enumerate(opened.views_of(i)):
                np.testing.assert_array_equal(opened.image(v), imgs[row, k].transpose(1, 2, 0))
