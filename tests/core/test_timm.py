"""`core.timm`: a timm model's own vector and map, at any size and stride, without a trace left in the model."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mvcore.api import ConfigError, DataError, ViewBatch, apply_lora, merge_lora
from mvcore.encoders.timm import Timm
from mvcore.encoders.timm_vision import vision_of
from mvcore.model_key import weights_digest
from mvcore.types import ViewBatch as Batch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn.utils import parametrize


def _load_small() -> Any:
    """Once in a process: timm knows a model by the module that registered it."""
    if "small_timm" not in sys.modules:
        spec = importlib.util.spec_from_file_location("small_timm", Path(__file__).with_name("small_timm.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules["small_timm"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["small_timm"])
    return sys.modules["small_timm"]


small_timm = _load_small()
NAMES, awake = small_timm.NAMES, small_timm.awake

PLAIN = ["dinov2", "dinov2_reg4", "dinov3", "deit3", "mae", "clip", "siglip2", "eva02"]
OTHERS = ["rope_mixed", "swin", "convnext"]


def backbone_of(short: str, **options: Any) -> Timm:
    backbone = Timm(NAMES[short], **options)
    awake(backbone.model)
    return backbone.eval()


def batch_of(height: int, width: int | None = None, n: int = 2, seed: int = 0) -> Batch:
    size = (n, 3, height, width or height)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return ViewBatch.make([1] * n, images=images)


def side_of(backbone: Timm) -> int:
    assert backbone.image_size is not None
    return backbone.image_size


def features(backbone: Timm, batch: Batch, *keys: str) -> dict[str, Tensor]:
    with torch.no_grad():
        return backbone.encode(batch, frozenset(keys))


def dense(backbone: Timm, batch: Batch) -> Tensor:
    return features(backbone, batch, "dense")["dense"]


# -- what the library itself gives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", [*PLAIN, *OTHERS, "resnet"])
def test_the_vector_is_the_models_own(short: str) -> None:
    backbone = backbone_of(short)
    plain: Any = timm.create_model(NAMES[short], num_classes=0).eval()
    plain.load_state_dict(backbone.model.state_dict(), strict=True)
    batch = batch_of(side_of(backbone))
    data = resolve_model_data_config(plain)
    mean, std = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert batch.images is not None
    with torch.no_grad():
        final = plain.forward_features((batch.images / 255 - mean) / std)
        expected = plain.forward_head(final, pre_logits=True)
    both = features(backbone, batch, "view", "dense")
    torch.testing.assert_close(both["view"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both["view"], features(backbone, batch, "view")["view"])
    assert both["view"].shape == (2, backbone.dims["view"])
    assert both["dense"].shape[:2] == (2, backbone.dims["dense"])
    if final.ndim == 3:
        cells = both["dense"].flatten(2).transpose(1, 2)
        torch.testing.assert_close(cells, final[:, plain.num_prefix_tokens :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("short", PLAIN)
@pytest.mark.parametrize(("layer", "norm"), [(0, None), (-1, None), (1, True), (None, False)])
def test_a_layer_is_that_blocks_output(short: str, layer: int | None, norm: bool | None) -> None:
    backbone = backbone_of(short, dense={"layer": layer, "norm": norm})
    batch = batch_of(side_of(backbone))
    assert batch.images is not None
    index = backbone.n_blocks - 1 if layer is None else layer % backbone.n_blocks
    with torch.no_grad():
        _, expected = backbone.timm.forward_intermediates(
            backbone.normalise(batch.images), indices=[index], norm=bool(norm)
        )
    torch.testing.assert_close(dense(backbone, batch), expected[0], rtol=1e-4, atol=1e-5)


def test_view_and_dense_take_one_pass() -> None:
    backbone = backbone_of("dinov2")
    calls: list[int] = []
    backbone.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    features(backbone, batch_of(28), "view", "dense")
    assert len(calls) == 1
    calls.clear()
    backbone.blocks[-1].register_forward_hook(lambda *_: calls.append(1))
    with backbone.dense_at(layer=0):
        dense(backbone, batch_of(28))
    assert len(calls) == 1, "the blocks behind the map are not run when nobody wants their output"


# -- prefix tokens (B7) ------------------------------------------------------------------------------------------------


class Positionless(nn.Module):
    """Blocks and norms that hand tokens on, so that a cell is its own patch."""

    def forward(self, tokens: Tensor, *_: Any, **__: Any) -> Tensor:
        return tokens


def transparent(backbone: Timm) -> Timm:
    """Only the projection of patches is left: no position, no attention."""
    for index in range(len(backbone.timm.blocks)):
        backbone.timm.blocks[index] = Positionless()
    backbone.timm.norm, backbone.timm.norm_pre = nn.Identity(), nn.Identity()
    if backbone.timm.pos_embed is not None:
        nn.init.zeros_(backbone.timm.pos_embed)
    backbone._branches = type(backbone._branches)(backbone.timm, backbone.name)
    backbone._vision = vision_of(backbone.timm, backbone.name, backbone._branches)
    return backbone


@pytest.mark.parametrize(
    ("short", "prefix"), [("siglip2", 0), ("mae", 1), ("deit3", 1), ("dinov2_reg4", 5), ("dinov3", 5)]
)
def test_cells_are_the_patches_whatever_stands_before_them(short: str, prefix: int) -> None:
    backbone = transparent(backbone_of(short))
    assert backbone.timm.num_prefix_tokens == prefix
    size, patch = side_of(backbone), backbone.patch
    batch = batch_of(size)
    assert batch.images is not None
    found = dense(backbone, batch)
    pixels = backbone.normalise(batch.images)
    project = backbone.timm.patch_embed.proj
    for row in range(size // patch):
        for column in range(size // patch):
            part = pixels[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            expected = torch.einsum("nchw,dchw->nd", part.double(), project.weight.double())
            expected = expected + (0 if project.bias is None else project.bias.double())
            torch.testing.assert_close(found[:, :, row, column].double(), expected, rtol=1e-4, atol=1e-4)


def test_the_values_of_registers_shift_no_cell() -> None:
    backbone = backbone_of("dinov2_reg4")
    one = transparent(backbone)
    batch = batch_of(28)
    before = dense(one, batch)
    nn.init.normal_(one.timm.reg_token, std=10)
    nn.init.normal_(one.timm.cls_token, std=10)
    torch.testing.assert_close(dense(one, batch), before, rtol=0, atol=0)


# -- strides -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", PLAIN)
def test_a_finer_stride_keeps_the_patches_tokens(short: str) -> None:
    """At the places of the model's own patches the tokens, positions included, are the model's own."""
    backbone = backbone_of(short)
    stride = {7: 1, 8: 4}[backbone.patch]
    step = backbone.patch // stride
    pixels = torch.randn(2, 3, *[2 * side_of(backbone)] * 2, generator=torch.Generator().manual_seed(1))
    stages: Any = backbone._branches.stages
    prefix, cells = backbone.timm.num_prefix_tokens, 2 * side_of(backbone) // backbone.patch
    with torch.no_grad():
        own = stages.embed(pixels)
        own_rope = getattr(stages, "_rope", None)
        stages.stride = stride
        finer = stages.embed(pixels)
        rope = getattr(stages, "_rope", None)
    rows = (cells - 1) * step + 1
    assert finer.shape[1] == prefix + rows * rows
    torch.testing.assert_close(finer[:, :prefix], own[:, :prefix])
    grid = finer[:, prefix:].unflatten(1, (rows, rows))[:, ::step, ::step]
    torch.testing.assert_close(grid.flatten(1, 2), own[:, prefix:], rtol=1e-4, atol=1e-4)
    if own_rope is not None:
        assert rope is not None
        turned = rope.unflatten(0, (rows, rows))[::step, ::step].flatten(0, 1)
        torch.testing.assert_close(turned, own_rope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("short", PLAIN)
def test_a_map_at_another_stride_leaves_the_model_as_it_was(short: str) -> None:
    backbone = backbone_of(short)
    batch = batch_of(side_of(backbone))
    digest, names = weights_digest(backbone.model), list(backbone.model.state_dict())
    convolution = backbone.timm.patch_embed.proj
    before, stride, grid = dense(backbone, batch), convolution.stride, backbone.dense_grid(28, 28)
    other = {7: 1, 8: 4}[backbone.patch]
    with backbone.dense_at(stride=other, patches=3, layer=0):
        finer = dense(backbone, batch)
        assert backbone.stride == other
    assert finer.shape[2] == 2 * backbone.patch // other + 1
    assert torch.equal(dense(backbone, batch), before)
    assert weights_digest(backbone.model) == digest
    assert list(backbone.model.state_dict()) == names
    assert convolution.stride == stride
    assert backbone.dense_grid(28, 28) == grid


def test_settings_come_back_after_an_error() -> None:
    backbone = backbone_of("dinov2")
    with pytest.raises(RuntimeError, match="stop"), backbone.dense_at(stride=1):
        raise RuntimeError("stop")
    assert backbone.stride == 7


@pytest.mark.parametrize("short", ["dinov2", "siglip2", "dinov2_reg4"])
def test_a_shift_by_a_stride_moves_the_map_by_a_cell(short: str) -> None:
    """B6: with neither positions nor attention, bit for bit."""
    backbone = transparent(backbone_of(short, stride={7: 1, 8: 4}[backbone_of(short).patch]))
    image = batch_of(56, n=1).images
    assert image is not None
    for shift, cells in ((backbone.patch, backbone.patch // backbone.stride), (backbone.stride, 1)):
        with backbone.dense_at(patches=40 // backbone.patch):
            crop = 40 // backbone.patch * backbone.patch
            still = dense(backbone, ViewBatch.make([1], images=image[..., :crop, :crop].contiguous()))
            moved = dense(backbone, ViewBatch.make([1], images=image[..., :crop, shift : shift + crop].contiguous()))
        torch.testing.assert_close(moved[..., :-cells], still[..., cells:], rtol=1e-5, atol=1e-5)


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(512, 512, 80, 80), (480, 640, 60, 80), (640, 480, 80, 60), (300, 1000, 24, 80), (1280, 960, 80, 60)],
)
def test_the_authors_rule_of_resolution(height: int, width: int, rows: int, columns: int) -> None:
    """B5: the longer side as 640 pixels, cells of 8 pixels."""
    backbone = Timm(NAMES["dinov2"], patches=80, image_size=512)
    assert backbone.input_size(height, width) == (rows * 7, columns * 7)
    grid = backbone.dense_grid(width, height)
    assert (grid.rows, grid.columns) == (rows, columns)
    assert grid.step == pytest.approx((width / columns, height / rows))
    assert grid.first == pytest.approx((width / columns / 2, height / rows / 2))


@pytest.mark.parametrize("short", [*PLAIN, *OTHERS])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (61, 97), (97, 61)])
def test_images_of_any_size(short: str, height: int, width: int) -> None:
    backbone = backbone_of(short)
    batch = batch_of(height, width)
    both = features(backbone, batch, "view", "dense")
    grid = backbone.dense_grid(width, height)
    assert both["dense"].shape == (2, backbone.dims["dense"], grid.rows, grid.columns)
    assert max(grid.rows, grid.columns) == side_of(backbone) // backbone.patch
    alone = features(backbone, ViewBatch.make([1], images=batch.images[1:]), "dense")["dense"]  # pyright: ignore
    torch.testing.assert_close(alone, both["dense"][1:], rtol=1e-3, atol=1e-4)


def test_its_own_size_leaves_the_pixels_alone_and_the_border_out_as_timm_does() -> None:
    """A patch of 7 fits 4 times into 30 pixels; timm's convolution leaves the last two out."""

    @timm.models.register_model
    def mvcore_test_border(pretrained: bool = False, **options: Any) -> nn.Module:
        for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(key, None)
        sizes = {"img_size": 30, "patch_size": 7, "embed_dim": 32, "depth": 1, "num_heads": 2}
        return timm.models.vision_transformer.vit_small_patch14_dinov2(**{**sizes, **options})

    backbone = Timm("mvcore_test_border").eval()
    plain: Any = timm.create_model("mvcore_test_border", num_classes=0).eval()
    plain.load_state_dict(awake(backbone.model).state_dict())
    batch = batch_of(30)
    assert batch.images is not None
    mean, std = (torch.tensor(backbone.preprocessing()[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = plain.forward_features((batch.images / 255 - mean) / std)
    torch.testing.assert_close(features(backbone, batch, "view")["view"], expected[:, 0], rtol=1e-4, atol=1e-5)
    grid = backbone.dense_grid(30, 30)
    assert (grid.rows, grid.first, grid.step) == (4, (3.5, 3.5), (7, 7))
    assert backbone.dense_grid(60, 60).step == (15, 15), "another size is resized whole"


@pytest.mark.parametrize(
    ("short", "options", "text"),
    [
        ("dinov2", {"stride": 3}, "stride 3 is no divisor of the patch's side, 7"),
        ("dinov2", {"image_size": 6}, "image_size 6 is less than a patch of 7 pixels"),
        ("dinov2", {"dense": {"layer": 3}}, "dense.layer 3 is not one of its 3 vision blocks"),
        ("dinov2", {"train": "last:4"}, "train: last:4, but it has 3 vision blocks"),
        ("convnext", {"stride": 16}, "stride cannot be set: ConvNeXt is no plain vision transformer"),
        ("resnet", {"dense": {"layer": 0}}, "dense.layer 0 is not one of its 0 vision blocks"),
        ("convnext", {"dense": {"norm": True}}, "dense.norm cannot be set for the final map of ConvNeXt"),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_name(short: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        Timm(NAMES[short], **options)
    assert NAMES[short] in str(caught.value)


def test_a_model_of_one_size_takes_no_other() -> None:
    with pytest.raises(ConfigError, match="test_vit_relpos takes images of 160x160 only; leave image_size out"):
        Timm("test_vit_relpos", image_size=192)
    backbone = Timm("test_vit_relpos")
    with pytest.raises(ConfigError, match="images are 64x64 but test_vit_relpos takes 160x160"):
        backbone.encode(batch_of(64), frozenset({"view"}))


def test_what_is_wrong_with_a_batch_is_said() -> None:
    backbone = backbone_of("dinov2")
    with pytest.raises(ConfigError, match=r"has no feature text \(it has: dense, view\)"):
        backbone.encode(batch_of(28), frozenset({"text"}))
    with pytest.raises(DataError, match="makes dense, view from images; there are none"):
        backbone.encode(ViewBatch.make([1]), frozenset({"view", "dense"}))
    with pytest.raises(ConfigError, match="images of 6x40 pixels are smaller than a patch of"):
        dense(backbone, batch_of(6, 40))
    with pytest.raises(ConfigError, match="have none along the shorter"):
        dense(backbone, batch_of(8, 80))
    with (
        pytest.raises(ConfigError, match="its map has no setting 'strid', did you mean 'stride'"),
        backbone.dense_at(strid=1),
    ):
        pass
    other = backbone_of("convnext")
    with pytest.raises(ConfigError, match="has another width"), other.dense_at(layer=0):
        pass


def test_a_network_whose_steps_overlap_has_a_map_of_unknown_places() -> None:
    backbone = backbone_of("resnet")
    assert dense(backbone, batch_of(64)).shape == (2, 512, 7, 7)
    with pytest.raises(
        ConfigError, match="places of the cells of its map are not known: Conv2d conv1 takes windows of 7"
    ):
        backbone.dense_grid(64, 64)


# -- training and tuning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", PLAIN)
def test_low_rank_tuning_of_queries_and_values(short: str) -> None:
    backbone = backbone_of(short)
    sites = [site for site in backbone.attention_sites() if int(site.name.split(".")[0]) >= backbone.n_blocks - 1]
    batch = batch_of(side_of(backbone))
    plain = dense(backbone, batch)
    weights = copy.deepcopy(backbone.model.state_dict())
    updates = [
        apply_lora(
            site.module, site.parameter, rank=2, alpha=2, rows=[site.rows[key] for key in "qv" if key in site.rows]
        )
        for site in sites
        if set(site.rows) & set("qv")
    ]
    with parametrize.cached():
        assert torch.equal(dense(backbone, batch), plain), "no change before the first step"
    with parametrize.cached():
        backbone.encode(batch, frozenset({"dense"}))["dense"].square().sum().backward()
    assert all(update.b.grad is not None and update.b.grad.abs().sum() > 0 for update in updates)
    for update in updates:
        nn.init.normal_(update.b)
    with parametrize.cached():
        tuned = dense(backbone, batch)
    assert not torch.equal(tuned, plain)
    merge_lora(backbone.model)
    torch.testing.assert_close(dense(backbone, batch), tuned, rtol=1e-4, atol=1e-5)
    tuned_at = {f"blocks.{site.name}": site for site in sites if set(site.rows) & set("qv")}
    for name, value in backbone.model.state_dict().items():
        rows = tuned_at[name].rows if name in tuned_at else {"": slice(None)}
        for key, part in rows.items():
            kept = slice(part.start, part.stop) if isinstance(part, range) else part
            assert torch.equal(value[kept], weights[name][kept]) == (key not in ("q", "v")), (name, key)


def test_what_trains() -> None:
    backbone = backbone_of("dinov2_reg4", train="last:1").train()
    trained = {name for name, parameter in backbone.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in backbone.model.named_parameters() if name.startswith(("blocks.2.", "norm."))}
    assert backbone.timm.blocks[2].training
    assert not backbone.timm.blocks[1].training
    backbone.encode(batch_of(28), frozenset({"view"}))["view"].square().sum().backward()
    assert {name for name, p in backbone.model.named_parameters() if p.grad is not None} == trained
    backbone.set_trainable("all")
    assert all(parameter.requires_grad for parameter in backbone.model.parameters())
    backbone.set_trainable("none")
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_a_branch_and_a_step_before_the_first_layer() -> None:
    backbone = backbone_of("dinov2")
    backbone.add_branch("test.other", 1, lambda stages, tokens, batch: stages.finish(stages.run(tokens, 1, 3)))
    backbone.add_preprocessing(lambda pixels: pixels.flip(-1))
    calls: list[int] = []
    backbone.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    batch = batch_of(28)
    found = features(backbone, batch, "view", "dense", "test.other")
    assert len(calls) == 1, "what the ways share runs once"
    torch.testing.assert_close(found["test.other"], found["view"])
    assert batch.images is not None
    flipped = ViewBatch.make([1, 1], images=batch.images.flip(-1))
    torch.testing.assert_close(found["view"], features(backbone_of("dinov2"), flipped, "view")["view"])
    assert backbone.dims["test.other"] == 32
