"""The procedural objects and the embedded demonstration store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mvcore.api import ConfigError
from mvcore_data import ViewStore, demo, viewpoints
from mvcore_data.rigs import FRONTAL_AZIMUTH, FRONTAL_ELEVATION
from mvcore_data.synth.cli import synth
from mvcore_data.synth.items import SyntheticItem, split_items
from mvcore_data.synth.names import CATEGORIES

TINY: dict[str, Any] = {
    "objects_per_category": 3,
    "categories": "mug,car",
    "size": 24,
    "views": 3,
    "rig": "ring",
    "depth_objects": 2,
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_bytes_whatever_the_number_of_workers(gl: str, tmp_path: Path) -> None:
    synth(tmp_path / "one", workers=1, **TINY)
    synth(tmp_path / "two", workers=2, **TINY)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with ViewStore(tmp_path / "one") as store:
        assert store.object_ids == ["mug-000", "mug-001", "mug-002", "car-000", "car-001", "car-002"]
        assert [store.has_depth(store.views_of(i)[0]) for i in range(6)] == [False, False, True, False, False, True]
        assert {store.category(i) for i in range(6)} == {"mug", "car"}
        assert len({store.encoded(store.views_of(i)[0]) for i in range(6)}) == 6


def test_the_documented_command_runs_small(gl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mvcore.cli import main

    readme = Path(demo.__file__).with_name("README.md").read_text()
    command, *_ = re.findall(r"^mvcore (data synth .*)$", readme, re.MULTILINE)
    words = command.split()
    words[2] = str(tmp_path / "views")
    words[words.index("--objects-per-category") + 1] = "1"
    monkeypatch.setattr("sys.argv", ["mvcore", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert not ended.value.code
    with ViewStore(tmp_path / "views") as small, ViewStore(demo.store_path()) as embedded:
        assert len(small) == len(CATEGORIES)
        # The first object of each category is the embedded one: the same captions, and the same picture but for what
        # another version of the rasteriser rounds otherwise.
        for i, name in enumerate(small.object_ids):
            there = embedded.object_ids.index(name)
            assert small.captions(i) == embedded.captions(there)
            a, b = (s.image(s.views_of(k)[0]).astype(float) for s, k in ((small, i), (embedded, there)))
            assert np.abs(a - b).mean() < 3


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_are_bounded_and_captions_name_them(category: str) -> None:
    pytest.importorskip("pyvista", reason="needs mvcore-data[render]")
    from mvcore_data.synth.objects import make_object

    first, second = make_object(category, 0, 5), make_object(category, 1, 5)
    points = np.concatenate([surface.points for surface in first.surfaces])
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1, abs=1e-5)
    assert first.captions != second.captions
    assert make_object(category, 0, 6).captions != first.captions
    assert all(category in caption for caption in first.captions)
    again = make_object(category, 0, 5)
    for a, b in zip(first.surfaces, again.surfaces, strict=True):
        np.testing.assert_array_equal(a.points, b.points)
        assert a.normals is not None
        corners = a.points.reshape(-1, 3, 3)
        area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        lengths = np.linalg.norm(a.normals.reshape(-1, 3, 3)[area > 1e-9], axis=2)
        np.testing.assert_allclose(lengths, 1, atol=1e-3)


@pytest.mark.parametrize("number", [1, 4, 8, 16, 20, 28])
def test_splits_are_by_object_in_each_category(number: int) -> None:
    items = [SyntheticItem(name, k, 0, False) for name in ("mug", "car", "key") for k in range(number)]
    splits = split_items(items)
    ids = [id for part in splits.values() for id in part]
    assert sorted(ids) == sorted(item.id for item in items)
    for category in ("mug", "car", "key"):
        held_out = [id for id in splits["test"] if id.startswith(category)]
        assert len(held_out) >= (4 if number >= 8 else 0)
        assert any(id.startswith(category) for id in splits["train"])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"categories": "mug,dragon"}, "'dragon'"),
        ({"objects_per_category": 0}, "--objects-per-category 0"),
        ({"seed": -1}, "--seed -1"),
        ({"views": 12}, "'demo24' has 24 or 4 views"),
        ({"depth_objects": -1}, "--depth-objects -1"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        synth(tmp_path / "out", **options)


def test_the_embedded_store_is_what_it_says() -> None:
    path = demo.store_path()
    assert sum(file.stat().st_size for file in path.iterdir()) < 11.6e6
    with ViewStore(path) as store:
        splits = store.splits()
        assert len(store) == 560
        assert {store.category(i) for i in range(len(store))} == set(CATEGORIES)
        assert len(splits["test"]) >= 64
        assert set(splits["train"]).isdisjoint(splits["test"])
        cameras = [store.camera(v) for v in store.views_of(0)]
        azimuth, elevation = viewpoints.azimuth_elevation(np.stack([camera[1] for camera in cameras if camera]))
        frontal = viewpoints.within(azimuth, [FRONTAL_AZIMUTH]) & viewpoints.within(elevation, [FRONTAL_ELEVATION])
        assert frontal.sum() == 4
        assert len(azimuth) == 24
        with_depth = [store.object_ids[i] for i in range(len(store)) if store.has_depth(store.views_of(i)[0])]
        assert len(set(with_depth) & set(splits["test"])) == 20
        assert len(set(with_depth) & set(splits["train"])) == 12
        assert len(with_depth) == 32


def test_colour_says_nothing_about_the_category() -> None:
    """The main colours of the embedded objects, by category: a chi-square test finds no dependence."""
    with ViewStore(demo.store_path()) as store:
        colours = [store.captions(i)[1].split()[1] for i in range(len(store))]
        categories = [store.category(i) or "" for i in range(len(store))]
    rows, row = np.unique(categories, return_inverse=True)
    columns, column = np.unique(colours, return_inverse=True)
    table = np.zeros((len(rows), len(columns)))
    np.add.at(table, (row, column), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    freedom = (len(rows) - 1) * (len(columns) - 1)
    statistic = ((table - expected) ** 2 / expected).sum()
    assert len(columns) == 12
    assert statistic < freedom + 3 * np.sqrt(2 * freedom)


def test_an_absent_store_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mvcore.api import DataError

    monkeypatch.setattr(demo, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(DataError, match="the embedded demo store is not installed"):
        demo.store_path()
