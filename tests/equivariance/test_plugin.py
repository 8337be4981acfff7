"""The plugin through the program: its recipes, a run on a timm model, its export, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import mvcore
import mvcore_equivariance
import numpy as np
import pytest
import torch
import yaml
from mvcore.api import load_encoder
from mvcore.checkpoint import WEIGHTS, load_weights
from mvcore.cli.main import run
from mvcore.config import RunConfig, normalised
from mvcore.config_layers import read_yaml
from mvcore.plugins import load_plugins
from mvcore.run_folder import checkpoint_of
from mvcore.training.planner import choose
from mvcore_equivariance import released_resolution
from mvcore_equivariance.config import DenseAdapterOptions
from pydantic import ValidationError

ADAPTER = "equivariance.dense"


def recipe(name: str) -> RunConfig:
    with as_file(files("mvcore_equivariance") / f"recipes/{name}.yaml") as path:
        values, _ = read_yaml(path)
    values["data"]["objects"]["path"] = "somewhere"
    return RunConfig.model_validate(normalised(values))


@pytest.mark.parametrize("name", ["paper", "released"])
def test_recipes_name_only_what_exists(name: str) -> None:
    config = recipe(name)
    blueprint = choose(config, load_plugins())
    assert {part.id for part in blueprint.losses} == {"equivariance.smooth_ap"}
    assert config.adapters[ADAPTER].args == {"rank": 4, "last_blocks": 4, "head": "conv"}
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.decay) == (1e-5, 1e-4, "all")
    assert (config.optimizer.clip_norm, config.optimizer.schedule) == (1.0, "constant")
    assert (config.run.max_steps, config.run.precision) == (10_000, "32-true")
    source = config.data["objects"]
    assert (source.sampling, source.batch_size, source.pair_angle) == ("pairs", 1, (0, 120))


def test_released_differs_from_the_paper_where_documented() -> None:
    paper, released = recipe("paper"), recipe("released")
    assert paper.encoder.args["model"] == "vit_base_patch14_dinov2.lvd142m"
    assert released.encoder.args["model"] == "vit_small_patch14_dinov2.lvd142m"
    loss = "equivariance.smooth_ap"
    assert paper.losses[loss].args["sampling"] == "projected"
    assert released.losses[loss].args["sampling"] == "released"
    assert paper.data == released.data
    assert paper.optimizer == released.optimizer


@pytest.mark.parametrize("name", ["paper", "released"])
@pytest.mark.parametrize(("model", "patch"), [("vit_small_patch14_dinov2", 14), ("vit_tiny_patch16_224", 16)])
def test_b5_images_of_512_are_seen_at_80_x_80_patches(name: str, model: str, patch: int) -> None:
    encoder = recipe(name).encoder
    args = {**encoder.args, "model": model, "pretrained": None}
    backbone: Any = load_encoder(encoder.id, args).backbone
    for width, height in ((512, 512), (640, 480), (480, 640), (1000, 300)):
        assert backbone.input_size(height, width) == released_resolution((width, height), patch)[::-1]


def source(store: Path) -> dict[str, Any]:
    return {"id": "data.views", "path": str(store), "sampling": "pairs", "batch_size": 2}


@pytest.fixture
def config(walls: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a run on the walls with the changes given, and names the file."""

    def write(**changes: Any) -> Path:
        values: dict[str, Any] = {
            "plugins": ["equivariance"],
            "encoder": {"id": "core.timm", "model": "test_vit", "pretrained": None, "image_size": 64, "patches": 8},
            "adapters": {ADAPTER: {}},
            "data": {"walls": {**source(walls), "depth": True}},
            "losses": {"equivariance.smooth_ap": {"points": 200}},
            "optimizer": {"lr": 1e-3},
            "run": {"max_steps": 3, "log_every": 1, "workers": 0, "accelerator": "cpu"},
        }
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(values | changes))
        return file

    return write


def pictures(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)


def test_a_run_is_saved_scaled_and_exported(
    config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(config()), "-o", str(tmp_path / "run")]) == 0
    saved = load_weights(checkpoint_of(tmp_path / "run") / WEIGHTS)
    factors = {f"blocks.{i}.attn.qkv.weight.{key}.lora_{f}" for i in (2, 3, 4, 5) for key in "qv" for f in "ab"}
    assert saved.keys() == {f"adapters/{ADAPTER}/{name}" for name in factors | {"head.weight", "head.bias"}}
    tuned = mvcore.load(tmp_path / "run")
    dense = tuned.dense(pictures())
    assert dense.shape == (2, 64, 8, 8)
    untouched = mvcore.load(tmp_path / "run", strength=0.0).dense(pictures())
    backbone: Any = tuned.backbone
    plain = load_encoder("core.timm", {k: v for k, v in tuned.backbone.origin.items() if k != "id"})
    plain.backbone.model.load_state_dict(_originals(backbone.model))
    assert torch.equal(untouched, plain.dense(pictures()))
    assert not torch.allclose(untouched, dense, atol=1e-3)
    assert run(["export", str(tmp_path / "run"), "--to", "timm", "-o", str(tmp_path / "export")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "missing in plain timm: equivariance.dense (in part; the rest is merged)" in said
    about = json.loads((tmp_path / "export/mvcore_export.json").read_text())
    assert about["beside"] == {ADAPTER: {"id": ADAPTER}}
    assert load_weights(tmp_path / "export/mvcore_adapters.safetensors").keys() == {
        f"adapters/{ADAPTER}/head.weight",
        f"adapters/{ADAPTER}/head.bias",
    }
    exported = mvcore.load(tmp_path / "export")
    assert sum("lora" in name or "updates" in name for name, _ in exported.pipeline.named_parameters()) == 0
    torch.testing.assert_close(exported.dense(pictures()), dense, atol=1e-5, rtol=1e-5)
    assert run(["export", str(tmp_path / "run"), "--strength", "0.5", "-o", str(tmp_path / "half")]) == 0
    half = mvcore.load(tmp_path / "run", strength=0.5).dense(pictures())
    torch.testing.assert_close(mvcore.load(tmp_path / "half").dense(pictures()), half, atol=1e-5, rtol=1e-5)


def _originals(model: Any) -> dict[str, Any]:
    """The weights under a model's updates, by the library's names."""
    return {
        name.replace("parametrizations.", "").removesuffix(".original"): value
        for name, value in model.state_dict().items()
        if not name.endswith((".0.a", ".0.b", ".1.a", ".1.b"))
    }


@pytest.mark.parametrize("name", ["paper", "released"])
def test_recipes_train_on_a_store(name: str, walls: Path, tmp_path: Path) -> None:
    small = ["encoder.model=test_vit", "encoder.pretrained=null", "encoder.image_size=64", "encoder.patches=4"]
    small += ["data[objects].image_size=64", "run.max_steps=2", "run.workers=0", "run.accelerator=cpu"]
    arguments = [
        "train",
        "--plugin",
        "equivariance",
        "--recipe",
        name,
        "--data",
        str(walls),
        "-o",
        str(tmp_path / "run"),
    ]
    assert run([*arguments, *(word for text in small for word in ("--set", text))]) == 0
    rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert "train/equivariance.smooth_ap" in rows[0]
    assert len(load_weights(checkpoint_of(tmp_path / "run") / WEIGHTS)) == 4 * 2 * 2 + 2


def test_a_store_without_depth_is_refused_in_one_line(
    config: Callable[..., Path], walls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(config(data={"walls": source(walls)})), "-o", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip()
    assert "depth" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("options", [{"rank": 0}, {"last_blocks": 0}, {"head": "mlp"}, {"ranks": 4}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DenseAdapterOptions(**options)


def test_every_public_name_resolves() -> None:
    assert {name for name in mvcore_equivariance.__all__ if not callable(getattr(mvcore_equivariance, name))} == set()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mvcore_equivariance.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_listing_the_plugin_loads_no_torch() -> None:
    program = "import sys, mvcore_equivariance.plugin as p; p.mvcore_register_encoders(); p.mvcore_register_recipes()\n"
    program += "print(sorted({'torch', 'lightning', 'timm', 'numpy', 'pydantic'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
