"""Licences: SPDX names for what sources write, and the choice of objects by licence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mvcore.api import ConfigError, DataError
from mvcore_data import ViewStoreWriter
from mvcore_data.licences import allowed, choose, count, normalise
from mvcore_data.split import split_store
from mvcore_data.views import Views


@pytest.mark.parametrize(
    ("written", "name"),
    [
        # Objaverse and Sketchfab short names.
        ("by", "CC-BY-4.0"),
        ("by-sa", "CC-BY-SA-4.0"),
        ("by-nd", "CC-BY-ND-4.0"),
        ("by-nc", "CC-BY-NC-4.0"),
        ("by-nc-sa", "CC-BY-NC-SA-4.0"),
        ("by-nc-nd", "CC-BY-NC-ND-4.0"),
        ("cc0", "CC0-1.0"),
        # Sketchfab's labels.
        ("CC Attribution", "CC-BY-4.0"),
        ("CC Attribution-ShareAlike", "CC-BY-SA-4.0"),
        ("CC Attribution-NoDerivs", "CC-BY-ND-4.0"),
        ("CC Attribution-NonCommercial-ShareAlike", "CC-BY-NC-SA-4.0"),
        ("CC0 Public Domain", "CC0-1.0"),
        # Full names, ids in another case, addresses.
        ("cc-by-4.0", "CC-BY-4.0"),
        ("CC BY-NC-SA 4.0", "CC-BY-NC-SA-4.0"),
        ("CC BY 3.0", "CC-BY-3.0"),
        ("Creative Commons Attribution 4.0 International License", "CC-BY-4.0"),
        ("Creative Commons Attribution-NonCommercial-NoDerivatives 3.0 Unported", "CC-BY-NC-ND-3.0"),
        ("Creative Commons - Attribution - Share Alike 4.0", "CC-BY-SA-4.0"),
        ("http://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by-sa/3.0/de/legalcode", "CC-BY-SA-3.0-DE"),
        ("https://creativecommons.org/licenses/by-nc/4.0/legalcode", "CC-BY-NC-4.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "CC-PDM-1.0"),
        ("CC0 1.0 Universal", "CC0-1.0"),
        ("Public Domain Mark 1.0", "CC-PDM-1.0"),
        ("mit", "MIT"),
        ("MIT License", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("ODC-By v1.0", "ODC-By-1.0"),
        ("odbl-1.0", "ODbL-1.0"),
        ("gpl-3.0-or-later", "GPL-3.0-or-later"),
        ("MIT or apache-2.0", "MIT OR Apache-2.0"),
        # A family without a version stays one: its versions differ.
        ("CC-BY", "CC-BY"),
        ("cc by sa", "CC-BY-SA"),
        ("Creative Commons Attribution", "CC-BY"),
        # Unknown: the source's own words.
        ("Free Standard", "Free Standard"),
        ("st", "st"),
        ("public domain", "public domain"),
        ("CC-BY-4.0, ask before use", "CC-BY-4.0, ask before use"),
        ("  research only ", "research only"),
        ("CC-BY-NC-XX-4.0", "CC-BY-NC-XX-4.0"),
    ],
)
def test_names_of_licences(written: str, name: str) -> None:
    assert normalise(written) == name


@given(st.text(max_size=40) | st.from_regex(r"(cc|by|nc|sa|nd|0|4\.0|-| |zero|attribution){0,6}", fullmatch=True))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("licence", "patterns", "taken"),
    [
        ("by", ["CC-BY-4.0"], True),
        ("CC-BY-4.0", ["by"], True),
        ("by", ["CC-BY"], True),
        ("CC-BY-3.0", ["cc-by"], True),
        ("CC-BY-3.0", ["CC-BY-4.0"], False),
        ("by-nc", ["CC-BY"], False),
        ("by-nc", ["CC-BY", "CC-BY-NC"], True),
        ("CC-BY-SA-3.0-DE", ["CC-BY-SA"], True),
        ("CC-BY", ["CC-BY-4.0"], False),
        ("GPL-3.0-only", ["GPL"], True),
        ("BSD-3-Clause", ["BSD"], False),
        ("by-nc-sa", ["CC-*"], True),
        ("MIT", ["CC-*"], False),
        ("Free Standard", ["free standard"], True),
        (None, ["CC-BY-4.0"], False),
        (None, ["*"], False),
        ("anything", ["*"], True),
    ],
)
def test_allowed(licence: str | None, patterns: list[str], taken: bool) -> None:
    assert allowed(licence, patterns) is taken


def test_counts_put_the_spellings_of_one_licence_together() -> None:
    assert count(["by", "CC-BY-4.0", None, "cc0", "CC BY 4.0"]) == {"CC-BY-4.0": 3, "": 1, "CC0-1.0": 1}


def test_choice_says_once_what_is_left_out() -> None:
    kept, note = choose(["by", "by-nc", None, "by-nc", "cc0"], ["CC-BY-4.0", "CC0-1.0"], "shards")
    assert kept == [0, 4]
    assert note == (
        "shards: 3 of 5 objects left out, whose licence is not of CC-BY-4.0, CC0-1.0: CC-BY-NC-4.0 2, unknown 1"
    )
    assert choose(["by", "by"], ["CC-BY"], "shards") == ([0, 1], "")


def test_choice_refuses_to_leave_nothing() -> None:
    with pytest.raises(DataError, match=r"shards: no object has a licence of MIT \(there are: CC-BY-4.0 1, unknown 1"):
        choose(["by", None], ["MIT"], "shards")
    for patterns in ([], [" "]):
        with pytest.raises(ConfigError, match="name at least one"):
            choose(["by"], patterns, "shards")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five objects with one to five views."""
    path = tmp_path_factory.mktemp("licences") / "store"
    with ViewStoreWriter(path) as writer:
        for i, licence in enumerate(["by", "by-nc", None, "CC-BY-4.0", "cc0"]):
            pixels = np.full((i + 1, 16, 16, 3), 10 * i, np.uint8)
            writer.add_object(
                f"object-{i}", pixels, licence=licence, source="attic", creator=None if i == 2 else f"maker {i % 2}"
            )
    split_store(path, {"train": ["object-0", "object-1", "object-2"], "test": ["object-4"]})
    return path


def test_a_source_leaves_out_other_licences_and_says_so(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Views(path=str(store), licences=["CC-BY", "cc0"])
    assert [source.object_name(i) for i in range(len(source))] == ["object-0", "object-3", "object-4"]
    assert [list(source.views_of(i)) for i in range(3)] == [[0], [6, 7, 8, 9], [10, 11, 12, 13, 14]]
    said = capsys.readouterr().err
    assert said == (
        f"note: {store}: 2 of 5 objects left out, whose licence is not of CC-BY, cc0: CC-BY-NC-4.0 1, unknown 1\n"
    )
    assert len(Views(path=str(store), licences=["CC-BY-4.0"], split="train")) == 1
    assert len(Views(path=str(store), licences=["CC-BY", "CC0"], limit_objects=2)) == 2


def test_a_source_with_no_object_left_is_an_error(store: Path) -> None:
    with pytest.raises(DataError, match=r"store: no object has a licence of MIT \(there are: CC-BY-4.0 2, .*unknown 1"):
        Views(path=str(store), licences=["MIT"])
    with pytest.raises(ConfigError, match="name at least one"):
        Views(path=str(store), licences=[])


def test_a_source_describes_what_it_gives(store: Path) -> None:
    assert Views(path=str(store), split="train").describe() == {
        "name": "store",
        "objects": 3,
        "views": 6,
        "licences": {"CC-BY-4.0": 1, "CC-BY-NC-4.0": 1, "": 1},
        "sources": {"attic": 3},
        "creators": {"maker 0": 1, "maker 1": 1, "": 1},
    }
