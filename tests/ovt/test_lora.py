"""Acceptance M1, M2, M5-M7 of LoRA: which weights it touches, what it adds, how it is saved and merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from mvcore.api import ConfigError, ViewBatch, WeightsError
from mvcore.encoders.attention_sites import AttentionSite, attention_sites
from mvcore.encoders.open_clip import OpenClip
from mvcore_ovt.lora import LoraAdapter, rows_of
from mvcore_ovt.viformer import ViformerAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

VIEW = frozenset({"view"})
Make = Callable[[], OpenClip]


def attached(backbone: OpenClip, **options: Any) -> LoraAdapter:
    torch.manual_seed(4)
    adapter = LoraAdapter(**options)
    adapter.attach(backbone)
    return adapter


def images() -> ViewBatch:
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ViewBatch.make(
        [3],
        images=pixels,
        captions=["a red cup"],
        caption_object=torch.zeros(1, dtype=torch.int64),
        caption_view=torch.tensor([-1]),
    )


def view_of(backbone: OpenClip) -> Tensor:
    with torch.no_grad():
        return backbone.encode(images(), VIEW)["view"]


def trained(backbone: OpenClip, adapter: LoraAdapter, steps: int = 3) -> None:
    """Optimizer steps that move every factor."""
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=0.05, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        backbone.encode(images(), VIEW)["view"].pow(2).sum().backward()
        optimizer.step()


class Sites:
    """What the adapters ask of a backbone, over the attention of some blocks."""

    dims: Mapping[str, int] = {"view": 512}

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self.blocks = nn.ModuleList(blocks)

    @classmethod
    def of(cls, model: str) -> Sites:
        """The vision blocks of a whole open_clip model, of which only the attention gets memory."""
        with torch.device("meta"):
            clip: Any = open_clip.CLIP(**open_clip.get_model_config(model) or {})
        for block in clip.visual.transformer.resblocks:
            block.attn.to_empty(device="cpu")
        return cls(clip.visual.transformer.resblocks)

    def attention_sites(self) -> list[AttentionSite]:
        return attention_sites(self.blocks, "open_clip")

    def weight_name(self, parameter: nn.Parameter) -> str:
        return next(name for name, p in self.blocks.named_parameters() if p is parameter)


@pytest.mark.parametrize(
    ("model", "expected", "sites"),
    [("ViT-B-32", 294_912, 12), ("ViT-B-16", 294_912, 12), ("ViT-L-14", 786_432, 24)],
)
def test_m1_parameter_counts(model: str, expected: int, sites: int) -> None:
    adapter = LoraAdapter()
    adapter.attach(Sites.of(model))  # pyright: ignore[reportArgumentType]
    assert len(adapter.updates) == sites
    assert sum(p.numel() for p in adapter.parameters()) == expected


def test_m2_nothing_changes_before_the_first_step(small_clip: Make) -> None:
    plain, tuned = small_clip(), small_clip()
    attached(tuned)
    assert torch.equal(view_of(tuned), view_of(plain))


def test_m5_output_is_that_of_the_merged_weight(small_clip: Make) -> None:
    backbone, plain = small_clip(), small_clip()
    adapter = attached(backbone, rank=4, alpha=8.0)
    trained(backbone, adapter)
    state = adapter.trained_state()
    with torch.no_grad():
        for name, weight in plain.model.named_parameters():
            if f"{name}.lora_a" in state:
                weight += (8.0 / 4) * state[f"{name}.lora_b"] @ state[f"{name}.lora_a"]
    tuned = view_of(backbone)
    torch.testing.assert_close(view_of(plain), tuned, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(tuned, view_of(small_clip()), atol=1e-3)


@pytest.mark.parametrize("targets", [("q", "k", "v"), ("q", "v"), ("k",)])
def test_m5_merge_leaves_the_plain_library_and_the_same_output(small_clip: Make, targets: tuple[str, ...]) -> None:
    backbone, plain = small_clip(), small_clip()
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    adapter = attached(backbone, rank=2, targets=targets)
    trained(backbone, adapter)
    tuned = view_of(backbone)
    assert adapter.merge()
    after = backbone.model.state_dict()
    assert list(after) == list(before)
    torch.testing.assert_close(view_of(backbone), tuned, atol=1e-5, rtol=1e-5)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"visual.transformer.resblocks.{i}.attn.in_proj_weight" for i in range(3)}
    for name in changed:
        delta = after[name] - before[name]
        assert int(torch.linalg.matrix_rank(delta, atol=1e-5)) <= 2
        rows = {"q": delta[:32], "k": delta[32:64], "v": delta[64:]}
        assert {key for key, part in rows.items() if part.any()} == set(targets)


def test_m5_all_targets_share_one_factor(small_clip: Make) -> None:
    state = attached(small_clip(), rank=8).trained_state()
    name = "visual.transformer.resblocks.1.attn.in_proj_weight"
    assert state[f"{name}.lora_a"].shape == (8, 32)
    assert state[f"{name}.lora_b"].shape == (96, 8)
    assert len(state) == 6


@pytest.mark.parametrize("batch_first", [True, False])
def test_m5_either_layout_of_multihead_attention(batch_first: bool) -> None:
    # open_clip 2.24 runs its blocks sequence first, later ones batch first; the weight is the same.
    torch.manual_seed(0)
    module = nn.MultiheadAttention(32, 4, batch_first=batch_first).eval()
    adapter = LoraAdapter(rank=2)
    adapter.attach(Sites([nn.ModuleDict({"attn": module})]))  # pyright: ignore[reportArgumentType]
    update: Any = adapter.updates[0]
    nn.init.normal_(update.b)
    x = torch.randn(5, 3, 32)
    with torch.no_grad():
        tuned = module(x, x, x)[0]
        adapter.merge()
        torch.testing.assert_close(module(x, x, x)[0], tuned)


def test_strength_zero_is_the_untouched_model(small_clip: Make) -> None:
    backbone = small_clip()
    adapter = attached(backbone)
    trained(backbone, adapter)
    tuned = view_of(backbone)
    adapter.set_strength(0.0)
    assert torch.equal(view_of(backbone), view_of(small_clip()))
    adapter.set_strength(1.0)
    assert torch.equal(view_of(backbone), tuned)


def test_m6_only_the_factors_train_and_text_stays(small_clip: Make) -> None:
    backbone, plain = small_clip(), small_clip()
    adapter = attached(backbone)
    names = {name for name, p in backbone.model.named_parameters() if p.requires_grad}
    assert len(names) == 6
    assert all(".parametrizations.in_proj_weight.0." in name for name in names)
    backbone.encode(images(), VIEW)["view"].pow(2).sum().backward()
    for update in adapter.updates:
        factors: Any = update
        assert not factors.a.grad.any()
        assert factors.b.grad.any()
    start = {name: value.clone() for name, value in adapter.trained_state().items()}
    trained(backbone, adapter)
    assert all(not torch.equal(value, start[name]) for name, value in adapter.trained_state().items())
    text = frozenset({"text"})
    assert torch.equal(backbone.encode(images(), text)["text"], plain.encode(images(), text)["text"])
    untouched = dict(plain.model.named_parameters())
    for name, parameter in backbone.model.named_parameters():
        if name in untouched:
            assert torch.equal(parameter, untouched[name])


def test_m7_saved_state_round_trips_as_plain_tensors(small_clip: Make, tmp_path: Path) -> None:
    backbone = small_clip()
    adapter = attached(backbone)
    trained(backbone, adapter)
    save_file(adapter.trained_state(), tmp_path / "lora.safetensors")
    again = small_clip()
    other = attached(again)
    other.load_trained_state(load_file(tmp_path / "lora.safetensors"))
    assert torch.equal(view_of(again), view_of(backbone))


def test_m7_a_base_model_has_less_than_30_mb_of_weights_to_save() -> None:
    backbone: Any = Sites.of("ViT-B-32")
    adapters = (LoraAdapter(), ViformerAdapter())
    for adapter in adapters:
        adapter.attach(backbone)
    held = sum(value.nbytes for adapter in adapters for value in adapter.trained_state().values())
    assert held == 4 * 6_599_680
    assert held < 30e6


def test_m7_a_checkpoint_of_another_rank_is_refused(small_clip: Make) -> None:
    state = attached(small_clip(), rank=4).trained_state()
    with pytest.raises(WeightsError, match="shape of"):
        attached(small_clip(), rank=8).load_trained_state(state)


def test_two_updates_of_one_weight_keep_their_names_apart(small_clip: Make) -> None:
    backbone = small_clip()
    first, second = attached(backbone), attached(backbone, rank=2)
    assert set(first.trained_state()) == set(second.trained_state())
    trained(backbone, first)
    tuned = view_of(backbone)
    assert first.merge()
    assert second.merge()
    torch.testing.assert_close(view_of(backbone), tuned, atol=1e-5, rtol=1e-5)


def test_a_rank_that_does_not_fit_is_the_users_error(small_clip: Make) -> None:
    with pytest.raises(ConfigError, match=r"ovt\.lora: .*rank must be from 1 to 32"):
        attached(small_clip(), rank=33)


def test_a_backbone_without_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not tell where its attention"):
        LoraAdapter().attach(nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]


def test_touching_rows_are_joined() -> None:
    assert rows_of([range(4, 6), range(2), range(2, 4)]) == [range(6)]
    assert rows_of([range(4, 6), range(2)]) == [range(2), range(4, 6)]
