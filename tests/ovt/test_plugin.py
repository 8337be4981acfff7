"""What the plugin registers: specs that resolve, options that are checked, recipes that are whole."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import as_file, files
from typing import Any

import pytest
from mvcore import build
from mvcore.config import RunConfig, normalised
from mvcore.config_layers import read_yaml
from mvcore.plugins import load_plugins
from mvcore.training.optimization import learning_rate
from mvcore.training.planner import choose
from pydantic import ValidationError

RECIPES = ("paper", "released", "demo")


def recipe(name: str) -> RunConfig:
    """The recipe with data of the user's in every source that asks for it."""
    with as_file(files("mvcore_ovt") / f"recipes/{name}.yaml") as path:
        values, _ = read_yaml(path)
    for source in values["data"].values():
        source["path"] = source["path"] or "somewhere"
    return RunConfig.model_validate(normalised(values))


def test_every_part_resolves_and_its_options_have_defaults() -> None:
    registry = load_plugins()
    wanted = {
        "encoder": {"ovt.lora", "ovt.viformer", "ovt.logit_scale"},
        "loss": {"ovt.vc"},
        "trainer": {"ovt.outlier_mining"},
    }
    for kind, ids in wanted.items():
        found = {id: entry for id, entry in registry.specs(kind).items() if id.startswith("ovt.")}
        assert set(found) == ids
        for entry in found.values():
            assert build.make(entry, build.options(entry, {}, "test")) is not None


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_name_only_what_exists(name: str) -> None:
    blueprint = choose(recipe(name), load_plugins())
    assert {part.id for part in blueprint.losses} == {"core.itc", "ovt.vc"}


def test_d6_the_released_schedule() -> None:
    settings = recipe("released").optimizer
    factor = learning_rate(settings, max_steps=35_000, epoch_steps=8_984)
    rates = [settings.lr * factor(8_984 * epoch) for epoch in range(5)]
    assert rates == pytest.approx([5e-5, 4.986e-5, 4.945e-5, 4.878e-5, 4.784e-5], abs=1e-8)
    assert settings.clip_norm == 1.0


def test_released_differs_from_the_paper_where_documented() -> None:
    paper, released = recipe("paper"), recipe("released")
    assert paper.adapters["ovt.viformer"].args["blend"] == "paper"
    assert released.adapters["ovt.viformer"].args["blend"] == "released"
    assert paper.trainers["ovt.outlier_mining"].args["rule"] == "inverse_distance"
    assert released.trainers["ovt.outlier_mining"].args["rule"] == "inverse_similarity"


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("LoraOptions", {"rank": 0}),
        ("LoraOptions", {"targets": ["q", "out"]}),
        ("LoraOptions", {"targets": []}),
        ("ViformerOptions", {"blend": "sum"}),
        ("ViformerOptions", {"dropout": 1.0}),
        ("MiningOptions", {"k": 0}),
        ("MiningOptions", {"refresh": "step"}),
        ("MiningOptions", {"refresh": 0}),
        ("MiningOptions", {"refresh": True}),
        ("ConsistencyOptions", {"margins": 0.1}),
    ],
)
def test_wrong_options_are_refused(model: str, options: dict[str, Any]) -> None:
    import mvcore_ovt.config

    with pytest.raises(ValidationError):
        getattr(mvcore_ovt.config, model)(**options)


@pytest.mark.process
def test_the_specs_import_neither_torch_nor_lightning() -> None:
    code = (
        "import sys, mvcore_ovt.plugin as p; p.mvcore_register_encoders(); p.mvcore_register_recipes();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
