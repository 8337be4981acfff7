"""Acceptance C5: checkpoints of the authors' schema, strictly, in `DenseEncoder` and through the program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mvcore
import numpy as np
import pytest
import timm
import torch
from mvcore.checkpoint import WEIGHTS, load_weights
from mvcore.cli.main import run
from mvcore.run_folder import checkpoint_of
from mvcore_equivariance import DenseEncoder
from mvcore_equivariance.released import BACKBONES, released_base
from safetensors.torch import save_file
from torch import Tensor, nn

Make = Callable[..., Any]


def released(width: int, *, blocks: int = 4, rank: int = 4, seed: int = 0) -> dict[str, Any]:
    """A checkpoint as the authors' Lightning module writes it, with random weights."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return 0.02 * torch.randn(shape, generator=generator)

    factors: dict[str, Any] = {}
    for i in range(2 * blocks):
        factors |= {f"w_a_{i:03d}": random(rank, width), f"w_b_{i:03d}": random(width, rank)}
    torch.manual_seed(seed)
    convolution = nn.Conv2d(width, width, kernel_size=3, padding=1).state_dict()
    return {
        "epoch": 99,
        "global_step": 10_000,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": {"refine_conv": convolution},
        "loops": {},
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"exp_avg": random(width)}}, "param_groups": []}],
        "lr_schedulers": [],
        **factors,
    }


def by_authors(vit: Any, checkpoint: dict[str, Any], pixels: Tensor) -> Tensor:
    """The dense map as the released code makes it: hooks on qkv of the last four blocks, then the convolution."""

    def hooked(index: int) -> Callable[..., Tensor]:
        a_q, a_v = (checkpoint[f"w_a_{2 * index + k:03d}"] for k in range(2))
        b_q, b_v = (checkpoint[f"w_b_{2 * index + k:03d}"] for k in range(2))

        def add(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            (x,) = inputs
            dim = x.shape[-1]
            output = output.clone()
            output[:, :, :dim] += x @ a_q.T @ b_q.T
            output[:, :, -dim:] += x @ a_v.T @ b_v.T
            return output

        return add

    handles = [block.attn.qkv.register_forward_hook(hooked(i)) for i, block in enumerate(vit.blocks[-4:])]
    with torch.no_grad():
        tokens = vit.forward_features(pixels)[:, vit.num_prefix_tokens :]
        patch = vit.patch_embed.patch_size[0]
        grid = tokens.transpose(1, 2).unflatten(2, (pixels.shape[2] // patch, pixels.shape[3] // patch))
        head = checkpoint["state_dict"]["refine_conv"]
        dense = nn.functional.conv2d(grid, head["weight"], head["bias"], padding=1)
    for handle in handles:
        handle.remove()
    return dense


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 4, "no_embed_class": True}])
def test_a_released_checkpoint_gives_the_authors_map(make_vit: Make, options: dict[str, Any], tmp_path: Path) -> None:
    torch.save(released(32), tmp_path / "dinov2.ckpt")
    checkpoint: Any = torch.load(tmp_path / "dinov2.ckpt", weights_only=True)
    encoder = DenseEncoder(make_vit(**options))
    encoder.load_released(checkpoint)
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    expected = by_authors(make_vit(**options), checkpoint, pixels)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=1e-5)
        encoder.merge()
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=1e-5)


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in released(32).items() if name != key}


@pytest.mark.parametrize(
    ("checkpoint", "options", "text"),
    [
        (released(48), {}, r"of another size: \(4, 48\) where this encoder, of width 32, has \(4, 32\)"),
        (released(32, rank=8), {}, r"of another size: \(8, 32\)"),
        (released(32, blocks=3), {}, "tunes 3 blocks, this encoder 4"),
        (released(32), {"last_blocks": 5}, "tunes 4 blocks, this encoder 5"),
        (released(32), {"head": "residual"}, "make the encoder with head='conv'"),
        (_without("w_b_003"), {}, "at odds: w_b_003"),
        (_without("state_dict"), {}, "at odds: refine_conv.bias, refine_conv.weight"),
        ({**released(32), "w_c": torch.zeros(2)}, {}, "at odds: w_c"),
        ({"state_dict": {"blocks.0.attn.qkv.weight": torch.zeros(2)}}, {}, "not a released checkpoint"),
        ({**released(32), "w_a_001": torch.zeros(4, 48)}, {}, r"w_a_001 is \(4, 48\) where .* asks for \(4, 32\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    make_vit: Make, checkpoint: dict[str, Any], options: dict[str, Any], text: str
) -> None:
    encoder = DenseEncoder(make_vit(), **options)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=text):
        encoder.load_released(checkpoint)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_the_files_name_tells_registers_apart(make_vit: Make) -> None:
    plain = DenseEncoder(make_vit(patch_size=14, img_size=28))
    registers = DenseEncoder(make_vit(patch_size=14, img_size=28, reg_tokens=4, no_embed_class=True))
    plain.load_released(released(32), name="dinov2_base.ckpt")
    registers.load_released(released(32), name="checkpoints/dinov2_reg_base.ckpt")
    with pytest.raises(ValueError, match="with 4 registers and patches of 14 pixels; this backbone has 0 and 14"):
        plain.load_released(released(32), name="dinov2_reg_base.ckpt")
    with pytest.raises(ValueError, match="with 0 registers and patches of 14 pixels; this backbone has 4 and 14"):
        registers.load_released(released(32), name="dinov2_base.ckpt")
    with pytest.raises(ValueError, match="with 0 registers and patches of 16 pixels"):
        plain.load_released(released(32), name="mae.ckpt")
    with pytest.raises(ValueError, match=r"mine\.ckpt is none of the released files: dinov2_small"):
        plain.load_released(released(32), name="mine.ckpt")


def test_every_released_file_has_its_model() -> None:
    assert len(BACKBONES) == 11
    for stem, model in BACKBONES.items():
        hub = "dinov2" in model and "reg4" not in model
        assert released_base(f"{stem}.ckpt") == {"model": model, "positions": "dinov2" if hub else "timm"}
        base, _, tag = model.partition(".")
        assert tag in [name.partition(".")[2] for name in timm.list_pretrained(f"{base}.*")]
        config = timm.get_pretrained_cfg(base)
        assert config is not None
        assert ("reg4" in model) == ("_reg_" in stem)
    assert released_base("last.ckpt") == {}


def under_hub_positions(vit: Any, pixels: Tensor) -> Any:
    """The model with its table replaced by what the hub's formula gives for the grid of these images, from scratch."""
    patch, side = vit.patch_embed.patch_size[0], vit.patch_embed.grid_size[0]
    rows, columns = (length // patch for length in pixels.shape[2:])
    table = vit.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    table = nn.functional.interpolate(
        table, scale_factor=((rows + 0.1) / side, (columns + 0.1) / side), mode="bicubic", recompute_scale_factor=False
    )
    positions = torch.cat([vit.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], dim=1)
    vit._pos_embed = lambda cells: (
        torch.cat([vit.cls_token.expand(len(cells), -1, -1), cells.flatten(1, 2)], 1) + positions
    )
    return vit


def test_the_authors_map_has_the_hubs_positions(make_vit: Make) -> None:
    checkpoint, pixels = released(32), torch.randn(2, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    encoders = [DenseEncoder(make_vit(), positions=positions) for positions in ("dinov2", "timm")]
    with torch.no_grad():
        for encoder in encoders:
            encoder.load_released(checkpoint)
        expected = by_authors(under_hub_positions(make_vit(), pixels), checkpoint, pixels)
        hub, timms = (encoder(pixels) for encoder in encoders)
    torch.testing.assert_close(hub, expected, atol=1e-5, rtol=1e-5)
    assert (timms - expected).abs().max() > 1e-3
    own = pixels[:, :, :32, :32]
    with torch.no_grad():
        assert torch.allclose(encoders[0](own), encoders[1](own), atol=1e-6), "at the model's own grid they are one"
    with pytest.raises(ValueError, match="set positions to timm"):
        DenseEncoder(make_vit(reg_tokens=4, no_embed_class=True), positions="dinov2")
    with pytest.raises(ValueError, match="not whole patches"):
        DenseEncoder(make_vit(dynamic_img_pad=True), positions="dinov2")(torch.zeros(1, 3, 33, 40))


@pytest.fixture(scope="module")
def base_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small DINOv2, as a file."""
    torch.manual_seed(0)
    vit: Any = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    path = tmp_path_factory.mktemp("base") / "small.safetensors"
    save_file({name: value.contiguous() for name, value in vit.state_dict().items()}, path)
    return path


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Imports, expects an exit code, and gives what was said, which is one line."""

    def said(name: str, checkpoint: dict[str, Any], *more: str, code: int = 0) -> str:
        torch.save(checkpoint, tmp_path / name)
        capsys.readouterr()
        assert run(["import", str(tmp_path / name), "--as", "equivariance", "-o", str(tmp_path / "out"), *more]) == code
        out, err = capsys.readouterr()
        assert len((err or out).splitlines()) == 1
        return err or out

    return said


SMALL = ["--set", "encoder.image_size=56", "--set", "encoder.patches=4"]


def test_import_keeps_what_was_trained_over_its_base(call: Callable[..., str], base_file: Path, tmp_path: Path) -> None:
    checkpoint = released(384)
    said = call("dinov2_small.ckpt", checkpoint, "--pretrained", str(base_file), *SMALL)
    assert "imported what was trained, 18 tensors of 1,352,064 values" in said
    assert json.loads((tmp_path / "out/import.json").read_text())["as"] == "equivariance.released"
    weights = load_weights(checkpoint_of(tmp_path / "out", "last") / WEIGHTS)
    qkv = "adapters/equivariance.dense/blocks.{}.attn.qkv.weight.{}.lora_{}"
    for i in range(8):
        for letter in "ab":
            name = qkv.format(8 + i // 2, "qv"[i % 2], letter)
            assert torch.equal(weights[name], checkpoint[f"w_{letter}_{i:03d}"])
    assert len(weights) == 18
    pixels = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8)
    vit: Any = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True).eval()
    vit.load_state_dict(load_weights(base_file))
    mean, std = (torch.tensor(vit.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    normalised = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    vit = under_hub_positions(vit, normalised)
    expected = by_authors(vit, checkpoint, normalised)
    torch.testing.assert_close(mvcore.load(tmp_path / "out").dense(pixels), expected, atol=1e-4, rtol=1e-4)


class Callback:
    """Stands for a class of the authors' environment."""


def test_import_passes_over_what_is_no_tensor_on_request(
    call: Callable[..., str], base_file: Path, tmp_path: Path
) -> None:
    checkpoint = {**released(384), "callbacks": {"best": Callback()}}
    said = call("dinov2_small.ckpt", checkpoint, "--pretrained", str(base_file), *SMALL, code=2)
    assert "names more than tensors" in said
    timms = ["--set", "encoder.positions=timm"]
    said = call("dinov2_small.ckpt", checkpoint, "--pretrained", str(base_file), *SMALL, *timms, "--tensors-only")
    assert "18 tensors" in said
    assert mvcore.load(tmp_path / "out").backbone.origin["positions"] == "timm", "an option that may be another"
    weights = load_weights(checkpoint_of(tmp_path / "out", "last") / WEIGHTS)
    head = checkpoint["state_dict"]["refine_conv"]
    assert torch.equal(weights["adapters/equivariance.dense/head.weight"], head["weight"])


def test_import_refuses_another_backbone_in_one_line(call: Callable[..., str], base_file: Path, tmp_path: Path) -> None:
    base = ["--pretrained", str(base_file), *SMALL]
    said = call("dinov2_small.ckpt", released(768), *base, code=2)
    assert "shape of blocks.8.attn.qkv.weight.q.lora_a is (4, 768), not (4, 384)" in said
    other = ["--set", "encoder.model=vit_small_patch14_reg4_dinov2"]
    said = call("dinov2_small.ckpt", released(384), *base, *other, code=2)
    assert "was trained over encoder.model vit_small_patch14_dinov2.lvd142m, not vit_small_patch14_reg4_dinov2" in said
    said = call("dinov2_reg_small.ckpt", released(384), *base, code=2)
    assert str(base_file) in said  # weights without registers are none of the model that the name asks for
    said = call("dinov2_small.ckpt", released(384), *SMALL, "--set", "encoder.pretrained=null", code=2)
    assert "holds only what was trained beside its base model; name the base's weights with --pretrained" in said
    said = call("last.ckpt", released(32), *base, code=2)
    assert "released checkpoints are of width 384, 768, 1024, 1536, not 32" in said
    said = call("last.ckpt", _without("w_a_000"), *base, code=2)
    assert "not a released checkpoint" in said
    assert not (tmp_path / "out").exists()
