"""Lists of images become stores: MVCap's metadata, image-text pairs, and tables."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import ConfigError, DataError
from mvcore_data import ViewStore
from mvcore_data.importers import detect_format, json_list
from mvcore_data.importers.json_list import JsonList
from mvcore_data.packing import PackReport, pack
from PIL import Image


def photo(path: Path, seed: int = 0) -> bytes:
    """A JPEG file; gives its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)).save(path, "JPEG")
    return path.read_bytes()


def packed(src: Path, tmp_path: Path, **options: Any) -> tuple[ViewStore, PackReport]:
    report = pack(src, tmp_path / "out.h5", **options)
    return ViewStore(tmp_path / "out.h5"), report


# --- mvcap ----------------------------------------------------------------------------------------------------------


def mvcap_source(folder: Path, objects: tuple[int, ...] = (3177, 5, 40), views: int = 3) -> dict[str, bytes]:
    """A list whose objects' numbers have gaps and whose entries are shuffled; the images' bytes by path."""
    entries = [
        {"path": f"./views/u{i}/{k:03d}.jpg", "caption": f"object {i} from {k}°", "obj_id": i, "img_id": i * 100 + k}
        for i in objects
        for k in range(views)
    ]
    images = {entry["path"]: photo(folder / entry["path"], n) for n, entry in enumerate(entries)}
    random.Random(0).shuffle(entries)
    (folder / "metadata.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return images


def test_mvcap_groups_entries_that_are_not_adjacent(tmp_path: Path) -> None:
    images = mvcap_source(tmp_path / "src")
    store, report = packed(tmp_path / "src", tmp_path)
    assert (report.format, report.mark) == ("mvcap", "metadata.json with obj_id")
    assert report.skipped.counts == {}
    assert store.object_ids == ["5", "40", "3177"]
    for i, number in enumerate((5, 40, 3177)):
        for k, v in enumerate(store.views_of(i)):
            assert store.encoded(v) == images[f"./views/u{number}/{k:03d}.jpg"]
            assert store.view_captions(v) == [f"object {number} from {k}°"]
        assert store.captions(i) == []


def test_mvcap_takes_the_list_itself_and_another_root(tmp_path: Path) -> None:
    mvcap_source(tmp_path / "src")
    (tmp_path / "src/metadata.json").rename(tmp_path / "list.json")
    assert detect_format(tmp_path / "list.json")[0].name == "mvcap"
    store, _ = packed(tmp_path / "list.json", tmp_path, options={"root": str(tmp_path / "src")})
    assert store.n_views == 9
    with pytest.raises(DataError, match=r"nowhere: no such folder \(option root\)"):
        pack(tmp_path / "list.json", tmp_path / "other", options={"root": str(tmp_path / "nowhere")})


def test_mvcap_leaves_out_what_is_wrong_and_counts_it(tmp_path: Path) -> None:
    src = tmp_path / "src"
    good = photo(src / "a.jpg")
    photo(tmp_path / "outside.jpg")
    (src / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (src / "inside.jpg").symlink_to(src / "a.jpg")
    (src / "cut.jpg").write_bytes(good[:-30])
    (src / "pipe").mkdir()
    paths = ["a.jpg", "inside.jpg", "gone.jpg", "../outside.jpg", str(tmp_path / "outside.jpg"), "link.jpg", "cut.jpg"]
    paths += ["pipe", "", "a.jpg"]
    entries: list[Any] = [{"path": path, "caption": "x", "obj_id": 1, "img_id": k} for k, path in enumerate(paths)]
    entries += [
        {"path": "b.jpg", "caption": "x", "obj_id": 1, "img_id": 0},
        {"path": "b.jpg", "caption": "x", "obj_id": "1"},
        {"path": "b.jpg", "caption": "x", "obj_id": -1},
        {"path": "b.jpg", "caption": "x", "obj_id": True},
        {"path": "b.jpg", "caption": "x", "obj_id": 2**63},
        {"caption": "x", "obj_id": 1},
        {"path": "b.jpg", "caption": 7, "obj_id": 1},
        ["b.jpg"],
    ]
    (src / "metadata.json").write_text(json.dumps(entries))
    store, report = packed(src, tmp_path)
    assert [store.encoded(v) for v in range(store.n_views)] == [good, good]
    leaves = "a path or link that leaves the folder; --option anywhere=true allows it"
    assert report.skipped.counts == {
        "an entry without path (text), caption (text) and obj_id (whole number)": 7,
        "a path that another entry of its object has": 1,
        "an img_id that another entry of its object has": 1,
        "no such file": 1,
        leaves: 3,
        "truncated: the JPEG does not reach its end marker": 1,
        "not a plain file": 1,
        "an empty path": 1,
    }
    assert report.skipped.first[leaves] == "../outside.jpg"
    (tmp_path / "out.h5").unlink()
    store, _ = packed(src, tmp_path, options={"anywhere": "true"})
    assert store.n_views == 5


def test_mvcap_text_that_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    photo(tmp_path / "src/a.jpg")
    entry = b'{"path": "a.jpg", "caption": "%s", "obj_id": 1}'
    (tmp_path / "src/metadata.json").write_bytes(
        b"\xef\xbb\xbf[" + entry % b"caf\xe9" + b"," + entry % "café".encode() + b"]"
    )
    store, report = packed(tmp_path / "src", tmp_path)
    assert store.view_captions(0) == ["café"]
    assert report.skipped.counts == {"an entry that is not UTF-8": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no list"),
        ("7", "holds no list"),
        ('[{"path": "a.jpg", "caption": "x", "obj_id": 1}', "entry 1 is no JSON, or the file ends in it"),
        ('[{"path": "a.jpg", "caption": "x", "obj_id": 1}, {"path": ', "entry 1 is no JSON, or the file ends in it"),
        ('[{"path": "a.jpg", nonsense}]', "entry 0 is no JSON"),
        ("[" * 200_000, "entry 0 is nested too deeply"),
        ("[]", "holds nothing of the format mvcap"),
        ('["' + "x" * 3_000_000, "entry 0 is no JSON, or larger than"),
    ],
)
def test_mvcap_of_damaged_json_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "metadata.json").write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        pack(tmp_path, tmp_path / "out", format="mvcap")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.none() | st.lists(st.floats(0, 1))),
        max_size=12,
    ),
    chunk=st.integers(1, 40),
    plain=st.booleans(),
    lines=st.booleans(),
)
def test_entries_are_found_whatever_the_size_of_a_read(
    tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, Any]], chunk: int, plain: bool, lines: bool
) -> None:
    path = tmp_path_factory.mktemp("list") / "a.json"
    texts = [json.dumps(value, ensure_ascii=plain) for value in values]
    text = "\n".join(texts) if lines else "[ " + " ,\n".join(texts) + "\n]"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "_CHUNK", chunk)
        entries = JsonList(path)
        if lines and not values:
            with pytest.raises(DataError, match="holds no list"):
                list(entries)
            return
        found = [entries.read_entry(entry.begin, entry.end) for entry in entries]
    for value, got in zip(values, found, strict=True):
        assert got == value or got is None  # lone surrogates are no UTF-8


def test_a_long_list_needs_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "metadata.json"
    with path.open("w") as file:
        file.write("[")
        for k in range(40_000):
            entry = {"path": f"views/{k}.png", "caption": "x" * 400, "obj_id": k % 500, "img_id": k}
            file.write(("," if k else "") + json.dumps(entry))
        file.write("]")
    assert path.stat().st_size > 18e6
    found, _ = detect_format(tmp_path)
    tracemalloc.start()
    source = found.open(tmp_path, found.options())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.total == 500
    assert peak < 12e6  # a window of 1 MiB and its parts, and 4 numbers an entry


# --- image-text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [False, True])
def test_image_text_is_one_view_an_object(tmp_path: Path, lines: bool) -> None:
    images = [photo(tmp_path / f"train/{k}.jpg", k) for k in range(3)]
    entries = [{"path": f"train/{k}.jpg", "caption": f" caption {k} "} for k in range(3)]
    entries[1] |= {"licence": "MIT", "category": "cup"}
    path = tmp_path / ("pairs.jsonl" if lines else "pairs.json")
    path.write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries))
    store, report = packed(path, tmp_path)
    assert (report.format, report.mark) == ("image-text", f"{path.name} with path and caption")
    assert store.object_ids == [f"train/{k}.jpg" for k in range(3)]
    assert [store.encoded(v) for v in range(3)] == images
    assert [store.view_captions(v) for v in range(3)] == [[f"caption {k}"] for k in range(3)]
    assert [store.licence(i) for i in range(3)] == [None, "MIT", None]
    assert store.category(1) == "cup"


def test_image_text_leaves_out_what_is_wrong(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    good = {"path": "a.jpg", "caption": "x"}
    entries = [good, good, {"path": "b.jpg", "caption": "x"}, {"caption": "x"}, {"path": "a.jpg", "caption": 1}, 7]
    (tmp_path / "pairs.json").write_text(json.dumps(entries))
    store, report = packed(tmp_path / "pairs.json", tmp_path)
    assert store.object_ids == ["a.jpg"]
    assert report.skipped.counts == {
        "an object with the id of another one": 1,
        "no such file": 1,
        "no usable image": 1,
        "an entry without path (text) and caption (text)": 3,
    }


# --- table ----------------------------------------------------------------------------------------------------------

ROWS = [
    {"path": "a.jpg", "object": "cup", "caption": "from the left\nand above", "category": "mug", "licence": "MIT"},
    {"path": "b.jpg", "object": "jug", "caption": 'a "big" jug, red', "category": "", "creator": "Ada"},
    {"path": "c.jpg", "object": "cup", "caption": "café \u2028 au lait", "licence": "MIT", "source": "attic"},
    {"path": "d.jpg", "object": "jug", "caption": ""},
]


def write_table(path: Path, rows: list[dict[str, str]], columns: list[str] | None = None) -> None:
    names = columns or sorted({name for row in rows for name in row})
    if path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow", reason="needs mvcore-data[parquet]")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({name: [row.get(name) for row in rows] for name in names}), path)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, names, delimiter="\t" if path.suffix == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_table_groups_its_rows(tmp_path: Path, suffix: str) -> None:
    images = {name: photo(tmp_path / name, k) for k, name in enumerate(("a.jpg", "b.jpg", "c.jpg", "d.jpg"))}
    write_table(tmp_path / f"t{suffix}", ROWS)
    store, report = packed(tmp_path / f"t{suffix}", tmp_path, creator="somebody")
    assert (report.format, report.mark) == ("table", f"{suffix} with a column path")
    assert store.object_ids == ["cup", "jug"]
    assert [store.encoded(v) for v in range(4)] == [images[name] for name in ("a.jpg", "c.jpg", "b.jpg", "d.jpg")]
    assert [store.view_captions(v) for v in range(4)] == [
        ["from the left\nand above"],
        ["café \u2028 au lait"],
        ['a "big" jug, red'],
        [],
    ]
    assert [store.category(i) for i in range(2)] == ["mug", None]
    assert [store.licence(i) for i in range(2)] == ["MIT", None]
    assert [store.source(i) for i in range(2)] == ["attic", None]
    assert [store.creator(i) for i in range(2)] == ["somebody", "Ada"]


def test_a_table_with_other_columns(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    photo(tmp_path / "images/b.jpg", 1)
    (tmp_path / "t.csv").write_text("file;uid;text\na.jpg;u1;one\nb.jpg;u1;two\n")
    options = {"path": "file", "object": "uid", "caption": "text", "captions_of": "object", "delimiter": ";"}
    store, _ = packed(
        tmp_path / "t.csv", tmp_path, format="table", options=options | {"root": str(tmp_path / "images")}
    )
    assert (store.object_ids, store.n_views, store.captions(0)) == (["u1"], 2, ["one", "two"])
    assert store.view_captions(0) == []
    with pytest.raises(DataError, match=r"has no column 'path', but file;uid;text; name it with option path"):
        pack(tmp_path / "t.csv", tmp_path / "x", format="table")
    with pytest.raises(DataError, match=r"has no column 'licens' \(option licence\)"):
        pack(tmp_path / "t.csv", tmp_path / "x", format="table", options=options | {"licence": "licens"})
    with pytest.raises(ConfigError, match=r"has no option 'pth', did you mean 'path'\?"):
        pack(tmp_path / "t.csv", tmp_path / "x", format="table", options={"pth": "file"})


def test_a_table_without_objects_is_one_view_an_object(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / name)
    (tmp_path / "t.csv").write_text("path,caption\na.jpg,one\n\n,none\nb.jpg,two\na.jpg,again\n")
    store, report = packed(tmp_path / "t.csv", tmp_path)
    assert store.object_ids == ["a.jpg", "b.jpg"]
    assert report.skipped.counts == {"a row without object or path": 1, "an object with the id of another one": 1}
    assert report.skipped.first["a row without object or path"].endswith("t.csv: row 2")


def test_rows_that_disagree_leave_their_object_out(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    (tmp_path / "t.csv").write_text("path,object,licence\na.jpg,x,MIT\na.jpg,x,CC0-1.0\na.jpg,y,MIT\n")
    store, report = packed(tmp_path / "t.csv", tmp_path)
    assert store.object_ids == ["y"]
    assert report.skipped.counts == {"an object whose rows have several values of licence": 1}
    assert report.skipped.first.popitem()[1].endswith("row 1, x: CC0-1.0, MIT")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("t.csv", b"", "no header"),
        ("t.csv", b"path,path\n", "no header of distinct"),
        ("t.csv", b"path,caption\na.jpg,\xff\n", "line 2 is not UTF-8"),
        ("t.csv", b'path,caption\na.jpg,"x\n', "line 2 is no CSV"),
        ("t.csv", b"path\na.jpg," + b"x" * 5_000_000, "line 2 is no CSV .longer"),
        ("t.parquet", b"PAR1" + b"x" * 50, "no readable Parquet file"),
        ("t.txt", b"path\n", "no table; give a .csv"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs mvcore-data[parquet]")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        pack(tmp_path / name, tmp_path / "out", format="table")
    assert "\n" not in str(caught.value)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.text("ab ,\"'\n\r;é\u2028\x0b", max_size=6), st.sampled_from("xyz")), min_size=1, max_size=12
    )
)
def test_csv_rows_are_found_by_number(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    from mvcore_data.importers.table_rows import CsvRows

    path = tmp_path_factory.mktemp("csv") / "t.csv"
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("caption", "object"), *rows])
    path.write_bytes(text.getvalue().encode())
    table = CsvRows(path, ",")
    assert len(table) == len(rows)
    assert [table.row(k) for k in range(len(rows))] == [{"caption": a.strip(), "object": b} for a, b in rows]
    keys = table.keys("object").tolist()
    assert [keys.index(key) for key in keys] == [[b for _, b in rows].index(b) for _, b in rows]
