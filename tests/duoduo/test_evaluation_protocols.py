"""The published protocols on tiny files, with a model whose answers are known: a vector is the mean colour."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mvcore
import numpy as np
import pytest
import torch
import yaml
from mvcore.api import Backbone, ConfigError, DataError, EvalResult, IndexedDataset, ViewBatch
from mvcore.cli.main import run
from mvcore.evaluation.runner import evaluate
from mvcore.model import Model, Pipeline
from mvcore.plugins import load_plugins
from mvcore_data import ViewStoreWriter
from mvcore_data.views import Views
from mvcore_duoduo.evaluation.options import ViewCountOptions
from torch import Tensor, nn

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}


class Colours(Backbone):
    """An image's vector is its mean colour, a text's the sum of the colours that it names."""

    dims: Mapping[str, int] = {"view": 3, "text": 3}
    provides = frozenset(dims)
    image_size = 16
    library = "colours"

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    @property
    def model(self) -> nn.Module:
        return self

    def encode(self, batch: ViewBatch, keys: frozenset[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if "view" in keys:
            assert batch.images is not None
            found["view"] = batch.images.float().mean(dim=(2, 3)) / 255 * self.scale
        if "text" in keys:
            rows = [[sum(COLOURS[w][c] for w in COLOURS if w in text) for c in range(3)] for text in batch.captions]
            found["text"] = torch.tensor(rows).float() / 255 + 1e-3
        return found

    def set_trainable(self, mode: str) -> None:
        """Nothing of it trains."""


def painted(path: Path, objects: Mapping[str, Sequence[str]], **more: Mapping[str, Any]) -> Views:
    """A store of objects whose views have these colours."""
    with ViewStoreWriter(path, codec="png") as writer:
        for name, colours in objects.items():
            views = [np.full((16, 16, 3), COLOURS[colour], np.uint8) for colour in colours]
            writer.add_object(name, views, **{key: values[name] for key, values in more.items() if name in values})
    return Views(path=str(path), image_size=16)


def measured(
    evaluator: str, dataset: IndexedDataset, output: Path, model_name: str = "model", **options: Any
) -> EvalResult:
    part = mvcore.api.build({"id": evaluator, "args": options}, "evaluator")
    model = Model(Pipeline(Colours(), []).eval(), model_name)
    return evaluate(model, {evaluator: part}, {"s": dataset}, output)[evaluator]


def cells(result: EvalResult, title: str) -> dict[str, str]:
    """The second column of a table by its first."""
    return {row[0]: row[1] for table in result.tables if table.title == title for row in table.rows}


@pytest.fixture
def lvis(tmp_path: Path) -> tuple[Views, Path]:
    """Four labelled objects, one of which (`u4`) shows another colour than its class, and one that is not labelled."""
    views = {"u1": ["red"] * 3, "u2": ["green"] * 3, "u3": ["blue"] * 3, "u4": ["red"] * 3, "other": ["red"] * 3}
    file = tmp_path / "lvis.csv"
    file.write_text("class_idx,class_name,uid\n0,red_thing,u1\n1,green,u2\n2,blue,u3\n2,blue,u4\n")
    return painted(tmp_path / "store", views), file


def test_objaverse_lvis(lvis: tuple[Views, Path], tmp_path: Path) -> None:
    dataset, file = lvis
    result = measured(
        "duoduo.objaverse_lvis", dataset, tmp_path / "out", labels=str(file), templates=("a {}",), topk=(1, 2, 3)
    )
    top1 = result["duoduo.objaverse_lvis/top1/12/s"]
    assert (top1.value, top1.n) == (3 / 4, 4)
    assert result["duoduo.objaverse_lvis/macro_top1/12/s"].value == pytest.approx((1 + 1 + 1 / 2) / 3)
    # Green and blue are equally far from red: the lower class stands first, so blue is third.
    assert result["duoduo.objaverse_lvis/top2/1/s"].value == 3 / 4
    assert result["duoduo.objaverse_lvis/top3/1/s"].value == 1
    assert {figure.n for figure in result.figures} == {4}
    rows = cells(result, "Objects, s")
    assert rows == {
        "measured": "4",
        "in the source, but not in the labels": "1",
        "in the labels, but not in the source": "0",
        "of the training set": "not known",
    }


def test_options_come_from_a_file_on_the_command_line(
    lvis: tuple[Views, Path], tiny_clip_json: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = tmp_path / "options.yaml"
    options.write_text(yaml.safe_dump({"duoduo.objaverse_lvis": {"labels": str(lvis[1]), "counts": [1, 3]}}))
    arguments = ["eval", str(tiny_clip_json), "--data", f"lvis={tmp_path / 'store'}", "--options", str(options)]
    assert run([*arguments, "-o", str(tmp_path / "out")]) == 0
    values = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"][0]["values"]
    assert {figure["n"] for figure in values.values()} == {4}
    assert "top-1 3 views lvis" in (tmp_path / "out" / "comparison.md").read_text()
    assert run([*arguments, "--on", "core.zero_shot"]) == 2
    assert "'duoduo.objaverse_lvis' is not among the evaluators of --on (core.zero_shot)" in capsys.readouterr().err
    options.write_text("duoduo.objaverse_lvis: {counts: [0]}\n")
    assert run(arguments) == 2
    assert "options.yaml: duoduo.objaverse_lvis" in capsys.readouterr().err


def test_labels_of_objects_that_are_not_there(lvis: tuple[Views, Path], tmp_path: Path) -> None:
    dataset, file = lvis
    file.write_text(file.read_text() + "0,red_thing,gone\n")
    options: dict[str, Any] = {"labels": str(file), "templates": ("a {}",)}
    with pytest.raises(
        DataError, match=r"lacks 1 of the 5 objects of .*lvis\.csv, the first 'gone'; set allow_missing"
    ):
        measured("duoduo.objaverse_lvis", dataset, tmp_path / "out", **options)
    result = measured("duoduo.objaverse_lvis", dataset, tmp_path / "out", allow_missing=True, **options)
    assert result.figures[0].n == 4


def test_a_list_of_classes_in_another_order_is_refused(lvis: tuple[Views, Path], tmp_path: Path) -> None:
    dataset, file = lvis
    (tmp_path / "classes.txt").write_text("red thing\nblue\ngreen\n")
    options: dict[str, Any] = {"labels": str(file), "classes": str(tmp_path / "classes.txt")}
    with pytest.raises(ConfigError, match=r"class 1 is 'green' in .*lvis\.csv, but 'blue' among the classes"):
        measured("duoduo.objaverse_lvis", dataset, tmp_path / "out", **options)


def test_scanobjectnn_is_told_among_its_fifteen_classes(tmp_path: Path) -> None:
    views = {"a": ["red"], "b": ["green"]}
    dataset = painted(tmp_path / "store", views, category={"a": "sofa", "b": "toilet"})
    rows = np.full((15, 3), 0.5, np.float32)
    rows[13], rows[14] = (1, 0, 0), (0, 0, 1)
    np.save(tmp_path / "classes.npy", rows)
    result = measured("duoduo.scanobjectnn", dataset, tmp_path / "out", class_matrix=str(tmp_path / "classes.npy"))
    assert result["duoduo.scanobjectnn/top1/12/s"].value == 1 / 2
    assert "of 15 to" in result.figures[0].definition
    strange = painted(tmp_path / "strange", views, category={"a": "sofa", "b": "spoon"})
    with pytest.raises(DataError, match="object 'b' of source 's' is of category 'spoon', which is not among"):
        measured("duoduo.scanobjectnn", strange, tmp_path / "out", class_matrix=str(tmp_path / "classes.npy"))


@pytest.fixture
def mvpnet(tmp_path: Path) -> tuple[Views, dict[str, Any]]:
    """Two of three MVImgNet objects are the evaluation's, under the names that a store of MVImgNet has."""
    dataset = painted(tmp_path / "store", {"0/a": ["red"], "7/b": ["green"], "0/c": ["blue"]})
    (tmp_path / "mvpnet_val.csv").write_text("idx,name,id\n0,red,0_a\n2,blue,7_b\n")
    (tmp_path / "mvimgnet_category.txt").write_text("0,red\n1,green\n2,blue\n")
    options = {
        "labels": str(tmp_path / "mvpnet_val.csv"),
        "classes": str(tmp_path / "mvimgnet_category.txt"),
        "templates": ("{}",),
    }
    return dataset, options


def test_mvpnet(mvpnet: tuple[Views, dict[str, Any]], tmp_path: Path) -> None:
    dataset, options = mvpnet
    (tmp_path / "mvpnet_train.txt").write_text("0_c\n")
    train = (str(tmp_path / "mvpnet_train.txt"),)
    result = measured("duoduo.mvpnet", dataset, tmp_path / "out", train_ids=train, **options)
    assert [result[f"duoduo.mvpnet/top{k}/6/s"].value for k in (1, 3)] == [1 / 2, 1]
    rows = cells(result, "Objects, s")
    assert rows["of the training set"] == "0"
    del options["classes"]
    with pytest.raises(ConfigError, match=r"holds objects of 2 of at least 3 classes; name the list of all classes"):
        measured("duoduo.mvpnet", dataset, tmp_path / "out", **options)


def test_objects_of_the_training_list_are_refused(mvpnet: tuple[Views, dict[str, Any]], tmp_path: Path) -> None:
    dataset, options = mvpnet
    (tmp_path / "mvimgnet_model_ids.txt").write_text("0_a\n0_c\n7_b\n")
    options["train_ids"] = (str(tmp_path / "mvimgnet_model_ids.txt"),)
    said = (
        r"2 of the 2 objects of source 's' are training objects, the first '0/a' in .*mvimgnet_model_ids\.txt; .*allow"
    )
    with pytest.raises(DataError, match=said):
        measured("duoduo.mvpnet", dataset, tmp_path / "out", **options)
    result = measured("duoduo.mvpnet", dataset, tmp_path / "out", allow_overlap=True, **options)
    rows = cells(result, "Objects, s")
    assert rows["of the training set"] == "2"


def test_objects_of_the_runs_own_data_are_refused(
    mvpnet: tuple[Views, dict[str, Any]], tiny_clip_json: Path, tmp_path: Path
) -> None:
    dataset, options = mvpnet
    painted(tmp_path / "trained", {"7_b": ["red"] * 2, "9_x": ["red"] * 2}, captions={"7_b": ["t"], "9_x": ["u"]})
    config = {
        "encoder": {"id": "core.open_clip", "model": str(tiny_clip_json), "pretrained": None, "train": "all"},
        "data": {
            "objects": {"id": "data.views", "path": str(tmp_path / "trained"), "image_size": 32, "cache": "memory"}
        },
        "losses": {"core.itc": {}},
        "run": {"max_steps": 1, "workers": 0, "accelerator": "cpu"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert run(["train", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "run")]) == 0
    said = r"1 of the 2 objects of source 's' are training objects, the first '7/b' in .*run \(data\.objects\)"
    with pytest.raises(DataError, match=said):
        measured("duoduo.mvpnet", dataset, tmp_path / "out", train_run=str(tmp_path / "run"), **options)
    with pytest.raises(DataError, match=said):
        measured("duoduo.mvpnet", dataset, tmp_path / "out", model_name=str(tmp_path / "run"), **options)
    result = measured(
        "duoduo.mvpnet", dataset, tmp_path / "out", model_name=str(tmp_path / "run"), train_run=None, **options
    )
    assert cells(result, "Objects, s")["of the training set"] == "not known"


def shapes(tmp_path: Path) -> Views:
    colours = {"m1": ["red"] * 2, "m2": ["green"], "m3": ["blue"], "m4": ["yellow"]}
    captions = {"m1": ["red", "yellow"], "m2": ["green"], "m3": ["red"], "m4": ["yellow"]}
    return painted(tmp_path / "shapes", colours, captions=captions)


def check_text_to_shape(result: EvalResult) -> None:
    """Ranks: red of m1 0, yellow of m1 1 (m4 stands before it), green 0, red of m3 3, yellow of m4 0."""
    ranks = [0, 1, 0, 3, 0]
    assert result["duoduo.text_to_shape/rr1/s"].value == pytest.approx(3 / 5)
    assert result["duoduo.text_to_shape/rr5/s"].value == 1
    gains = [1 / math.log2(rank + 2) for rank in ranks]
    assert result["duoduo.text_to_shape/ndcg5/s"].value == pytest.approx(sum(gains) / 5)
    assert result["duoduo.text_to_shape/mrr/s"].value == pytest.approx(sum(1 / (rank + 1) for rank in ranks) / 5)
    assert {figure.n for figure in result.figures} == {5}


def test_text_to_shape_by_the_sources_captions(tmp_path: Path) -> None:
    check_text_to_shape(measured("duoduo.text_to_shape", shapes(tmp_path), tmp_path / "out"))


def test_text_to_shape_by_the_published_table(tmp_path: Path) -> None:
    texts = [("m1", "red"), ("m1", "yellow"), ("m2", "green"), ("m3", "red"), ("m4", "yellow"), ("gone", "blue")]
    lines = [f"{row},{name},{text},Chair" for row, (name, text) in enumerate(texts)]
    file = tmp_path / "captions.csv"
    file.write_text("\n".join(["id,modelId,description,category", *lines]))
    result = measured("duoduo.text_to_shape", shapes(tmp_path), tmp_path / "out", captions=str(file))
    check_text_to_shape(result)
    assert cells(result, "Text to shape, s")["texts of shapes that the source lacks, left out"] == "1"


def test_text_to_shape_without_texts_says_so(lvis: tuple[Views, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="source 's' has no caption; name a file of texts with captions"):
        measured("duoduo.text_to_shape", lvis[0], tmp_path / "out")


def test_the_evaluators_are_registered() -> None:
    names = {"view_count", "objaverse_lvis", "scanobjectnn", "mvpnet", "text_to_shape"}
    assert {f"duoduo.{name}" for name in names} <= set(load_plugins().specs("evaluator"))
    with pytest.raises(ConfigError, match="counts"):
        mvcore.api.build({"id": "duoduo.view_count", "args": {"counts": (2, 2)}}, "evaluator")


PAGE = Path(__file__).parents[2] / "docs" / "methods" / "duoduo-evaluation.md"


def test_the_page_shows_options_that_there_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    shown = {name: args for block in blocks for name, args in yaml.safe_load(block).items()}
    assert shown.keys() == {"duoduo.objaverse_lvis", "duoduo.mvpnet"}
    for name, args in shown.items():
        assert mvcore.api.build({"id": name, "args": args}, "evaluator").options.labels == args["labels"]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| .* \| .* \|$", text, re.MULTILINE)
    assert set(ViewCountOptions.model_fields) <= {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    for name in ("view_count", "objaverse_lvis", "scanobjectnn", "mvpnet", "text_to_shape"):
        assert f"| `duoduo.{name}` |" in text
