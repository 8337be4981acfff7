"""docs/configuration.md holds every key of a run with its true default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from mvcore.config import (
    GradientSettings,
    LossPart,
    OptimizerSettings,
    ParameterGroup,
    RunConfig,
    RunSettings,
    SourcePart,
    TrainerPart,
    ValidateSettings,
)
from mvcore.config_base import Options
from mvcore.config_layers import Layers, parse_yaml
from mvcore.training.weights import WeightSchedule
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

PAGE = (Path(__file__).parents[2] / "docs/configuration.md").read_text(encoding="utf-8")
SECTIONS: dict[str, type[Options]] = {
    "## Top level": RunConfig,
    "## `data`": SourcePart,
    "## `losses`": LossPart,
    "A `weight` of keys:": WeightSchedule,
    "## `trainers`": TrainerPart,
    "## `optimizer`": OptimizerSettings,
    "An entry of `groups`:": ParameterGroup,
    "## `run`": RunSettings,
    "`gradients` of keys ([Mixing methods](mixing.md#which-terms-conflict) says what they show):": GradientSettings,
    "## `validate`": ValidateSettings,
}
SETTINGS = ("optimizer", "run", "validate")
"""Sections whose defaults are those of their own tables."""


def table(heading: str) -> dict[str, str]:
    """Keys and defaults of the first table behind a heading."""
    _, found, after = PAGE.partition(f"\n{heading}\n")
    assert found, heading
    lines = after.strip().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows: dict[str, str] = {}
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        key, default, meaning = (cell.strip() for cell in line.strip("|").split("|"))
        assert meaning
        rows[key.strip("`")] = default.strip("`")
    return rows


def keys(model: type[Options]) -> dict[str, FieldInfo]:
    """The keys as a user writes them; a part's options stand beside its own keys, not under `args`."""
    return {info.alias or name: info for name, info in model.model_fields.items() if name != "args"}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_there_with_its_default(heading: str):
    written, model = table(heading), SECTIONS[heading]
    assert list(written) == list(keys(model))
    for key, info in keys(model).items():
        if key == "id":
            assert written[key] == "its name"
        elif info.is_required() or key in SETTINGS:
            assert written[key] == ""
        else:
            default: Any = to_jsonable_python(info.get_default(call_default_factory=True))
            value = parse_yaml(written[key], key)[0]
            assert value == default, key


def test_every_section_of_the_configuration_has_a_table():
    headings = set(re.findall(r"^## `(\w+)`$", PAGE, re.MULTILINE))
    assert headings == {"data", "losses", "trainers", *SETTINGS}


def test_the_example_is_valid():
    example = next(iter(re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)))
    layers = Layers()
    layers.merge(*parse_yaml(example, "example"))
    config = layers.config()
    assert config.losses["ovt.vc"].args == {"margin": 0.3}
    assert set(yaml.safe_load(example)) == set(keys(RunConfig)) - {"plugins", "demo", "control"}
