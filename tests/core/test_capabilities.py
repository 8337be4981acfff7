"""What works on which open_clip and timm model: each is built small, tried, and compared with docs/capabilities.md.

Each configuration is the named model's own, with fewer and narrower layers: same classes, same pooling, same options.
`MVCORE_UPDATE_DOCS=1 pytest tests/core/test_capabilities.py` writes the page anew.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mvcore.api import MvcoreError, ViewBatch, apply_lora, merge_lora
from mvcore.encoders.open_clip import OpenClip
from mvcore.encoders.timm import Timm
from mvcore.exporting import export
from mvcore.model import Model, Pipeline
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.utils import parametrize

PAGE = Path(__file__).parents[2] / "docs" / "capabilities.md"
CAPTIONS = ["a red cup", "a shoe", "a red cup"]


@register_model
def mvcore_test_siglip(pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> VisionTransformer:
    """vit_base_patch16_siglip_224 with 2 blocks of width 32: no class token, pooled by attention (MAP)."""
    for key in ("pretrained_cfg_overlay", "cache_dir"):
        options.pop(key, None)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return VisionTransformer(**sizes, class_token=False, **options)


@register_model
def mvcore_test_eva02_clip(pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> Eva:
    """eva02_base_patch16_clip_224 with 2 blocks of width 32: rotary positions, q, k and v apart, inner norms."""
    for key in ("pretrained_cfg_overlay", "cache_dir"):
        options.pop(key, None)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    kind = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True}
    return Eva(**sizes, **kind, mlp_ratio=4 * 2 / 3, use_rot_pos_emb=True, ref_feat_shape=(4, 4), **options)


TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SIGLIP_TEXT = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}


def timm_config(name: str, pool: str, proj: str | None, size: int = 32, **others: Any) -> dict[str, Any]:
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": size}
    return {"embed_dim": 32, "custom_text": True, "vision_cfg": vision, "text_cfg": TEXT, **others}


MODELS: dict[str, dict[str, Any]] = {
    "ViT-B-32": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT},
    "ViT-L-14": {
        "embed_dim": 24,
        "vision_cfg": {**VIT, "image_size": 28, "patch_size": 7, "layers": 3},
        "text_cfg": TEXT,
    },
    "ViT-B-16-SigLIP": timm_config("mvcore_test_siglip", "map", "none", init_logit_bias=-10, text_cfg=SIGLIP_TEXT),
    "ViT-B-16-SigLIP2": timm_config(
        "mvcore_test_siglip",
        "map",
        "none",
        init_logit_bias=-10,
        text_cfg={**SIGLIP_TEXT, "act_kwargs": {"approximate": "tanh"}},
    ),
    "coca_ViT-B-32": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "width": 16, "attn_pooler_heads": 2},
    },
    "EVA02-B-16": timm_config("mvcore_test_eva02_clip", "token", None),
    "MobileCLIP2-S0": timm_config("fastvit_mci0", "avg", None, 64),
    "convnext_base": {**timm_config("test_convnext", "", "linear", 64), "custom_text": False},
    "RN50": {"embed_dim": 16, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}, "text_cfg": TEXT},
}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def build(name: str, tmp_path: Path) -> Callable[..., OpenClip]:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(MODELS[name]))

    def make(**options: Any) -> OpenClip:
        torch.manual_seed(0)
        return OpenClip(model=str(path), **options)

    return make


def keys(*names: str) -> frozenset[str]:
    return frozenset(names)


def batch_for(backbone: OpenClip | Timm, n: int = 3, size: int | None = None) -> ViewBatch:
    size = size or backbone.image_size or 0
    generator = torch.Generator().manual_seed(0)
    return ViewBatch.make(
        [1] * n,
        images=torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator),
        captions=CAPTIONS,
        caption_object=torch.arange(3),
        caption_view=torch.full((3,), -1),
    )


def tried(check: Callable[[], str]) -> str:
    """What a check found, or `no: ` and the one line that refuses it."""
    try:
        return check()
    except MvcoreError as error:
        return f"no: {str(error).partition(': ')[2]}"


def check_vectors(build: Callable[..., OpenClip]) -> str:
    backbone = build().eval()
    batch = batch_for(backbone)
    found = backbone.encode(batch, keys("view", "text", "logit_scale"))
    assert batch.images is not None
    pixels = backbone.normalise(batch.images)
    torch.testing.assert_close(found["view"], backbone.clip.encode_image(pixels, normalize=False))
    alone = backbone.clip.encode_image(pixels[1:2], normalize=False)
    torch.testing.assert_close(found["view"][1:2], alone, rtol=1e-3, atol=1e-4)
    expected = backbone.clip.encode_text(backbone.tokenizer(CAPTIONS), normalize=False)
    torch.testing.assert_close(found["text"], expected, rtol=1e-5, atol=1e-6)
    assert found["view"].shape == found["text"].shape == (3, backbone.dims["view"])
    assert found["view"].std(dim=0).min() > 0, "vectors must differ between images"
    assert found["logit_scale"].shape == ()
    return "yes"


def check_bias(build: Callable[..., OpenClip]) -> str:
    backbone = build()
    if "logit_bias" not in backbone.provides:
        with pytest.raises(MvcoreError, match="has no feature logit_bias"):
            backbone.encode(batch_for(backbone), keys("logit_bias"))
        return "no: the model has none"
    assert backbone.encode(batch_for(backbone), keys("logit_bias"))["logit_bias"].item() == -10
    return "yes"


def check_dense(build: Callable[..., OpenClip], **dense: Any) -> str:
    backbone = build(dense=dense).eval()
    batch = batch_for(backbone)
    both = backbone.encode(batch, keys("view", "dense"))
    found = both["dense"]
    assert found.ndim == 4
    assert found.shape[:2] == (3, backbone.dims["dense"])
    torch.testing.assert_close(both["view"], backbone.encode(batch, keys("view"))["view"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, backbone.encode(batch, keys("dense"))["dense"])
    assert found.flatten(2).std(dim=2).max() > 0
    check_corners(backbone, batch)
    return f"yes, {found.shape[2]} x {found.shape[3]}"


def check_corners(backbone: OpenClip, batch: ViewBatch) -> None:
    """The upper right cell looks at the upper right of the image more than at the lower left: no cell is misplaced."""
    assert batch.images is not None
    pixels = backbone.normalise(batch.images).requires_grad_()
    _, dense = backbone._tower.encode(pixels, view=False)
    side, half = dense.shape[-1], pixels.shape[-1] // 2
    if side < 2:
        return
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(dense.shape[:2], generator=generator)

    def pull(y: int, x: int) -> Tensor:
        total = (dense[:, :, y, x] * direction).sum()
        return torch.autograd.grad(total, pixels, retain_graph=True)[0].abs()

    upper_right, lower_left = pull(0, side - 1), pull(side - 1, 0)
    assert upper_right[..., :half, half:].sum() > upper_right[..., half:, :half].sum()
    assert lower_left[..., half:, :half].sum() > lower_left[..., :half, half:].sum()


def check_lora(build: Callable[..., OpenClip | Timm]) -> str:
    backbone = build().eval()
    sites = backbone.attention_sites()
    batch = batch_for(backbone)
    names = list(backbone.model.state_dict())
    wanted = keys("view", "text") & backbone.provides
    with torch.no_grad():
        plain = backbone.encode(batch, wanted)
    updates = [apply_lora(s.module, s.parameter, rank=2, alpha=2, rows=list(s.rows.values())) for s in sites]
    with torch.no_grad(), parametrize.cached():
        assert torch.equal(backbone.encode(batch, keys("view"))["view"], plain["view"])
    with parametrize.cached():
        backbone.encode(batch, keys("view"))["view"].square().sum().backward()
    for site, update in zip(sites, updates, strict=True):
        assert update.b.grad is not None, site.name
        assert update.b.grad.abs().sum() > 0, site.name
        torch.nn.init.normal_(update.b)
    tuned = backbone.encode(batch, wanted)
    assert not torch.equal(tuned["view"], plain["view"])
    assert "text" not in wanted or torch.equal(tuned["text"], plain["text"])
    merge_lora(backbone.model)
    merged = backbone.encode(batch, keys("view"))["view"]
    torch.testing.assert_close(merged, tuned["view"], rtol=1e-4, atol=1e-4)
    assert list(backbone.model.state_dict()) == names
    kinds = {"".join(site.rows) for site in sites}
    return f"yes, {len(sites)} weights ({'fused' if kinds == {'qkv'} else 'q, k and v apart'})"


def check_training(build: Callable[..., OpenClip]) -> str:
    backbone = build(train="last:1").train()
    last = {name for name, p in backbone.model.named_parameters() if p.requires_grad}
    assert last
    assert all(name.startswith("visual.") for name in last)
    backbone.encode(batch_for(backbone), keys("view"))["view"].square().sum().backward()
    for name, parameter in backbone.model.named_parameters():
        assert (parameter.grad is not None) == (name in last), name
    everything = build(train="all").train()
    features = everything.encode(batch_for(everything), frozenset(everything.provides - {"dense"}))
    sum((value.square().sum() for value in features.values()), torch.zeros(())).backward()
    for name, parameter in everything.model.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith("text_decoder.")), name
    assert not [n for n, p in build(train="none").model.named_parameters() if p.requires_grad]
    visual = backbone.clip.visual
    hierarchical = hasattr(visual, "layer1") or hasattr(getattr(visual, "trunk", None), "stages")
    return f"yes, {backbone.n_blocks} {'stages' if hierarchical else 'blocks'}"


COLUMNS: dict[str, Callable[[Callable[..., OpenClip]], str]] = {
    "view, text, logit_scale": check_vectors,
    "logit_bias": check_bias,
    "dense": check_dense,
    "dense, layer: 0": lambda build: check_dense(build, layer=0),
    "dense, space: text": lambda build: check_dense(build, space="text"),
    "LoRA on q, k, v": check_lora,
    "train: last:N, all": check_training,
}

# -- timm --------------------------------------------------------------------------------------------------------------


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

TIMM_MODELS = {
    "vit_*_dinov2": "dinov2",
    "vit_*_reg4_dinov2": "dinov2_reg4",
    "vit_*_dinov3": "dinov3",
    "deit3_*": "deit3",
    "vit_*.mae": "mae",
    "vit_*_clip_*": "clip",
    "vit_*_siglip_*.v2_*": "siglip2",
    "eva02_*": "eva02",
    "vit_*_rope_mixed_*": "rope_mixed",
    "swin_*": "swin",
    "convnext_*": "convnext",
    "resnet*": "resnet",
}
"""How timm names them, and the small one that is built."""

BuildTimm = Callable[..., Timm]


@pytest.fixture(params=TIMM_MODELS)
def timm_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def build_timm(timm_name: str) -> BuildTimm:
    def make(**options: Any) -> Timm:
        torch.manual_seed(0)
        backbone = Timm(small_timm.NAMES[TIMM_MODELS[timm_name]], **options)
        small_timm.awake(backbone.model)
        return backbone

    return make


def check_timm_vector(build: BuildTimm) -> str:
    backbone = build().eval()
    batch = batch_for(backbone)
    assert batch.images is not None
    with torch.no_grad():
        found = backbone.encode(batch, keys("view"))["view"]
        final = backbone.timm.forward_features(backbone.normalise(batch.images))
        torch.testing.assert_close(found, backbone.timm.forward_head(final, pre_logits=True), rtol=1e-4, atol=1e-5)
    assert found.std(dim=0).max() > 1e-3, "vectors must differ between images"
    return "yes"


def check_timm_map(build: BuildTimm, size: int | None = None, **options: Any) -> str:
    backbone = build(**options).eval()
    batch = batch_for(backbone, size=size)
    with torch.no_grad():
        both = backbone.encode(batch, keys("view", "dense"))
        torch.testing.assert_close(both["view"], backbone.encode(batch, keys("view"))["view"], rtol=1e-4, atol=1e-5)
    found = both["dense"]
    assert found.shape[:2] == (3, backbone.dims["dense"])
    assert found.flatten(2).std(dim=2).max() > 0
    return f"yes, {found.shape[2]} x {found.shape[3]}"


def check_timm_places(build: BuildTimm) -> str:
    """A cell looks at its own place more than at the opposite one, and `keypoints` gives it there."""
    backbone = build().eval()
    model, size = Model(Pipeline(backbone, [])), backbone.image_size or 0
    images = batch_for(backbone).images
    assert images is not None
    grid = model.dense_grid(size, size)
    pixels = images.permute(0, 2, 3, 1)
    found = model.keypoints(pixels, grid.centres().flatten(0, 1).expand(3, -1, -1))
    torch.testing.assert_close(found, model.dense(pixels).flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    return "yes"


def check_timm_prefix(build: BuildTimm) -> str:
    return str(getattr(build().timm, "num_prefix_tokens", "none"))


def check_timm_branch(build: BuildTimm) -> str:
    backbone = build().eval()
    last = max(backbone.n_blocks - 1, 0)
    backbone.add_branch("x.object", last, lambda s, tokens, batch: s.finish(s.run(tokens, last, len(s.blocks))))
    with torch.no_grad():
        found = backbone.encode(batch_for(backbone), keys("view", "x.object"))
    torch.testing.assert_close(found["x.object"], found["view"], rtol=1e-4, atol=1e-5)
    return "yes"


def check_timm_training(build: BuildTimm) -> str:
    everything = build(train="all").train()
    everything.encode(batch_for(everything), keys("view"))["view"].square().sum().backward()
    assert [name for name, p in everything.model.named_parameters() if p.grad is None] == []
    backbone = build(train="last:1").train()
    last = {name for name, p in backbone.model.named_parameters() if p.requires_grad}
    backbone.encode(batch_for(backbone), keys("view"))["view"].square().sum().backward()
    assert last == {name for name, p in backbone.model.named_parameters() if p.grad is not None}
    return f"yes, {backbone.n_blocks} {'blocks' if hasattr(backbone.timm, 'blocks') else 'stages'}"


def check_timm_export(build: BuildTimm, folder: Path) -> str:
    backbone = build().eval()
    done = export(Model(Pipeline(backbone, [])), folder / "out")
    assert done.largest_difference < 1e-5
    return "yes"


TIMM_COLUMNS: dict[str, Callable[[BuildTimm, Path], str]] = {
    "`view`": lambda build, _: check_timm_vector(build),
    "prefix tokens": lambda build, _: check_timm_prefix(build),
    "`dense`": lambda build, _: check_timm_map(build),
    "`dense.layer: 0`": lambda build, _: check_timm_map(build, dense={"layer": 0}),
    "another image size": lambda build, _: check_timm_map(build, size=150, patches=5),
    "a finer stride": lambda build, _: check_timm_map(build, stride=build().patch // (7 if build().patch == 7 else 2)),
    "places of cells, `keypoints`": lambda build, _: check_timm_places(build),
    "blocks branched, `duoduo.cross_view`": lambda build, _: check_timm_branch(build),
    "LoRA on q, k, v": lambda build, _: check_lora(build),
    "`train: last:N, all`": lambda build, _: check_timm_training(build),
    "`export --to timm`": check_timm_export,
}

HEADER = """# What works on which model

Each class below was built with random weights and few, narrow layers, and each entry was tried on it by
`tests/core/test_capabilities.py`, which fails when this page says anything else. Sizes and counts are those of the
small model. What does not work is refused by name when the run is planned, the model is built or the feature is asked
for; nothing is skipped in silence.

## open_clip

"""

TIMM_HEADER = """
## timm

A model that is named here stands for its kind, of any width and depth. What a kind's weights were trained for does not
matter to the entries: `vit_*.mae` is a plain vision transformer with a class token, as AugReg's or DINO's are.

"""


def page_row(name: str, found: dict[str, str], notes: list[str]) -> str:
    cells: list[str] = []
    for entry in found.values():
        if entry.startswith("no: "):
            reason = entry.removeprefix("no: ")
            if reason not in notes:
                notes.append(reason)
            entry = f"no [{notes.index(reason) + 1}]"
        cells.append(entry)
    return f"| `{name}` | {' | '.join(cells)} |"


FOUND: dict[str, dict[str, str]] = {}


def test_each_capability_works_or_is_refused_with_a_reason(name: str, build: Callable[..., OpenClip]) -> None:
    FOUND[name] = {column: tried(lambda check=check: check(build)) for column, check in COLUMNS.items()}
    assert FOUND[name]["view, text, logit_scale"] == "yes"
    assert FOUND[name]["train: last:N, all"].startswith("yes")


FOUND_TIMM: dict[str, dict[str, str]] = {}


def test_each_capability_of_timm_works_or_is_refused_with_a_reason(
    timm_name: str, build_timm: BuildTimm, tmp_path: Path
) -> None:
    FOUND_TIMM[timm_name] = {
        column: tried(lambda check=check: check(build_timm, tmp_path)) for column, check in TIMM_COLUMNS.items()
    }
    for column in ("`view`", "`dense`", "`train: last:N, all`", "`export --to timm`"):
        assert FOUND_TIMM[timm_name][column].startswith("yes") or timm_name == "resnet*", column


def table(columns: list[str], found: dict[str, dict[str, str]]) -> list[str]:
    notes: list[str] = []
    rows = [page_row(name, entries, notes) for name, entries in found.items()]
    lines = [f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows]
    return [*lines, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]


def test_the_page_says_what_was_found() -> None:
    if set(FOUND) != set(MODELS) or set(FOUND_TIMM) != set(TIMM_MODELS):
        pytest.skip("needs the whole file to have run")
    columns = [column if column.startswith("LoRA") else f"`{column}`" for column in COLUMNS]
    text = HEADER + "\n".join(table(columns, FOUND)) + "\n"
    text += TIMM_HEADER + "\n".join(table(list(TIMM_COLUMNS), FOUND_TIMM)) + "\n"
    if os.environ.get("MVCORE_UPDATE_DOCS"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text, (
        "docs/capabilities.md is out of date; run with MVCORE_UPDATE_DOCS=1"
    )
