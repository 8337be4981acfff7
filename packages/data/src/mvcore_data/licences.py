"""Licences by their SPDX names, whatever a source calls them, and the choice of objects by licence.

Stores keep a licence as its source gave it; names are made alike where they are counted or compared. Objaverse's and
Sketchfab's short names (`by`, `by-nc-sa`, `cc0`) and Sketchfab's labels (`CC Attribution`) stand for version 4.0 of the
Creative Commons licences (https://huggingface.co/datasets/allenai/objaverse), CC0 for its only version.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

from mvcore.api import ConfigError, DataError
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

_URL = re.compile(r"creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)/(\d\.\d)(?:/([a-z]{2,3})(?=/|$))?")
_WORDS = (
    (r"creative[\s_-]*commons", "cc"),
    (r"attribution", "by"),
    (r"non[\s_-]*commercial", "nc"),
    (r"no[\s_-]*deriv(?:ative)?s?(?:[\s_-]*works)?", "nd"),
    (r"share[\s_-]*alike", "sa"),
    (r"\b(?:international|unported|generic|universal|licen[cs]ed?|deed|the|version)\b", " "),
    (r"\bv(?=\d)", ""),
    (r"[\s_()/,-]+", "-"),
)
_CREATIVE_COMMONS = re.compile(r"(cc-)?(by(?:-nc)?(?:-sa|-nd)?)(?:-(\d\.\d))?")
_ZERO = re.compile(r"(?:cc-?0|cc-zero)(?:-1\.0)?(?:-public-domain(?:-dedication)?)?")
_COMMON = {
    "public-domain-mark": "CC-PDM-1.0",
    "public-domain-mark-1.0": "CC-PDM-1.0",
    "mit": "MIT",
    "apache-2": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "odc-by": "ODC-By-1.0",
    "odc-by-1.0": "ODC-By-1.0",
    "odbl": "ODbL-1.0",
    "odbl-1.0": "ODbL-1.0",
}
_VERSION = re.compile(r"\d+(?:\.\d+)*(?:-[a-z]{2,3}|-only|-or-later)?")


@lru_cache(maxsize=4096)
def normalise(licence: str) -> str:
    """A licence's SPDX name; a text that is no known licence stays as it is.

    A Creative Commons name without a version (`CC BY-SA`) becomes its family (`CC-BY-SA`): the versions differ.

    Args:
        licence: as a source names it: an SPDX id or expression, a short name, a label or a Creative Commons address.
    """
    text = licence.strip()
    lower = text.lower()
    if found := _URL.search(lower):
        name, version, place = found.groups()
        kind = {"zero": "cc0", "mark": "cc-pdm"}.get(name, f"cc-{name}")
        return _spdx("-".join(part for part in (kind, version, place) if part)) or text
    name = lower
    for pattern, instead in _WORDS:
        name = re.sub(pattern, instead, name)
    name = name.strip("-. ")
    if _ZERO.fullmatch(name):
        return "CC0-1.0"
    if found := _CREATIVE_COMMONS.fullmatch(name):
        prefix, terms, version = found.groups()
        label = prefix is None or lower.startswith("cc attribution")  # Objaverse's and Sketchfab's names
        return "-".join(("CC", terms.upper(), *([version or "4.0"] if version or label else ())))
    return _COMMON.get(name) or _spdx(text) or text


def allowed(licence: str | None, patterns: Sequence[str]) -> bool:
    """Whether a licence is one of those that are wanted; an unknown one (None) is not.

    Args:
        licence: as a source names it.
        patterns: names in any spelling (`CC-BY-4.0`, `by`); without a version any version of this very licence
            (`CC-BY` takes 3.0 and 4.0, but not `CC-BY-NC-4.0`); `*` stands for anything (`CC-*`).
    """
    if licence is None:
        return False
    name = normalise(licence).lower()
    return any(_matches(name, pattern) for pattern in patterns)


def check_patterns(patterns: Sequence[str]) -> None:
    """Refuses a list of wanted licences that can choose nothing.

    Raises:
        ConfigError: it is empty, or one of them is.
    """
    if not patterns or not all(pattern.strip() for pattern in patterns):
        raise ConfigError("licences: name at least one, as in CC-BY-4.0 or CC0-1.0, and no empty one")


def choose(licences: Sequence[str | None], patterns: Sequence[str], where: str) -> tuple[list[int], str]:
    """Chooses objects by licence.

    Args:
        licences: of the objects.
        patterns: as in `allowed`.
        where: how messages name the place that holds the objects.

    Returns:
        The numbers of the objects that may be used, and one line that counts those left out; "" where there is none.

    Raises:
        ConfigError: the patterns can choose nothing.
        DataError: no object is left.
    """
    check_patterns(patterns)
    kept = [i for i, licence in enumerate(licences) if allowed(licence, patterns)]
    wanted = ", ".join(patterns)
    if not kept:
        raise DataError(f"{where}: no object has a licence of {wanted} (there are: {counted_text(count(licences))})")
    chosen = set(kept)
    left = count(licence for i, licence in enumerate(licences) if i not in chosen)
    if not left:
        return kept, ""
    return kept, (
        f"{where}: {sum(left.values())} of {len(licences)} objects left out, whose licence is not of {wanted}:"
        f" {counted_text(left)}"
    )


def count(licences: Iterable[str | None]) -> dict[str, int]:
    """Objects by SPDX name, the most frequent first; "" = none is known."""
    return dict(Counter("" if licence is None else normalise(licence) for licence in licences).most_common())


def counted_text(counts: dict[str, int], most: int = 6) -> str:
    """Counts as one line: `CC-BY-4.0 12, unknown 3`."""
    shown = ", ".join(f"{name or 'unknown'} {n}" for name, n in list(counts.items())[:most])
    return shown + (f", and {len(counts) - most} more" if len(counts) > most else "")


def _matches(name: str, pattern: str) -> bool:
    if "*" in pattern:
        return fnmatchcase(name, pattern.strip().lower())
    wanted = normalise(pattern).lower()
    return name == wanted or (name.startswith(f"{wanted}-") and bool(_VERSION.fullmatch(name[len(wanted) + 1 :])))


def _spdx(text: str) -> str | None:
    try:
        return canonicalize_license_expression(text)
    except InvalidLicenseExpression:
        return None
