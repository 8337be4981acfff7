"""A finished run in use: loaded in whole or in part, exported, and loaded by the plain library."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import mvcore
import numpy as np
import pytest
import torch
from mvcore.api import EncoderSpec, hookimpl
from mvcore.config_layers import Layers, to_yaml
from mvcore.errors import ConfigError, MvcoreError, WeightsError
from mvcore.exporting import Export, export
from mvcore.model import Model
from mvcore.plugins import reset
from mvcore.run_folder import read_config
from mvcore.running import _trained
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from conftest import Lab

TEXTS = ["a cup 0", "the boat 2", "a lamp"]
IMAGES = np.random.default_rng(5).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Run:
    """A finished run, the model as it was when its training ended, and its base weights' file."""

    folder: Path
    model: Model
    weights: Path


def train_run(lab: Lab, folder: Path, adapters: tuple[str, ...], /, **changes: Any) -> Run:
    """A run on base weights of its own file."""
    plain = mvcore.load(str(lab.clip))
    weights = folder.parent / f"{folder.name}-base.safetensors"
    save_file({key: value.clone() for key, value in plain.backbone.model.state_dict().items()}, weights)
    values = lab.values(encoder={"pretrained": str(weights)}, run={"max_steps": 8}, optimizer={"lr": 2e-2})
    values["adapters"] = {name: entry for name, entry in values["adapters"].items() if name in adapters}
    values = lab.changed(values, changes)
    session = lab.session(values)
    layers = Layers()
    layers.merge(values, "test")
    model = _trained(session, folder, to_yaml(layers, session.config), Console(quiet=True), "test")
    return Run(folder, model, weights)


@pytest.fixture(scope="module")
def run(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_run(lab, tmp_path_factory.mktemp("load") / "run", ("ovt.lora", "ovt.viformer", "ovt.logit_scale"))


@pytest.fixture(scope="module")
def mergeable(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of which all can be merged, with trained weights of the library's own too."""
    folder = tmp_path_factory.mktemp("load") / "lora"
    return train_run(lab, folder, ("ovt.lora", "ovt.logit_scale"), encoder={"train": "last:1"})


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Path:
    """The run's folder, to be damaged."""
    return Path(shutil.copytree(run.folder, tmp_path / "copy"))


def vectors(model: Model) -> tuple[Tensor, Tensor]:
    return model.encode_images(IMAGES), model.encode_text(TEXTS)


# -- loading -----------------------------------------------------------------------------------------------------------


def test_a_loaded_run_gives_the_vectors_of_the_trained_model(run: Run, mergeable: Run) -> None:
    for one in (run, mergeable):
        loaded = mvcore.load(one.folder)
        for found, expected in zip(vectors(loaded), vectors(one.model), strict=True):
            assert torch.equal(found, expected)
        assert not any(p.requires_grad for _, p in loaded.pipeline.backbone_parameters())
        assert not loaded.pipeline.training


def test_strength_goes_from_untouched_to_trained(run: Run, mergeable: Run) -> None:
    for one in (run, mergeable):
        none, half, full = (normalize(vectors(mvcore.load(one.folder, strength=s))[0], dim=1) for s in (0.0, 0.5, 1.0))
        moved = (full - none).norm()
        assert moved > 0.01
        assert 0 < (half - none).norm() < moved
        assert 0 < (half - full).norm() < moved


def test_strength_0_is_the_untouched_model_bit_for_bit(run: Run, mergeable: Run, lab: Lab) -> None:
    for one in (run, mergeable):
        untouched = mvcore.load(f"{lab.clip}:{one.weights}")
        for found, expected in zip(vectors(mvcore.load(one.folder, strength=0.0)), vectors(untouched), strict=True):
            assert torch.equal(found, expected)


def test_a_folder_of_seeds_names_its_runs(tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds one run for each seed; name one: seed-0, seed-1"):
        mvcore.load(tmp_path)


def test_strength_belongs_to_runs(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="strength applies to runs"):
        mvcore.load(str(lab.clip), strength=0.5)


def test_the_base_weights_are_checked(copy: Path, run: Run) -> None:
    weights = load_file(run.weights)
    weights["visual.proj"] = weights["visual.proj"] + 1e-3
    other = copy.parent / "other.safetensors"
    save_file(weights, other)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(run.weights), str(other)))
    with pytest.raises(WeightsError, match=r"other base weights than .*other\.safetensors"):
        mvcore.load(copy)


@pytest.mark.parametrize("which", ["newest", "", "LAST"])
def test_only_last_and_best_are_checkpoints(run: Run, which: str) -> None:
    with pytest.raises(ConfigError, match="which must be 'last' or 'best'"):
        mvcore.load(run.folder, which=which)


def test_without_a_best_checkpoint_the_last_one_is_it(run: Run) -> None:
    assert torch.equal(vectors(mvcore.load(run.folder, which="best"))[0], vectors(run.model)[0])


def unlinked(name: str) -> Callable[[Path], None]:
    return lambda folder: next(folder.glob(name)).unlink()


def overwritten(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        next(folder.glob(name)).write_bytes(content)

    return damage


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = next(folder.glob(name))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def without_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")


def without_the_last(folder: Path) -> None:
    shutil.rmtree(next(folder.glob("checkpoints/step-*")))


WEIGHTS = "checkpoints/step-*/weights.safetensors"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_checkpoints, "no checkpoint was saved"),
        (without_the_last, "its checkpoint step-00000008 is gone"),
        (overwritten("checkpoints/last.json", b"{"), "no checkpoint was saved|last.json"),
        (overwritten("checkpoints/last.json", b"[]"), "last.json"),
        (unlinked(WEIGHTS), "weights.safetensors"),
        (cut(WEIGHTS), "weights.safetensors: damaged"),
        (overwritten(WEIGHTS, b""), "weights.safetensors: damaged"),
        (overwritten("run.json", b"{"), "run.json"),
        (overwritten("run.json", b"[1]"), "run.json"),
        (overwritten("run.json", b'{"status": "finished"}'), "run.json"),
        (overwritten("run.json", b"\xff\xfe"), "run.json"),
        (overwritten("config.yaml", b"encoder: ["), "config.yaml"),
        (overwritten("config.yaml", b"encoder: {id: core.open_clip}"), "config.yaml|data"),
        (unlinked("run.json"), "neither a run nor an export"),
    ],
)
def test_a_damaged_run_is_one_line(copy: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(copy)
    with pytest.raises(MvcoreError, match=said) as caught:
        mvcore.load(copy)
    assert "\n" not in str(caught.value)


def test_a_record_that_names_an_unknown_adapter_is_one_line(copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "adapters": ["ovt.other"]}))
    with pytest.raises(MvcoreError, match=r"ovt\.other"):
        mvcore.load(copy)


@pytest.mark.parametrize("source", ["nowhere/run", "ViT-B-33", "weights.safetensors"])
def test_what_is_not_there_is_named(source: str) -> None:
    with pytest.raises(MvcoreError) as caught:
        mvcore.load(source)
    assert source.partition("/")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


# -- use ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(run: Run) -> Model:
    return mvcore.load(run.folder)


def test_shapes(model: Model) -> None:
    assert model.encode_images(IMAGES).shape == (7, 16)
    assert model.encode_images(list(IMAGES)).shape == (7, 16)
    assert model.encode_images(torch.from_numpy(IMAGES)).shape == (7, 16)
    assert model.encode_text(TEXTS).shape == (3, 16)
    assert torch.equal(model.encode_text("a lamp"), model.encode_text(["a lamp"]))
    assert model.encode_text([]).shape == (0, 16)
    assert model.encode_views([IMAGES[:2], IMAGES[2:]]).shape == (2, 16)
    assert model.dense(IMAGES[:2]).shape == (2, 32, 4, 4)
    assert model.encode_images(IMAGES).dtype == torch.float32


def test_an_object_is_the_mean_of_its_views_directions(model: Model) -> None:
    found = model.encode_views([IMAGES[:2], IMAGES[2:]])
    units = normalize(model.encode_images(IMAGES), dim=1)
    torch.testing.assert_close(found, torch.stack([units[:2].mean(0), units[2:].mean(0)]))


@pytest.mark.parametrize("size", [(32, 32), (50, 40), (7, 90), (200, 33), (1, 1)])
def test_images_of_any_size(model: Model, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = model.encode_images([image, IMAGES[0]])
    assert found.shape == (2, 16)
    assert found.isfinite().all()
    assert model.dense([image]).shape == (1, 32, 4, 4)


def test_an_image_that_fits_is_left_as_it_is_and_others_are_cropped_about_the_centre(model: Model) -> None:
    wide = np.concatenate([np.zeros((32, 8, 3), np.uint8), IMAGES[0], np.zeros((32, 8, 3), np.uint8)], axis=1)
    torch.testing.assert_close(model.encode_images([wide]), model.encode_images(IMAGES[:1]))


def test_use_is_deterministic_and_leaves_the_random_state_alone(model: Model) -> None:
    model.pipeline.train()  # dropout would show
    torch.manual_seed(4)
    torch_state, numpy_state = torch.random.get_rng_state(), str(np.random.get_state())
    first, second = model.encode_images(IMAGES), model.encode_images(IMAGES)
    model.encode_text(["a text never seen before"])
    model.encode_views([IMAGES])
    model.dense(IMAGES)
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert str(np.random.get_state()) == numpy_state
    assert not first.requires_grad
    model.pipeline.eval()


def test_pieces_do_not_change_vectors(run: Run) -> None:
    model = mvcore.load(run.folder)
    whole = model.encode_images(IMAGES)
    model.views_per_batch = 2
    torch.testing.assert_close(model.encode_images(IMAGES), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.encode_images(IMAGES.astype(np.float32)),
        lambda m: m.encode_images(IMAGES[..., :2]),
        lambda m: m.encode_images([]),
        lambda m: m.encode_images(IMAGES[:, :0]),
        lambda m: m.encode_views([]),
        lambda m: m.encode_views([IMAGES[:0]]),
        lambda m: m.encode_views([IMAGES, []]),
        lambda m: m.dense([]),
        lambda m: m.encode_images("photo.png"),
        lambda m: m.encode_text([3]),
    ],
)
def test_wrong_input_is_one_line(model: Model, call: Callable[[Model], Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        call(model)
    assert "\n" not in str(caught.value)


# -- exporting ---------------------------------------------------------------------------------------------------------


def exported(one: Run, folder: Path) -> Export:
    return export(mvcore.load(one.folder), folder, adapters=read_config(one.folder).adapters)


def test_what_cannot_be_merged_is_exported_beside_and_said(run: Run, tmp_path: Path) -> None:
    done = exported(run, tmp_path / "export")
    assert (done.merged, done.beside) == (("ovt.lora", "ovt.logit_scale"), ("ovt.viformer",))
    assert done.largest_difference < 1e-5
    loaded = mvcore.load(tmp_path / "export")
    torch.testing.assert_close(loaded.encode_images(IMAGES), run.model.encode_images(IMAGES), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded.encode_text(TEXTS), run.model.encode_text(TEXTS), rtol=1e-4, atol=1e-5)
    from mvcore.running import describe_export

    assert "ovt.viformer" in describe_export(done).splitlines()[-1]


PLAIN = """
import json, sys
import numpy, open_clip, torch
folder, texts, images, out = sys.argv[1:]
model = open_clip.create_model("local-dir:" + folder, require_pretrained=True).eval()
state = dict(__import__("safetensors.torch").torch.load_file(folder + "/open_clip_model.safetensors"))
model.load_state_dict(state, strict=True)
mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.visual.image_mean, model.visual.image_std))
pixels = (torch.from_numpy(numpy.load(images)).permute(0, 3, 1, 2) / 255 - mean) / std
tokens = open_clip.get_tokenizer("local-dir:" + folder)(json.loads(texts))
with torch.no_grad():
    numpy.savez(out, images=model.encode_image(pixels), texts=model.encode_text(tokens), scale=model.logit_scale)
assert not any(name.startswith(("mvcore", "lightning")) for name in sys.modules)
"""


@pytest.mark.process
def test_plain_open_clip_gives_the_same_vectors(mergeable: Run, tmp_path: Path) -> None:
    done = exported(mergeable, tmp_path / "export")
    assert done.beside == ()
    assert done.merged == ("ovt.lora", "ovt.logit_scale")
    np.save(tmp_path / "images.npy", IMAGES)
    command = [str(tmp_path / "export"), json.dumps(TEXTS), str(tmp_path / "images.npy"), str(tmp_path / "out.npz")]
    subprocess.run([sys.executable, "-c", PLAIN, *command], check=True)
    found = np.load(tmp_path / "out.npz")
    images, texts = vectors(mergeable.model)
    np.testing.assert_allclose(found["images"], images.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["texts"], texts.numpy(), rtol=1e-4, atol=1e-5)
    scale: Any = mergeable.model.adapters["ovt.logit_scale"].logit_scale
    assert float(found["scale"]) == pytest.approx(float(scale.detach()))


class Unfreezing(torch.nn.Module):
    """An adapter as a plugin may write it: no parameter of its own, it lets one of the backbone's train."""

    def attach(self, backbone: Any) -> None:
        backbone.model.positional_embedding.requires_grad_(True)


@pytest.mark.parametrize("others", [(), ("ovt.viformer",)])
def test_an_export_with_an_adapter_that_unfreezes_loads_again(
    lab: Lab, tmp_path: Path, others: tuple[str, ...]
) -> None:
    @hookimpl
    def mvcore_register_encoders() -> list[EncoderSpec]:
        return [EncoderSpec(name="bias", kind="adapter", summary="Unfreezes", factory=Unfreezing)]

    plugin = ModuleType("unfreezing")
    vars(plugin).update(MVCORE_API=1, mvcore_register_encoders=mvcore_register_encoders)
    try:
        mvcore.register(plugin)
        one = train_run(lab, tmp_path / "run", others, adapters={"unfreezing.bias": {}})
        exported(one, tmp_path / "export")
        loaded = mvcore.load(tmp_path / "export")
        for found, expected in zip(vectors(loaded), vectors(one.model), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    finally:
        reset()


def test_an_export_is_never_overwritten(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="never overwritten"):
        exported(run, tmp_path)


def test_another_library_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--to timm.*open_clip"):
        export(mvcore.load(run.folder), tmp_path / "export", to="timm")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (overwritten("mvcore_export.json", b"{"), "mvcore_export.json"),
        (overwritten("mvcore_export.json", b"[]"), "mvcore_export.json"),
        (overwritten("mvcore_export.json", b'{"library": 3, "beside": []}'), "mvcore_export.json"),
        (unlinked("mvcore_adapters.safetensors"), "mvcore_adapters.safetensors"),
        (cut("mvcore_adapters.safetensors"), "mvcore_adapters.safetensors"),
        (unlinked("open_clip_model.safetensors"), "export"),
        (cut("open_clip_model.safetensors"), "export"),
        (unlinked("open_clip_config.json"), "export"),
        (overwritten("open_clip_config.json", b"{}"), "export"),
    ],
)
def test_a_damaged_export_is_one_line(run: Run, tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    exported(run, tmp_path / "export")
    damage(tmp_path / "export")
    with pytest.raises(MvcoreError, match=said) as caught:
        mvcore.load(tmp_path / "export")
    assert "\n" not in str(caught.value)


def test_a_failed_export_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mvcore.exporting as module

    monkeypatch.setattr(module, "compare_with_plain", lambda *args, **options: module._write(*args))
    with pytest.raises(TypeError):
        exported(run, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []
