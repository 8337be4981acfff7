"""What `mvcore.load(...)` takes: images as people have them, one or many, of any size; and what it refuses."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mvcore
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from mvcore.config import Part
from mvcore.errors import ConfigError, DataError
from mvcore.images import composited, parse_colour, read_image, split_images, split_objects, to_rgb
from mvcore.loading import make_run_pipeline
from mvcore.model import Model
from PIL import Image

if TYPE_CHECKING:
    from conftest import Lab

RNG = np.random.default_rng(3)
VIEWS = RNG.integers(0, 256, (5, 40, 48, 3), np.uint8)
ODD = [RNG.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((256, 300), (33, 70), (32, 32))]


def cross_view(lab: Lab) -> Model:
    """A model whose object vectors come from attention across views."""
    encoder = Part(id="core.open_clip", args={"model": str(lab.clip), "pretrained": None})
    pipeline = make_run_pipeline(encoder, {"cross": Part(id="duoduo.cross_view", args={"cross_view_from": 1})}, seed=0)
    return Model(pipeline.eval())


@pytest.fixture(scope="module", params=["plain", "cross-view"])
def model(request: pytest.FixtureRequest, lab: Lab) -> Model:
    return mvcore.load(lab.clip) if request.param == "plain" else cross_view(lab)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_one_image_alone_is_one_vector(model: Model) -> None:
    assert model.encode_images(VIEWS[0]).shape == (1, 16)
    close(model.encode_images(VIEWS[0]), model.encode_images(VIEWS)[:1])
    assert model.dense(VIEWS[0]).shape == (1, 32, 4, 4)


def test_one_stack_of_views_is_one_object(model: Model) -> None:
    assert model.encode_views(VIEWS).shape == (1, 16)
    close(model.encode_views(VIEWS), model.encode_views([VIEWS]))
    close(model.encode_views(VIEWS[0]), model.encode_views([VIEWS[:1]]))
    close(model.encode_views(np.stack([VIEWS, VIEWS[::-1]])), model.encode_views([VIEWS, VIEWS[::-1]]))


def test_views_of_one_object_may_differ_in_size(model: Model) -> None:
    found = model.encode_views([ODD, VIEWS, ODD[1]])
    assert found.shape == (3, 16)
    close(found[1:2], model.encode_views(VIEWS))
    close(found[2:], model.encode_images(ODD[1]) if "object" in model.pipeline.provides else unit(model, ODD[1]))


def unit(model: Model, image: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(model.encode_images(image), dim=1)


def test_objects_in_pieces_are_the_same_objects(model: Model) -> None:
    objects = [VIEWS[:n] for n in (1, 5, 2, 3, 1)]
    whole = model.encode_views(objects)
    model.views_per_batch, before = 3, model.views_per_batch
    try:
        close(model.encode_views(objects), whole)
    finally:
        model.views_per_batch = before


def test_colours_channels_and_types_of_one_picture_agree(model: Model) -> None:
    expected = model.encode_images(VIEWS)
    same: list[Any] = [
        list(VIEWS),
        torch.from_numpy(VIEWS),
        VIEWS.transpose(0, 3, 1, 2),
        torch.from_numpy(VIEWS).permute(0, 3, 1, 2),
        VIEWS.astype(np.float32) / 255,
        torch.from_numpy(VIEWS).double() / 255,
        [Image.fromarray(view) for view in VIEWS],
        np.concatenate([VIEWS, np.full((*VIEWS.shape[:3], 1), 255, np.uint8)], axis=3),
    ]
    for images in same:
        close(model.encode_images(images), expected)


def test_grey_is_three_equal_channels(model: Model) -> None:
    grey = VIEWS[0, :, :, 0]
    expected = model.encode_images(np.stack([grey] * 3, axis=2))
    for image in (grey, grey[:, :, None], Image.fromarray(grey)):
        assert torch.equal(model.encode_images([image]), expected)


def test_what_is_transparent_is_white(model: Model) -> None:
    image = np.concatenate([VIEWS[0], np.full((40, 48, 1), 255, np.uint8)], axis=2)
    image[:, :20, 3] = 0
    white = VIEWS[0].copy()
    white[:, :20] = 255
    assert torch.equal(model.encode_images(image), model.encode_images(white))
    assert torch.equal(model.encode_views(image[None]), model.encode_views(white))


@settings(max_examples=25, deadline=None)
@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(4))),
    st.tuples(*[st.integers(0, 255)] * 3),
)
def test_alpha_is_mixed_as_in_exact_arithmetic(pixels: np.ndarray, background: tuple[int, int, int]) -> None:
    found = composited(pixels, background)
    for row, column, channel in np.ndindex(*found.shape):
        alpha = int(pixels[row, column, 3]) / 255
        exact = int(pixels[row, column, channel]) * alpha + background[channel] * (1 - alpha)
        assert abs(float(found[row, column, channel]) - exact) <= 0.5 + 1e-9


def test_use_repeats_and_leaves_modes_and_random_states(model: Model) -> None:
    model.pipeline.train()
    states = torch.random.get_rng_state(), str(np.random.get_state()), random.getstate()
    first, second = model.encode_views([ODD, VIEWS]), model.encode_views([ODD, VIEWS])
    text = model.encode_text("a new text for this test")
    assert torch.equal(first, second)
    assert torch.equal(model.encode_text(["a new text for this test"]), text)
    assert model.pipeline.training
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (str(np.random.get_state()), random.getstate()) == states[1:]
    model.pipeline.eval()


def test_texts_are_one_or_many(model: Model) -> None:
    assert model.encode_text("a cup").shape == (1, 16)
    close(model.encode_text(("a cup", "a boat"))[1:], model.encode_text("a boat"))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m: m.encode_views([VIEWS, []]), "object 1 has no view"),
        (lambda m: m.encode_views(VIEWS[:0]), "no view"),
        (lambda m: m.encode_views([]), "no object"),
        (lambda m: m.encode_images(VIEWS[:0]), "no image"),
        (lambda m: m.encode_images(VIEWS[:, :0]), "must have pixels"),
        (lambda m: m.encode_images(np.zeros((7, 30, 30), np.uint8)), "(7, 30, 30) uint8"),
        (lambda m: m.encode_images([np.zeros((30, 30, 2), np.uint8)]), "(30, 30, 2) uint8"),
        (lambda m: m.encode_images(VIEWS.astype(np.int64)), "int64"),
        (lambda m: m.encode_images(VIEWS.astype(np.float32)), "0 to 1"),
        (lambda m: m.encode_images(np.full((9, 9, 3), np.nan)), "0 to 1"),
        (lambda m: m.encode_images("photo.png"), "not a str"),
        (lambda m: m.encode_images([None]), "not a NoneType"),
        (lambda m: m.encode_views({"a": VIEWS}), "not a dict"),
        (lambda m: m.encode_text(["a", 3]), "a text must be a str"),
    ],
)
def test_what_cannot_be_an_input_is_said_in_one_line(model: Model, call: Callable[[Model], Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call(model)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lists_are_split_as_they_are_written() -> None:
    assert [view.shape for view in split_images(VIEWS)] == [(40, 48, 3)] * 5
    assert len(split_images(VIEWS[0])) == 1
    assert [len(views) for views in split_objects([VIEWS, VIEWS[0], ODD])] == [5, 1, 3]
    assert [len(views) for views in split_objects(VIEWS)] == [5]


# -- files -------------------------------------------------------------------------------------------------------------


def test_files_are_read_whatever_their_mode(tmp_path: Path) -> None:
    picture = VIEWS[0]
    Image.fromarray(picture).save(tmp_path / "rgb.png")
    Image.fromarray(picture[:, :, 0]).save(tmp_path / "grey.png")
    Image.fromarray(picture[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    Image.fromarray(picture[:, :, 0]).convert("LA").save(tmp_path / "la.png")
    grey = np.stack([picture[:, :, 0]] * 3, axis=2)
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), picture)
    for name in ("grey.png", "grey16.png", "la.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), grey)


def test_a_transparent_file_stands_on_the_background(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 3), (10, 20, 30, 0))
    image.save(tmp_path / "rgba.png")
    assert (read_image(tmp_path / "rgba.png") == 255).all()
    found = read_image(tmp_path / "rgba.png", parse_colour("#d6dade"))
    assert (found == np.array([0xD6, 0xDA, 0xDE])).all()


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn a quarter clockwise
    Image.fromarray(VIEWS[0]).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), np.rot90(VIEWS[0], -1))


@pytest.mark.parametrize("payload", [None, b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_file_that_is_no_image_is_one_line(tmp_path: Path, payload: bytes | None) -> None:
    path = tmp_path / "broken.png"
    if payload is not None:
        path.write_bytes(payload)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [12000, 60000])
def test_a_small_file_of_very_many_pixels_is_not_unpacked(tmp_path: Path, side: int) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND")]
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(DataError, match=r"bomb\.png: .*pixels; at most"):
        read_image(tmp_path / "bomb.png")


def test_a_cut_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(ODD[0]).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_image(path)


def test_a_float_image_file_and_an_unknown_colour_are_refused() -> None:
    with pytest.raises(ConfigError, match="no known range"):
        to_rgb(Image.new("F", (3, 3)))
    with pytest.raises(ConfigError, match="'whiteish' is no colour"):
        parse_colour("whiteish")
