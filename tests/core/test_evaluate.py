"""Evaluators on a small real model and real tensors: values, one pass, restored modes and random states, errors."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mvcore.errors import ConfigError, DataError, PluginError
from mvcore.evaluation import consistency
from mvcore.evaluation.embedder import Embedder
from mvcore.evaluation.results import EvalResult, load_result
from mvcore.evaluation.retrieval import Retrieval, best_ranks
from mvcore.evaluation.runner import evaluate
from mvcore.evaluation.view_consistency import Consistency
from mvcore.evaluation.viewpoints import azimuths, nearest_step
from mvcore.evaluation.zero_shot import ZeroShot
from mvcore.model import Model, Pipeline
from mvcore.parts import Backbone, IndexedDataset
from mvcore.report.figures import accuracy_by_azimuth
from mvcore.types import Cameras, ViewBatch
from mvcore_data.viewpoints import azimuth_elevation
from torch import Tensor, nn

WORDS = ("cup", "fish", "lamp")
DIM = 8


class LettersAndPixels(Backbone):
    """A small real encoder: a linear map of the pixels, a bag of letters, and a dropout that eval turns off."""

    dims: Mapping[str, int] = {"view": DIM, "text": DIM}
    provides = frozenset({"view", "text"})
    image_size = 4
    library = "test"

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = nn.ModuleDict({"image": nn.Linear(48, DIM), "drop": nn.Dropout(0.5), "text": nn.Embedding(128, DIM)})
        for parameter in self.net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.encoded_views = 0

    @property
    def model(self) -> nn.Module:
        return self.net

    def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if "view" in keys:
            assert batch.images is not None
            self.encoded_views += batch.n_views
            found["view"] = self.net["drop"](self.net["image"](batch.images.flatten(1).float() / 255 - 0.5))
        if "text" in keys:
            found["text"] = torch.stack(
                [self.net["text"](torch.tensor([ord(c) for c in t])).mean(0) for t in batch.captions]
            )
        return found

    def set_trainable(self, mode: str) -> None:
        self.requires_grad_(mode == "all")


def cameras_at(azimuths: Tensor, elevation: float = 20.0) -> Tensor:
    """(N, 4, 4) cameras at distance 2 that look at the origin, Y up."""
    az, el = torch.deg2rad(azimuths.double()), torch.deg2rad(torch.full_like(azimuths.double(), elevation))
    position = 2 * torch.stack([el.cos() * az.sin(), el.sin(), el.cos() * az.cos()], dim=1)
    forward = nn.functional.normalize(-position, dim=1)
    right = nn.functional.normalize(
        torch.linalg.cross(forward, torch.tensor([[0.0, 1, 0]]).double().expand_as(forward)), dim=1
    )
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    matrix = torch.eye(4).double().repeat(len(az), 1, 1)
    matrix[:, :3, :3], matrix[:, :3, 3] = rotation, -(rotation @ position[:, :, None]).squeeze(2)
    return matrix.float()


class InMemory:
    """Objects of random pixels with captions and categories."""

    provides = frozenset({"images", "captions"})
    image_size = 4

    def __init__(self, counts: Sequence[int], seed: int = 0, captions: bool = True) -> None:
        rng = np.random.default_rng(seed)
        self.images = [torch.from_numpy(rng.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8)) for n in counts]
        self.starts = np.cumsum([0, *counts])
        self.store_key, self.n_store_objects, self.n_store_views = f"memory-{seed}", len(counts), int(sum(counts))
        self.categories: list[str | None] = [WORDS[i % len(WORDS)] for i in range(len(counts))]
        self.with_captions = captions
        self.azimuths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def views_of(self, i: int) -> Sequence[int]:
        return range(self.starts[i], self.starts[i + 1])

    def load(self, i: int, views: Sequence[int], rng: np.random.Generator | None) -> ViewBatch:
        rows = [v - int(self.starts[i]) for v in views]
        texts: dict[str, Any] = {}
        if self.with_captions:
            # One caption of the whole object, and one of its first view alone.
            captions = (f"a {self.categories[i]} {i}", f"front of {i}")
            texts = {
                "captions": captions,
                "caption_object": torch.zeros(2, dtype=torch.int64),
                "caption_view": torch.tensor([-1, 0]),
            }
        if self.azimuths is not None:
            texts["cameras"] = Cameras(torch.eye(3).repeat(len(rows), 1, 1), cameras_at(self.azimuths[list(views)]))
        return ViewBatch.make(
            [len(rows)],
            images=self.images[i][rows],
            object_ids=torch.tensor([i]),
            view_ids=torch.tensor(list(views)),
            **texts,
        )

    def object_name(self, i: int) -> str:
        return f"{self.store_key}/{i}"

    def category(self, i: int) -> str | None:
        return self.categories[i]


@pytest.fixture
def model() -> Model:
    return Model(Pipeline(LettersAndPixels(), []), views_per_batch=5)


@pytest.fixture
def sources() -> dict[str, IndexedDataset]:
    return {"clean": InMemory([4] * 9), "ood": InMemory([2, 5, 1, 3, 3, 7], seed=1)}


def views_of(model: Model, dataset: IndexedDataset) -> list[Tensor]:
    """Unit vectors of each object's views, an object at a time."""
    found = [
        model.features(dataset.load(i, dataset.views_of(i), None), frozenset({"view"})).view
        for i in range(len(dataset))
    ]
    return [nn.functional.normalize(v.double(), dim=1) for v in found]


def test_zero_shot_equals_a_loop_over_views(model: Model, sources, tmp_path: Path) -> None:
    result = ZeroShot(templates=["a {}", "the {}"], topk=[1, 2])(model, sources, tmp_path)
    prompts = [
        [nn.functional.normalize(model.encode_text([t.format(w)]), dim=1)[0] for t in ("a {}", "the {}")] for w in WORDS
    ]
    heads = [nn.functional.normalize(torch.stack(p).mean(0), dim=0).double() for p in prompts]
    for name, dataset in sources.items():
        top1, top2, modal = [], [], []
        for i, views in enumerate(views_of(model, dataset)):
            own = WORDS.index(dataset.category(i) or "")
            orders = [sorted(range(3), key=lambda c, v=v: -float(v @ heads[c])) for v in views]
            top1 += [order[0] == own for order in orders]
            top2 += [own in order[:2] for order in orders]
            firsts = [order[0] for order in orders]
            modal.append(max(firsts.count(c) for c in firsts))
        assert result[f"core.zero_shot/top1/{name}"].value == pytest.approx(np.mean(top1))
        assert result[f"core.zero_shot/top2/{name}"].value == pytest.approx(np.mean(top2))
        assert result[f"core.zero_shot/agreement/{name}"].value == pytest.approx(sum(modal) / len(top1))
        assert result[f"core.zero_shot/top1/{name}"].n == len(top1)
        table = next(t for t in result.tables if name in t.title)
        assert sum(int(row[1]) for row in table.rows) == len(top1)
    clean = result["core.zero_shot/top1/clean"]
    assert clean.samples is not None
    assert clean.samples.shape == (9,)
    assert 0 <= clean.low <= clean.value <= clean.high <= 1


def test_consistency_equals_the_function(model: Model, sources, tmp_path: Path) -> None:
    result = Consistency(picture=False)(model, sources, tmp_path)
    for name, dataset in sources.items():
        views = views_of(model, dataset)
        counts = torch.tensor([len(v) for v in views])
        expected = consistency(None, torch.cat(views), counts)
        for what in ("same_object", "different_object"):
            figure, similarity = result[f"core.consistency/{what}/{name}"], getattr(expected, what)
            assert (figure.value, figure.std, figure.n) == pytest.approx(
                (similarity.mean, similarity.std, similarity.n), abs=1e-6
            )
        # A view's own caption stands before its object's.
        cosines = []
        for i, v in enumerate(views):
            whole, front = nn.functional.normalize(
                model.encode_text([f"a {dataset.category(i)} {i}", f"front of {i}"]).double(), dim=1
            )
            cosines += [float(v[0] @ front), *(float(u @ whole) for u in v[1:])]
        t2i = result[f"core.consistency/text_to_image/{name}"]
        assert (t2i.value, t2i.std, t2i.n) == pytest.approx(
            (np.mean(cosines), np.std(cosines, ddof=1), len(cosines)), abs=1e-6
        )


def test_texts_by_category_and_none(model: Model, tmp_path: Path) -> None:
    bare = {"bare": InMemory([2, 3], captions=False)}
    auto = Consistency(picture=False, template="one {}")(model, bare, tmp_path)
    views = views_of(model, bare["bare"])
    heads = nn.functional.normalize(model.encode_text(["one cup", "one fish"]).double(), dim=1)
    cosines = [float(u @ heads[i]) for i, v in enumerate(views) for u in v]
    assert auto["core.consistency/text_to_image/bare"].value == pytest.approx(np.mean(cosines), abs=1e-6)
    none = Consistency(picture=False, text="none")(model, bare, tmp_path)
    assert "core.consistency/text_to_image/bare" not in none.by_name()
    with pytest.raises(ConfigError, match="source 'bare' has no caption"):
        Consistency(text="captions")(model, bare, tmp_path)
    bare["bare"].categories[1] = None
    assert "core.consistency/text_to_image/bare" not in Consistency(picture=False)(model, bare, tmp_path).by_name()
    with pytest.raises(ConfigError, match="object 'memory-0/1' of source 'bare' has no category"):
        Consistency(text="category")(model, bare, tmp_path)


def test_a_model_without_text_has_no_text_figure(model: Model, sources, tmp_path: Path) -> None:
    model.backbone.provides = frozenset({"view"})
    names = Consistency(picture=False)(model, sources, tmp_path).by_name()
    assert "core.consistency/same_object/ood" in names
    assert not [name for name in names if "text_to_image" in name]
    with pytest.raises(ConfigError, match="this model encodes no text"):
        Consistency(text="captions")(model, sources, tmp_path)
    with pytest.raises(ConfigError, match=r"core\.zero_shot: this model encodes no text"):
        ZeroShot()(model, sources, tmp_path)


def test_retrieval_equals_loops(model: Model, sources, tmp_path: Path) -> None:
    result = Retrieval(topk=[1, 3])(model, sources, tmp_path)
    for name, dataset in sources.items():
        views = views_of(model, dataset)
        rows = [(i, v) for i, object_views in enumerate(views) for v in object_views]
        hits = {1: [], 3: []}
        for q, (own, query) in enumerate(rows):
            others = [(float(query @ v), i) for r, (i, v) in enumerate(rows) if r != q]
            if any(i == own for _, i in others):
                best = sorted(others, key=lambda pair: -pair[0])
                for k, found in hits.items():
                    found.append(any(i == own for _, i in best[:k]))
        for k, found in hits.items():
            figure = result[f"core.retrieval/view_r{k}/{name}"]
            assert (figure.value, figure.n) == (pytest.approx(np.mean(found)), len(found))
        found = []
        for i, object_views in enumerate(views):
            # The whole object's caption describes the views without one of their own: none where there is one view.
            for text in [f"front of {i}", *([f"a {dataset.category(i)} {i}"] if len(object_views) > 1 else [])]:
                query = nn.functional.normalize(model.encode_text([text]).double(), dim=1)[0]
                found.append(max(rows, key=lambda row, q=query: float(q @ row[1]))[0] == i)
        figure = result[f"core.retrieval/text_r1/{name}"]
        assert (figure.value, figure.n) == (pytest.approx(np.mean(found)), len(found))


def test_a_collapsed_model_finds_nothing() -> None:
    same, owners = torch.ones(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    assert best_ranks(same, same, owners, owners, own_row=torch.arange(6)).tolist() == [4] * 6
    alone = best_ranks(same[:1], same[:1], owners[:1], owners[:1], own_row=torch.arange(1))
    assert alone.tolist() == [-1]


def test_evaluate_passes_over_each_source_once_and_saves(model: Model, sources, tmp_path: Path) -> None:
    evaluators = {
        "core.zero_shot": ZeroShot(templates=["a {}"]),
        "core.consistency": Consistency(),
        "core.retrieval": Retrieval(),
    }
    results = evaluate(model, evaluators, sources, tmp_path)
    backbone = model.backbone
    assert isinstance(backbone, LettersAndPixels)
    assert backbone.encoded_views == 36 + 21
    assert list(results) == list(evaluators)
    for name, result in results.items():
        back = load_result(tmp_path / name)
        assert back.by_name() == result.by_name()
    assert (tmp_path / "core.consistency" / "similarity-clean.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in results["core.consistency"].pictures] == ["similarity-clean.png"]


def test_figures_hang_on_no_batch_size(sources, tmp_path: Path) -> None:
    found = []
    for size in (1, 4, 1000):
        model = Model(Pipeline(LettersAndPixels(), []), views_per_batch=size)
        results = evaluate(
            model, {"z": ZeroShot(templates=["a {}"]), "c": Consistency(picture=False)}, sources, tmp_path
        )
        found.append({f.name: f.value for result in results.values() for f in result.figures})
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-6)


def random_states() -> tuple[Any, Any, Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def disturbing(model: Any, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
    """Does to the model and the random states what a careless evaluator does."""
    model.pipeline.train()
    model.backbone.model["drop"].eval()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    return EvalResult()


def test_modes_and_random_states_are_restored(model: Model, sources, tmp_path: Path) -> None:
    model.pipeline.train()
    model.backbone.model["image"].eval()  # pyright: ignore[reportIndexIssue]
    modes = {name: module.training for name, module in model.pipeline.named_modules()}
    before = random_states()
    evaluate(model, {"x.careless": disturbing, "core.zero_shot": ZeroShot(templates=["{}"])}, sources, tmp_path)
    after = random_states()
    assert {name: module.training for name, module in model.pipeline.named_modules()} == modes
    assert before[0] == after[0]
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert torch.equal(before[2], after[2])


def test_a_failing_evaluator_leaves_the_model_and_earlier_results(model: Model, sources, tmp_path: Path) -> None:
    def fails(model: Any, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        disturbing(model, sources, output)
        raise DataError("no")

    model.pipeline.eval()
    state = torch.get_rng_state()
    with pytest.raises(DataError):
        evaluate(model, {"core.zero_shot": ZeroShot(templates=["{}"]), "x.fails": fails}, sources, tmp_path)
    assert not any(module.training for module in model.pipeline.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert load_result(tmp_path / "core.zero_shot").figures
    with pytest.raises(PluginError, match=r"evaluator x\.none gave NoneType"):
        evaluate(model, {"x.none": lambda *_: None}, sources, tmp_path)  # pyright: ignore[reportArgumentType]


def test_labels_go_by_index(model: Model, tmp_path: Path) -> None:
    data = InMemory([2] * 4)
    data.categories = ["n1", "n2", "n3", "n2"]
    mapping = {"n1": "missile", "n2": "tea_pot", "n3": "missile"}
    result = ZeroShot(classes=mapping, templates=["{}"], topk=[3])(model, {"s": data}, tmp_path)
    assert result["core.zero_shot/top3/s"].value == 1.0
    assert [row[0] for row in result.tables[0].rows] == ["n1", "n2", "n3"]
    with pytest.raises(DataError, match="object 'memory-0/0' of source 's' is of category 'n1', which is not among"):
        ZeroShot(classes=["n2", "n3"])(model, {"s": data}, tmp_path)
    with pytest.raises(DataError, match="category 'n2', which is at 2 places among"):
        ZeroShot(classes=["n1", "n2", "n2", "n3"])(model, {"s": data}, tmp_path)
    data.categories[2] = None
    with pytest.raises(DataError, match="object 'memory-0/2' of source 's' has no category"):
        ZeroShot()(model, {"s": data}, tmp_path)


def test_all_sources_share_the_classes_and_groups_average(model: Model, sources, tmp_path: Path) -> None:
    sources["clean"].categories = ["cup"] * 9
    result = ZeroShot(templates=["{}"], groups={"all": ["clean", "ood"]})(model, sources, tmp_path)
    assert "among 3 classes" in result["core.zero_shot/top1/clean"].definition
    mean = np.mean([result[f"core.zero_shot/top1/{name}"].value for name in sources])
    assert result["core.zero_shot/top1/all"].value == pytest.approx(mean)
    with pytest.raises(ConfigError, match="no source 'nope'"):
        ZeroShot(sources=["nope"])(model, sources, tmp_path)
    with pytest.raises(ConfigError, match="group 'clean' has the name of a source"):
        ZeroShot(groups={"clean": ["ood"]})(model, sources, tmp_path)


def test_broken_features_and_empty_sources_are_named(model: Model, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="source 'empty' has no object"):
        Embedder.of(model).embed("empty", InMemory([]))
    model.backbone.model["image"].weight.data.fill_(torch.nan)  # pyright: ignore
    data = {"s": InMemory([2, 2, 2])}
    for evaluator in (ZeroShot(), Consistency(), Retrieval()):
        with pytest.raises(DataError, match=r"on source 's': .*the model gives broken features"):
            evaluator(model, data, tmp_path)


def test_accuracy_by_azimuth(model: Model, tmp_path: Path) -> None:
    data = InMemory([4] * 6)
    data.azimuths = torch.tensor([0.0, 91.0, 180.0, -90.0] * 6)
    found, _ = azimuth_elevation(data.load(0, range(4), None).cameras.world_to_camera)  # pyright: ignore
    assert found == pytest.approx([0, 91, 180, -90], abs=1e-4)
    result = ZeroShot(templates=["{}"])(model, {"s": data}, tmp_path)
    angles, accuracy = accuracy_by_azimuth(result, ["s"])
    assert angles.tolist() == [-90, 0, 90, 180]
    heads = nn.functional.normalize(model.encode_text(list(WORDS)).double(), dim=1)
    right = [[int((heads @ v).argmax()) == i % 3 for v in views] for i, views in enumerate(views_of(model, data))]
    assert accuracy == pytest.approx(np.mean(right, axis=0)[[3, 0, 1, 2]])
    data.azimuths = None
    assert accuracy_by_azimuth(ZeroShot(templates=["{}"])(model, {"s": data}, tmp_path), ["s"])[0].size == 0


def test_azimuths_agree_with_the_data_packages() -> None:
    angles = torch.linspace(-179, 180, 40)
    cameras = cameras_at(angles)
    valid = torch.arange(40) != 3
    batch = ViewBatch.make([40], cameras=Cameras(torch.eye(3).repeat(40, 1, 1), cameras), camera_valid=valid)
    ours = azimuths(batch)
    assert ours[valid].numpy() == pytest.approx(azimuth_elevation(cameras)[0][valid.numpy()], abs=1e-4)
    assert ours.isnan().tolist() == [not v for v in valid.tolist()]
    assert nearest_step(torch.tensor([-179.0, 179.0, 7.0, 8.0, -7.6])).tolist() == [180, 180, 0, 15, -15]
