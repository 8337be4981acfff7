"""From specs to parts: lazy references, options with readable errors, and the contract of each kind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest
from lightning.pytorch import Callback
from mvcore.build import axes_of, make, needs_of, options, provides_of, resolve
from mvcore.config_base import Options
from mvcore.errors import ConfigError, DataError, PluginError
from mvcore.parts import Adapter, Backbone
from mvcore.plugins import Registered
from mvcore.specs import DatasetSpec, EncoderSpec, EvaluatorSpec, LossSpec, TrainerSpec
from pydantic import BaseModel, Field
from torch import nn


class Inner(Options):
    depth: int = 1


class Margin(Options):
    margin: float = Field(default=0.3, ge=0)
    rule: Literal["mean", "max"] = "mean"
    sizes: tuple[int, ...] = ()
    path: Path | None = None
    inner: Inner = Inner()
    count: int = 2


class Needed(Options):
    rank: int
    key: str = "view"

    def needs(self) -> set[str]:
        return {self.key}

    def provides(self) -> dict[str, str]:
        return {f"state:x.{self.key}": "view"}


class Loose(BaseModel):
    """As a third party writes it: without a rule for unknown keys."""

    margin: float = 0.3
    inner: Inner = Inner()


def loss(factory: object = "m:F", config: object = None, **values: object) -> Registered:
    return Registered("ovt", LossSpec(name="vc", summary="x", factory=factory, config=config, **values))  # type: ignore[arg-type]


# --- resolve ------------------------------------------------------------------------------------------------


def test_resolve_finds_nested_names_and_passes_objects_through():
    assert resolve("collections:OrderedDict.fromkeys") is not None
    assert resolve("math:pi") == math.pi
    assert resolve(Margin) is Margin


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        (
            "no_such_package.mod:Name",
            "ovt.vc: cannot import 'no_such_package.mod' of 'no_such_package.mod:Name': Module",
        ),
        ("math:sqrtt", "ovt.vc: 'math' has no 'sqrtt' (of 'math:sqrtt'), did you mean 'sqrt'?"),
        ("collections:OrderedDict.nothing_like_it", "'collections' has no 'nothing_like_it'"),
    ],
)
def test_resolve_names_the_spec_and_what_is_missing(reference, text):
    with pytest.raises(PluginError) as caught:
        resolve(reference, "ovt.vc")
    assert text in str(caught.value)


def test_a_module_that_fails_on_import_is_named(install):
    install.plugin("bad", "raise SystemExit(1)")
    with pytest.raises(PluginError, match="cannot import 'third_bad' of 'third_bad:X': SystemExit: 1"):
        resolve("third_bad:X", "bad.x")


# --- options ------------------------------------------------------------------------------------------------


def test_options_take_plain_yaml_values():
    chosen = options(loss(config=Margin), {"margin": 1, "sizes": [1, 2], "path": "a/b", "inner": {"depth": 3}}, "x")
    assert chosen == Margin(margin=1.0, sizes=(1, 2), path=Path("a/b"), inner=Inner(depth=3))
    assert options(loss(config=Margin), {"margin": math.inf, "path": Path("c")}, "x") == Margin(
        margin=math.inf, path=Path("c")
    )


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"marign": 1}, "losses[ovt.vc].marign: unknown key, did you mean 'margin'?"),
        ({"zzzz": 1}, "losses[ovt.vc].zzzz: unknown key (known: count, inner, margin, path, rule, sizes)"),
        ({"margin": "much"}, "losses[ovt.vc].margin: input should be a valid number, got 'much'"),
        ({"margin": "0.1"}, "losses[ovt.vc].margin: input should be a valid number, got '0.1'"),
        ({"margin": True}, "losses[ovt.vc].margin: input should be a valid number, got True"),
        ({"count": 1.5}, "losses[ovt.vc].count: "),
        ({"margin": -1}, "losses[ovt.vc].margin: input should be greater than or equal to 0, got -1"),
        ({"rule": "median"}, "losses[ovt.vc].rule: input should be 'mean' or 'max', got 'median'"),
        ({"sizes": [1, "b"]}, "losses[ovt.vc].sizes[1]: input should be a valid integer, got 'b'"),
        ({"inner": {"depht": 1}}, "losses[ovt.vc].inner.depht: unknown key, did you mean 'depth'?"),
        ({"margin": object()}, "losses[ovt.vc]: a value is not plain data"),
    ],
)
def test_wrong_options_give_one_line_with_the_path(args, text):
    with pytest.raises(ConfigError) as caught:
        options(loss(config=Margin), args, "losses[ovt.vc]")
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_all_errors_of_one_model_are_reported():
    with pytest.raises(ConfigError) as caught:
        options(loss(config=Needed), {"kez": "a", "key": 3}, "w")
    assert sorted(str(caught.value).split("; ")) == [
        "w.key: input should be a valid string, got 3",
        "w.kez: unknown key, did you mean 'key'?",
        "w.rank: is missing",
    ]


def test_unknown_keys_are_refused_for_a_model_without_a_rule():
    with pytest.raises(ConfigError, match=r"w\.marign: unknown key, did you mean 'margin'\?"):
        options(loss(config=Loose), {"marign": 1}, "w")
    assert options(loss(config=Loose), {"margin": 1}, "w") == Loose(margin=1)


def test_a_part_without_options_takes_none():
    assert options(loss(), {}, "w") is None
    with pytest.raises(ConfigError, match=r"w\.a: unknown key, ovt\.vc takes no options"):
        options(loss(), {"a": 1}, "w")


def test_a_config_that_is_no_model_is_the_plugins_fault():
    with pytest.raises(PluginError, match="config 'math:pi' is not a pydantic model"):
        options(loss(config="math:pi"), {}, "w")


# --- needs and provides -------------------------------------------------------------------------------------


def test_methods_of_the_options_win_over_the_spec():
    part = loss(config=Needed, needs={"text"})
    assert needs_of(part, None) == {"text"}
    assert needs_of(part, Needed(rank=1, key="dense")) == {"dense"}
    trainer = Registered(
        "x", TrainerSpec(name="t", summary="t", factory="m:T", provides={"state:x.a": "object"}, needs={"view"})
    )
    assert provides_of(trainer, None) == {"state:x.a"}
    assert axes_of(trainer, None) == {"state:x.a": "object"}
    assert axes_of(trainer, Needed(rank=1, key="b"))["state:x.b"] == "view"
    assert provides_of(part, None) == frozenset()


def test_failing_or_wrong_needs_name_the_part():
    class Bad(Options):
        def needs(self) -> str:
            return "view"

        def provides(self) -> set[str]:
            raise RuntimeError("no")

    with pytest.raises(PluginError, match=r"ovt\.vc: needs\(\) of its options failed: .*the string 'view'"):
        needs_of(loss(config=Bad), Bad())
    with pytest.raises(PluginError, match=r"ovt\.vc: provides\(\) of its options failed: RuntimeError: no"):
        provides_of(loss(config=Bad), Bad())


# --- make: contracts ----------------------------------------------------------------------------------------


class GoodLoss(nn.Module):
    def __init__(self, margin=0.3, rule="mean", sizes=(), path=None, inner=None, count=2):
        super().__init__()
        self.margin, self.inner = margin, inner

    def forward(self, features, batch):
        return features.zero()


class OneArgument(nn.Module):
    def forward(self, features):
        return features.zero()


class Plain:
    pass


class GoodAdapter(Adapter):
    def attach(self, backbone):
        pass


class PlainAdapter(nn.Module):
    def forward(self, features, batch):
        return {}


class EmptyAdapter(Adapter):
    pass


class SmallBackbone(Backbone):
    @property
    def model(self):
        return nn.Identity()

    def encode(self, batch, keys):
        return {}

    def set_trainable(self, mode):
        pass


class Indexed:
    provides = frozenset({"images"})

    def __len__(self):
        return 0

    def views_of(self, i):
        return []

    def load(self, i, views, rng):
        raise IndexError(i)


class Stream:
    provides = frozenset({"images"})

    def __iter__(self):
        return iter(())

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class HalfIndexed:
    def load(self, i, views, rng):
        pass


class Measure:
    def __call__(self, model, sources, output):
        return None


class Mining(Callback):
    def state(self, batch):
        return {}


def registered(spec, factory, **values) -> Registered:
    return Registered("p", spec(name="x", summary="x", factory=factory, **values))


PROVIDES = {"provides": {"state:p.x": "view"}}


@pytest.mark.parametrize(
    ("spec", "factory", "values"),
    [
        (LossSpec, GoodLoss, {}),
        (EncoderSpec, GoodAdapter, {"kind": "adapter"}),
        (EncoderSpec, PlainAdapter, {"kind": "adapter"}),
        (EncoderSpec, SmallBackbone, {}),
        (DatasetSpec, Indexed, {}),
        (DatasetSpec, Stream, {}),
        (EvaluatorSpec, Measure, {}),
        (TrainerSpec, Mining, PROVIDES),
        (TrainerSpec, Callback, {}),
    ],
)
def test_parts_that_keep_their_contract_are_made(spec, factory, values):
    assert isinstance(make(registered(spec, factory, **values), None), factory)


@pytest.mark.parametrize(
    ("spec", "factory", "values", "text"),
    [
        (LossSpec, Plain, {}, "p.x: Plain is no torch.nn.Module"),
        (LossSpec, OneArgument, {}, "p.x: OneArgument forward must take (features, batch)"),
        (LossSpec, nn.Module, {}, "p.x: Module defines no forward(features, batch)"),
        (EncoderSpec, GoodAdapter, {}, "p.x: GoodAdapter is no mvcore.api.Backbone"),
        (EncoderSpec, Plain, {"kind": "adapter"}, "p.x: Plain is no mvcore.api.Adapter"),
        (EncoderSpec, EmptyAdapter, {"kind": "adapter"}, "EmptyAdapter defines neither attach(backbone) nor forward"),
        (EncoderSpec, nn.Module, {"kind": "adapter"}, "Module defines neither attach(backbone) nor forward"),
        (EncoderSpec, OneArgument, {"kind": "adapter"}, "forward must take (features, batch)"),
        (DatasetSpec, HalfIndexed, {}, "p.x: HalfIndexed lacks views_of, __len__, provides"),
        (DatasetSpec, Plain, {}, "p.x: Plain is neither indexed"),
        (EvaluatorSpec, Plain, {}, "p.x: Plain is not callable"),
        (EvaluatorSpec, lambda: len, {}, "must take (model, sources, output)"),
        (TrainerSpec, Plain, {}, "p.x: Plain is no lightning.pytorch.Callback"),
        (TrainerSpec, Callback, PROVIDES, "p.x: Callback lacks state"),
        (TrainerSpec, Callback, {"replaces_step": True}, "p.x: Callback lacks step"),
        (LossSpec, "math:pi", {}, "p.x: factory 'math:pi' is not callable"),
    ],
)
def test_parts_that_break_their_contract_are_refused(spec, factory, values, text):
    with pytest.raises(PluginError) as caught:
        make(registered(spec, factory, **values), None)
    assert text in str(caught.value)


def test_options_reach_the_constructor_by_keyword():
    part = loss(GoodLoss, Margin)
    made = make(part, options(part, {"margin": 0.5}, "w"))
    assert made.margin == 0.5
    assert made.inner == Inner()  # a nested model stays one


def test_a_constructor_that_fails_is_named_and_its_own_clear_errors_pass():
    def fails():
        raise ZeroDivisionError("no views")

    def clear():
        raise DataError("store is empty")

    with pytest.raises(PluginError, match=r"ovt\.vc: .*fails\(\.\.\.\) failed: ZeroDivisionError: no views") as caught:
        make(loss(fails), None)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(DataError, match="store is empty"):
        make(loss(clear), None)
    with pytest.raises(PluginError, match=r"ovt\.vc: GoodLoss\(\.\.\.\) failed: TypeError: .*unexpected keyword"):
        make(loss(GoodLoss, Needed), Needed(rank=1))
