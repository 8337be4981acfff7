"""Acceptance M1-M4: VIFormer and its blend."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from mvcore.api import ConfigError, Features, ViewBatch, WeightsError
from mvcore.encoders.open_clip import OpenClip
from mvcore_ovt import VIFormer, blend
from mvcore_ovt.viformer import ViformerAdapter
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize


def embeddings(rows: int = 5, dim: int = 32, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(dim: int = 32, **options: Any) -> VIFormer:
    torch.manual_seed(1)
    return VIFormer(dim, feedforward=64, **options).double().eval()


def layers_of(viformer: VIFormer) -> list[Any]:
    return list(viformer.layers)


@pytest.mark.parametrize(
    ("model", "total", "viformer"),
    [
        ("ViT-B-32", 151_277_313, 6_304_768),
        ("ViT-B-16", 149_620_737, 6_304_768),
        ("ViT-L-14", 427_616_513, 11_027_968),
    ],
)
def test_m1_parameter_counts(model: str, total: int, viformer: int) -> None:
    with torch.device("meta"):
        clip: Any = open_clip.CLIP(**open_clip.get_model_config(model) or {})
        tuned = VIFormer(clip.visual.output_dim)
    assert sum(p.numel() for p in clip.parameters()) == total
    assert sum(p.numel() for p in tuned.parameters()) == viformer


class ReleasedVIFormer(nn.Module):
    """The layout that the authors' weights have: torch's own encoder over a sequence of one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(d_model=dim, nhead=4, dim_feedforward=64)
        self.transformer_encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer_encoder(x[None])[0]


def test_m4_released_weights_give_the_released_output() -> None:
    torch.manual_seed(2)
    released = ReleasedVIFormer(32).double().eval()
    ours = made()
    ours.load_released(released.state_dict())
    x = embeddings().requires_grad_()
    torch.testing.assert_close(ours(x), released(x))
    torch.testing.assert_close(*(torch.autograd.grad(m(x).pow(3).sum(), x)[0] for m in (ours, released)))


def test_m4_released_weights_load_out_of_the_whole_wrapped_model() -> None:
    released = ReleasedVIFormer(32).double()
    whole = {f"module.transformer_module.{key}": value for key, value in released.state_dict().items()}
    ours = made()
    ours.load_released({**whole, "module.clip_model.visual.proj": torch.ones(2), "module.logit_scale": torch.ones(())})
    torch.testing.assert_close(ours(embeddings()), released.eval()(embeddings()))


def test_m4_weights_that_do_not_fit_are_named() -> None:
    state = ReleasedVIFormer(32).state_dict()
    with pytest.raises(WeightsError, match=r"norm2\.bias"):
        made().load_released({k: v for k, v in state.items() if not k.endswith("layers.1.norm2.bias")})
    with pytest.raises(WeightsError, match="size mismatch"):
        made(64).load_released(state)
    with pytest.raises(WeightsError, match="no VIFormer"):
        made().load_released({"visual.proj": torch.ones(2)})


def test_m4_closed_form() -> None:
    ours = made()
    x = h = embeddings()
    for layer in layers_of(ours):
        weight, bias = layer.self_attn.in_proj_weight[64:], layer.self_attn.in_proj_bias[64:]
        attended = (h @ weight.T + bias) @ layer.self_attn.out_proj.weight.T + layer.self_attn.out_proj.bias
        h = layer_norm(h + attended, (32,), layer.norm1.weight, layer.norm1.bias)
        hidden = (h @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
        h = layer_norm(
            h + hidden @ layer.linear2.weight.T + layer.linear2.bias, (32,), layer.norm2.weight, layer.norm2.bias
        )
    torch.testing.assert_close(ours(x), h)


def test_m4_rows_do_not_see_each_other() -> None:
    ours, x = made(), embeddings()
    torch.testing.assert_close(torch.cat([ours(row[None]) for row in x]), ours(x), atol=1e-5, rtol=0)


def test_m4_queries_and_keys_get_no_gradient_and_values_do() -> None:
    ours = made()
    ours(embeddings()).pow(3).sum().backward()
    for layer in layers_of(ours):
        gradient = layer.self_attn.in_proj_weight.grad
        assert not gradient[:64].any()
        assert gradient[64:].any()


def test_m4_output_has_the_norm_of_its_width() -> None:
    norms = made()(embeddings()).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((5,), 32**0.5, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(32,), (2, 3, 32), (3, 31)])
def test_a_wrong_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"must be (N, 32), not {shape}")):
        VIFormer(32)(torch.ones(shape))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="32, got 5"):
        VIFormer(32, heads=5)


def test_dropout_acts_in_training_mode_only() -> None:
    ours, x = made(dropout=0.5), embeddings()
    torch.testing.assert_close(ours(x), ours(x), atol=0, rtol=0)
    ours.train()
    assert not torch.equal(ours(x), ours(x))


def test_m3_blends() -> None:
    z, f = embeddings(), embeddings(seed=1)
    torch.testing.assert_close(blend(z, f, alpha=0.1, rule="released"), normalize(z + 0.1 * f, dim=-1))
    torch.testing.assert_close(blend(z, f, alpha=0.1, rule="paper"), normalize(0.9 * z + 0.1 * f, dim=-1))
    torch.testing.assert_close(blend(z, f / 0.9, rule="released"), blend(z, f, rule="paper"))
    assert not torch.allclose(blend(z, f, rule="paper"), blend(z, f, rule="released"), atol=1e-4)


def test_m3_halves_are_blended_in_float32() -> None:
    z, f = embeddings().half(), embeddings(seed=1).half()
    assert blend(z, f).dtype == torch.float32


def test_m3_wrong_input_is_named() -> None:
    z = embeddings()
    with pytest.raises(ValueError, match="paper, released, not 'sum'"):
        blend(z, z, rule="sum")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"\(5, 32\) and \(4, 32\)"):
        blend(z, z[:4])


def adapted(small_clip: Callable[[], OpenClip], **options: Any) -> tuple[ViformerAdapter, Tensor, Tensor]:
    """An attached adapter, what goes in, and what comes out."""
    backbone = small_clip()
    torch.manual_seed(3)
    adapter = ViformerAdapter(feedforward=64, **options).eval()
    adapter.attach(backbone)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = ViewBatch.make([2, 2], images=images)
    with torch.no_grad():
        view = backbone.encode(batch, frozenset({"view"}))["view"]
        return adapter, view, adapter(Features({"view": view}), batch)["view"]


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_m2_alpha_zero_gives_the_plain_embedding(small_clip: Callable[[], OpenClip], rule: str) -> None:
    _, plain, tuned = adapted(small_clip, alpha=0.0, blend=rule)
    torch.testing.assert_close(tuned, normalize(plain, dim=-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_m2_identity_starts_at_the_plain_embedding_and_learns(small_clip: Callable[[], OpenClip], rule: str) -> None:
    adapter, plain, tuned = adapted(small_clip, init="identity", blend=rule)
    torch.testing.assert_close(tuned, normalize(plain, dim=-1), atol=1e-6, rtol=0)
    adapter(Features({"view": plain}), ViewBatch.make([2, 2]))["view"].pow(3).sum().backward()
    assert adapter.viformer is not None
    assert layers_of(adapter.viformer)[-1].norm2.weight.grad.any()


def test_m2_released_start_turns_the_embedding(small_clip: Callable[[], OpenClip]) -> None:
    _, plain, tuned = adapted(small_clip, blend="released")
    assert float((tuned * normalize(plain, dim=-1)).sum(dim=1).max()) < 0.9999


def test_strength_scales_what_was_learnt(small_clip: Callable[[], OpenClip]) -> None:
    adapter, plain, tuned = adapted(small_clip)
    features, batch = Features({"view": plain}), ViewBatch.make([2, 2])
    adapter.set_strength(0.0)
    assert torch.equal(adapter(features, batch)["view"], plain)
    adapter.set_strength(0.5)
    half = adapter(features, batch)["view"]
    adapter.set_strength(1.0)
    assert torch.equal(adapter(features, batch)["view"], tuned)
    unit = normalize(plain, dim=-1)
    assert (((half * unit).sum(dim=1) > (tuned * unit).sum(dim=1)) & ((half * unit).sum(dim=1) < 1)).all()


def test_heads_that_do_not_fit_the_backbone_are_the_users_error(small_clip: Callable[[], OpenClip]) -> None:
    with pytest.raises(ConfigError, match=r"ovt\.viformer.*24, got 5"):
        ViformerAdapter(heads=5).attach(small_clip())


def test_m7_trained_state_round_trips(small_clip: Callable[[], OpenClip]) -> None:
    first, plain, tuned = adapted(small_clip)
    second = ViformerAdapter(feedforward=64).eval()
    second.attach(small_clip())
    second.load_trained_state(first.trained_state())
    assert torch.equal(second(Features({"view": plain}), ViewBatch.make([2, 2]))["view"], tuned)
