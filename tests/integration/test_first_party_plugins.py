"""What our own plugins register exists: every factory, options model, recipe file and needed key."""

from __future__ import annotations

import inspect

import pytest
import yaml
from mvcore.build import axes_of, needs_of, options, options_model, provides_of, resolve
from mvcore.errors import ConfigError
from mvcore.plugins import Registered, load_plugins, recipe_path
from mvcore.specs import BATCH_FIELDS, CORE_AXES, SPEC_TYPES, STATE

REGISTRY = load_plugins(check_strict=False)
OURS = [
    found
    for spec in SPEC_TYPES
    for found in REGISTRY.specs(spec.part).values()
    if REGISTRY.plugin(found.plugin).distribution.startswith("mvcore")
]


def _name(part: Registered) -> str:
    return f"{part.part}:{part.id}"


def test_our_plugins_load():
    rows = {record.name: (record.status, record.reason) for record in REGISTRY.records}
    for name in ("core", "data", "ovt", "duoduo", "equivariance", "mvc_heads"):
        assert rows[name] == ("ok", "")


@pytest.mark.parametrize("part", OURS, ids=_name)
def test_its_references_lead_somewhere(part: Registered):
    if part.part == "recipe":
        assert isinstance(yaml.safe_load(recipe_path(part).read_text(encoding="utf-8")), dict)
        return
    assert callable(resolve(part.spec.factory, part.id))
    model = options_model(part)
    if model is not None:
        assert model.model_config.get("extra") == "forbid"


@pytest.mark.parametrize("part", [part for part in OURS if part.spec.config], ids=_name)
def test_its_constructor_takes_its_options_by_keyword(part: Registered):
    model = options_model(part)
    assert model is not None
    signature = inspect.signature(resolve(part.spec.factory, part.id))
    signature.bind(**dict.fromkeys(model.model_fields))
    free = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    if not any(parameter.kind in free for parameter in signature.parameters.values()):
        assert set(signature.parameters) == set(model.model_fields)


@pytest.mark.parametrize("part", OURS, ids=_name)
def test_its_keys_are_ones_that_somebody_gives(part: Registered):
    try:
        chosen = options(part, {}, part.id)
    except ConfigError:
        chosen = None
    given = {*BATCH_FIELDS, *CORE_AXES}
    for kind in ("encoder", "trainer"):
        for other in REGISTRY.specs(kind).values():
            given |= provides_of(other, None)
    assert needs_of(part, chosen) <= given
    for key in provides_of(part, chosen) - CORE_AXES.keys():
        assert key.removeprefix(STATE).startswith(f"{part.plugin}.")
        assert key in axes_of(part, chosen)
