"""Specs refuse what would only be found out in a run: wrong names, references, keys and choices."""

from __future__ import annotations

import pytest
from mvcore.specs import (
    BATCH_FIELDS,
    CORE_AXES,
    SPEC_TYPES,
    CheckResult,
    DatasetSpec,
    EncoderSpec,
    LossSpec,
    Problem,
    RecipeSpec,
    TrainerSpec,
)

GOOD = {"name": "vc", "summary": "One line", "factory": "a.b:C"}


def made(spec, **values):
    return spec(**{**GOOD, **values})


@pytest.mark.parametrize("name", ["a", "vc", "smooth_ap", "mvc36", "contrastive-paper", "a1_b2-c3"])
def test_good_names(name):
    assert made(LossSpec, name=name).name == name


@pytest.mark.parametrize("name", ["", "Vc", "1a", "a.b", "a b", "_a", "a_", "a__b", "ä", "a\n"])
def test_bad_names(name):
    with pytest.raises(ValueError, match="a name is lower-case letters"):
        made(LossSpec, name=name)


@pytest.mark.parametrize(
    ("spec", "values", "text"),
    [
        (LossSpec, {"summary": ""}, "summary must be one line"),
        (LossSpec, {"summary": "a\nb"}, "summary must be one line"),
        (LossSpec, {"factory": "a.b"}, "factory must look like 'package.module:Name', not 'a.b'"),
        (LossSpec, {"factory": "a:b:c"}, "factory must look like"),
        (LossSpec, {"config": "os.system('x')"}, "config must look like"),
        (LossSpec, {"factory": ""}, "factory is missing"),
        (LossSpec, {"needs": "view"}, "needs must be a set of keys, not the string 'view'; write {'view'}"),
        (LossSpec, {"needs": [1]}, "needs must hold the names of keys, not 1"),
        (LossSpec, {"scope": "objects"}, "scope must be 'batch' or 'object', not 'objects'"),
        (LossSpec, {"sampling": "pair"}, "sampling must be 'any' or 'objects' or 'views' or 'pairs', not 'pair'"),
        (EncoderSpec, {"kind": "head"}, "kind must be 'backbone' or 'adapter', not 'head'"),
        (EncoderSpec, {"provides": "view"}, "provides must be a set of keys"),
        (EncoderSpec, {"axes": {"a.b": "views"}}, "axes['a.b'] must be 'view' or 'object' or 'caption' or 'none'"),
        (EncoderSpec, {"axes": {"a.b"}}, "axes must be a mapping"),
        (TrainerSpec, {"provides": {"state:a.b"}}, "provides must be a mapping"),
        (TrainerSpec, {"provides": {"a.b": "view"}}, "begins with 'state:'; write 'state:a.b'"),
        (TrainerSpec, {"provides": {"state:a.b": "row"}}, "provides['state:a.b'] must be"),
        (RecipeSpec, {"factory": "", "path": "recipes/a.yaml"}, "path must look like 'package:recipes/name.yaml'"),
        (
            RecipeSpec,
            {"path": "a:recipes/a.yaml", "importer": "a.b"},
            "importer must look like 'package.module:function'",
        ),
        (RecipeSpec, {"factory": "", "path": "a:../../b.yaml"}, "path must look like"),
        (RecipeSpec, {"factory": "", "path": "a:b.yml"}, "path must look like"),
    ],
)
def test_wrong_specs_say_what_is_wrong_and_in_which(spec, values, text):
    with pytest.raises(ValueError) as caught:
        made(spec, **values)
    assert text in str(caught.value)
    assert str(caught.value).startswith(f"{spec.__name__} 'vc': ")


def test_keys_become_frozen_sets_and_specs_stay_as_they_are():
    spec = made(LossSpec, needs=["view", "text", "view"])
    assert spec.needs == frozenset({"view", "text"})
    with pytest.raises(AttributeError):
        spec.needs = frozenset()  # type: ignore[misc]
    assert made(EncoderSpec, provides={"view"}).provides == frozenset({"view"})
    assert made(TrainerSpec, provides={"state:a.b": "view"}).provides == {"state:a.b": "view"}


def test_a_class_may_stand_in_for_its_name_and_recipes_need_none():
    assert made(DatasetSpec, factory=dict).factory is dict
    assert RecipeSpec(name="paper", summary="x", path="a.b:recipes/paper.yaml").factory == ""


def test_parts_have_distinct_kinds_and_core_keys_do_not_collide():
    assert len({spec.part for spec in SPEC_TYPES}) == len(SPEC_TYPES)
    assert not BATCH_FIELDS & CORE_AXES.keys()  # one flat namespace


def test_results_with_an_unknown_status_are_refused():
    with pytest.raises(ValueError, match="status must be 'ok' or 'warning' or 'failed', not 'fail'"):
        CheckResult("fail", "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="severity must be 'error' or 'warning', not 'fatal'"):
        Problem("x", "fatal")  # type: ignore[arg-type]
