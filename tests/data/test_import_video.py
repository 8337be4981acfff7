"""Videos: the right frames, upright, from files of every kind; what is damaged is left out with a reason."""

from __future__ import annotations

import io
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mvcore.api import ConfigError, DataError
from mvcore_data import ViewStore
from mvcore_data.importers.base import Skipped, SourceObject
from mvcore_data.importers.video import FORMAT, VideoOptions
from mvcore_data.packing import pack
from mvcore_data.source_images import UnusableError
from PIL import Image

av = pytest.importorskip("av", reason="needs mvcore-data[video]")

from mvcore_data.importers import video_frames  # noqa: E402

CODECS = {
    "mp4": ("libx264", "yuv420p"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "mov": ("mpeg4", "yuv420p"),
    "avi": ("mjpeg", "yuvj420p"),
    "mkv": ("ffv1", "bgr0"),
    "gif": ("gif", "rgb8"),
}
HEIGHT, WIDTH = 48, 64


def write_video(path: Path, frames: list[np.ndarray], **options: str) -> Path:
    codec, pixels = CODECS[path.suffix[1:]]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = pixels, 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def grey_ramp(n: int) -> list[np.ndarray]:
    """Frame k is grey of level 8 k."""
    return [np.full((HEIGHT, WIDTH, 3), 8 * k, np.uint8) for k in range(n)]


def objects(path: Path, **options: Any) -> tuple[list[SourceObject], Skipped]:
    skipped = Skipped()
    source = FORMAT.open(path, VideoOptions(**options))
    found = list(source.objects(skipped))
    assert source.total == len(found)
    return found, skipped


def images(item: SourceObject) -> list[np.ndarray]:
    found = []
    for view in item.views:
        data = view.read()
        assert isinstance(data, bytes)
        found.append(np.asarray(Image.open(io.BytesIO(data))))
    return found


def levels(item: SourceObject) -> list[int]:
    """Which frame of a grey ramp each view is."""
    return [round(float(image[..., :3].mean()) / 8) for image in images(item)]


@pytest.mark.parametrize("suffix", ["mp4", "webm", "mov", "avi", "mkv"])
def test_frames_are_spread_over_the_whole_clip(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip.{suffix}", grey_ramp(30))
    for where in (tmp_path, path):
        (item,), skipped = objects(where, views=4)
        assert (item.id, item.category, skipped.counts) == ("clip", None, {})
        assert levels(item) == [0, 10, 19, 29]
    assert levels(objects(path, views=1)[0][0]) == [0]
    assert levels(objects(path, views=100)[0][0]) == list(range(30))
    assert all(image.shape == (HEIGHT, WIDTH, 3) for image in images(item))


def test_a_gif_gives_its_frames(tmp_path: Path) -> None:
    frames = [np.full((HEIGHT, WIDTH, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    (item,), _ = objects(write_video(tmp_path / "clip.gif", frames))
    assert [image.shape for image in images(item)] == [(HEIGHT, WIDTH, 3)] * 3
    assert [int(image.mean((0, 1)).argmax()) for image in images(item)] == [0, 1, 2]


def test_a_gif_that_is_transparent_keeps_its_alpha(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (16, 12), (255, 0, 0, 255)) for _ in range(2)]
    for frame in frames:
        frame.paste((0, 0, 0, 0), (0, 0, 8, 12))
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], disposal=2)
    (item,), _ = objects(tmp_path)
    for image in images(item):
        assert image.shape == (12, 16, 4)
        assert image[:, :8, 3].max() == 0
        assert image[:, 8:, 3].min() == 255


def laplacian_loop(luma: np.ndarray) -> float:
    values = []
    for y in range(1, luma.shape[0] - 1):
        for x in range(1, luma.shape[1] - 1):
            around = sum(float(luma[y + dy, x + dx]) for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)))
            values.append(around - 4 * float(luma[y, x]))
    return float(np.var(values)) if values else 0.0


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@settings(max_examples=60, deadline=None)
def test_sharpness_is_the_variance_of_the_laplacian(luma: np.ndarray) -> None:
    assert video_frames.variance_of_laplacian(luma) == pytest.approx(laplacian_loop(luma), rel=1e-9, abs=1e-6)


def test_the_sharpest_frame_of_each_window_is_taken(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (HEIGHT // 8, WIDTH // 8, 1)).repeat(3, 2)
    contrast = [2, 9, 4, 1, 1, 8, 3, 3, 3, 7]  # windows of 10 frames in 3 parts: 0-2, 3-5, 6-9
    frames = [(10 + 8 * c * np.kron(noise, np.ones((8, 8, 1)))).astype(np.uint8) for c in contrast]
    path = write_video(tmp_path / "clip.mkv", frames)
    (item,), _ = objects(path, views=3, mode="sharpness")
    spans = [round((float(image.max()) - 10) / 8) for image in images(item)]
    assert spans == [9, 8, 7]
    assert len(objects(path, views=40, mode="sharpness")[0][0].views) == 10


def test_equally_sharp_frames_give_the_first(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", grey_ramp(9))
    assert levels(objects(path, views=3, mode="sharpness")[0][0]) == [0, 3, 6]


def with_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Writes a matrix into the track header of an MP4 (ISO 14496-12, 8.3.2): x' = a x + c y, y' = b x + d y."""
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 4 + 4 + 4 + 4 + 4 + 4 + 8 + 2 + 2 + 2 + 2
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:at] + matrix + data[at + 36 :])


@pytest.mark.parametrize(
    "matrix",
    [
        (1, 0, 0, 1),
        (0, 1, -1, 0),
        (-1, 0, 0, -1),
        (0, -1, 1, 0),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, -1, -1, 0),
    ],
)
def test_frames_are_turned_as_the_file_says(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    corners = {(0, 0): 40, (WIDTH - 8, 0): 110, (0, HEIGHT - 8): 180, (WIDTH - 8, HEIGHT - 8): 250}
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for (x, y), level in corners.items():
        frame[y : y + 8, x : x + 8] = level
    path = write_video(tmp_path / "clip.mp4", [frame] * 3)
    with_display_matrix(path, *matrix)
    image = images(objects(path)[0][0])[1]
    a, b, c, d = matrix
    centre = {(x + 4, y + 4): level for (x, y), level in corners.items()}
    shown = {(a * x + c * y, b * x + d * y): level for (x, y), level in centre.items()}
    left, top = min(x for x, _ in shown) - 4, min(y for _, y in shown) - 4
    assert image.shape[:2] == ((HEIGHT, WIDTH) if a else (WIDTH, HEIGHT))
    for (x, y), level in shown.items():
        assert abs(int(image[y - top, x - left, 0]) - level) < 12


def test_colours_follow_the_matrix_that_the_file_names(tmp_path: Path) -> None:
    wanted = np.full((HEIGHT, WIDTH, 3), (30, 200, 60), np.uint8)
    luma709 = 0.2126 * 30 + 0.7152 * 200 + 0.0722 * 60
    y, cb, cr = (
        luma709 * 219 / 255 + 16,
        (60 - luma709) / 1.8556 * 224 / 255 + 128,
        (30 - luma709) / 1.5748 * 224 / 255 + 128,
    )
    planes = np.concatenate(
        [
            np.full(HEIGHT * WIDTH, round(y)),
            np.full(HEIGHT * WIDTH // 4, round(cb)),
            np.full(HEIGHT * WIDTH // 4, round(cr)),
        ]
    ).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(planes.reshape(HEIGHT * 3 // 2, WIDTH), format="yuv420p")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1  # BT.709, limited
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert np.abs(images(objects(tmp_path)[0][0])[0].astype(int) - wanted).max() <= 4


def test_names_categories_and_captions(tmp_path: Path) -> None:
    src = tmp_path / "src"
    for name in ("cup/a.mp4", "cup/b.mp4", "jug/a.mp4", "jug/a.avi", "free.mp4"):
        write_video(src / name, grey_ramp(3))
    (src / "cup/a.txt").write_text("a red cup\n\n a mug \n", "utf-8-sig")
    (src / "cup/notes.txt").write_text("x")
    (src / "cup/deep").mkdir()
    found, skipped = objects(src, views=1)
    assert {item.id: item.category for item in found} == {
        "free": None,
        "cup/a": "cup",
        "cup/b": "cup",
        "jug/a.avi": "jug",
        "jug/a.mp4": "jug",
    }
    assert {item.id: list(item.captions) for item in found if item.captions} == {"cup/a": ["a red cup", "a mug"]}
    assert skipped.counts == {"not a video (.txt)": 1, "deeper than CATEGORY/VIDEO": 1}
    assert FORMAT.detect(src) == ".mp4 files"
    assert FORMAT.detect(src / "jug/a.avi") == "a .avi file"
    assert FORMAT.detect(src / "cup/notes.txt") is None
    assert FORMAT.detect(src / "cup/deep") is None


def test_links_out_of_the_folder_are_left_out(tmp_path: Path) -> None:
    outside = write_video(tmp_path / "outside.mp4", grey_ramp(3))
    (tmp_path / "secret.txt").write_text("secret")
    write_video(tmp_path / "src/own.mp4", grey_ramp(3))
    (tmp_path / "src/link.mp4").symlink_to(outside)
    (tmp_path / "src/own.txt").symlink_to(tmp_path / "secret.txt")
    found, skipped = objects(tmp_path / "src")
    assert [(item.id, list(item.captions)) for item in found] == [("own", [])]
    assert skipped.counts == {"a path or link that leaves the folder": 2}


@pytest.mark.parametrize("suffix", list(CODECS))
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_truncated_video_is_left_out(tmp_path: Path, suffix: str, share: float) -> None:
    noise = [np.random.default_rng(k).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for k in range(30)]
    path = write_video(tmp_path / f"clip.{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    (item,), _ = objects(tmp_path)
    (view,) = item.views
    with pytest.raises(UnusableError, match=r"truncated|damaged|without"):
        view.read()


def test_a_live_stream_of_unknown_length_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", grey_ramp(5))
    data = path.read_bytes()
    at = data.index(bytes.fromhex("18538067")) + 4
    assert data[at] == 1  # a number of eight bytes
    path.write_bytes(data[:at] + b"\x01" + b"\xff" * 7 + data[at + 8 :])
    assert levels(objects(path)[0][0]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("suffix", list(CODECS))
def test_damage_is_a_reason_never_a_crash(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip.{suffix}", grey_ramp(12))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for mode in ("spread", "sharpness"):
        for _ in range(15):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 6):
                data[place] = rng.integers(256)
            path.write_bytes(data)
            (item,), _ = objects(tmp_path, views=3, mode=mode)
            for view in item.views:
                with suppress(UnusableError):
                    assert len(view.read())


def test_other_files_under_a_videos_name_are_left_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret.ts"
    write_video(tmp_path / "real.mp4", grey_ramp(3))
    secret.write_bytes((tmp_path / "real.mp4").read_bytes())
    playlist = f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    for suffix in CODECS:
        (tmp_path / f"list.{suffix}").write_text(playlist)
        (item,), _ = objects(tmp_path / f"list.{suffix}")
        with pytest.raises(UnusableError):
            item.views[0].read()


def test_limits_of_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4", grey_ramp(12))
    monkeypatch.setattr(video_frames, "MAX_FRAMES", 11)
    with pytest.raises(UnusableError, match="more than 11 frames"):
        objects(path)[0][0].views[0].read()
    monkeypatch.undo()
    monkeypatch.setattr(video_frames, "MAX_DECODED_PIXELS", 12 * HEIGHT * WIDTH - 1)
    with pytest.raises(UnusableError, match="pixels in all"):
        objects(path)[0][0].views[0].read()
    monkeypatch.undo()
    wide = write_video(tmp_path / "wide.mkv", [np.zeros((2, 16_400, 3), np.uint8)])
    with pytest.raises(UnusableError, match="16400x2 pixels; sides go from 1 to 16384"):
        objects(wide)[0][0].views[0].read()


def test_without_pyav_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4", grey_ramp(3))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"needs PyAV: pip install 'mvcore-data\[video\]'"):
        FORMAT.open(path, VideoOptions())


def test_captions_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", grey_ramp(3))
    (tmp_path / "clip.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"clip.txt: cannot be read as UTF-8"):
        objects(tmp_path)


def test_a_folder_of_videos_packs_to_a_store(tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_video(src / "cup/a.mp4", grey_ramp(20))
    write_video(src / "cup/b.webm", grey_ramp(20))
    (src / "cup/a.txt").write_text("a red cup")
    (src / "cup/broken.mp4").write_bytes((src / "cup/a.mp4").read_bytes()[:500])
    report = pack(src, tmp_path / "store", options={"views": "5"})
    assert (report.format, report.objects, report.views) == ("video", 2, 10)
    assert report.skipped.counts["no usable image"] == 1
    with ViewStore(tmp_path / "store") as store:
        assert store.object_ids == ["cup/a", "cup/b"]
        assert (store.captions(0), store.category(0)) == (["a red cup"], "cup")
        assert [round(float(store.image(v).mean()) / 8) for v in store.views_of(0)] == [0, 5, 10, 14, 19]
        assert {store.codec(v) for v in range(10)} == {"jpeg"}
