"""`split_store`: names sets of a store's objects; no object is in two of them, so no view of one can leak."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
from mvcore.api import DataError

from mvcore_data.index import write_index
from mvcore_data.lock import store_lock
from mvcore_data.store import ViewStore

Parts: TypeAlias = "Mapping[str, float | Sequence[str]]"


def split_store(
    path: str | PathLike[str], parts: Parts, *, seed: int = 0, stratify: bool = True, replace_old: bool = False
) -> dict[str, list[str]]:
    """Records splits in a store's `index.json`.

    Fractions are of the objects that no list names. With `stratify` each category is divided by itself: every split
    gets at least one object of a category that has as many objects as there are fractions, and what rounding gives or
    takes is carried to the next category, so that the splits have their sizes over the whole store.

    Args:
        path: the folder of a store.
        parts: for each split a fraction or a list of object ids; fractions sum to at most 1.
        seed: decides which objects go where; the same seed gives the same splits.
        stratify: divide inside each category.
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
            splits = _split(store, parts, seed, stratify)
            index = replace(store.index, splits=splits)
        write_index(folder, index)
    return splits


def _split(store: ViewStore, parts: Parts, seed: int, stratify: bool) -> dict[str, list[str]]:
    fractions = {name: float(part) for name, part in parts.items() if isinstance(part, (int, float))}
    lists = {name: list(part) for name, part in parts.items() if not isinstance(part, (int, float))}
    _check_parts(store, fractions, lists)
    split_of = {name: split for split, names in lists.items() for name in names}
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
    known, seen = set(store.object_ids), {}
    for split, names in lists.items():
        for name in names:
            if name not in known:
                raise DataError(f"split {split!r}: the store has no object {name!r}")
            if name in seen:
                raise DataError(f"split {split!r}: object {name!r} is in split {seen[name]!r} already")
            seen[name] = split


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
