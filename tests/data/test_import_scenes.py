"""What importers of scenes take, count and refuse, seen from a pack: ids, categories, captions, damage and traps."""

from __future__ import annotations

import contextlib
import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import ConfigError, DataError
from mvcore_data import ViewStore
from mvcore_data.importers import detect_format, gzip_json
from mvcore_data.importers.base import Skipped
from mvcore_data.importers.colmap_model import read_model
from mvcore_data.importers.gzip_json import read_items
from mvcore_data.packing import PackReport, pack
from PIL import Image

W, H = 16, 12
SECRET = b"\x89 not for the store"
LOOK = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]]


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (W, H), mode: str = "RGB", **options: Any) -> bytes:
    """An image file; gives its bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path.read_bytes()


def grey(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def packed(src: Path, out: Path, **options: Any) -> tuple[PackReport, ViewStore]:
    report = pack(src, out / "packed.h5", **options)
    return report, ViewStore(out / "packed.h5")


def refused(src: Path, out: Path, *words: str, **options: Any) -> None:
    with pytest.raises(DataError) as caught:
        pack(src, out / "packed.h5", **options)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    assert not (out / "packed.h5").exists()


def reasons(report: PackReport) -> dict[str, int]:
    return report.skipped.counts


# --- COLMAP -----------------------------------------------------------------------------------------------------------


def cameras_bin(*cameras: tuple[int, int, int, int, list[float]]) -> bytes:
    data = struct.pack("<Q", len(cameras))
    for number, model, width, height, parameters in cameras:
        data += struct.pack(f"<iiQQ{len(parameters)}d", number, model, width, height, *parameters)
    return data


def images_bin(*images: tuple[str, list[float], int]) -> bytes:
    data = struct.pack("<Q", len(images))
    for k, (name, pose, camera) in enumerate(images):
        data += struct.pack("<i7di", k, *pose, camera) + name.encode() + b"\0" + struct.pack("<Qddq", 1, 1.5, 2.5, -1)
    return data


POSE = [1.0, 0, 0, 0, 0, 0, 2]
CAMERA = (1, 1, W, H, [20.0, 21.0, 8.0, 6.0])


def model(folder: Path, *images: tuple[str, list[float], int], cameras: bytes = cameras_bin(CAMERA)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.bin").write_bytes(cameras)
    (folder / "images.bin").write_bytes(images_bin(*images))
    return folder


def test_a_folder_of_colmap_objects(tmp_path: Path) -> None:
    src = tmp_path / "src"
    for name in ("cup/b", "cup/a10", "cup/a9", "jug"):
        photo(src / name / "images/1.jpg")
        model(src / name / "sparse/0", ("1.jpg", POSE, 1))
    model(src / "cup/b/sparse/1", ("1.jpg", POSE, 1))
    (src / "cup/b/sparse/0/images.bin").write_bytes(images_bin(("1.jpg", POSE, 1))[:-9])
    (src / "notes").mkdir()
    report, store = packed(src, tmp_path)
    assert store.object_ids == ["cup/a9", "cup/a10", "jug"]
    assert [store.category(i) for i in range(3)] == ["cup", "cup", None]
    assert reasons(report) == {"a COLMAP model that cannot be read": 1}
    assert "images.bin: announces 1 points, more than" in next(iter(report.skipped.first.values()))
    refused(src / "cup/b", tmp_path / "b", "sparse/0/images.bin")


def test_views_are_spread_over_an_object_and_further_models_are_named(tmp_path: Path) -> None:
    names = [f"{k}.jpg" for k in range(1, 24)]
    for k, name in enumerate(names):
        photo(tmp_path / "cup/images" / name, k)
    model(tmp_path / "cup/sparse/0", *((name, POSE, 1) for name in reversed(names)))
    model(tmp_path / "cup/sparse/1", ("1.jpg", POSE, 1))
    report, store = packed(tmp_path / "cup", tmp_path, options={"views": "3"})
    taken = [store.encoded(v) for v in range(store.n_views)]
    assert taken == [(tmp_path / f"cup/images/{k}.jpg").read_bytes() for k in (1, 12, 23)]
    assert list(reasons(report)) == ["a further COLMAP model of an object; only sparse/0 is taken"]


def test_what_is_wrong_with_a_colmap_image_is_counted(tmp_path: Path) -> None:
    images = tmp_path / "cup/images"
    for name in ("good.jpg", "nan.jpg", "zero.jpg", "unregistered.jpg", "flat.jpg", "fov.jpg", "pano.jpg"):
        photo(images / name)
    photo(images / "cut.jpg", size=(W, H + 5))
    (images / "notes.txt").write_text("x")
    model(
        tmp_path / "cup/sparse/0",
        ("good.jpg", POSE, 1),
        ("nan.jpg", [1.0, 0, 0, 0, 0, float("nan"), 2], 1),
        ("zero.jpg", [0.0, 0, 0, 0, 0, 0, 2], 1),
        ("cut.jpg", POSE, 1),
        ("flat.jpg", POSE, 2),
        ("fov.jpg", POSE, 3),
        ("pano.jpg", POSE, 4),
        ("missing.jpg", POSE, 1),
        cameras=cameras_bin(
            CAMERA, (2, 0, W, H, [0.0, 8, 6]), (3, 7, W, H, [20.0, 20, 8, 6, 0.9]), (4, 17, W, H, [16.0, 12.0])
        ),
    )
    report, store = packed(tmp_path / "cup", tmp_path, options={"undistort": True})
    assert store.n_views == 8
    assert [store.camera(v) is not None for v in range(8)] == [k == 3 for k in range(8)]  # in the order of the names
    assert reasons(report) == {
        "not a JPEG, PNG or WebP file (.txt)": 1,
        "no camera: its pose is not a rotation and a translation, or it is not finite": 3,
        "no camera: it is for an image of another shape": 1,
        "no camera: the lens of a FOV camera is no pinhole": 1,
        "no camera: the lens of a EQUIRECTANGULAR camera is no pinhole": 1,
        "no camera: the model does not hold its image": 1,
        "no such file": 1,
    }


def test_names_and_links_do_not_lead_out_of_the_source(tmp_path: Path) -> None:
    secret = photo(tmp_path / "secret.png", 5)
    images = tmp_path / "cup/images"
    photo(images / "a.png")
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "cup/masks").symlink_to(tmp_path)
    names = ["a.png", "../../secret.png", str(tmp_path / "secret.png"), "link.png", "sub/../../../secret.png"]
    model(tmp_path / "cup/sparse/0", *((name, POSE, 1) for name in names))
    report, store = packed(tmp_path / "cup", tmp_path)
    assert store.n_views == 1
    assert store.encoded(0) != secret
    assert reasons(report)["a path or link that leaves the folder"] >= 4
    (tmp_path / "other").symlink_to(tmp_path / "cup")
    assert packed(tmp_path / "other", tmp_path / "second")[1].n_views == 1  # the source itself may be a link


def test_a_photo_turned_by_exif_keeps_the_pixels_that_its_camera_was_fitted_to(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(tmp_path / "cup/images/a.png", exif=exif)
    photo(tmp_path / "cup/images/b.png", exif=exif, size=(H, W))
    model(tmp_path / "cup/sparse/0", ("a.png", POSE, 1), ("b.png", POSE, 1))
    report, store = packed(tmp_path / "cup", tmp_path)
    assert [store.size(v) for v in range(2)] == [(H, W), (H, W)]
    assert store.camera(0) is not None
    assert store.camera(1) is None  # the camera is for the other shape: its image is only turned upright
    assert reasons(report) == {"no camera: it is for an image of another shape": 1}


@pytest.mark.parametrize(
    ("cameras", "images", "words"),
    [
        (struct.pack("<Q", 1 << 60), b"", "announces 1152921504606846976 cameras"),
        (cameras_bin((1, 99, W, H, [1.0] * 3)), images_bin(), "camera 1 has the model 99"),
        (cameras_bin(CAMERA) + b"x", images_bin(), "cameras.bin: 1 bytes too long"),
        (cameras_bin(CAMERA), struct.pack("<Q", 1) + b"x" * 400, "the name of one of its images has no end"),
        (cameras_bin(CAMERA), images_bin(("\udcff.jpg".encode("utf-8", "surrogateescape").decode("latin-1"), POSE, 7)),
         "has camera 7"),
        (cameras_bin(CAMERA), images_bin(("a.jpg", POSE, 1), ("a.jpg", POSE, 1)), "stands there twice"),
    ],
)  # fmt: skip
def test_damaged_models_are_refused(tmp_path: Path, cameras: bytes, images: bytes, words: str) -> None:
    folder = model(tmp_path / "m")
    (folder / "cameras.bin").write_bytes(cameras)
    (folder / "images.bin").write_bytes(images)
    with pytest.raises(DataError, match=words) as caught:
        read_model(folder)
    assert str(folder) in str(caught.value)


def test_every_truncation_of_a_model_is_found(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", ("a.jpg", POSE, 1), ("b.jpg", POSE, 1))
    for name in ("cameras.bin", "images.bin"):
        whole = (folder / name).read_bytes()
        for length in range(len(whole)):
            (folder / name).write_bytes(whole[:length])
            with pytest.raises(DataError, match=name):
                read_model(folder)
        (folder / name).write_bytes(whole)
    assert set(read_model(folder)) == {"a.jpg", "b.jpg"}


@settings(deadline=None)  # other processes share the machine
@given(st.data())
def test_a_model_with_any_bytes_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = model(tmp_path_factory.getbasetemp() / "flipped", ("a.jpg", POSE, 1), ("b.jpg", POSE, 1))
    name = data.draw(st.sampled_from(["cameras.bin", "images.bin"]))
    content = bytearray((folder / name).read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content)
    with contextlib.suppress(DataError):
        assert all(camera.world_to_camera.shape == (4, 4) for camera in read_model(folder).values())


@pytest.mark.parametrize(
    ("cameras", "images", "words"),
    [
        ("1 PINHOLE 16 12 20 20 8", "", "a PINHOLE camera does not have 3 parameters"),
        ("1 PINHOLE x 12 20 20 8 6", "", "is no camera"),
        ("1 PINHOLE 16 12 20 20 8 6", "1 1 0 0 0 0 0 2 1", "is no image"),
        ("1 PINHOLE 16 12 20 20 8 6", "1 1 0 0 0 0 0 x 1 a.jpg", "is no image"),
        ("#" * 70_000, "", "a line of more than 65536 bytes"),
        (b"\xff\xfe", "", "is not UTF-8"),
    ],
)
def test_damaged_text_models_are_refused(tmp_path: Path, cameras: str | bytes, images: str, words: str) -> None:
    (tmp_path / "cameras.txt").write_bytes(cameras if isinstance(cameras, bytes) else cameras.encode())
    (tmp_path / "images.txt").write_text(images)
    with pytest.raises(DataError, match=words):
        read_model(tmp_path)


# --- MVImgNet ---------------------------------------------------------------------------------------------------------


def mvimgnet(folder: Path, frames: int = 15) -> None:
    for number, name in (("3", "0a"), ("3", "0b"), ("21", "0c")):
        for k in range(frames):
            photo(folder / number / name / f"images/{k + 1}.jpg", k)
    model(folder / "3/0a/sparse/0", *((f"{k + 1}.jpg", POSE, 1) for k in range(frames)))
    model(folder / "3/0b/sparse/0")
    (folder / "3/0b/sparse/0/images.bin").write_bytes(b"short")


def test_mvimgnet_frames_go_over_the_whole_clip(tmp_path: Path) -> None:
    src = tmp_path / "mvi"
    mvimgnet(src)
    (src / "mvimgnet_category.txt").write_text("3,vessel\n21,Toy butterfly \n")
    (src / "captions.json").write_text(
        json.dumps(
            {
                "3/0a": "a bottle",
                "3_0b": ["one", "two"],
                "21/0c/images/15.jpg": "from behind",
                "21/0c/1.jpg": ["from the front"],
                "9/9z": "of nothing",
            }
        )
    )
    report, store = packed(src, tmp_path, options={"views": 3})
    assert store.object_ids == ["3/0a", "3/0b", "21/0c"]
    assert [store.category(i) for i in range(3)] == ["vessel", "vessel", "Toy butterfly"]
    assert [store.captions(i) for i in range(3)] == [["a bottle"], ["one", "two"], []]
    for i, name in enumerate(store.object_ids):
        frames = [store.encoded(v) for v in store.views_of(i)]
        assert frames == [(src / name / f"images/{k}.jpg").read_bytes() for k in (1, 8, 15)]
    assert [store.view_captions(v) for v in store.views_of(2)] == [["from the front"], [], ["from behind"]]
    assert [store.camera(v) is not None for v in range(9)] == [True] * 3 + [False] * 6
    assert reasons(report) == {
        "no cameras: a COLMAP model that cannot be read": 1,
        "a caption of nothing that is here": 1,
    }


def test_mvimgnet_categories(tmp_path: Path) -> None:
    src = tmp_path / "mvi"
    mvimgnet(src, frames=1)
    plain = packed(src, tmp_path / "a")[1]
    assert [plain.category(i) for i in range(3)] == ["3", "3", "21"]
    (tmp_path / "list.json").write_text('{"3": "vessel"}')
    report, store = packed(src, tmp_path / "b", options={"categories": str(tmp_path / "list.json")})
    assert [store.category(i) for i in range(3)] == ["vessel", "vessel", None]
    assert reasons(report)["no category: the list does not name its class"] == 1


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("captions", "[]", "holds no JSON object"),
        ("captions", '{"3/0a": 5}', "the captions of '3/0a'"),
        ("captions", '{"3/0a": ["x", ""]}', "the captions of '3/0a'"),
        ("captions", "[" * 100_000, "cannot be read as JSON"),
        ("categories", "vessel", "is not 'number,name'"),
        ("categories", "3,", "are names by number"),
    ],
)
def test_wrong_lists_beside_mvimgnet(tmp_path: Path, option: str, text: str, words: str) -> None:
    mvimgnet(tmp_path / "mvi", frames=1)
    (tmp_path / "list").write_text(text)
    refused(tmp_path / "mvi", tmp_path, words, str(tmp_path / "list"), options={option: str(tmp_path / "list")})


# --- 3DCorrEnhance ----------------------------------------------------------------------------------------------------


def correnhance(folder: Path, views: int = 3) -> Path:
    for k in range(views):
        photo(folder / f"renders/000-001/cup/color_{k:06d}.png", k, (512, 512))
        grey(folder / f"renders/000-001/cup/mask_{k:06d}.png", np.full((512, 512), 255, np.uint8))
        grey(folder / f"renders/000-001/cup/depth_{k:06d}.png", np.full((512, 512), 1500, np.uint16))
    np.save(folder / "obj_poses.npy", np.array([LOOK] * views))
    return folder / "renders"


def test_correnhance_as_it_is_released(tmp_path: Path) -> None:
    report, store = packed(correnhance(tmp_path), tmp_path)
    assert (report.format, reasons(report), store.object_ids) == ("correnhance", {}, ["000-001/cup"])
    camera, depth = store.camera(0), store.depth(0)
    assert camera is not None
    assert depth is not None
    # Whole-number pixel centres there, +0.5 here.
    np.testing.assert_array_equal(camera[0], np.array([[560, 0, 256.5], [0, 560, 256.5], [0, 0, 1]], np.float32))
    # Blender's z is up there, y here: what was above the camera's eye is so still.
    np.testing.assert_array_equal(camera[1] @ [0, 1, 0, 1], np.array(LOOK) @ [0, 0, 1, 1])
    np.testing.assert_allclose(depth, 1.5, atol=1e-4)


def test_what_is_missing_beside_a_correnhance_render_is_counted(tmp_path: Path) -> None:
    src = correnhance(tmp_path, views=6)
    cup = src / "000-001/cup"
    poses = np.array([LOOK] * 5)
    poses[3, 0, 0] = np.nan
    poses[4, :3, :3] *= 1.5
    np.save(tmp_path / "obj_poses.npy", poses)
    (cup / "color_000001.png").unlink()
    (cup / "depth_000002.png").unlink()
    grey(cup / "mask_000000.png", np.full((9, 9), 255, np.uint8))
    grey(cup / "depth_000003.png", np.full((512, 512), 9, np.uint8))
    report, store = packed(src, tmp_path)
    assert store.n_views == 4
    assert [store.camera(v) is not None for v in range(4)] == [True, True, False, False]
    assert [store.depth(v) is not None for v in range(4)] == [True, False, False, True]
    assert [store.mask(v) is not None for v in range(4)] == [False, True, True, True]
    assert reasons(report) == {
        "an image beyond the 5 poses": 1,
        "no such file": 1,
        "no depth: no such file": 1,
        "no depth: not a 16-bit grey PNG": 1,
        "no mask: not of the image's size": 1,
        "no camera: its pose is not a rotation and a translation, or it is not finite": 2,
    }


def huge_npy(path: Path) -> None:
    """A file that announces 128 TB."""
    with path.open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 4, 4)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"0" * 64)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.unlink(), "has no obj_poses.npy in it or beside it"),
        (lambda path: np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True), "no .npy file of numbers"),
        (lambda path: np.save(path, np.eye(4)), "holds (4, 4), not (views, 4, 4)"),
        (lambda path: path.write_bytes(b"hello"), "no .npy file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "another length than its array"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"4)", b"(4")), "no .npy file"),
        (huge_npy, "another length than its array"),
    ],
)
def test_wrong_correnhance_poses(tmp_path: Path, write: Callable[[Path], Any], words: str) -> None:
    src = correnhance(tmp_path)
    write(tmp_path / "obj_poses.npy")
    refused(src, tmp_path, words, "obj_poses.npy")


# --- nerfstudio, instant-ngp, NeRF ------------------------------------------------------------------------------------


def frame(name: str, **extra: Any) -> dict[str, Any]:
    return {"file_path": name, "transform_matrix": LOOK, **extra}


def scene(folder: Path, *frames: dict[str, Any], file: str = "transforms.json", **top: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps({"fl_x": 20, **top, "frames": frames}))
    return folder


def test_a_folder_of_nerf_scenes_without_suffixes(tmp_path: Path) -> None:
    lego, cup = tmp_path / "src/lego", tmp_path / "src/toys/cup"
    for name in ("train/r_0", "train/r_1", "test/r_0"):
        photo(lego / f"{name}.png", mode="RGBA")
    scene(lego, frame("./train/r_0"), frame("./train/r_1"), file="transforms_train.json")
    scene(lego, frame("./test/r_0"), file="transforms_test.json")
    photo(cup / "a.jpg")
    scene(cup, frame(".\\a.jpg"))
    (tmp_path / "src/wrong").mkdir()
    (tmp_path / "src/wrong/transforms.json").write_text('{"frames": []}')
    report, store = packed(tmp_path / "src", tmp_path, background="white")
    assert (store.object_ids, [store.category(i) for i in range(2)]) == (["lego", "toys/cup"], [None, "toys"])
    assert [len(store.views_of(i)) for i in range(2)] == [3, 1]
    assert all(store.camera(v) is not None for v in range(4))
    assert store.mask(0) is not None
    assert reasons(report) == {"a transforms file that cannot be read": 1}
    assert pack(cup / "transforms.json", tmp_path / "file.h5").views == 1


def test_what_is_wrong_with_a_frame_is_counted(tmp_path: Path) -> None:
    src = tmp_path / "cup"
    photo(src / "a.jpg")
    photo(tmp_path / "secret.png")
    grey(src / "small.png", np.ones((3, 3), np.uint16))
    np.save(src / "deep.npy", np.full((H, W), 3.0, np.float32))
    np.save(src / "objects.npy", np.array([None]), allow_pickle=True)
    nan = [[float("nan"), 0, 0, 0], *LOOK[1:]]
    frames = [
        frame("a.jpg", depth_file_path="deep.npy", mask_path="a.jpg"),
        frame("a.jpg", k1=0.1),
        frame("a.jpg", camera_model="OPENCV_FISHEYE"),
        frame("a.jpg", transform_matrix=nan),
        frame("a.jpg", transform_matrix=[[0.0] * 4] * 4),
        frame("a.jpg", transform_matrix=LOOK[:2]),
        frame("a.jpg", depth_file_path="small.png", mask_path="../secret.png"),
        frame("a.jpg", depth_path="objects.npy"),
        frame("../secret.png"),
        frame("none.jpg"),
        frame("a.jpg", fl_x="wide"),
        {"file_path": "a.jpg"},
    ]
    scene(src, *frames)
    report, store = packed(src, tmp_path)
    assert store.n_views == 8
    assert [store.camera(v) is not None for v in range(8)] == [True] + [False] * 5 + [True] * 2
    depth = store.depth(0)
    assert depth is not None
    np.testing.assert_allclose(depth, 0.003, rtol=1e-4)
    assert [store.depth(v) for v in range(1, 8)] == [None] * 7
    assert reasons(report) == {
        "a frame with a wrong or missing fl_x": 1,
        "a frame with a wrong or missing transform_matrix": 1,
        "a path or link that leaves the folder": 1,
        "no mask: a path or link that leaves the folder": 1,
        "no camera: its lens is no pinhole (coefficients of distortion other than 0)": 1,
        "no camera: the lens of a OPENCV_FISHEYE camera is no pinhole": 1,
        "no camera: its pose is not a rotation and a translation, or it is not finite": 2,
        "no camera: its transform_matrix is not 4 x 4": 1,
        "no depth: not of the image's size": 1,
        "no depth: no .npy file of numbers": 1,
        "no such file": 1,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "has no list of frames"),
        ('{"frames": [5]}', "one of its frames is no JSON object"),
    ],
)
def test_wrong_transforms_files(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "cup").mkdir()
    (tmp_path / "cup/transforms.json").write_text(text)
    refused(tmp_path / "cup", tmp_path, words, "cup/transforms.json")


def test_depth_units_of_a_transforms_file(tmp_path: Path) -> None:
    photo(tmp_path / "cup/a.jpg")
    grey(tmp_path / "cup/deep.png", np.full((H, W), 500, np.uint16))
    frames = [frame("a.jpg", depth_file_path="deep.png"), frame("a.jpg", depth_path="deep.png", integer_depth_scale=2)]
    scene(tmp_path / "cup", *frames)
    store = packed(tmp_path / "cup", tmp_path, options={"depth_unit": "0.01"})[1]
    assert [round(float(depth.max())) for v in range(2) if (depth := store.depth(v)) is not None] == [5, 1000]


# --- CO3D -------------------------------------------------------------------------------------------------------------


def co3d_frame(sequence: str, number: int, **extra: Any) -> dict[str, Any]:
    return {
        "sequence_name": sequence,
        "frame_number": number,
        "image": {"path": f"apple/{sequence}/images/{number}.jpg", "size": [H, W]},
        "viewpoint": {
            "R": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
            "T": [0, 0, 2],
            "focal_length": [2, 2],
            "principal_point": [0, 0],
        },
        **extra,
    }


def co3d(root: Path, frames: Any, content: bytes | None = None) -> Path:
    (root / "apple").mkdir(parents=True, exist_ok=True)
    with gzip.open(root / "apple/frame_annotations.jgz", "wb") as file:
        file.write(json.dumps(frames).encode() if content is None else content)
    return root


def test_co3d_sequences_need_not_stand_together(tmp_path: Path) -> None:
    order = [("b", 2), ("a", 0), ("b", 0), ("a", 3), ("b", 1), ("c", 0)]
    for sequence, number in order[:-1]:
        photo(tmp_path / f"co3d/apple/{sequence}/images/{number}.jpg", number)
    src = co3d(tmp_path / "co3d", [co3d_frame(sequence, number) for sequence, number in order])
    report, store = packed(src, tmp_path)
    assert store.object_ids == ["apple/a", "apple/b"]
    for i, numbers in enumerate([(0, 3), (0, 1, 2)]):
        name = store.object_ids[i]
        assert [store.encoded(v) for v in store.views_of(i)] == [
            (src / name / f"images/{k}.jpg").read_bytes() for k in numbers
        ]
    assert reasons(report) == {"a sequence whose images are not here": 1}


def test_what_is_wrong_with_a_co3d_frame_is_counted(tmp_path: Path) -> None:
    for k in range(6):
        photo(tmp_path / f"co3d/apple/a/images/{k}.jpg", k)
    photo(tmp_path / "co3d/apple/a/images/4.jpg", size=(W + 5, H))
    photo(tmp_path / "secret.png")
    half = {"path": "apple/a/half.png", "scale_adjustment": 1.0, "mask_path": None}
    stretched = co3d_frame("a", 3)
    stretched["viewpoint"]["R"] = [[2, 0, 0], [0, 2, 0], [0, 0, 2]]
    frames = [
        co3d_frame("a", 0, depth=half, mask={"path": "../secret.png"}),
        co3d_frame("a", 1, viewpoint=None),
        co3d_frame("a", 2, viewpoint={"R": 5}),
        stretched,
        co3d_frame("a", 4),
        co3d_frame("a", 5, image={"path": "../secret.png", "size": [H, W]}),
        {"frame_number": 3},
        7,
    ]
    report, store = packed(co3d(tmp_path / "co3d", frames), tmp_path)
    assert [store.camera(v) is not None for v in range(store.n_views)] == [True, False, False, False]
    assert reasons(report) == {
        "a frame with a wrong or missing viewpoint.R": 1,
        "a frame with a wrong or missing sequence_name": 1,
        "a frame with a wrong or missing value": 1,
        "no depth: no such file": 1,
        "no mask: a path or link that leaves the folder": 1,
        "a path or link that leaves the folder": 1,
        "no camera: the annotation has no viewpoint": 1,
        "no camera: its pose is not a rotation and a translation, or it is not finite": 1,
        "no camera: it is for an image of another shape": 1,
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no JSON list"),
        (b"{}", "is no JSON list ('[' expected)"),
        (b"[]", "lists no frames"),
        (b'[{"sequence_name": "a"', "is no JSON list"),
        (b'[{"sequence_name": "\xff"}]', "is no JSON list"),
        (b"[" * 1_000_000, "is no JSON list (nested too deeply)"),
        (b'[{"sequence_name": "a"}] {}', "is no JSON list (something follows the list)"),
        (b'[{"sequence_name": "a"} {}]', "is no JSON list (']' expected)"),
    ],
)
def test_wrong_co3d_annotations(tmp_path: Path, content: bytes, words: str) -> None:
    refused(co3d(tmp_path / "co3d", None, content), tmp_path, words, "frame_annotations.jgz")


def test_co3d_annotations_that_are_not_whole(tmp_path: Path) -> None:
    photo(tmp_path / "co3d/apple/a/images/0.jpg")
    file = co3d(tmp_path / "co3d", [co3d_frame("a", 0)]) / "apple/frame_annotations.jgz"
    whole = file.read_bytes()
    for damaged in (whole[:-10], whole[:20], b"plain text", whole[:30] + b"\0\0\0\0" + whole[34:]):
        file.write_bytes(damaged)
        refused(tmp_path / "co3d", tmp_path, "frame_annotations.jgz")


def test_a_small_file_cannot_unpack_without_end(tmp_path: Path) -> None:
    many, long = tmp_path / "many.jgz", tmp_path / "long.jgz"
    many.write_bytes(gzip.compress(b"[" + b"1," * 600_000 + b"1]"))
    long.write_bytes(gzip.compress(b'["' + b"x" * 8_000_000 + b'"]'))
    with pytest.raises(DataError, match=r"many\.jgz: unpacks to more"):
        list(read_items(many, most=1 << 20))
    with pytest.raises(DataError, match=r"long\.jgz: is no JSON list \(an item of more than 1048576 characters"):
        list(read_items(long, item=1 << 20))
    assert sum(read_items(many)) == 600_001


TEXTS = st.text(st.characters(codec="utf-8"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
)


@settings(deadline=None)
@given(items=st.lists(json_values, max_size=8), indent=st.sampled_from([None, 0, 3]), ascii=st.booleans())
def test_lists_are_read_as_python_reads_them(
    tmp_path_factory: pytest.TempPathFactory, items: list[Any], indent: int | None, ascii: bool
) -> None:
    text = json.dumps(items, indent=indent, ensure_ascii=ascii).encode()
    path = tmp_path_factory.getbasetemp() / "items.jgz"
    path.write_bytes(gzip.compress(text, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gzip_json, "_CHUNK", 7)  # so that chunks end within numbers, texts and characters
        assert list(read_items(path)) == json.loads(text)


# --- detection --------------------------------------------------------------------------------------------------------


def test_layouts_are_told_apart(tmp_path: Path) -> None:
    mvimgnet(tmp_path / "mvimgnet", frames=1)
    correnhance(tmp_path / "c", views=1)
    photo(tmp_path / "colmap/cup/images/a.jpg")
    model(tmp_path / "colmap/cup/sparse/0", ("a.jpg", POSE, 1))
    scene(tmp_path / "transforms", frame("a.jpg"))
    co3d(tmp_path / "co3d", [])
    for folder, name in [
        ("mvimgnet", "mvimgnet"),
        ("c/renders", "correnhance"),
        ("colmap", "colmap"),
        ("colmap/cup", "colmap"),
        ("transforms", "transforms"),
        ("transforms/transforms.json", "transforms"),
        ("co3d", "co3d"),
        ("co3d/apple", "co3d"),
    ]:
        found, mark = detect_format(tmp_path / folder)
        assert found.name == name
        assert mark


@pytest.mark.parametrize("name", ["colmap", "mvimgnet", "correnhance", "transforms", "co3d"])
def test_a_path_without_the_layout(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "empty", tmp_path, str(tmp_path / "empty"), format=name)
    refused(tmp_path / "file", tmp_path, str(tmp_path / "file"), format=name)
    with pytest.raises(ConfigError, match="views"):
        pack(tmp_path / "empty", tmp_path / "out.h5", format=name, options={"views": 0})


def test_each_call_gives_the_same_objects(tmp_path: Path) -> None:
    mvimgnet(tmp_path / "mvi", frames=2)
    found, _ = detect_format(tmp_path / "mvi")
    source = found.open(tmp_path / "mvi", found.options())
    first, second = (
        [(item.id, [view.name for view in item.views]) for item in source.objects(Skipped())] for _ in "ab"
    )
    assert first == second
    assert source.total == len(first) == 3
