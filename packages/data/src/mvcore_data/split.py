"""`split_store`: names sets of a store's objects; no object is in two of them, so no view of one can leak.

By category no category is in two of them, so that what is measured is met for the first time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from mvcore.api import DataError

from mvcore_data.index import write_index
from mvcore_data.lock import store_lock
from mvcore_data.store import ViewStore

Parts: TypeAlias = "Mapping[str, float | Sequence[str]]"


def split_store(
    path: str | PathLike[str],
    parts: Parts,
    *,
    by: Literal["object", "category"] = "object",
    seed: int = 0,
    stratify: bool = True,
    replace_old: bool = False,
) -> dict[str, list[str]]:
    """Records splits in a store's `index.json`.

    Fractions are of the objects that no list names. With `stratify` each category is divided by itself: every split
    gets at least one object of a category that has as many objects as there are fractions, and what rounding gives or
    takes is carried to the next category, so that the splits have their sizes over the whole store.

    By `category` whole categories go to a split: fractions are of the objects still, each category, the largest first,
    goes where most objects are missing, every split gets one where there are enough, and lists name categories.

    Args:
        path: the folder of a store.
        parts: for each split a fraction or a list of object ids (of categories, by category); fractions sum to at
            most 1.
        by: what is never divided.
        seed: decides which objects go where; the same seed gives the same splits.
        stratify: divide inside each category; means nothing by category.
        replace_old: replace splits that are there already.

    Returns:
        Object ids by split, in the store's order.

    Raises:
        DataError: not a folder of a store, it is split already, or the parts are impossible.
    """
    folder = Path(path)
    with store_lock(folder):
        with ViewStore(folder) as store:
            if not store.index.shards:
                raise DataError(f"{folder}: a single shard has no index for splits; write the store to a folder")
            if store.index.splits and not replace_old:
                there = ", ".join(store.index.splits)
                raise DataError(f"{folder}: is split already ({there}); replace these splits with --replace")
            splits = _split_categories(store, parts, seed) if by == "category" else _split(store, parts, seed, stratify)
            index = replace(store.index, splits=splits)
        write_index(folder, index)
    return splits


def _split(store: ViewStore, parts: Parts, seed: int, stratify: bool) -> dict[str, list[str]]:
    fractions = {name: float(part) for name, part in parts.items() if isinstance(part, (int, float))}
    lists = {name: list(part) for name, part in parts.items() if not isinstance(part, (int, float))}
    _check_parts(store, fractions, lists)
    split_of = _listed(lists, set(store.object_ids), "the store has no object")
    groups: dict[str, list[str]] = {}
    for i, name in enumerate(store.object_ids):
        if name not in split_of:
            groups.setdefault((store.category(i) or "") if stratify else "", []).append(name)
    carry = np.zeros(len(fractions))
    for category in sorted(groups):
        names = _shuffled(groups[category], category, seed)
        counts, carry = _divide(len(names), np.array(list(fractions.values())), carry, stratify)
        edges = np.cumsum([0, *counts])
        for split, begin, end in zip(fractions, edges[:-1], edges[1:], strict=True):
            split_of.update(dict.fromkeys(names[begin:end], split))
    return _named(store, parts, split_of)


def _split_categories(store: ViewStore, parts: Parts, seed: int) -> dict[str, list[str]]:
    fractions = {name: float(part) for name, part in parts.items() if isinstance(part, (int, float))}
    lists = {name: list(part) for name, part in parts.items() if not isinstance(part, (int, float))}
    _check_parts(store, fractions, lists)
    categories = [store.category(i) for i in range(len(store))]
    if without := [name for name, category in zip(store.object_ids, categories, strict=True) if category is None]:
        raise DataError(
            f"{store.path}: {len(without)} objects have no category, first {without[0]!r}; split by object instead"
        )
    counts = Counter(category for category in categories if category is not None)
    split_of = _listed(lists, set(counts), "the store has no category")
    free = [category for category in _shuffled(list(counts), "", seed) if category not in split_of]
    n = sum(counts[category] for category in free)
    missing: dict[str | None, float] = {split: fraction * n for split, fraction in fractions.items()}
    missing[None] = n - sum(missing.values())  # what no split takes
    empty: set[str | None] = set(fractions)
    for left, category in enumerate(sorted(free, key=lambda name: -counts[name]), -len(free)):
        takers = empty if len(empty) >= -left else missing.keys()
        split = max(sorted(takers, key=str), key=lambda name: missing[name])
        missing[split] -= counts[category]
        empty.discard(split)
        if split is not None:
            split_of[category] = split
    of_object = {
        name: split_of[category]
        for name, category in zip(store.object_ids, categories, strict=True)
        if category in split_of
    }
    return _named(store, parts, of_object)


def _named(store: ViewStore, parts: Parts, split_of: dict[str, str]) -> dict[str, list[str]]:
    splits = {split: [name for name in store.object_ids if split_of.get(name) == split] for split in parts}
    if empty := next((split for split, names in splits.items() if not names), None):
        raise DataError(f"{store.path}: split {empty!r} would be empty; the store has {len(store)} objects")
    return splits


def _check_parts(store: ViewStore, fractions: dict[str, float], lists: dict[str, list[str]]) -> None:
    if not fractions and not lists:
        raise DataError(f"{store.path}: no splits given; give for example train=0.8 test=0.2")
    for name, fraction in fractions.items():
        if not 0 < fraction <= 1:
            raise DataError(f"split {name!r}: {fraction:g} is not a fraction above 0 and up to 1")
    if sum(fractions.values()) > 1 + 1e-9:
        raise DataError(f"the fractions sum to {sum(fractions.values()):g}, which is more than 1")


def _listed(lists: dict[str, list[str]], known: set[str], unknown: str) -> dict[str, str]:
    """The split of each name that a list gives."""
    split_of: dict[str, str] = {}
    for split, names in lists.items():
        for name in names:
            if name not in known:
                raise DataError(f"split {split!r}: {unknown} {name!r}")
            if name in split_of:
                raise DataError(f"split {split!r}: {name!r} is in split {split_of[name]!r} already")
            split_of[name] = split
    return split_of


def _shuffled(names: list[str], category: str, seed: int) -> list[str]:
    """In an order that depends on the seed and the names alone, not on the order of the store."""
    digest = hashlib.sha256(f"{seed}\0{category}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, np.uint32))
    ordered = sorted(names)
    return [ordered[k] for k in rng.permutation(len(ordered))]


def _divide(n: int, fractions: np.ndarray, carry: np.ndarray, at_least_one: bool) -> tuple[np.ndarray, np.ndarray]:
    """How many of n objects each split gets, and what rounding still owes to each."""
    wanted = n * fractions + carry
    total = min(n, max(0, round(float(wanted.sum()))))
    counts = np.zeros(len(fractions), np.int64)
    if at_least_one and n >= len(fractions):
        counts[:] = 1
        total = max(total, len(fractions))
    for _ in range(total - int(counts.sum())):
        counts[np.argmax(wanted - counts)] += 1
    return counts, wanted - counts
