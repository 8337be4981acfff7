"""docs/data/formats.md has a section for every format, with its options and their defaults."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mvcore_data.importers import FORMATS, load_format
from mvcore_data.pack_options import make_options, parse_pairs

PAGE = (Path(__file__).parents[2] / "docs/data/formats.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
NAMES = [module.replace("_", "-") for module in FORMATS]


def options_of(section: str) -> dict[str, str]:
    """Options and defaults of a section's table; options that share a row share its list of defaults."""
    found: dict[str, str] = {}
    for names, default in re.findall(r"^\| (`[^|]*`) \| ([^|]*) \| [^|]+ \|$", section, re.MULTILINE):
        keys = re.findall(r"`([^`]+)`", names)
        values = re.findall(r"`([^`]+)`", default)
        found |= dict(zip(keys, values if len(keys) > 1 else [default.strip("`")], strict=True))
    return found


def test_every_format_has_a_section_and_a_row() -> None:
    rows = re.findall(r"^\| \[?`([\w-]+)`[^|]*\| [^|]+(?:\|[^|]*){4}\|$", PAGE, re.MULTILINE)
    assert set(SECTIONS) == set(rows) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_options_of_a_section_are_those_of_its_format(name: str) -> None:
    written, fields = options_of(SECTIONS[name]), load_format(name.replace("-", "_")).options.model_fields
    assert set(written) == set(fields)
    for key, field in fields.items():
        default: Any = field.default
        if isinstance(default, (bool, int, float)):
            assert json.loads(written[key]) == default, key
        elif isinstance(default, tuple):
            assert tuple(map(float, written[key].split(","))) == default, key


@pytest.mark.parametrize("name", NAMES)
def test_options_of_the_example_are_the_formats_own(name: str) -> None:
    given = re.findall(r"^mvcore data pack .*$", SECTIONS[name], re.MULTILINE)
    assert given
    for line in given:
        make_options(load_format(name.replace("-", "_")), parse_pairs(re.findall(r"--option (\S+)", line)))
