"""Acceptance B4, B6, B7, C1 to C5, E3 and G1: the method on plain timm vision transformers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from mvcore_equivariance import DenseEncoder
from mvcore_equivariance.heads import make_head
from torch import Tensor, nn

Make = Callable[..., Any]
COUNTS = {  # of the factors and of the convolution, by backbone
    "vit_small_patch14_dinov2": (24_576, 1_327_488),
    "vit_base_patch14_dinov2": (49_152, 5_309_184),
    "vit_large_patch14_dinov2": (65_536, 9_438_208),
    "vit_giant_patch14_dinov2": (98_304, 21_235_200),
}


def images(*size: int, count: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *(size or (32, 32)), generator=generator)


def encoder_of(vit: Any, **options: Any) -> DenseEncoder:
    torch.manual_seed(1)
    return DenseEncoder(vit, **{"last_blocks": 2, **options})


def own_map(vit: Any, pixels: Tensor) -> Tensor:
    """The model's own map, by its own way of giving it."""
    with torch.no_grad():
        return vit.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)[0]


def moved(encoder: DenseEncoder, seed: int = 2) -> DenseEncoder:
    """The encoder with random factors B."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, factor in encoder.updates.factors().items():
            if name.endswith("lora_b"):
                factor += 0.1 * torch.randn(factor.shape, generator=generator)
    return encoder


def map_of(encoder: DenseEncoder, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return encoder(pixels)


@pytest.mark.parametrize("head", ["residual", "none"])
def test_c1_c4_nothing_changes_before_the_first_step(make_vit: Make, head: Any) -> None:
    assert torch.equal(map_of(encoder_of(make_vit(), head=head), images()), own_map(make_vit(), images()))


def test_c4_the_authors_head_is_torchs_own_random_convolution(make_vit: Make) -> None:
    torch.manual_seed(5)
    head: Any = make_head("conv", 32)
    torch.manual_seed(5)
    conv: Any = nn.Conv2d(32, 32, kernel_size=3, stride=1, padding=1)
    assert torch.equal(head.weight, conv.weight)
    assert torch.equal(head.bias, conv.bias)
    encoder = encoder_of(make_vit())
    by_hand = encoder.head(own_map(make_vit(), images()))
    torch.testing.assert_close(map_of(encoder, images()), by_hand.detach(), atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="head must be conv, residual or none, got 'random'"):
        encoder_of(make_vit(), head="random")


def test_c1_only_q_and_v_of_the_last_blocks_change(make_vit: Make) -> None:
    before = make_vit().state_dict()
    encoder = moved(encoder_of(make_vit(), head="none"))
    tuned = map_of(encoder, images())
    assert not torch.allclose(tuned, own_map(make_vit(), images()), atol=1e-2)
    encoder.merge()
    after = encoder.vit.state_dict()
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"blocks.{i}.attn.qkv.weight" for i in (3, 4)}
    for name in changed:
        query, key, value = (after[name] - before[name]).chunk(3)
        assert not key.any()
        for delta in (query, value):
            assert torch.linalg.matrix_rank(delta, atol=1e-5) == 4
        # Their own factors each, so that together they may have twice the rank.
        assert torch.linalg.matrix_rank(torch.cat([query, value]), atol=1e-5) == 8


def test_c2_merged_is_unmerged_and_strength_zero_is_the_original(make_vit: Make) -> None:
    encoder = moved(encoder_of(make_vit(), head="none"))
    tuned = map_of(encoder, images())
    encoder.set_strength(0.0)
    assert torch.equal(map_of(encoder, images()), own_map(make_vit(), images()))
    originals = make_vit().state_dict()
    for i in (3, 4):
        assert torch.equal(encoder.vit.blocks[i].attn.qkv.weight, originals[f"blocks.{i}.attn.qkv.weight"])
    encoder.set_strength(1.0)
    encoder.merge()
    torch.testing.assert_close(map_of(encoder, images()), tuned, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(own_map(encoder.vit, images()), tuned, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("model", COUNTS)
def test_c3_parameter_counts(model: str) -> None:
    with torch.device("meta"):
        encoder = DenseEncoder(timm.create_model(model))
    factors = sum(p.numel() for p in encoder.updates.factors().values())
    assert (factors, sum(p.numel() for p in encoder.head.parameters())) == COUNTS[model]
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == sum(COUNTS[model])


def test_c3_all_else_stays_bit_for_bit(make_vit: Make) -> None:
    encoder = encoder_of(make_vit(), head="residual")
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    trained = {name for name, value in encoder.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=1e-3)
    for step in range(10):
        optimizer.zero_grad()
        encoder(images(seed=step)).square().mean().backward()
        optimizer.step()
    assert {n for n, value in encoder.named_parameters() if not torch.equal(value, before[n])} == trained
    assert len(trained) == 2 * 2 * 2 + 2


def test_e3_the_first_step(make_vit: Make) -> None:
    encoder = encoder_of(make_vit())
    encoder(images()).square().sum().backward()
    gradients: dict[str, Any] = {name: factor.grad for name, factor in encoder.updates.factors().items()}
    for name, gradient in gradients.items():
        assert bool(gradient.any()) == name.endswith("lora_b")
    assert all(p.grad is not None and p.grad.any() for p in encoder.head.parameters())
    nn.utils.clip_grad_norm_([p for p in encoder.parameters() if p.requires_grad], 1.0)
    total = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]).norm()
    assert float(total) <= 1 + 1e-5


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (16, 72), (8, 8)])
def test_b4_any_size_and_each_image_by_itself(make_vit: Make, size: tuple[int, int]) -> None:
    encoder = moved(encoder_of(make_vit()))
    found = map_of(encoder, images(*size, count=3))
    assert found.shape == (3, 32, size[0] // 8, size[1] // 8)
    for i in range(3):
        torch.testing.assert_close(map_of(encoder, images(*size, count=3)[i : i + 1])[0], found[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        ((3, 32, 36), "images of 32x36 are not whole patches of 8x8"),
        ((3, 7, 32), "images of 7x32 are smaller than a patch of 8x8"),
        ((4, 32, 32), r"images must be \(B, 3, H, W\) floating, got \(1, 4, 32, 32\)"),
    ],
)
@pytest.mark.parametrize("dynamic", [True, False])
def test_b4_images_that_do_not_fit_are_named(make_vit: Make, dynamic: bool, size: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        encoder_of(make_vit(dynamic_img_size=dynamic))(torch.zeros(1, *size))


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 4, "no_embed_class": True}])
def test_b4_a_model_for_one_size_takes_others_as_well(make_vit: Make, options: dict[str, Any]) -> None:
    fixed = moved(encoder_of(make_vit(dynamic_img_size=False, **options)))
    before = [(name, value.shape) for name, value in fixed.named_parameters()]
    free = moved(encoder_of(make_vit(**options)))
    for size in ((32, 32), (48, 24), (8, 40)):
        torch.testing.assert_close(map_of(fixed, images(*size)), map_of(free, images(*size)), atol=1e-6, rtol=1e-6)
    assert [(name, value.shape) for name, value in fixed.named_parameters()] == before
    odd = encoder_of(make_vit(dynamic_img_size=False, img_size=36, **options))
    assert map_of(odd, images(36, 36)).shape == (2, 32, 4, 4)  # timm cuts its own size to whole patches


class Patchify(nn.Module):
    """Stands for a ViT whose token depends on the pixels of its patch alone."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.blocks, self.patch_embed = vit.blocks, vit.patch_embed
        self.num_prefix_tokens, self.embed_dim = 0, vit.embed_dim

    def forward_features(self, pixels: Tensor) -> Tensor:
        return self.patch_embed(pixels).flatten(1, 2)


def test_b6_a_shift_by_a_patch_shifts_the_map(make_vit: Make) -> None:
    encoder = encoder_of(Patchify(make_vit()))
    wide = images(64, 72)
    here, there = map_of(encoder, wide[..., :64]), map_of(encoder, wide[..., 8:])
    inside = slice(2, -2)
    assert torch.equal(here[..., inside, 3:-1], there[..., inside, 2:-2])
    assert not torch.allclose(here[..., inside, inside], there[..., inside, inside], atol=1e-2)
    # By less than a patch it is another image of the same thing, and only about the same map.
    nearly = map_of(encoder, wide[..., 1:65])
    assert not torch.equal(here[..., inside, inside], nearly[..., inside, inside])


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({"class_token": False, "global_pool": "avg"}, 0),
        ({}, 1),
        ({"reg_tokens": 1}, 2),
        ({"reg_tokens": 4, "no_embed_class": True}, 5),
        ({"no_embed_class": True}, 1),
    ],
)
def test_b7_patch_tokens_are_the_last_ones(make_vit: Make, options: dict[str, Any], prefix: int) -> None:
    vit = make_vit(**options)
    pixels = images(32, 48)
    tokens = vit.forward_features(pixels)
    assert tokens.shape[1] == prefix + 4 * 6
    found = map_of(encoder_of(make_vit(**options), head="none"), pixels)
    assert torch.equal(found.flatten(2).transpose(1, 2), tokens[:, -24:])


def test_b7_registers_never_shift_the_map(make_vit: Make) -> None:
    vit = make_vit(reg_tokens=4, no_embed_class=True)
    encoder = encoder_of(vit, head="none")
    other = images(32, 48)
    other[:, :, 8:16, 16:24] += 1.0  # the patch of row 1, column 2
    change = (map_of(encoder, other) - map_of(encoder, images(32, 48))).norm(dim=1)
    assert torch.equal(change.flatten(1).argmax(dim=1), torch.full((2,), 1 * 6 + 2))


SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 2, "num_classes": 0}
ROTARY = {**SMALL, "num_heads": 1}


@pytest.mark.parametrize(
    ("model", "options", "prefix"),
    [
        ("vit_small_patch14_dinov2", SMALL, 1),
        ("vit_small_patch14_reg4_dinov2", SMALL, 5),
        ("vit_small_patch16_dinov3", ROTARY, 5),
        ("deit3_small_patch16_224", SMALL, 1),
        ("vit_base_patch16_clip_quickgelu_224", SMALL, 1),
        ("vit_base_patch16_siglip_224", SMALL, 0),
        ("eva02_tiny_patch14_224", {**ROTARY, "qkv_fused": False}, 1),
    ],
)
def test_every_kind_of_transformer(model: str, options: dict[str, Any], prefix: int) -> None:
    torch.manual_seed(0)
    vit: Any = timm.create_model(model, dynamic_img_size=True, **options).eval()
    pixels = images(32, 48)
    with torch.no_grad():
        for parameter in vit.parameters():  # as timm starts them, some blocks add next to nothing
            parameter += 0.15 * torch.randn_like(parameter)
        own = vit.forward_features(pixels)[:, prefix:].transpose(1, 2).unflatten(2, (4, 6))
    encoder = encoder_of(vit, last_blocks=4, head="none")
    assert torch.equal(map_of(encoder, pixels), own)
    tuned = map_of(moved(encoder), pixels)
    assert not torch.allclose(tuned, own, atol=1e-3)
    assert len(encoder.updates.factors()) == 4 * 2 * 2
    encoder.merge()
    torch.testing.assert_close(map_of(encoder, pixels), tuned, atol=1e-5, rtol=1e-5)
    fixed: Any = timm.create_model(model, **options).eval()
    fixed.load_state_dict(vit.state_dict())
    for_one_size = DenseEncoder(fixed, head="none")
    if model.startswith("eva02"):
        with pytest.raises(ValueError, match=r"images of 32x48 do not fit a Eva made for \(32, 32\)"):
            for_one_size(pixels)
    else:
        torch.testing.assert_close(map_of(for_one_size, pixels), tuned, atol=1e-5, rtol=1e-5)


def test_what_is_no_vision_transformer_is_refused(make_vit: Make) -> None:
    with pytest.raises(ValueError, match="ResNet is no timm vision transformer: it has no blocks"):
        DenseEncoder(timm.create_model("resnet18"))
    with pytest.raises(ValueError, match=r"last_blocks must be from 1 to 5, .* got 6"):
        DenseEncoder(make_vit(), last_blocks=6)
    with pytest.raises(ValueError, match="rank must be from 1 to 32"):
        DenseEncoder(make_vit(), rank=64)


def test_g1_inference_needs_torch_and_timm_only() -> None:
    program = """
import sys, timm, torch
from mvcore_equivariance import DenseEncoder, sample_features
vit = timm.create_model("vit_tiny_patch16_224", img_size=32, dynamic_img_size=True).eval()
with torch.no_grad():
    dense = DenseEncoder(vit)(torch.zeros(1, 3, 32, 48))
assert sample_features(dense, torch.zeros(1, 1, 2), (48, 32)).shape == (1, 1, 192)
heavy = {"lightning", "cv2", "matplotlib", "albumentations", "sklearn", "h5py", "mvcore_data", "typer"}
print(sorted(heavy & sys.modules.keys()))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
