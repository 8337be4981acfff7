"""Splits are by object, disjoint, balanced over categories, and the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mvcore.api import DataError
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.cli import app
from mvcore_data.split import split_store
from typer.testing import CliRunner

PIXELS = np.zeros((1, 4, 4, 3), np.uint8)


def make(path: Path, categories: dict[str, int]) -> Path:
    """A store with so many objects of each category."""
    with ViewStoreWriter(path) as writer:
        for category, n in categories.items():
            for k in range(n):
                writer.add_object(f"{category}-{k}", PIXELS, category=category)
    return path


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    test=st.sampled_from([0.1, 0.25, 0.5]),
    seed=st.integers(0, 5),
)
def test_fractions(tmp_path_factory: pytest.TempPathFactory, counts: list[int], test: float, seed: int) -> None:
    path = make(tmp_path_factory.mktemp("s") / "store", {f"c{k}": max(n, 2) for k, n in enumerate(counts)})
    splits = split_store(path, {"train": 1 - test, "test": test}, seed=seed)
    store = ViewStore(path)
    assert store.splits() == splits
    assert sorted(splits["train"] + splits["test"]) == sorted(store.object_ids)
    for names in splits.values():
        assert {name.partition("-")[0] for name in names} == {f"c{k}" for k in range(len(counts))}
    # Every category gives each split one object; beyond that the whole store has the fraction asked for.
    assert abs(len(splits["test"]) - test * len(store)) <= len(counts)
    assert split_store(path, {"train": 1 - test, "test": test}, seed=seed, replace_old=True) == splits


def test_sizes_over_many_small_categories(tmp_path: Path) -> None:
    path = make(tmp_path / "store", {f"c{k}": 3 for k in range(20)})
    splits = split_store(path, {"train": 0.5, "test": 0.5})
    assert abs(len(splits["train"]) - 30) <= 1


def test_another_seed_is_another_split(tmp_path: Path) -> None:
    path = make(tmp_path / "store", {"c": 20})
    one = split_store(path, {"train": 0.5, "test": 0.5}, seed=1)
    two = split_store(path, {"train": 0.5, "test": 0.5}, seed=2, replace_old=True)
    assert one != two
    assert ViewStore(path).splits() == two


def test_the_order_of_the_store_does_not_matter(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", {"a": 5, "b": 6}), make(tmp_path / "two", {"b": 6, "a": 5})
    parts = {"train": 0.6, "test": 0.4}
    first, second = split_store(one, parts), split_store(two, parts)
    assert {k: sorted(v) for k, v in first.items()} == {k: sorted(v) for k, v in second.items()}


def test_lists_and_the_rest(tmp_path: Path) -> None:
    path = make(tmp_path / "store", {"c": 10})
    splits = split_store(path, {"test": ["c-3", "c-1"], "train": 0.5, "val": 0.5})
    assert splits["test"] == ["c-1", "c-3"]
    assert len(splits["train"]) == len(splits["val"]) == 4
    assert not {"c-1", "c-3"} & {*splits["train"], *splits["val"]}


def test_fractions_below_one_leave_objects_out(tmp_path: Path) -> None:
    path = make(tmp_path / "store", {"c": 10})
    assert [len(names) for names in split_store(path, {"a": 0.2, "b": 0.3}).values()] == [2, 3]


def test_splits_survive_an_append_and_are_not_replaced_unasked(tmp_path: Path) -> None:
    path = make(tmp_path / "store", {"c": 4})
    splits = split_store(path, {"train": 0.5, "test": 0.5})
    with ViewStoreWriter(path, append=True) as writer:
        writer.add_object("new", PIXELS)
    assert ViewStore(path).splits() == splits
    with pytest.raises(DataError, match=r"split already \(train, test\).*--replace"):
        split_store(path, {"train": 1.0})
    assert split_store(path, {"all": 1.0}, replace_old=True)["all"][-1] == "new"
    assert json.loads((path / "index.json").read_text())["splits"].keys() == {"all"}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "no splits given"),
        ({"train": 0.8, "test": 0.3}, "sum to 1.1"),
        ({"train": 0.0}, "fraction"),
        ({"train": float("nan")}, "fraction"),
        ({"train": ["who"]}, "no object 'who'"),
        ({"train": ["c-0"], "test": ["c-0"]}, "'c-0' is in split 'train' already"),
        ({"train": ["c-0", "c-1"], "test": 0.5}, "'test' would be empty"),
    ],
)
def test_impossible_parts(tmp_path: Path, parts: dict[str, float | list[str]], words: str) -> None:
    path = make(tmp_path / "store", {"c": 2})
    before = (path / "index.json").read_bytes()
    with pytest.raises(DataError, match=words):
        split_store(path, parts)
    assert (path / "index.json").read_bytes() == before


def test_only_a_folder_can_be_split(tmp_path: Path) -> None:
    single = make(tmp_path / "one.h5", {"c": 2})
    with pytest.raises(DataError, match=r"no index|cannot be written"):
        split_store(single, {"train": 1.0})
    with pytest.raises(DataError):
        split_store(tmp_path / "nothing", {"train": 1.0})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.h5"]


def categories_of(path: Path, names: list[str]) -> set[str | None]:
    store = ViewStore(path)
    return {store.category(store.object_ids.index(name)) for name in names}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=8),
    test=st.sampled_from([0.1, 0.25, 0.5]),
    seed=st.integers(0, 5),
)
def test_whole_categories(tmp_path_factory: pytest.TempPathFactory, counts: list[int], test: float, seed: int) -> None:
    path = make(tmp_path_factory.mktemp("s") / "store", {f"c{k}": n for k, n in enumerate(counts)})
    splits = split_store(path, {"train": 1 - test, "test": test}, by="category", seed=seed)
    assert ViewStore(path).splits() == splits
    assert sorted(splits["train"] + splits["test"]) == sorted(ViewStore(path).object_ids)
    assert splits["train"]
    assert splits["test"]
    assert not categories_of(path, splits["train"]) & categories_of(path, splits["test"])
    assert abs(len(splits["test"]) - test * sum(counts)) <= max(counts)


def test_categories_by_list_fraction_and_left_out(tmp_path: Path) -> None:
    path = make(tmp_path / "store", {f"c{k}": 2 for k in range(9)})
    splits = split_store(path, {"test": ["c7"], "train": 0.5, "val": 0.25}, by="category")
    assert splits["test"] == ["c7-0", "c7-1"]
    assert [len(splits[name]) for name in ("train", "val")] == [8, 4]
    assert "c7" not in categories_of(path, splits["train"] + splits["val"])
    one, two = (split_store(path, {"a": 0.5}, by="category", seed=n, replace_old=True)["a"] for n in (0, 1))
    assert one != two


def test_categories_that_cannot_be_split(tmp_path: Path) -> None:
    path = make(tmp_path / "store", {"c": 2, "d": 2})
    with pytest.raises(DataError, match="the store has no category 'c-0'"):
        split_store(path, {"train": ["c-0"]}, by="category")
    with pytest.raises(DataError, match="would be empty"):
        split_store(path, {"a": 0.4, "b": 0.3, "c": 0.3}, by="category")
    with ViewStoreWriter(path, append=True) as writer:
        writer.add_object("odd", PIXELS)
    with pytest.raises(DataError, match="1 objects have no category, first 'odd'"):
        split_store(path, {"train": 0.5}, by="category")


def test_the_command_by_category_and_by_file(tmp_path: Path) -> None:
    path = make(tmp_path / "store", {"cup": 3, "chair": 2, "tap": 1})
    (tmp_path / "held-out.txt").write_text("chair\n\n")
    given = ["split", str(path), "train=1.0", f"test={tmp_path / 'held-out.txt'}", "--by", "category"]
    done = CliRunner().invoke(app, given)
    assert (done.exit_code, done.output) == (0, "train: 4 objects\ntest: 2 objects\n")
    assert ViewStore(path).splits()["test"] == ["chair-0", "chair-1"]
