"""A run on a timm model: trained, loaded, exported, measured by name, and refused where it has no texts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mvcore
import numpy as np
import pytest
import timm
import torch
from mvcore.cli.main import main
from mvcore.config_layers import Layers, to_yaml
from mvcore.errors import ConfigError, MvcoreError, WeightsError
from mvcore.running import _trained
from rich.console import Console
from safetensors.torch import save_file

if TYPE_CHECKING:
    from conftest import Lab

IMAGES = np.random.default_rng(5).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def values_of(lab: Lab, weights: Path | None, **changes: Any) -> dict[str, Any]:
    """LoRA on a timm model with the one loss that reads views alone."""
    values = lab.values()
    pretrained = None if weights is None else str(weights)
    values["encoder"] = {"id": "core.timm", "model": "test_vit", "pretrained": pretrained, "image_size": 32}
    values["adapters"] = {"ovt.lora": {"rank": 2}}
    values["losses"] = {"ovt.vc": {"margin": 0.5}}
    return lab.changed(values, {"run": {"max_steps": 4}, "optimizer": {"lr": 0.02}, **changes})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("timm") / "vit.safetensors"
    save_file({key: value.clone() for key, value in timm.create_model("test_vit").state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def run(lab: Lab, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, mvcore.Model]:  # pyright: ignore
    values, folder = values_of(lab, weights), tmp_path_factory.mktemp("run") / "run"
    session, layers = lab.session(values), Layers()
    layers.merge(values, "test")
    model = _trained(session, folder, to_yaml(layers, session.config), Console(quiet=True), "test")
    return folder, model


def test_a_run_loads_again_and_is_untouched_at_strength_0(run: Any, weights: Path) -> None:
    folder, trained = run
    loaded, untouched = mvcore.load(folder), mvcore.load(folder, strength=0.0)
    assert torch.equal(loaded.dense(IMAGES), trained.dense(IMAGES))
    plain = mvcore.load(f"timm:test_vit:{weights}")
    with plain.backbone.dense_at(patches=2):
        assert torch.equal(untouched.dense(IMAGES), plain.dense(IMAGES))
    assert not torch.equal(loaded.dense(IMAGES), untouched.dense(IMAGES))


def test_other_base_weights_are_refused(run: Any, tmp_path: Path, weights: Path) -> None:
    folder, _ = run
    other = tmp_path / "other.safetensors"
    torch.manual_seed(1)
    save_file({key: value.clone() for key, value in timm.create_model("test_vit").state_dict().items()}, other)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(weights), str(other)))
    with pytest.raises(WeightsError, match=r"other base weights than .*other\.safetensors of test_vit"):
        mvcore.load(copy)


def test_the_program_exports_and_measures_it(
    run: Any, lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = run
    out = tmp_path / "exported"
    monkeypatch.setattr(sys, "argv", ["mvcore", "export", str(folder), "--to", "timm", "-o", str(out)])
    assert exit_code() == 0
    said = capsys.readouterr().out
    assert f"timm loads it as local-dir:{out}" in said.replace("\n", "")
    assert "merged: ovt.lora; largest difference" in said.replace("\n", " ")
    plain: Any = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    loaded = mvcore.load(folder)
    backbone: Any = loaded.backbone
    pixels = backbone.normalise(torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    with torch.no_grad():
        found = plain.forward_head(plain.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(found, loaded.encode_images(IMAGES), rtol=1e-4, atol=1e-5)

    command = ["mvcore", "eval", str(folder), str(out), "--data", str(lab.store), "--on", "core.retrieval"]
    monkeypatch.setattr(sys, "argv", [*command, "-o", str(tmp_path / "figures")])
    assert exit_code() == 0
    assert (tmp_path / "figures" / "comparison.json").is_file()


def exit_code() -> int:
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_loss_that_needs_texts_is_refused_before_weights_load(lab: Lab, tmp_path: Path) -> None:
    absent = tmp_path / "absent.safetensors"  # would be the error if anything were loaded
    values = values_of(lab, absent)
    values["losses"] = {"core.itc": {}}
    values["adapters"]["ovt.logit_scale"] = {}
    with pytest.raises(ConfigError, match=r"core\.itc needs the feature 'text', which core\.timm lacks") as caught:
        lab.session(values)
    assert "core.open_clip" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_measurement_of_texts_is_refused_by_name(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["mvcore", "eval", "test_vit", "--data", str(lab.store), "--on", "core.zero_shot"]
    monkeypatch.setattr(sys, "argv", [*command, "-o", str(tmp_path / "out")])
    assert exit_code() == 2
    assert "text" in capsys.readouterr().err


def test_a_source_of_another_size_is_refused(lab: Lab) -> None:
    values = values_of(lab, None)
    values["encoder"]["image_size"] = 48
    values["data"]["objects"]["image_size"] = 32
    with pytest.raises(MvcoreError, match=r"data\[objects\]\.image_size is 32, but the encoder takes 48"):
        lab.prepare(values, Path("unused"))


@pytest.mark.parametrize("encoder", ["core.timm", "core.open_clip"])
@pytest.mark.parametrize("section", ["data", "validate"])
def test_a_source_of_another_size_is_refused_before_weights_are_loaded(
    lab: Lab, tmp_path: Path, encoder: str, section: str
) -> None:
    absent = tmp_path / "absent.safetensors"  # would be the error if anything were loaded
    values = values_of(lab, absent)
    if encoder == "core.open_clip":
        values["encoder"] = {"id": encoder, "model": "package:mvcore/testing/clip.json", "pretrained": str(absent)}
    other = {**values["data"]["objects"], "image_size": 40}
    if section == "data":
        values["data"]["objects"] = other
    else:
        values["validate"] = {"data": {"seen": other}}
    with pytest.raises(ConfigError, match=r"\]\.image_size is 40, but the encoder takes 32; set it so"):
        lab.session(values)


def test_use_needs_no_lightning() -> None:
    """G1: torch alone, on the processor, without a network."""
    code = (
        "import sys; sys.modules['lightning'] = None; sys.modules['lightning.pytorch'] = None; "
        "import mvcore, numpy; model = mvcore.load('test_vit'); "
        "print(tuple(model.keypoints(numpy.zeros((40, 50, 3), 'uint8'), [[3, 4]]).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(1, 1, 64)\n", done.stderr[-400:]
