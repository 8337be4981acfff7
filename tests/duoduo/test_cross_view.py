"""Acceptance A1-A12 and A20: cross-view attention on an unmodified model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import open_clip
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from mvcore import attention
from mvcore.api import ConfigError, PluginError
from mvcore_duoduo import cross_view
from torch import Tensor

LAYERS = 4
Images = Callable[..., Tensor]
EXACT = {"atol": 1e-12, "rtol": 0}


def encode(clip: Any, images: Tensor, counts: list[int], start: int = 2) -> Tensor:
    with cross_view(clip, cross_view_from=start) as crossing:
        return crossing.encode(images, torch.tensor(counts))


@pytest.mark.parametrize("start", range(LAYERS + 1))
def test_a1_one_view_is_the_models_own_vector(clip: Any, images: Images, start: int) -> None:
    torch.testing.assert_close(encode(clip, images(3), [1, 1, 1], start), clip.encode_image(images(3)), **EXACT)


def test_a2_without_crossing_blocks_an_object_is_the_mean_of_its_views(clip: Any, images: Images) -> None:
    views = clip.encode_image(images(5))
    expected = torch.stack([views[:2].mean(0), views[2:].mean(0)])
    torch.testing.assert_close(encode(clip, images(5), [2, 3], LAYERS), expected, **EXACT)


def test_a3_the_order_of_views_has_no_effect(clip: Any, images: Images) -> None:
    order = torch.tensor([3, 0, 2, 1])
    torch.testing.assert_close(encode(clip, images(4)[order], [4]), encode(clip, images(4), [4]), **EXACT)


def test_a4_repeated_views_add_nothing(clip: Any, images: Images) -> None:
    one = images(1)
    torch.testing.assert_close(encode(clip, one.expand(4, -1, -1, -1), [4]), clip.encode_image(one), **EXACT)
    twice = images(3).repeat(2, 1, 1, 1)
    torch.testing.assert_close(encode(clip, twice, [6]), encode(clip, images(3), [3]), **EXACT)


def test_a5_objects_do_not_see_each_other(clip: Any, images: Images) -> None:
    counts = [2, 1, 3]
    pixels = images(6).requires_grad_()
    together = encode(clip, pixels, counts)
    alone = [encode(clip, part, [len(part)])[0] for part in pixels.split(counts)]
    torch.testing.assert_close(together, torch.stack(alone), **EXACT)
    (gradient,) = torch.autograd.grad(together[1].sum(), pixels)
    assert [bool(row.any()) for row in gradient] == [False, False, True, False, False, False]


def test_a6_crossing_changes_the_vector(clip: Any, images: Images) -> None:
    mean = clip.encode_image(images(3)).mean(0, keepdim=True).detach()
    found = {start: encode(clip, images(3), [3], start).detach() for start in (0, 2)}
    assert all(float((vector - mean).abs().max()) > 1e-3 for vector in found.values())
    assert float((found[0] - found[2]).abs().max()) > 1e-4


@pytest.mark.parametrize("frames", [1, 3, 6, 12])
@pytest.mark.parametrize("start", [0, 2, 3])
def test_a7_the_authors_formulation_gives_the_same(
    clip: Any, images: Images, by_reference: Callable[..., Tensor], frames: int, start: int
) -> None:
    pixels = images(2 * frames)
    expected = by_reference(clip, pixels, start, frames)
    torch.testing.assert_close(encode(clip, pixels, [frames] * 2, start), expected, **EXACT)
    with cross_view(clip, cross_view_from=start) as crossing:
        unit = crossing.encode(pixels, [frames] * 2, normalize=True)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(2, dtype=torch.float64), **EXACT)


def test_a8_nothing_is_added_and_everything_taken_back(make_clip: Callable[..., Any], images: Images) -> None:
    clip, other = make_clip(), make_clip()
    keys, before = list(clip.state_dict()), clip.encode_image(images(2))
    trains = [p.requires_grad for p in clip.parameters()]
    modules = len(list(clip.modules()))
    crossing = cross_view(clip, cross_view_from=1, train_from=1)
    crossing.encode(images(2), [2])
    assert list(clip.state_dict()) == keys
    assert len(list(clip.modules())) == modules
    clip.load_state_dict(other.state_dict(), strict=True)
    other.load_state_dict(clip.state_dict(), strict=True)
    # Not bit for bit while less trains: torch then takes another way through its own attention.
    torch.testing.assert_close(clip.encode_image(images(2)), before, **EXACT)
    crossing.remove()
    assert [p.requires_grad for p in clip.parameters()] == trains
    assert torch.equal(clip.encode_image(images(2)), before)
    with pytest.raises(ValueError, match="was removed"):
        crossing.encode(images(2), [2])


def test_a8_an_error_leaves_the_model_as_it_was(make_clip: Callable[..., Any], images: Images) -> None:
    clip = make_clip()
    before = clip.encode_image(images(2))
    mlp = clip.visual.transformer.resblocks[2].mlp
    hook = mlp.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stopped here")))
    with pytest.raises(RuntimeError, match="stopped here"):
        encode(clip, images(2), [2])
    hook.remove()
    assert torch.equal(clip.encode_image(images(2)), before)


@pytest.mark.parametrize("name", ["sdpa", "dense"])
def test_a9_ragged_objects_are_the_loop_over_objects(
    make_clip: Callable[..., Any], images: Images, name: attention.Backend
) -> None:
    clip, counts = make_clip(), [1, 3, 2, 6]
    pixels = images(12)
    weight = images(4, seed=5)[:, 0, 0, :12]
    found: list[list[Tensor]] = []
    for together in (True, False):
        clip.zero_grad()
        with attention.backend(name if together else None):
            parts = (
                [encode(clip, pixels, counts)]
                if together
                else [encode(clip, part, [len(part)]) for part in pixels.split(counts)]
            )
        out = torch.cat(parts)
        (out * weight).sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in clip.visual.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, LAYERS))
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a10_any_counts_agree_with_one_object_at_a_time(clip: Any, images: Images, counts: list[int], at: int) -> None:
    pixels = images(sum(counts))
    alone = [encode(clip, part, [len(part)], at)[0] for part in pixels.split(counts)]
    torch.testing.assert_close(encode(clip, pixels, counts, at), torch.stack(alone), **EXACT)


@pytest.mark.slow
def test_a11_what_trains_in_vit_b_32() -> None:
    clip: Any = open_clip.create_model("ViT-B-32", pretrained=None)
    assert sum(p.numel() for p in clip.visual.parameters()) == 87_849_216
    for first, tensors, size in ((6, 24, 14_174_208), (0, 48, 28_348_416), (11, 4, 2_362_368), (12, 0, 0)):
        with cross_view(clip, cross_view_from=6, train_from=first):
            names = {name: p.numel() for name, p in clip.named_parameters() if p.requires_grad}
            pattern = (
                r"visual\.transformer\.resblocks\.(\d+)\.attn\.(in_proj_weight|in_proj_bias|out_proj\.(weight|bias))"
            )
            assert all(int(re.fullmatch(pattern, name)[1]) >= first for name in names)  # pyright: ignore
            assert (len(names), sum(names.values())) == (tensors, size)


def test_a11_a_step_changes_these_weights_alone(make_clip: Callable[..., Any], images: Images) -> None:
    clip = make_clip()
    before = {name: p.detach().clone() for name, p in clip.named_parameters()}
    with cross_view(clip, cross_view_from=2, train_from=2) as crossing:
        optimizer = torch.optim.AdamW([p for p in clip.parameters() if p.requires_grad], lr=0.1)
        crossing.encode(images(4), [1, 3]).square().sum().backward()
        optimizer.step()
    changed = {name for name, p in clip.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if re.search(r"visual.*resblocks\.[23]\.attn\.", name)}


def test_a12_where_it_crosses_and_what_trains_are_apart(make_clip: Callable[..., Any], images: Images) -> None:
    clip = make_clip()
    expected = encode(clip, images(3), [3], 1)
    with cross_view(clip, cross_view_from=1, train_from=3) as crossing:
        torch.testing.assert_close(crossing.encode(images(3), [3]), expected, **EXACT)
        trained = [name for name, p in clip.named_parameters() if p.requires_grad]
    assert trained
    assert all("resblocks.3.attn" in name for name in trained)


def test_a20_a_frozen_prefix_keeps_no_graph(make_clip: Callable[..., Any], images: Images) -> None:
    clip = make_clip()
    seen: list[bool] = []
    clip.visual.transformer.resblocks[2].ln_1.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].requires_grad)
    )
    with cross_view(clip, cross_view_from=2, train_from=2) as crossing:
        assert crossing.encode(images(3), [3]).requires_grad
    assert seen == [False]


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "deit3_small_patch16_224"])
def test_on_timm_vision_transformers(images: Images, name: str) -> None:
    torch.manual_seed(0)
    options: Any = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 0}
    vit = timm.create_model(name, **options).double().eval()
    for parameter in vit.parameters():  # timm starts so near to zero that views hardly differ
        parameter.data += 0.1 * torch.randn_like(parameter)
    with cross_view(vit, cross_view_from=1) as crossing:
        torch.testing.assert_close(crossing.encode(images(3), [1, 1, 1]), vit(images(3)), **EXACT)
        crossed = crossing.encode(images(3), [3])
        assert float((crossed - vit(images(3)).mean(0)).detach().abs().max()) > 1e-4
        torch.testing.assert_close(crossing.encode(images(3).flip(0), [3]), crossed, **EXACT)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([2, 0, 1], r"at least one view, got view counts \[2, 0, 1\]"),
        ([], "at least one view"),
        ([2, 2], r"sum to 4, but images are \(3, 3, 32, 32\)"),
        ([1.5, 1.5], "at least one view"),
    ],
)
def test_counts_that_do_not_fit_are_named(clip: Any, images: Images, counts: list[Any], text: str) -> None:
    with cross_view(clip, cross_view_from=2) as crossing, pytest.raises(ValueError, match=text):
        crossing.encode(images(3), counts)


def test_models_and_blocks_that_do_not_fit_are_named(clip: Any) -> None:
    with pytest.raises(ConfigError, match="block 5 is not one of its vision blocks 0 to 3"):
        cross_view(clip, cross_view_from=5)
    with pytest.raises(PluginError, match=r"ResNet: .* no plain vision transformer"):
        cross_view(timm.create_model("resnet18"), cross_view_from=1)
