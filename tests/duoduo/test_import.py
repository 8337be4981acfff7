"""Acceptance A27: checkpoints of the authors' layout become models of ours, and hostile ones run nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import mvcore
import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from mvcore.checkpoint import WEIGHTS, load_weights
from mvcore.cli.main import run
from mvcore.errors import WeightsError
from mvcore.foreign_checkpoint import read_tensors
from mvcore.run_folder import checkpoint_of
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2

START = 1
Authors = Callable[[Any, Tensor], Tensor]
TRAINED = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")


class Settings:
    """Stands for the class of the hyperparameters, which is not installed where a checkpoint is read."""

    def __init__(self) -> None:
        self.path = "/home/author/dataset/data"


@pytest.fixture
def clips(tiny_clip_json: Path) -> tuple[Any, Any]:
    """A base CLIP, and the same with other attention weights from block 1 on."""
    open_clip.add_model_config(tiny_clip_json)
    torch.manual_seed(1)
    base: Any = open_clip.create_model(tiny_clip_json.stem).eval()
    tuned: Any = open_clip.create_model(tiny_clip_json.stem).eval()
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        for parameter in tuned.visual.transformer.resblocks[START].attn.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return base, tuned


def released(
    clip: Any, path: Path, *, hyperparameters: Any = None, drop: str = "", more: dict[str, Tensor] | None = None
) -> Path:
    """A checkpoint as the authors' Lightning module writes it."""
    state = {f"duoduoclip.{key}": value for key, value in clip.state_dict().items() if key != drop}
    state["contrastive_loss.logit_scale"] = torch.tensor(2.75)
    content = {
        "epoch": 79,
        "global_step": 43760,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": state | (more or {}),
        "callbacks": {"ModelCheckpoint{'monitor': 'val_eval/objaverse_lvis_acc_top_1'}": {"best_model_score": 0.5}},
        "hyper_parameters": hyperparameters or {"cfg": {"data": {"root": "/home/author/dataset/data"}}},
    }
    torch.save(content, path)
    return path


@pytest.fixture
def call(tiny_clip_json: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Imports, expects an exit code, and gives what was said."""

    def said(file: Path, *more: str, code: int = 0) -> str:
        small = [f"encoder.model={tiny_clip_json}", f"adapters[duoduo.cross_view].cross_view_from={START}"]
        small.append("adapters[duoduo.crop].size=26")
        arguments = ["import", str(file), "--as", "duoduo", "-o", str(tmp_path / "out"), *more]
        capsys.readouterr()
        assert run([*arguments, *(word for text in small for word in ("--set", text))]) == code
        out, err = capsys.readouterr()
        assert len((err or out).splitlines()) == 1
        return err or out

    return said


def objects(*counts: int, size: int = 32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (count, size, size, 3), np.uint8) for count in counts]


def stock(clip: Any, views: np.ndarray) -> Tensor:
    """Images of the model's own size, as open_clip normalises them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.visual.image_mean, clip.visual.image_std))
    return (torch.from_numpy(views).permute(0, 3, 1, 2) / 255 - mean) / std


@pytest.fixture
def by_authors(by_reference: Callable[..., Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """The vector of one object by the authors' code."""

    def encode(clip: Any, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return by_reference(clip, pixels, START, len(pixels))[0]

    return encode


def test_over_its_base_only_what_was_trained_is_kept(
    clips: tuple[Any, Any], call: Callable[..., str], tmp_path: Path, by_authors: Authors
) -> None:
    base, tuned = clips
    torch.save(base.state_dict(), tmp_path / "base.pt")
    file = released(tuned, tmp_path / "released.ckpt")
    said = call(file, "--pretrained", str(tmp_path / "base.pt"))
    out = tmp_path / "out"
    saved = load_weights(checkpoint_of(out) / WEIGHTS)
    block = f"backbone/visual.transformer.resblocks.{START}.attn."
    assert saved.keys() == {f"{block}{name}" for name in TRAINED} | {"adapters/duoduo.log_scale/log_scale"}
    assert "5 tensors" in said
    assert float(saved["adapters/duoduo.log_scale/log_scale"]) == 2.75
    views = objects(1, 3)
    expected = [by_authors(tuned, stock(tuned, each)) for each in views]
    torch.testing.assert_close(mvcore.load(out).encode_views(views), torch.stack(expected), atol=1e-5, rtol=1e-5)
    untouched = [by_authors(base, stock(base, each)) for each in views]
    found = mvcore.load(out, strength=0.0).encode_views(views)
    torch.testing.assert_close(found, torch.stack(untouched), atol=1e-5, rtol=1e-5)


def test_without_a_base_the_whole_model_is_kept(
    clips: tuple[Any, Any], call: Callable[..., str], tmp_path: Path, by_authors: Authors
) -> None:
    _, tuned = clips
    said = call(released(tuned, tmp_path / "released.ckpt"))
    assert json.loads((tmp_path / "out/import.json").read_text())["as"] == "duoduo.released"
    assert f"{len(tuned.state_dict()) + 1} tensors" in said
    model = mvcore.load(tmp_path / "out")
    assert "object" in model.pipeline.provides
    views = objects(2, 4)
    expected = torch.stack([by_authors(tuned, stock(tuned, each)) for each in views])
    torch.testing.assert_close(model.encode_views(views), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.encode_views(views), model.encode_views(views))
    assert model.adapters["duoduo.log_scale"].state_dict()["log_scale"] == 2.75
    with torch.no_grad():
        texts = tuned.encode_text(open_clip.get_tokenizer("ViT-B-32", context_length=16)(["a chair"]))
    torch.testing.assert_close(model.encode_text("a chair"), texts, atol=1e-5, rtol=1e-5)  # pyright: ignore


def test_the_released_preprocessing_at_a_fixed_place(
    clips: tuple[Any, Any], call: Callable[..., str], tmp_path: Path, by_authors: Authors
) -> None:
    _, tuned = clips
    call(released(tuned, tmp_path / "released.ckpt"), "--set", "adapters[duoduo.crop].evaluation=centre")
    model = mvcore.load(tmp_path / "out")
    (views,) = objects(3)
    cropped = v2.functional.center_crop(torch.from_numpy(views).permute(0, 3, 1, 2) / 255, [26, 26])
    enlarged = interpolate(cropped, (32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tuned.visual.image_mean, tuned.visual.image_std))
    expected = by_authors(tuned, (enlarged - mean) / std)
    state = torch.get_rng_state()
    torch.testing.assert_close(model.encode_views([views])[0], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)
    assert float((by_authors(tuned, stock(tuned, views)) - expected).abs().max()) > 1e-3


def test_what_does_not_fit_is_named_in_one_line(
    clips: tuple[Any, Any], call: Callable[..., str], tmp_path: Path
) -> None:
    base, tuned = clips
    file = released(tuned, tmp_path / "lacking.ckpt", drop="visual.proj")
    assert "missing visual.proj" in call(file, code=2)
    file = released(tuned, tmp_path / "more.ckpt", more={"duoduoclip.extra": torch.zeros(2)})
    assert "unexpected extra" in call(file, code=2)
    file = released(tuned, tmp_path / "other.ckpt", more={"model.weight": torch.zeros(2)})
    assert "'model.weight' of shape (2,) is none of a released Duoduo CLIP" in call(file, code=2)
    torch.save({"duoduoclip.x": torch.zeros(2)}, tmp_path / "no_scale.ckpt")
    assert "holds no contrastive_loss.logit_scale" in call(tmp_path / "no_scale.ckpt", code=2)
    with torch.no_grad():
        base.visual.proj += 1
    torch.save(base.state_dict(), tmp_path / "base.pt")
    said = call(released(tuned, tmp_path / "good.ckpt"), "--pretrained", str(tmp_path / "base.pt"), code=2)
    assert "1 of the weights that this recipe keeps frozen are not those of --pretrained" in said
    assert "visual.proj" in said
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_an_existing_folder_is_left_alone(clips: tuple[Any, Any], call: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert "never overwritten" in call(released(clips[1], tmp_path / "a.ckpt"), code=2)
    assert not list((tmp_path / "out").iterdir())


def test_hyperparameters_of_a_class_are_passed_over_on_request(
    clips: tuple[Any, Any],
    call: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_authors: Authors,
) -> None:
    file = released(clips[1], tmp_path / "released.ckpt", hyperparameters=Settings())
    monkeypatch.delattr(f"{__name__}.Settings")  # so nothing can be made of it
    said = call(file, code=2)
    assert "names more than tensors" in said
    assert "Settings" in said
    assert "--tensors-only" in said
    call(file, "--tensors-only")
    expected = by_authors(clips[1], stock(clips[1], objects(2)[0]))
    found = mvcore.load(tmp_path / "out").encode_views(objects(2))[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_a_hostile_pickle_runs_nothing(
    clips: tuple[Any, Any], call: Callable[..., str], tmp_path: Path, form: str
) -> None:
    mark, file = tmp_path / "ran", tmp_path / "hostile.ckpt"
    content = {"state_dict": {"duoduoclip.x": torch.zeros(2)}, "hyper_parameters": Hostile(mark)}
    if form == "bare":
        file.write_bytes(pickle.dumps(Hostile(mark)))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    said = call(file, code=2)
    assert ("system" in said) if form == "zip" else ("not a checkpoint of torch in the zip form" in said)
    call(file, "--tensors-only", code=2)
    if form == "zip":
        assert read_tensors(file, tensors_only=True).keys() == {"duoduoclip.x"}
        torch.save({"state_dict": {"duoduoclip.x": Hostile(mark)}}, file)
        assert "where a tensor belongs" in call(file, "--tensors-only", code=2)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))  # what it would have done
    assert mark.exists()


def test_a_damaged_file_is_one_line(clips: tuple[Any, Any], call: Callable[..., str], tmp_path: Path) -> None:
    file = released(clips[1], tmp_path / "released.ckpt")
    whole = file.read_bytes()
    cut = tmp_path / "cut.ckpt"
    for keep in (0, 3, len(whole) // 2, len(whole) - 30):
        cut.write_bytes(whole[:keep])
        call(cut, code=2)
    assert "no such checkpoint" in call(tmp_path / "none.ckpt", code=2)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(cut, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    assert "not as torch writes it" in call(cut, code=2)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("small") / "small.ckpt"
    torch.save({"state_dict": {"a": torch.arange(6.0), "b": torch.zeros(2, 3, dtype=torch.int64)}, "lr": [0.5]}, path)
    return path.with_name("changed.ckpt"), path.read_bytes()


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_changed_bytes_give_tensors_or_one_error(small_file: tuple[Path, bytes], data: st.DataObject) -> None:
    path, whole = small_file
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    for tensors_only in (False, True):
        found: dict[str, Tensor] = {}
        with contextlib.suppress(WeightsError):
            found = read_tensors(path, tensors_only=tensors_only)
        assert all(isinstance(value, Tensor) for value in found.values())


def test_who_imports_nothing_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["import", str(tmp_path / "x.ckpt"), "--as", "ovt"]) == 2
    assert "ovt: it imports no checkpoint (those that do: duoduo.released" in capsys.readouterr().err


def test_an_imported_run_says_where_it_is_from(
    clips: tuple[Any, Any], call: Callable[..., str], tmp_path: Path
) -> None:
    base, tuned = clips
    torch.save(base.state_dict(), tmp_path / "base.pt")
    call(released(tuned, tmp_path / "released.ckpt"), "--pretrained", str(tmp_path / "base.pt"))
    origin = json.loads((tmp_path / "out/import.json").read_text())
    digest = hashlib.sha256((tmp_path / "released.ckpt").read_bytes()).hexdigest()
    assert origin == {"file": "released.ckpt", "as": "duoduo.released", "sha256": digest}
    assert run(["export", str(tmp_path / "out"), "-o", str(tmp_path / "exported")]) == 0
    views = objects(3)
    found = mvcore.load(tmp_path / "exported").encode_views(views)
    torch.testing.assert_close(found, mvcore.load(tmp_path / "out").encode_views(views), atol=1e-5, rtol=1e-5)
