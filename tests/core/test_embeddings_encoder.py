"""`core.embeddings`: stored vectors as a backbone; and stored vectors in the place of a frozen encoder's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import mvcore
import numpy as np
import pytest
import torch
from mvcore.api import (
    Adapter,
    Backbone,
    ConfigError,
    DataError,
    EncoderSpec,
    Features,
    LossSpec,
    PluginError,
    ViewBatch,
    build,
    hookimpl,
    load_encoder,
    model_key,
)
from mvcore.encoders.embeddings import StoredFeatures
from mvcore.encoders.options import StoredFeaturesOptions
from mvcore.evaluation.results import load_result
from mvcore.model import Model
from mvcore.plugins import reset
from mvcore.running import run
from mvcore_data import ViewStore
from mvcore_data.embed import Encoded, embed_store
from torch import Tensor, nn

if TYPE_CHECKING:
    from conftest import Lab

WIDTH = 16
BOTH = frozenset({"view", "text"})


def a_batch(**embeddings: Tensor) -> ViewBatch:
    """Three views of two objects and two captions."""
    return ViewBatch.make(
        [2, 1],
        captions=["a cup", "a boat"],
        caption_object=torch.tensor([0, 1]),
        caption_view=torch.tensor([-1, 2]),
        embeddings={key.replace("_", "/"): value for key, value in embeddings.items()},
    )


def test_features_are_the_stored_vectors() -> None:
    views, texts = torch.randn(3, 5), torch.randn(2, 4)
    backbone = build({"id": "core.embeddings", "args": {"tag": "clip", "width": 5, "text_width": 4}})
    assert isinstance(backbone, Backbone)
    assert (backbone.dims, backbone.image_size) == ({"view": 5, "text": 4}, None)
    found = backbone.encode(a_batch(clip_image=views.half(), clip_text=texts), BOTH)
    assert torch.equal(found["view"], views.half().float())
    assert torch.equal(found["text"], texts)
    assert list(backbone.parameters()) == []


@pytest.mark.parametrize("mode", ["all", "last:1", "nothing"])
def test_nothing_of_it_trains(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"stored vectors cannot train; train must be none, not '{mode}'"):
        StoredFeatures(tag="clip", width=5).set_trainable(mode)
    with pytest.raises(ConfigError, match=r"train"):
        build({"id": "core.embeddings", "args": {"tag": "clip", "width": 5, "train": mode}})


def test_what_a_batch_lacks_is_named() -> None:
    backbone = StoredFeatures(tag="clip", width=5)
    with pytest.raises(DataError, match=r"'clip/image', which the batch lacks \(it has: other/image\)"):
        backbone.encode(a_batch(other_image=torch.zeros(3, 5)), frozenset({"view"}))
    with pytest.raises(DataError, match=r"no vector is stored for the text 'a cup'.*or name a text_encoder"):
        backbone.encode(a_batch(), frozenset({"text"}))
    with pytest.raises(ConfigError, match=r"'clip/image' is 7 wide; set encoder\.width=7"):
        backbone.encode(a_batch(clip_image=torch.zeros(3, 7)), frozenset({"view"}))
    with pytest.raises(ConfigError, match="has no feature dense"):
        backbone.encode(a_batch(), frozenset({"dense"}))
    assert backbone.encode(ViewBatch.make([1]), frozenset({"text"}))["text"].shape == (0, 5)


def test_a_text_encoder_makes_what_is_not_stored(lab: Lab) -> None:
    clip = load_encoder("core.open_clip", {"model": str(lab.clip)})
    args = {"tag": "clip", "width": WIDTH, "text_encoder": {"id": "core.open_clip", "model": str(lab.clip)}}
    backbone = build({"id": "core.embeddings", "args": args})
    found = backbone.encode(a_batch(), frozenset({"text"}))["text"]
    torch.testing.assert_close(found, clip.encode_text(["a cup", "a boat"]))
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone.train().text_encoder.training
    with pytest.raises(ConfigError, match="gives vectors of width 16, the stored ones have 9"):
        build({"id": "core.embeddings", "args": {**args, "width": 9}})
    with pytest.raises(ConfigError, match="write an encoder with its id"):
        build({"id": "core.embeddings", "args": {**args, "text_encoder": {"model": "ViT-B-32"}}})
    with pytest.raises(PluginError, match=r"core\.open_clap"):
        build({"id": "core.embeddings", "args": {**args, "text_encoder": {"id": "core.open_clap"}}})


def test_the_text_encoder_gives_the_scale_of_its_model(lab: Lab) -> None:
    part = {"id": "core.open_clip", "model": str(lab.clip)}
    backbone = build({"id": "core.embeddings", "args": {"tag": "clip", "width": WIDTH, "text_encoder": part}})
    clip = load_encoder("core.open_clip", {"model": str(lab.clip)})
    scale = frozenset({"logit_scale"})
    found = backbone.encode(a_batch(clip_image=torch.zeros(3, WIDTH)), scale | {"view"})
    assert torch.equal(found["logit_scale"], clip.features(a_batch(), scale).logit_scale)
    plain = StoredFeaturesOptions(tag="clip", width=WIDTH)
    with_texts = StoredFeaturesOptions(tag="clip", width=WIDTH, text_encoder=part)
    assert (plain.provides(), with_texts.provides()) == (BOTH, BOTH | scale)
    assert backbone.provides == BOTH | scale
    with pytest.raises(ConfigError, match=r"encoder\.text_encoder.*modle"):
        StoredFeaturesOptions(tag="a", width=1, text_encoder={"id": "core.open_clip", "modle": "x"}).provides()


GATHERED = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from mvcore.training.distributed import gather
from mvcore.types import Features, ViewBatch

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
views, texts = 2 + rank, 3 - 2 * rank
batch = ViewBatch.make(
    [views],
    captions=tuple(f"{rank}.{row}" for row in range(texts)),
    caption_object=torch.zeros(texts, dtype=torch.int64),
    caption_view=torch.full((texts,), -1),
    view_ids=100 * rank + torch.arange(views),
    embeddings={
        "clip/image": (100.0 * rank + torch.arange(views))[:, None].repeat(1, 4),
        "clip/text": (10.0 * rank + torch.arange(texts))[:, None].repeat(1, 5),
    },
)
joined = gather(Features({}), batch, {})[1]
torch.save({"ids": joined.view_ids, "captions": joined.captions, **joined.embeddings}, folder / f"rank-{rank}.pt")
# A process that just ends may be aborted by a thread of gloo's that still waits for the other one.
dist.barrier()
dist.destroy_process_group()
"""


def test_stored_vectors_of_all_ranks_are_gathered_with_their_rows(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", GATHERED, str(tmp_path), str(rank)]) for rank in range(2)]
    assert [process.wait(240) for process in processes] == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        assert found["ids"].tolist() == [0, 1, 100, 101, 102]
        assert found["clip/image"].tolist() == [[float(v)] * 4 for v in (0, 1, 100, 101, 102)]
        assert found["captions"] == ("0.0", "0.1", "0.2", "1.0")
        assert found["clip/text"].tolist() == [[float(v)] * 5 for v in (0, 1, 2, 10)]


# -- runs ------------------------------------------------------------------------------------------------------------


class Head(Adapter):
    """A plugin's head over frozen vectors: replaces `view`."""

    def attach(self, backbone: Backbone) -> None:
        self.linear = nn.Linear(backbone.dims["view"], backbone.dims["text"])

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        return {"view": self.linear(features.view)}


class Pull(nn.Module):
    """A plugin's loss: views to their texts."""

    def forward(self, features: Features, batch: ViewBatch) -> Tensor:
        rows, columns = batch.positives().nonzero(as_tuple=True)
        return 1 - nn.functional.cosine_similarity(features.view[rows], features.text[columns]).mean()


@pytest.fixture
def heads() -> Iterator[None]:
    @hookimpl
    def mvcore_register_encoders() -> list[EncoderSpec]:
        return [
            EncoderSpec(name="head", kind="adapter", summary="A head", factory=Head, needs={"view"}, provides={"view"})
        ]

    @hookimpl
    def mvcore_register_losses() -> list[LossSpec]:
        return [LossSpec(name="pull", summary="Pulls", factory=Pull, needs={"view", "text", "captions"})]

    plugin = ModuleType("heads")
    vars(plugin).update(
        MVCORE_API=1,
        mvcore_register_encoders=mvcore_register_encoders,
        mvcore_register_losses=mvcore_register_losses,
    )
    try:
        mvcore.register(plugin)
        yield
    finally:
        reset()


@pytest.fixture(scope="module")
def store(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's store with vectors of the lab's model."""
    path = Path(shutil.copytree(lab.store, tmp_path_factory.mktemp("stored") / "store"))
    embedded(path, load_encoder("core.open_clip", {"model": str(lab.clip)}), "clip")
    return path


def embedded(path: Path, model: Model, tag: str) -> None:
    with ViewStore(path) as opened:
        embed_store(opened, Encoded(opened, model), tag)


def head_run(lab: Lab, store: Path, **changes: Any) -> dict[str, Any]:
    """Heads on stored vectors alone: no image, no encoder."""
    source = {"id": "data.views", "path": str(store), "embeddings": ["clip"], "images": False}
    return lab.changed(
        {
            "encoder": {"id": "core.embeddings", "tag": "clip", "width": WIDTH},
            "adapters": {"heads.head": {}},
            "data": {"objects": {**source, "batch_size": 4, "views_per_object": 3}},
            "losses": {"heads.pull": {}},
            "optimizer": {"lr": 0.05},
            "run": {"max_steps": 8, "accelerator": "cpu", "devices": 1, "log_every": 1, "checkpoint_every": 100},
            "validate": {"data": {"all": source}, "on": {"core.consistency": {"picture": False}}},
        },
        changes,
    )


@pytest.mark.usefixtures("heads")
@pytest.mark.parametrize("micro_batch", ["auto", 4])
def test_heads_train_on_stored_vectors_alone(
    lab: Lab, store: Path, tmp_path: Path, micro_batch: Any, quiet: Callable[[], Any]
) -> None:
    folder = tmp_path / "run"
    values = head_run(lab, store, run={"micro_batch": micro_batch})
    session = lab.session(values)
    rows = run(session, folder, json.dumps(values), quiet())
    assert set(rows) == {"untouched", "tuned"}
    pulled = "core.consistency/text_to_image/all"
    before, after = (rows[row]["core.consistency"][pulled].value for row in ("untouched", "tuned"))
    assert after > before + 0.2
    model = mvcore.load(folder)
    source = session.measured["all"]
    found = model.features(source.load(2, list(source.views_of(2)), None), frozenset({"view"})).view
    assert found.shape == (6, WIDTH)
    assert model.encode_images([np.zeros((32, 32, 3), np.uint8)]).shape == (1, WIDTH)


@pytest.mark.usefixtures("heads")
def test_a_source_without_the_vectors_is_refused_before_anything_is_loaded(lab: Lab, store: Path) -> None:
    with pytest.raises(ConfigError, match="objects lacks embeddings"):
        lab.session(head_run(lab, store, data={"objects": {"embeddings": [], "images": True}}))


@pytest.mark.usefixtures("heads")
def test_widths_and_models_that_do_not_fit_are_named(
    lab: Lab, store: Path, tmp_path: Path, quiet: Callable[[], Any]
) -> None:
    wide = head_run(lab, store, encoder={"width": 24, "text_width": 16})
    with pytest.raises(ConfigError, match=r"encoder\.width is 24, but 'clip/image' of source 'objects' is 16 wide"):
        run(lab.session(wide), tmp_path / "wide", "{}", quiet())
    other = tmp_path / "other.json"
    config = json.loads(lab.clip.read_text())
    other.write_text(json.dumps({**config, "text_cfg": {**config["text_cfg"], "layers": 2}}))
    values = head_run(lab, store, encoder={"text_encoder": {"id": "core.open_clip", "model": str(other)}})
    with pytest.raises(DataError, match=r"made otherwise: model is .*; architecture_sha256 is .* there and .* here"):
        run(lab.session(values), tmp_path / "other", "{}", quiet())


@pytest.fixture
def quiet() -> Callable[[], Any]:
    import io

    from rich.console import Console

    return lambda: Console(file=io.StringIO(), width=200)


# -- in the place of a frozen encoder's own ----------------------------------------------------------------------------


def plain_run(lab: Lab, store: Path, tag: str | None) -> dict[str, Any]:
    """LoRA on the lab's model, measured before and after."""
    source = {"id": "data.views", "path": str(store)}
    values = lab.values(
        encoder={"embeddings": tag},
        validate={
            "data": {"all": source},
            "on": {
                "core.consistency": {"picture": False},
                "core.retrieval": {},
                "core.zero_shot": {"templates": ("a {}",)},
            },
        },
        run={"max_steps": 2},
    )
    values["data"]["objects"]["path"] = str(store)
    return values


def test_texts_and_untouched_views_come_from_the_store(
    lab: Lab, store: Path, tmp_path: Path, quiet: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mvcore.encoders.open_clip import OpenClip

    encoded: set[tuple[str | None, str]] = set()
    honest = OpenClip._encode_in_pieces

    def counted(self: OpenClip, captions: list[str]) -> Tensor:
        encoded.update((self.embeddings, caption) for caption in captions)
        return honest(self, captions)

    monkeypatch.setattr(OpenClip, "_encode_in_pieces", counted)
    console = quiet()
    values = plain_run(lab, store, "clip")
    stored = run(lab.session(values), tmp_path / "stored", json.dumps(values), console)
    with ViewStore(store) as opened:
        captions = {caption for i in range(len(opened)) for caption in opened.captions(i)}
    assert {("clip", f"a {word}") for word in ("cup", "chair", "boat", "lamp")} <= encoded  # the prompts
    assert not {("clip", caption) for caption in captions} & encoded
    assert "untouched: views of all read from the stored embeddings clip" in console.file.getvalue()
    table = stored["untouched"]["core.consistency"].tables[-1]
    assert (table.title, list(table.rows)) == ("Views read from stored embeddings", [("all", "clip", "float16")])
    saved = load_result(tmp_path / "stored/evaluation/untouched/core.consistency")
    assert saved.tables[-1].title == table.title
    assert "Views read" not in str(stored["tuned"]["core.consistency"].tables)
    values = plain_run(lab, store, None)
    plain = run(lab.session(values), tmp_path / "plain", json.dumps(values), quiet())
    assert {(None, caption) for caption in captions} <= encoded
    for evaluator, result in plain["untouched"].items():
        for figure in result.figures:
            assert stored["untouched"][evaluator][figure.name].value == pytest.approx(figure.value, abs=2e-3)
    for figure in plain["tuned"]["core.consistency"].figures:
        assert stored["tuned"]["core.consistency"][figure.name].value == pytest.approx(figure.value, abs=2e-2)


def test_a_text_tower_that_changed_does_not_take_stored_texts(lab: Lab, store: Path) -> None:
    session = lab.session(plain_run(lab, store, "clip"))
    clip = load_encoder("core.open_clip", {"model": str(lab.clip), "embeddings": "clip"})
    backbone: Any = clip.backbone
    backbone.connect(session.sources)
    with ViewStore(store) as opened:
        caption = opened.captions(0)[0]
    honest = clip.encode_text([caption])
    assert torch.equal(honest, honest.half().float())  # it comes from the store
    with torch.no_grad():
        backbone.clip.token_embedding.weight.mul_(1.5)
    changed = clip.encode_text([caption])
    assert not torch.allclose(changed, honest, rtol=1e-2)


def test_stored_vectors_of_another_model_are_refused(
    lab: Lab, store: Path, tmp_path: Path, quiet: Callable[[], Any]
) -> None:
    values = plain_run(lab, store, "clip")
    values["run"]["seed"] = 7  # other random weights
    with pytest.raises(DataError, match=r"weights_sha256 is [0-9a-f]{12} there and [0-9a-f]{12} here"):
        run(lab.session(values), tmp_path / "run", "{}", quiet())
    with pytest.raises(DataError, match="no source has vectors under the tag 'clop'"):
        run(lab.session(plain_run(lab, store, "clop")), tmp_path / "other", "{}", quiet())


def test_a_key_knows_adapters(lab: Lab) -> None:
    values = lab.values()
    del values["losses"]["ovt.vc"], values["trainers"]["ovt.outlier_mining"]
    plain = load_encoder("core.open_clip", {"model": str(lab.clip)})
    from mvcore.loading import make_run_pipeline

    config = lab.config(values)
    tuned = Model(make_run_pipeline(config.encoder, {"ovt.viformer": config.adapters["ovt.viformer"]}, 0))
    one, other = model_key(plain), model_key(tuned)
    assert {name for name in one if one[name] != other[name]} == {"model", "architecture_sha256", "weights_sha256"}
    assert list(other["model"]["adapters"]) == ["ovt.viformer"]
