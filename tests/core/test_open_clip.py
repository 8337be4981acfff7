"""The open_clip backbone: the library's own features, one pass, cached texts, honest training modes, clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from mvcore.api import ConfigError, DataError, MvcoreError, PluginError, ViewBatch, WeightsError, apply_lora, merge_lora
from mvcore.encoders.open_clip import OpenClip
from mvcore.encoders.options import OpenClipOptions
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import Attention
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils import parametrize

CAPTIONS = ["a red cup", "a shoe", "a red cup", "two lamps on a table"]


def batch_of(n: int = 4, size: int = 32, captions: list[str] | None = None, seed: int = 0) -> ViewBatch:
    generator = torch.Generator().manual_seed(seed)
    captions = CAPTIONS if captions is None else captions
    return ViewBatch.make(
        [1] * n,
        images=torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator),
        captions=captions,
        caption_object=torch.zeros(len(captions), dtype=torch.int64),
        caption_view=torch.full((len(captions),), -1),
    )


def keys(*names: str) -> frozenset[str]:
    return frozenset(names)


@pytest.fixture
def tiny(tiny_clip_json: Path) -> OpenClip:
    torch.manual_seed(0)
    return OpenClip(model=str(tiny_clip_json))


class Calls:
    """Counts the rows that pass through a module."""

    def __init__(self, module: nn.Module) -> None:
        self.rows: list[int] = []
        module.register_forward_hook(lambda _, inputs, __: self.rows.append(inputs[0].shape[0]))


def test_view_is_what_open_clip_gives_after_its_own_preprocessing(tiny: OpenClip) -> None:
    batch = batch_of()
    transform: Any = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(tiny.clip)), is_train=False)
    assert batch.images is not None
    pixels = torch.stack([transform(Image.fromarray(i.permute(1, 2, 0).numpy())) for i in batch.images])
    tiny.eval()
    expected = tiny.clip.encode_image(pixels)
    torch.testing.assert_close(tiny.encode(batch, keys("view"))["view"], expected, rtol=1e-4, atol=1e-5)


def test_only_the_asked_features_come_with_the_stated_widths(tiny: OpenClip) -> None:
    assert tiny.dims == {"view": 16, "text": 16, "dense": 32}
    assert tiny.image_size == 32
    assert tiny.n_blocks == 2
    assert tiny.provides == keys("view", "text", "dense", "logit_scale")
    features = tiny.encode(batch_of(), keys("dense", "logit_scale"))
    assert {k: tuple(v.shape) for k, v in features.items()} == {"dense": (4, 32, 4, 4), "logit_scale": ()}


def test_view_and_dense_share_one_pass(tiny: OpenClip) -> None:
    calls = Calls(tiny.clip.visual.conv1)
    alone = tiny.encode(batch_of(), keys("view"))["view"]
    both = tiny.encode(batch_of(), keys("view", "dense"))
    assert calls.rows == [4, 4]
    torch.testing.assert_close(both["view"], alone)


def test_dense_in_the_text_space_goes_the_class_tokens_way(tiny_clip_json: Path) -> None:
    backbone = OpenClip(model=str(tiny_clip_json), dense={"space": "text"}).eval()
    visual = backbone.clip.visual
    batch = batch_of()
    found = backbone.encode(batch, keys("dense"))["dense"]
    tokens = visual.transformer(visual._embeds(backbone.normalise(batch.images)))  # pyright: ignore
    for n in range(4):
        for y in range(4):
            for x in range(4):
                expected = visual.ln_post(tokens[n, 1 + 4 * y + x]) @ visual.proj
                torch.testing.assert_close(found[n, :, y, x], expected, rtol=1e-4, atol=1e-5)


def test_a_layer_of_the_dense_map_is_that_blocks_output(tiny_clip_json: Path) -> None:
    first = OpenClip(model=str(tiny_clip_json), dense={"layer": 0}).eval()
    outputs: list[Tensor] = []
    first.clip.visual.transformer.resblocks[0].register_forward_hook(lambda _, __, out: outputs.append(out))
    dense = first.encode(batch_of(), keys("dense"))["dense"]
    torch.testing.assert_close(dense.flatten(2).transpose(1, 2), outputs[0][:, 1:])


@pytest.mark.parametrize("options", [{}, {"layer": 0}, {"space": "text"}])
def test_a_finer_map_is_that_of_the_model_made_for_larger_images(
    tiny_clip_json: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    finer = OpenClip(model=str(tiny_clip_json), dense={"patches": 6, **options}).eval()
    config = json.loads(tiny_clip_json.read_text())
    config["vision_cfg"]["image_size"] = 48
    (tmp_path / "larger.json").write_text(json.dumps(config))
    larger = OpenClip(model=str(tmp_path / "larger.json"), dense=options).eval()
    state = dict(finer.clip.state_dict())
    open_clip.model.resize_pos_embed(state, larger.clip)
    larger.clip.load_state_dict(state)
    batch = batch_of()
    found = finer.encode(batch, keys("view", "dense"))
    assert found["dense"].shape[2:] == (6, 6)
    assert batch.images is not None
    pixels = torch.nn.functional.interpolate(finer.normalise(batch.images), (48, 48), mode="bilinear", antialias=True)
    _, expected = larger._tower.encode(pixels, view=False)
    torch.testing.assert_close(found["dense"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["view"], finer.encode(batch, keys("view"))["view"], rtol=1e-4, atol=1e-5)
    grid = finer.dense_grid(32, 32)
    assert (grid.rows, grid.columns) == (6, 6)
    assert grid.first == pytest.approx((32 / 12, 32 / 12))


def test_a_map_of_the_models_own_patches_is_its_own(tiny: OpenClip, tiny_clip_json: Path) -> None:
    same = OpenClip(model=str(tiny_clip_json), dense={"patches": 4}).eval()
    same.clip.load_state_dict(tiny.clip.state_dict())
    expected = tiny.eval().encode(batch_of(), keys("dense"))["dense"]
    torch.testing.assert_close(same.encode(batch_of(), keys("dense"))["dense"], expected, rtol=1e-4, atol=1e-5)


def test_towers_of_one_map_size_refuse_another() -> None:
    with pytest.raises(ConfigError, match=r"RN50: dense\.patches: .*leave it out"):
        OpenClip(model="RN50", dense={"patches": 14})


def test_equal_captions_are_encoded_once_and_frozen_ones_never_again(tiny: OpenClip) -> None:
    calls = Calls(tiny.clip.transformer)
    expected = tiny.clip.encode_text(tiny.tokenizer(CAPTIONS))
    calls.rows.clear()
    for _ in range(3):
        found = tiny.encode(batch_of(), keys("text"))["text"]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert not found.requires_grad
    more = tiny.encode(batch_of(captions=["a shoe", "a hat"]), keys("text"))["text"]
    torch.testing.assert_close(more[0], expected[1], rtol=1e-6, atol=1e-6)
    assert len(calls.rows) == 2


def test_a_frozen_embedding_depends_on_its_caption_alone(tiny_clip_json: Path) -> None:
    captions = [f"a shoe of size {i}" for i in range(40)]
    whole = OpenClip(model=str(tiny_clip_json)).eval()
    one_by_one = OpenClip(model=str(tiny_clip_json)).eval()
    one_by_one.load_state_dict(whole.state_dict())
    together = whole.encode_text(captions)
    assert torch.equal(
        together, torch.cat([one_by_one.encode_text([caption]) for caption in reversed(captions)]).flip(0)
    )


def test_without_the_cache_each_step_encodes_the_distinct_captions(tiny_clip_json: Path) -> None:
    backbone = OpenClip(model=str(tiny_clip_json), text_cache=False)
    calls = Calls(backbone.clip.transformer)
    for _ in range(2):
        backbone.encode(batch_of(), keys("text"))
    assert calls.rows == [3, 3]


def test_the_cache_is_bounded_and_right_when_full(tiny: OpenClip, tiny_clip_json: Path) -> None:
    from mvcore.encoders.text_cache import TextCache

    tiny._text_cache = TextCache(16, max_bytes=2 * 16 * 4)
    plain = tiny.clip.encode_text(tiny.tokenizer(CAPTIONS))
    calls = Calls(tiny.clip.transformer)
    for _ in range(3):
        torch.testing.assert_close(tiny.encode_text(CAPTIONS), plain, rtol=1e-6, atol=1e-6)
    assert len(calls.rows) == 3
    assert len(tiny._text_cache) == 2


def test_the_cache_forgets_when_text_weights_train_or_change(tiny: OpenClip) -> None:
    before = tiny.encode_text(CAPTIONS)
    with torch.no_grad():
        tiny.clip.text_projection.mul_(2)
    torch.testing.assert_close(tiny.encode_text(CAPTIONS), 2 * before, rtol=1e-5, atol=1e-5)
    tiny.set_trainable("all")
    trained = tiny.encode_text(CAPTIONS)
    assert trained.requires_grad
    trained.sum().backward()
    assert tiny.clip.token_embedding.weight.grad is not None
    tiny.set_trainable("none")
    assert not tiny.encode_text(CAPTIONS).requires_grad


def test_a_cache_filled_in_inference_mode_serves_training(tiny: OpenClip) -> None:
    with torch.inference_mode():
        tiny.encode_text(CAPTIONS)
    text = tiny.encode_text(CAPTIONS)
    scale = torch.ones(16, requires_grad=True)
    (text * scale).sum().backward()
    assert scale.grad is not None


def test_the_cache_is_no_part_of_the_state(tiny: OpenClip) -> None:
    before = set(tiny.state_dict())
    tiny.encode_text(CAPTIONS)
    assert set(tiny.state_dict()) == before
    assert set(tiny.model.state_dict()) == set(open_clip.model.CLIP(16, *_tiny_parts()).state_dict())


def _tiny_parts() -> tuple[Any, Any]:
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return vision, text


def test_no_caption_gives_no_row(tiny: OpenClip) -> None:
    assert tiny.encode(batch_of(captions=[]), keys("text"))["text"].shape == (0, 16)


def test_training_modes(tiny: OpenClip) -> None:
    def trains() -> set[str]:
        return {name for name, parameter in tiny.model.named_parameters() if parameter.requires_grad}

    everything = {name for name, _ in tiny.model.named_parameters()}
    assert trains() == set()
    tiny.set_trainable("all")
    assert trains() == everything
    tiny.set_trainable("last:1")
    last = {n for n in everything if n.startswith(("visual.transformer.resblocks.1.", "visual.ln_post"))}
    assert trains() == last | {"visual.proj"}
    tiny.train()
    blocks = tiny.clip.visual.transformer.resblocks
    assert [blocks[0].training, blocks[1].training, tiny.clip.transformer.training] == [False, True, False]
    tiny.eval()
    assert not blocks[1].training


def test_lora_on_the_sites_starts_at_the_plain_model_and_merges_exactly(tiny: OpenClip) -> None:
    names = list(tiny.model.state_dict())
    weight = tiny.clip.visual.transformer.resblocks[0].attn.in_proj_weight
    with torch.no_grad():
        plain = tiny.encode(batch_of(), keys("view"))["view"]
    sites = tiny.attention_sites()
    assert [site.name for site in sites] == ["0.attn.in_proj_weight", "1.attn.in_proj_weight"]
    assert dict(sites[0].rows) == {"q": range(32), "k": range(32, 64), "v": range(64, 96)}
    updates = [apply_lora(s.module, s.parameter, rank=4, alpha=4, rows=[s.rows["q"], s.rows["v"]]) for s in sites]
    with torch.no_grad(), parametrize.cached():
        assert torch.equal(tiny.encode(batch_of(), keys("view"))["view"], plain)
    assert tiny.weight_name(weight) == "visual.transformer.resblocks.0.attn.in_proj_weight"
    for update in updates:
        nn.init.normal_(update.b)
    tuned = tiny.encode(batch_of(), keys("view"))["view"]
    assert not torch.allclose(tuned, plain, atol=1e-3)
    assert merge_lora(tiny.model) == 2
    torch.testing.assert_close(tiny.encode(batch_of(), keys("view"))["view"], tuned, rtol=1e-5, atol=1e-5)
    assert list(tiny.model.state_dict()) == names


def test_a_training_mode_leaves_the_adapters_factors_alone(tiny: OpenClip) -> None:
    site = tiny.attention_sites()[0]
    update = apply_lora(site.module, site.parameter, rank=2, alpha=2)
    for mode in ("none", "last:1", "all", "none"):
        tiny.set_trainable(mode)
        assert update.a.requires_grad
        assert update.b.requires_grad
        assert tiny.clip.visual.conv1.weight.requires_grad is (mode == "all")


def test_sites_of_open_clips_own_attention_class(tiny_clip_config: dict, tmp_path: Path) -> None:
    tiny_clip_config["vision_cfg"]["qk_norm"] = True
    path = tmp_path / "clip.json"
    path.write_text(json.dumps(tiny_clip_config))
    backbone = OpenClip(model=str(path))
    site = backbone.attention_sites()[1]
    assert type(site.module) is Attention
    update = apply_lora(site.module, site.parameter, rank=2, alpha=2, rows=site.rows["v"])
    backbone.encode(batch_of(), keys("view"))["view"].square().sum().backward()
    assert update.b.grad is not None
    assert update.b.grad.abs().sum() > 0


class StrangeAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)


def test_attention_of_an_unknown_class_is_refused_by_name(tiny: OpenClip) -> None:
    tiny.clip.visual.transformer.resblocks[1].attn = StrangeAttention()
    with pytest.raises(PluginError, match="attention of class StrangeAttention is not known"):
        tiny.attention_sites()


@pytest.mark.parametrize(
    ("name", "total", "lora"), [("ViT-B-32", 151_277_313, 294_912), ("ViT-L-14", 427_616_513, 786_432)]
)
def test_parameter_counts_of_the_paper(name: str, total: int, lora: int) -> None:
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model: Any = open_clip.model.CLIP(**config)  # pyright: ignore
    assert sum(parameter.numel() for parameter in model.parameters()) == total
    blocks = model.visual.transformer.resblocks
    updates = [apply_lora(block.attn, "in_proj_weight", rank=8, alpha=8) for block in blocks]
    assert sum(parameter.numel() for update in updates for parameter in update.parameters()) == lora


def test_a_tokenizer_that_cannot_be_had_is_named_when_text_is_asked(
    tiny_clip_config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    tiny_clip_config["text_cfg"]["hf_tokenizer_name"] = "no/such-tokenizer"
    path = tmp_path / "clip.json"
    path.write_text(json.dumps(tiny_clip_config))
    backbone = OpenClip(model=str(path))
    assert backbone.encode(batch_of(), keys("view"))["view"].shape == (4, 16)
    with pytest.raises(WeightsError, match=r"cannot load the tokenizer no/such-tokenizer of .*clip.json") as caught:
        backbone.encode(batch_of(), keys("text"))
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_refused_with_both_sizes(tiny: OpenClip) -> None:
    with pytest.raises(ConfigError, match=r"images are 48x48 but .* takes 32x32"):
        tiny.encode(batch_of(size=48), keys("view"))


def test_missing_images_and_features_are_named(tiny: OpenClip) -> None:
    with pytest.raises(DataError, match="makes view from images; there are none"):
        tiny.encode(ViewBatch.make([1]), keys("view"))
    with pytest.raises(ConfigError, match=r"has no feature logit_bias \(it has: dense, logit_scale, text, view\)"):
        tiny.encode(batch_of(), keys("logit_bias"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"train": "last:3"}, "it has 2 vision blocks"),
        ({"train": "some"}, "train must be none, all or last:N"),
        ({"dense": {"layer": 2}}, "dense.layer 2 is not one of its 2 vision blocks"),
    ],
)
def test_options_that_the_model_cannot_meet(options: dict, text: str, tiny_clip_json: Path) -> None:
    with pytest.raises(MvcoreError, match=text):
        OpenClip(model=str(tiny_clip_json), **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"train": "last:0"}, "train must be none, all or last:N"),
        ({"dense": {"space": "text", "layer": 1}}, "leave layer out"),
        ({"dense": {"space": "audio"}}, "visual"),
        ({"modle": "x"}, "modle"),
        ({"model": " "}, "model is empty"),
    ],
)
def test_options_are_checked_before_anything_loads(options: dict, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        OpenClipOptions(**options)


def test_the_options_know_what_a_model_provides_without_loading_it(tiny_clip_json: Path) -> None:
    assert "logit_bias" in OpenClipOptions(model="ViT-B-16-SigLIP").provides()
    assert "logit_bias" not in OpenClipOptions(model="ViT-B-32").provides()
    assert "logit_bias" not in OpenClipOptions(model=str(tiny_clip_json)).provides()
