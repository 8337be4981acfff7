"""Attention across views as numbers and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mvcore.cli.main import run
from mvcore.encoders.open_clip import OpenClip
from mvcore.errors import ConfigError
from mvcore.model import Link, Model, Pipeline
from mvcore_duoduo.attention import CrossViewAdapter
from mvcore_duoduo.attention_maps import attention_maps
from PIL import Image
from torch import Tensor

START, SIDE = 1, 4


def views(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.fixture
def model(tiny_clip_json: Path) -> Model:
    torch.manual_seed(0)
    backbone, crossing = OpenClip(model=str(tiny_clip_json), pretrained=None), CrossViewAdapter(START)
    crossing.attach(backbone)
    return Model(Pipeline(backbone.eval(), [Link("duoduo.cross_view", crossing)]))


def by_definition(model: Model, images: list[np.ndarray], token: int) -> Tensor:
    """(F, L) softmax of the first crossing block's own query of one token with all keys, by loops over heads."""
    clip: Any = model.backbone.model
    visual = clip.visual
    with torch.no_grad():
        x = visual._embeds(model.backbone.normalise(model.prepare(images)))  # pyright: ignore[reportCallIssue]
        x = visual.transformer.resblocks[0](x)
        block = visual.transformer.resblocks[START]
        tokens = block.ln_1(x).flatten(0, 1).double()
        weight, bias = block.attn.in_proj_weight.double(), block.attn.in_proj_bias.double()
        q, k, _ = (tokens @ weight.T + bias).chunk(3, dim=1)
        heads = block.attn.num_heads
        found = torch.zeros(len(tokens), dtype=torch.float64)
        for head in range(heads):
            part = slice(head * q.shape[1] // heads, (head + 1) * q.shape[1] // heads)
            logits = [float(q[token, part] @ key[part]) / (part.stop - part.start) ** 0.5 for key in k]
            found += torch.tensor(logits, dtype=torch.float64).softmax(0) / heads
        return found.unflatten(0, (len(images), -1))


def test_the_maps_are_the_softmax_of_the_blocks_own_queries_and_keys(model: Model) -> None:
    images = views((32, 32), (32, 32), (32, 32))
    # The second view's patch of row 2, column 3; a class token stands before the patches of each view.
    found = attention_maps(model, images, view=1, point=(27.0, 17.0))
    expected = by_definition(model, images, 17 + 1 + 2 * SIDE + 3).numpy()
    np.testing.assert_allclose(found.patches.reshape(3, -1), expected[:, 1:], atol=1e-6)
    np.testing.assert_allclose(found.others, expected[:, 0], atol=1e-6)
    assert (found.patch, found.block) == ((2, 3), START)
    assert float(found.of_views.sum()) == pytest.approx(1, abs=1e-5)
    whole = attention_maps(model, images, view=2)
    np.testing.assert_allclose(whole.patches.reshape(3, -1), by_definition(model, images, 34)[:, 1:], atol=1e-6)


def test_points_are_in_the_pixels_of_the_given_image(model: Model) -> None:
    images = views((64, 128), (100, 50))
    # 64x128 is halved and its outer quarters are cut off: x from 32 to 96 is seen.
    assert attention_maps(model, images, view=0, point=(33, 63)).patch == (3, 0)
    assert attention_maps(model, images, view=0, point=(95, 1)).patch == (0, 3)
    assert attention_maps(model, images, view=1, point=(25, 50)).patch == (2, 2)
    with pytest.raises(ConfigError, match="point 20,30 is not in what the model sees of the 128x64 image"):
        attention_maps(model, images, view=0, point=(20, 30))


def test_what_there_is_not_is_named(model: Model, tiny_clip_json: Path) -> None:
    images = views((32, 32))
    with pytest.raises(ConfigError, match="view 1 is not one of the views 0 to 0"):
        attention_maps(model, images, view=1)
    for block in (0, 2):
        with pytest.raises(ConfigError, match=f"block {block} does not attend across views; those from 1 to 1 do"):
            attention_maps(model, images, block=block)
    plain = Model(Pipeline(OpenClip(model=str(tiny_clip_json), pretrained=None), []), name="plain")
    with pytest.raises(ConfigError, match=r"plain has no duoduo.cross_view; say from which block"):
        attention_maps(plain, images)
    assert attention_maps(plain, images, cross_view_from=0).block == 0


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    found: list[str] = []
    for number, pixels in enumerate(views((40, 60), (32, 32), (50, 40))):
        found.append(str(tmp_path / f"view{number}.png"))
        Image.fromarray(pixels).save(found[-1])
    return found


def test_the_command_draws_every_view(
    files: list[str], tiny_clip_json: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "map.png"
    command = ["duoduo", "attention", str(tiny_clip_json), "--image", *files, "--cross-view-from", "1"]
    assert run([*command, "--view", "0", "--point", "30,20", "-o", str(picture)]) == 0
    said = capsys.readouterr().out
    assert "attention of the patch 2,2 of view0, block 1" in said
    shares = [int(part.partition("%")[0].rpartition(" ")[2]) for part in said.split(", ")[-3:]]
    assert sum(shares) == pytest.approx(100, abs=2)
    with Image.open(picture) as image:
        assert image.width > image.height
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    assert run([*command, "-o", str(picture)]) == 0
    assert "attention of the class token of view0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name the views of one object"),
        (["--image", "none.png"], "none.png: no such image"),
        (["--image", "FILE", "--point", "here"], "--point 'here': write X,Y in pixels, as 120,80"),
        (["--image", "FILE", "--view", "4"], "view 4 is not one of the views 0 to 0"),
        (["--image", "FILE"], "has no duoduo.cross_view"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(
    files: list[str], tiny_clip_json: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    words = [files[0] if word == "FILE" else word for word in words]
    crossing = [] if said.startswith("has no") else ["--cross-view-from", "1"]
    assert run(["duoduo", "attention", str(tiny_clip_json), *words, *crossing]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
