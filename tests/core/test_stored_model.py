"""Heads trained on stored vectors take images: through the encoder that made the vectors, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mvcore
import numpy as np
import pytest
import torch
from mvcore.api import ConfigError, DataError, ViewBatch, WeightsError
from mvcore.cli.main import run as command
from mvcore.model_card import TRAINING_DATA
from mvcore.running import run
from mvcore_data.views import Views

if TYPE_CHECKING:
    from conftest import Lab

WIDTH = 16
VIEW = frozenset({"view"})
Head = Callable[..., Path]


@pytest.fixture(scope="module")
def weights(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the weights of a CLIP."""
    from mvcore.api import load_encoder
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    clip: Any = load_encoder("core.open_clip", {"model": str(lab.clip)}).backbone
    save_file({name: 2 * value.contiguous() for name, value in clip.model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def store(lab: Lab, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's store with vectors made by the command, by a plain model and by its name."""
    path = Path(shutil.copytree(lab.store, tmp_path_factory.mktemp("stored") / "store"))
    plain = ["--encoder", "core.open_clip", "--model", str(lab.clip), "--pretrained", str(weights)]
    assert command(["data", "embed", str(path), *plain, "--tag", "plain"]) == 0
    assert command(["data", "embed", str(path), "--encoder", f"{lab.clip}:{weights}", "--tag", "named"]) == 0
    return path


@pytest.fixture(scope="module")
def head(lab: Lab, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Head:
    """Trains a head on vectors of a tag, and gives the run's folder."""
    import io

    from rich.console import Console

    def make(tag: str = "plain", path: Path = store) -> Path:
        source = {"id": "data.views", "path": str(path), "embeddings": [tag], "images": False}
        values = lab.changed(
            {
                "encoder": {"id": "core.embeddings", "tag": tag, "width": WIDTH},
                "adapters": {"ovt.viformer": {"layers": 1, "heads": 2, "feedforward": 16, "alpha": 0.7}},
                "data": {"objects": {**source, "batch_size": 4, "views_per_object": 3}},
                "losses": {"mvc_heads.object": {"weight": 1.0}},
                "optimizer": {"lr": 0.05},
                "run": {"max_steps": 3, "accelerator": "cpu", "devices": 1},
            },
            {},
        )
        folder = tmp_path_factory.mktemp("run") / "run"
        run(lab.session(values), folder, json.dumps(values), Console(file=io.StringIO()))
        return folder

    return make


@pytest.fixture(scope="module")
def plain(head: Head) -> Path:
    return head()


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    """A run whose record is to be changed."""
    return Path(shutil.copytree(plain, tmp_path / "copy"))


def record(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / TRAINING_DATA
    noted = json.loads(path.read_text())
    change(noted["objects"])
    path.write_text(json.dumps(noted))


def images_of(store: Path, i: int = 2) -> tuple[list[np.ndarray], ViewBatch]:
    """The images of an object, and the same views as stored vectors."""
    source = Views(path=str(store), embeddings=["plain"])
    batch = source.load(i, list(source.views_of(i)), None)
    assert batch.images is not None
    images = [image.permute(1, 2, 0).numpy() for image in batch.images]
    stored = Views(path=str(store), embeddings=["plain"], images=False)
    return images, stored.load(i, list(stored.views_of(i)), None)


def test_images_go_through_the_encoder_that_made_the_vectors(plain: Path, store: Path) -> None:
    images, stored = images_of(store)
    model = mvcore.load(plain)
    expected = model.features(stored, VIEW).view
    found = model.encode_images(images)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=5e-3)  # float16
    untouched = mvcore.load(plain, 0.0).encode_images(images)
    assert not torch.allclose(found, untouched, atol=0.05)
    unit = torch.nn.functional.normalize(expected, dim=1).mean(dim=0, keepdim=True)
    torch.testing.assert_close(model.encode_views([images]), unit, rtol=2e-2, atol=5e-3)
    assert model.encode_text(["a cup", "something new"]).shape == (2, WIDTH)
    assert model.dense(images[:1]).shape[0] == 1
    assert model.prepare(images).shape == (len(images), 3, 32, 32)
    batch = ViewBatch.make([1], images=model.prepare(images[:1]))
    torch.testing.assert_close(model.features(batch, VIEW).view, found[:1])
    torch.testing.assert_close(model.features(stored, VIEW).view, expected)


def test_an_encoder_can_be_named_and_must_be_the_one(plain: Path, store: Path, lab: Lab, weights: Path) -> None:
    images, _ = images_of(store)
    named = mvcore.load(plain, encoder=f"{lab.clip}:{weights}")
    assert torch.equal(named.encode_images(images), mvcore.load(plain).encode_images(images))
    with pytest.raises(WeightsError, match=r"is not the model that made its vectors: weights_sha256 is .* there and"):
        mvcore.load(plain, encoder=lab.clip)
    with pytest.raises(ConfigError, match="encoder is for runs on stored vectors; this has an encoder of its own"):
        mvcore.load(str(lab.clip), encoder=lab.clip)


def test_vectors_by_a_name_or_a_run_lead_back_to_it(head: Head, plain: Path, store: Path, tmp_path: Path) -> None:
    images, _ = images_of(store)
    assert mvcore.load(head("named")).encode_images(images).shape == (len(images), WIDTH)
    again = Path(shutil.copytree(store, tmp_path / "again"))
    assert command(["data", "embed", str(again), "--encoder", str(plain), "--on", "image", "--tag", "headed"]) == 0
    key = json.loads((again / "embeddings/headed/key.json").read_text())
    assert key["model"]["source"] == str(plain)
    source = Views(path=str(again), embeddings=["headed"], images=False)
    stored = source.load(2, list(source.views_of(2)), None).embeddings["headed/image"]
    torch.testing.assert_close(mvcore.load(plain).encode_images(images), stored, rtol=2e-2, atol=5e-3)


def test_what_is_not_known_or_gone_is_one_line_that_says_what_to_name(copy: Path, store: Path, tmp_path: Path) -> None:
    images, stored = images_of(store)

    def changed(values: dict[str, Any]) -> None:
        values["embeddings"]["plain"]["model"] = {"id": "core.open_clip", "source": str(tmp_path / "gone")}

    record(copy, changed)
    model = mvcore.load(copy)
    assert model.features(stored, VIEW).view.shape == (6, WIDTH)  # stored vectors need no encoder
    with pytest.raises(WeightsError, match=r"encoder of its vectors cannot be had: .*gone.*encoder=\.\.\.\)$") as error:
        model.encode_images(images)
    assert "\n" not in str(error.value)
    record(copy, lambda values: values.pop("embeddings"))
    with pytest.raises(WeightsError, match=r"what made them is not recorded; name it: mvcore\.load\('.*', encoder="):
        mvcore.load(copy).encode_images(images)


def test_imported_vectors_take_the_users_word_but_not_another_width(
    copy: Path, store: Path, lab: Lab, weights: Path, tmp_path: Path
) -> None:
    images, _ = images_of(store)

    def changed(values: dict[str, Any]) -> None:
        values["embeddings"]["plain"] = {"model": {"id": "import", "format": "duoduo", "file": "x.h5"}}

    record(copy, changed)
    with pytest.raises(WeightsError, match="what made them is not recorded"):
        mvcore.load(copy).encode_images(images)
    assert mvcore.load(copy, encoder=f"{lab.clip}:{weights}").encode_images(images).shape[1] == WIDTH
    other = tmp_path / "wide.json"
    other.write_text(json.dumps({**json.loads(lab.clip.read_text()), "embed_dim": 24}))
    with pytest.raises(WeightsError, match=r"was trained on vectors 16 wide, and those of .* are 24 wide"):
        mvcore.load(copy, encoder=other)


def test_a_damaged_record_is_named(copy: Path, store: Path) -> None:
    record(copy, lambda values: values.update(embeddings=["plain"]))
    with pytest.raises(DataError, match=r"training_data\.json: damaged: embeddings must be a mapping"):
        mvcore.load(copy).encode_images(images_of(store)[0])
