"""Loading open_clip models: every way to name one, and one clear line for every way to be wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from mvcore.api import WeightsError
from mvcore.encoders.open_clip import OpenClip
from mvcore.encoders.open_clip_loading import resolve_weights
from safetensors.torch import save_file


@pytest.fixture
def tiny(tiny_clip_json: Path) -> OpenClip:
    return OpenClip(model=str(tiny_clip_json))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weight_files_are_loaded(tiny: OpenClip, tiny_clip_json: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {k: v.contiguous() for k, v in tiny.model.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    again = OpenClip(model=str(tiny_clip_json), pretrained=str(path))
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_folder_with_config_and_weights_is_a_model(tiny: OpenClip, tiny_clip_config: dict, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    content = {"model_cfg": tiny_clip_config, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="could not be loaded"):
        OpenClip(model=f"local-dir:{folder}")
    save_file({k: v.contiguous() for k, v in tiny.model.state_dict().items()}, folder / "open_clip_model.safetensors")
    again = OpenClip(model=f"local-dir:{folder}")
    assert torch.equal(again.clip.visual.proj, tiny.clip.visual.proj)
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    torch.testing.assert_close(again.normalise(white), torch.full((1, 3, 32, 32), 2.0))


def test_config_and_weights_may_lie_in_a_package(
    tiny_clip_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_models"
    (package / "small").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / "small" / "clip.json").write_text(tiny_clip_json.read_text())
    monkeypatch.syspath_prepend(tmp_path)
    assert OpenClip(model="package:some_models/small/clip.json").n_blocks == 2
    assert "some_models" not in sys.modules
    for model, text in (
        ("package:some_models/small/clap.json", "no 'small/clap.json'"),
        ("package:no_such_models/clip.json", "no package 'no_such_models' is installed"),
        ("package:some_models/../tiny_clip.json", "leads outside"),
    ):
        with pytest.raises(WeightsError, match=text):
            OpenClip(model=model)


def test_a_config_file_never_replaces_the_librarys_model_of_that_name(tiny_clip_json: Path, tmp_path: Path) -> None:
    renamed = tiny_clip_json.rename(tmp_path / "ViT-B-32.json")
    assert OpenClip(model=str(renamed)).n_blocks == 2
    config = open_clip.get_model_config("ViT-B-32")
    assert config is not None
    assert config["embed_dim"] == 512


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def damaged(kind: str, tmp_path: Path, tiny: OpenClip) -> Path:
    path = tmp_path / f"weights{'.npz' if kind == 'npz' else '.safetensors' if kind == 'cut' else '.pt'}"
    state = {k: v.contiguous() for k, v in tiny.model.state_dict().items()}
    if kind == "pickle":
        torch.save({"state_dict": {"x": Harmful()}}, path)
    elif kind == "other":
        torch.save({"visual.proj": torch.zeros(3)}, path)
    elif kind == "cut":
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "text":
        path.write_text("not weights")
    elif kind == "npz":
        path.write_bytes(b"PK")
    return path


@pytest.mark.parametrize("kind", ["pickle", "other", "cut", "text", "npz", "absent"])
def test_bad_weight_files_give_one_line_that_names_them(
    kind: str, tiny: OpenClip, tiny_clip_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = damaged(kind, tmp_path, tiny)
    with pytest.raises(WeightsError) as caught:
        OpenClip(model=str(tiny_clip_json), pretrained=str(path))
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("harmed").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": "ViT-B-33"}, "no model 'ViT-B-33', did you mean 'ViT-B-32'?"),
        ({"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79"}, "did you mean 'laion2b_s34b_b79k'?"),
        ({"model": "ViT-B-32", "pretrained": "openai"}, "QuickGELU, ViT-B-32 has not; use model ViT-B-32-quickgelu"),
        ({"model": "nowhere/clip.json"}, "'nowhere/clip.json' does not exist"),
        ({"model": "local-dir:nowhere"}, "'nowhere' does not exist"),
        ({"model": "hf-hub:some/model", "pretrained": "x"}, "set pretrained to null"),
    ],
)
def test_unknown_names_give_one_line_with_the_nearest(options: dict, text: str) -> None:
    with pytest.raises(WeightsError) as caught:
        OpenClip(**options)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_tag_of_the_library_is_taken_or_sent_to_a_model_that_takes_it() -> None:
    for name, tag in open_clip.list_pretrained():
        try:
            taken = resolve_weights(name, name, tag)
        except WeightsError as error:
            other = str(error).rpartition(" ")[2]
            taken = resolve_weights(other, other, tag)
        assert taken == tag


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"embed_dim": 4}', '{"embed_dim": 4, "vision_cfg": {"x": 1}, "text_cfg": {}}']
)
def test_a_bad_config_file_gives_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.json"
    path.write_text(content)
    with pytest.raises(WeightsError) as caught:
        OpenClip(model=str(path))
    assert "clip.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"model": "hf-hub:no/such"}, {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}]
)
def test_without_a_way_to_the_hub_there_is_one_line_at_once(
    options: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(WeightsError, match="not in the local cache, and the hub cannot be reached") as caught:
        OpenClip(**options)
    assert "\n" not in str(caught.value)
    assert constants.HF_HUB_OFFLINE is False
