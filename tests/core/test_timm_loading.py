"""timm models by name, tag, file and folder; what does not fit is one line, and an export is plain timm's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mvcore
import numpy as np
import pytest
import timm
import torch
from mvcore.api import ConfigError, WeightsError, apply_lora, load_encoder, model_key
from mvcore.encoder_names import encoder_named
from mvcore.encoders.timm_loading import load_timm
from mvcore.exporting import export
from mvcore.model import Model
from mvcore.plugins import load_plugins
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils import parametrize

IMAGE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def weights_of(name: str, seed: int = 0, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {key: value.clone() for key, value in timm.create_model(name, **options).state_dict().items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    weights = weights_of("test_vit")  # with its classifier, as timm's own files have it
    save_file(weights, folder / "vit.safetensors")
    torch.save(weights, folder / "vit.pt")
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, folder / "wrapped.pth")
    lacking = {key: value for key, value in weights.items() if key != "blocks.1.attn.qkv.weight"}
    save_file(lacking, folder / "lacking.safetensors")
    save_file({**weights, "blocks.9.norm1.weight": torch.ones(64)}, folder / "more.safetensors")
    save_file(weights_of("test_vit3"), folder / "other.safetensors")
    (folder / "torn.safetensors").write_bytes((folder / "vit.safetensors").read_bytes()[:1000])
    return folder


@pytest.mark.parametrize("file", ["vit.safetensors", "vit.pt", "wrapped.pth"])
def test_weights_of_a_file(files: Path, file: str) -> None:
    network = load_timm("test_vit", str(files / file))
    expected = load_file(files / "vit.safetensors")
    state = network.state_dict()
    assert set(state) == {key for key in expected if not key.startswith("head.")}
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("lacking.safetensors", r'Missing key.*"blocks\.1\.attn\.qkv\.weight"'),
        ("more.safetensors", r'Unexpected key.*"blocks\.9\.norm1\.weight"'),
        ("other.safetensors", "size mismatch|Unexpected key|Missing key"),
        ("torn.safetensors", "cannot load test_vit with weights"),
        ("absent.safetensors", "does not exist"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(files: Path, file: str, text: str) -> None:
    with pytest.raises(WeightsError, match=text) as caught:
        load_timm("test_vit", str(files / file))
    assert "\n" not in str(caught.value)


def test_weights_of_a_model_with_registers_do_not_fit_one_without(tmp_path: Path) -> None:
    sizes = {"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 1, "num_heads": 2}
    save_file(weights_of("vit_small_patch14_reg4_dinov2", **sizes), tmp_path / "reg.safetensors")
    with pytest.raises(WeightsError):
        load_timm("vit_small_patch14_dinov2", str(tmp_path / "reg.safetensors"))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not run",)


def test_a_file_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="weights_only"):
        load_timm("test_vit", str(tmp_path / "evil.pt"))
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "pretrained", "text"),
    [
        ("tset_vit", None, "timm has no model 'tset_vit', did you mean 'test_vit'"),
        ("test_vit.in1k", None, "timm's test_vit has no weights 'in1k'"),
        ("test_vit", "in1k", "model test_vit has no weights 'in1k'"),
        ("vit_base_patch16_224.mae", "augreg_in1k", "names the weights 'mae' and pretrained others, 'augreg_in1k'"),
        ("vit_tiny_patch14_reg4_dinov2", True, "timm has no model"),
        ("vit_small_patch32_224", "vit.txt", "has no weights 'vit.txt'"),
        ("local-dir:nowhere", None, "model folder 'nowhere' does not exist"),
        ("hf-hub:timm/vit", "in1k", "brings its own weights; set pretrained to null"),
    ],
)
def test_what_is_not_there_is_named(model: str, pretrained: Any, text: str) -> None:
    with pytest.raises(WeightsError, match=text) as caught:
        load_timm(model, pretrained)
    assert "\n" not in str(caught.value)


def test_without_a_way_to_the_hub_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for model, pretrained in (("test_vit", True), ("test_vit", "r160_in1k"), ("hf-hub:timm/none", None)):
        with pytest.raises(WeightsError, match="not in the local cache, and the hub cannot be reached"):
            load_timm(model, pretrained)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"architecture": "nope"}', '{"architecture": 3}'])
def test_a_folder_that_is_no_timm_model_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"no timm model|timm has no architecture") as caught:
        load_timm(f"local-dir:{tmp_path}", None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part", "model", "pretrained"),
    [
        ("vit_small_patch14_dinov2.lvd142m", "core.timm", "vit_small_patch14_dinov2.lvd142m", True),
        ("vit_small_patch14_dinov2", "core.timm", "vit_small_patch14_dinov2", None),
        ("vit_small_patch14_dinov2:lvd142m", "core.timm", "vit_small_patch14_dinov2", "lvd142m"),
        ("vit_base_patch16_224.mae:mae.pth", "core.timm", "vit_base_patch16_224.mae", "mae.pth"),
        ("timm:convnext_base", "core.timm", "convnext_base", None),
        ("timm:hf-hub:timm/vit", "core.timm", "hf-hub:timm/vit", None),
        ("timm:local-dir:a.b/c", "core.timm", "local-dir:a.b/c", None),
        ("convnext_base", "core.open_clip", "convnext_base", None),
        ("ViT-B-32:openai", "core.open_clip", "ViT-B-32", "openai"),
        ("clip.json:clip.safetensors", "core.open_clip", "clip.json", "clip.safetensors"),
    ],
)
def test_a_name_tells_its_library(text: str, part: str, model: str, pretrained: Any) -> None:
    assert encoder_named(text, load_plugins()) == (part, {"model": model, "pretrained": pretrained})


def test_a_name_is_told_without_importing_a_model_library() -> None:
    code = (
        "import sys; from mvcore.encoder_names import encoder_named; "
        "from mvcore.plugins import load_plugins; encoder_named('test_vit', load_plugins()); "
        "print([m for m in ('torch', 'timm', 'open_clip') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# -- export ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        {"model": "test_vit", "image_size": 96, "stride": 8, "dense": {"layer": -2, "norm": True}},
        {"model": "test_convnext", "patches": 3},
        {"model": "test_vit3"},
    ],
)
def test_an_export_is_plain_timms_and_comes_back(args: dict[str, Any], tmp_path: Path) -> None:
    model = load_encoder("core.timm", args)
    expected = model.dense(IMAGE), model.encode_images(IMAGE)
    done = export(model, tmp_path / "out", to="timm")
    assert done.largest_difference <= 1e-6
    again = mvcore.load(tmp_path / "out")
    assert torch.equal(again.dense(IMAGE), expected[0])
    assert torch.equal(again.encode_images(IMAGE), expected[1])
    named = mvcore.load(f"local-dir:{tmp_path / 'out'}")
    assert named.backbone.library == "timm"
    assert "timm.create_model" in (tmp_path / "out" / "README.md").read_text()
    assert model_key(again)["weights_sha256"] == model_key(model)["weights_sha256"]


def test_merged_low_rank_weights_load_strictly_without_mvcore(tmp_path: Path) -> None:
    model = load_encoder("core.timm", {"model": "test_vit"})
    backbone: Any = model.backbone
    for site in backbone.attention_sites():
        update = apply_lora(site.module, site.parameter, rank=4, alpha=4, rows=[site.rows["q"], site.rows["v"]])
        torch.nn.init.normal_(update.b, std=0.1)
    pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), parametrize.cached():
        expected = backbone.model.forward_features(pixels)
    done = export(model, tmp_path / "out")
    assert done.library == "timm"
    torch.save(pixels, tmp_path / "pixels.pt")
    code = (
        "import sys, timm, torch; model = timm.create_model('local-dir:out', pretrained=True).eval(); "
        "assert 'mvcore' not in sys.modules; torch.set_grad_enabled(False); "
        "torch.save(model.forward_features(torch.load('pixels.pt')), 'found.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "found.pt"), expected, rtol=1e-4, atol=1e-5)


def test_only_a_models_own_library_is_exported_to(tmp_path: Path) -> None:
    model = load_encoder("core.timm", {"model": "test_vit"})
    with pytest.raises(ConfigError, match="--to open_clip: this model is of timm; it can go to timm"):
        export(model, tmp_path / "out", to="open_clip")
    assert not (tmp_path / "out").exists()


def test_a_damaged_export_is_one_line(tmp_path: Path) -> None:
    export(load_encoder("core.timm", {"model": "test_vit"}), tmp_path / "out")
    about = json.loads((tmp_path / "out" / "mvcore_export.json").read_text())
    (tmp_path / "out" / "mvcore_export.json").write_text(json.dumps({**about, "library": "pickles"}))
    with pytest.raises(WeightsError, match="is of the library 'pickles', which is not known"):
        mvcore.load(tmp_path / "out")


# -- what vectors depend on --------------------------------------------------------------------------------------------


def key_of(**options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    model: Model = load_encoder("core.timm", {"model": "test_vit", **options})
    return {name: value for name, value in model_key(model).items() if name != "model"}


def test_the_key_tells_what_changes_vectors() -> None:
    plain = key_of()
    assert key_of(train="last:1") == plain
    for options in ({"image_size": 96}, {"patches": 5}, {"stride": 8}):
        assert key_of(**options) != plain, options
