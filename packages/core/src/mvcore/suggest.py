"""The nearest names to one that does not exist, for the text of errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The names most like `word`, nearest first; the part behind the last dot counts too, so `vc` finds `ovt.vc`."""
    names = sorted(set(known))
    found = [name for name in names if name.casefold() == word.casefold()]
    found += [name for name in names if name.rpartition(".")[2] == word.rpartition(".")[2]]
    found += difflib.get_close_matches(word, names, n=n, cutoff=0.6)
    return list(dict.fromkeys(found))[:n]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'margin'?` for the nearest name, or nothing where none is near."""
    found = closest(word, known, n=1)
    return f", did you mean {found[0]!r}?" if found else ""


def listed(names: Iterable[str]) -> str:
    """The names in order, with commas; `none` where there is none."""
    return ", ".join(sorted(names)) or "none"
