"""Vision transformers taken apart, and their attention across the views of an object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip.model
import open_clip.timm_model
import open_clip.transformer
import pytest
import timm
import torch
from mvcore.encoders.across_views import ViewSegments, attending_across, attention_over
from mvcore.encoders.stages import Stages, stages_of
from mvcore.errors import ConfigError, PluginError
from torch import Tensor, nn

SIZE = 32
COUNTS = [2, 1, 3]


def clip_visual(**vision: Any) -> nn.Module:
    config: Any = {"image_size": SIZE, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8, **vision}
    text: Any = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    return open_clip.model.CLIP(embed_dim=12, vision_cfg=config, text_cfg=text).visual


def timm_model(name: str, **options: Any) -> nn.Module:
    small: Any = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": SIZE, "patch_size": 8, "num_classes": 0}
    return timm.create_model(name, **(small | options))


def timm_in_clip() -> nn.Module:
    made: Any = open_clip.timm_model.TimmModel("vit_tiny_patch16_224", 12, proj="linear")
    made.trunk.set_input_size(img_size=(SIZE, SIZE))
    made.trunk.blocks = made.trunk.blocks[:3]
    return made


TOWERS: dict[str, Callable[[], nn.Module]] = {
    "clip": clip_visual,
    "clip, mean of patches": lambda: clip_visual(pool_type="avg", final_ln_after_pool=True),
    "clip, custom blocks": lambda: clip_visual(qk_norm=True, scale_heads=True, scale_attn_inner=True, scale_fc=True),
    "clip, attentional pooling": lambda: clip_visual(attentional_pool=True, attn_pooler_heads=2),
    "clip on timm": lambda: timm_in_clip(),
    "siglip": lambda: timm_model("vit_base_patch16_siglip_224", global_pool="map"),
    "vit": lambda: timm_model("vit_base_patch16_224"),
    "dinov2 with registers": lambda: timm_model("vit_small_patch14_reg4_dinov2", init_values=0.5),
    "deit3": lambda: timm_model("deit3_small_patch16_224", init_values=0.5),
    "eva02": lambda: timm_model("eva02_base_patch16_clip_224"),
    "dinov3": lambda: timm_model("vit_small_patch16_dinov3", init_values=0.5),
}
"""By what they are; each is small and random."""


@pytest.fixture(params=TOWERS)
def tower(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    module = TOWERS[request.param]().double().eval()
    for parameter in module.parameters():  # what starts at 0 or 1 would hide an omission
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def images(count: int = sum(COUNTS)) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def across(module: nn.Module, counts: list[int], start: int) -> Tensor:
    """(N, D) vectors where attention crosses views from block `start` on."""
    stages = stages_of(module, "m")
    tokens = stages.run(stages.embed(images(sum(counts))), 0, start)
    return stages.finish(stages.run(tokens, start, len(stages.blocks), ViewSegments(counts, "cpu")))


def test_the_parts_together_are_the_model(tower: nn.Module) -> None:
    stages = stages_of(tower, "m")
    out = stages.finish(stages.run(stages.embed(images()), 0, len(stages.blocks)))
    torch.testing.assert_close(out, tower(images()), atol=1e-12, rtol=0)


def test_views_by_themselves_are_unchanged(tower: nn.Module) -> None:
    """Acceptance A1: an object of one view is the model's own vector, wherever attention crosses views."""
    for start in range(4):
        torch.testing.assert_close(across(tower, [1] * 6, start), tower(images()), atol=1e-12, rtol=0)


def test_blocks_across_views_are_the_plain_loop(tower: nn.Module) -> None:
    stages = stages_of(tower, "m")
    tokens = stages.embed(images()).detach()
    for index in range(3):
        found = stages.run(tokens, index, index + 1, ViewSegments(COUNTS, "cpu"))
        torch.testing.assert_close(found, by_loop(stages, tokens, index), atol=1e-10, rtol=0)


def by_loop(stages: Stages, tokens: Tensor, index: int) -> Tensor:
    """Object by object: the module's attention weights are read off its own per-view projections."""
    attention: Any = stages.attention(index)
    out, start = [], 0
    for count in COUNTS:
        views = tokens[start : start + count]
        start += count
        if not hasattr(attention, "num_prefix_tokens"):
            # Without positions in attention, an object is one long sequence for the library's own block.
            out.append(stages._call(stages.blocks[index], views.reshape(1, -1, views.shape[2])).view_as(views))
            continue
        # With them, each view brings its own keys: the library rotates them when it sees the view alone.
        seen: dict[str, list[Tensor]] = {"k": [], "v": []}
        with keys_and_values(seen):
            stages._call(stages.blocks[index], views)
        keys, values = (torch.cat(list(seen[name][0]), dim=1)[None].expand(count, -1, -1, -1) for name in "kv")
        with keys_and_values(seen, keys, values):
            out.append(stages._call(stages.blocks[index], views))
    return torch.cat(out)


class keys_and_values:  # noqa: N801
    """Records the keys and values that the library attends to, (N, heads, L, head_dim), or gives it others."""

    def __init__(self, seen: dict[str, list[Tensor]], keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.seen, self.keys, self.values = seen, keys, values

    def __enter__(self) -> None:
        self.own = torch.nn.functional.scaled_dot_product_attention

        def replaced(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
            self.seen["k"].append(k)
            self.seen["v"].append(v)
            if self.keys is not None and self.values is not None:
                k, v = self.keys, self.values
            return self.own(q, k, v, **options)

        torch.nn.functional.scaled_dot_product_attention = replaced

    def __exit__(self, *_: object) -> None:
        torch.nn.functional.scaled_dot_product_attention = self.own


def test_a_module_is_as_before_even_after_an_error(tower: nn.Module) -> None:
    stages = stages_of(tower, "m")
    attention, before = stages.attention(0), tower(images())
    keys = list(tower.state_dict())
    again = attending_across(attention, ViewSegments([6], "cpu"))
    with pytest.raises(RuntimeError, match="already"), attending_across(attention, ViewSegments([6], "cpu")):
        again.__enter__()
    with attending_across(attention, ViewSegments([6], "cpu")):
        assert list(tower.state_dict()) == keys
    assert "forward" not in vars(attention)
    assert torch.equal(tower(images()), before)


def test_recomputing_blocks_changes_no_gradient() -> None:
    """Acceptance A20: the backward pass attends as the forward pass did."""
    gradients: list[list[Tensor]] = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        visual: Any = clip_visual().double()
        visual.set_grad_checkpointing(checkpointing)
        weight = torch.randn(6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        (across(visual, COUNTS, 1) * weight).sum().backward()
        gradients.append([p.grad for p in visual.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


class Odd(nn.MultiheadAttention):
    """A subclass may do anything in its `forward`."""


@pytest.mark.parametrize(
    ("attention", "text"),
    [
        (Odd(8, 2), "of class Odd cannot cross views.*known: MultiheadAttention, Attention, Attention, AttentionRope"),
        (nn.MultiheadAttention(8, 2, kdim=4, vdim=4), "separate key and value widths"),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), "extra tokens"),
        (nn.MultiheadAttention(8, 2, dropout=0.1), "dropout"),
        (open_clip.transformer.Attention(8, 2, scaled_cosine=True), "scaled cosines"),
    ],
)
def test_attention_that_is_something_else_is_refused(attention: nn.Module, text: str) -> None:
    with pytest.raises(PluginError, match=text):
        attention_over(attention)


def test_towers_that_cannot_be_taken_apart_are_refused() -> None:
    with pytest.raises(PluginError, match="resnet: its vision tower \\(ResNet\\) is no plain vision transformer"):
        stages_of(timm.create_model("resnet18"), "resnet")
    with pytest.raises(ConfigError, match="m: block 4 is not one of its vision blocks 0 to 2"):
        stages_of(clip_visual(), "m").check_crossing(4, "m")
    stages_of(clip_visual(), "m").check_crossing(3, "m")
