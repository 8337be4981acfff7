"""Imported cameras and depth, by reprojection.

Each oracle draws bright dots where a format's own document says that known points of the world appear, in plain loops
that share nothing with the importers. The scene is then packed, the points are projected with the store's camera, and
the dots must be there.
"""

from __future__ import annotations

import gzip
import json
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mvcore_data import ViewStore
from mvcore_data.importers.lens import lens_of
from mvcore_data.packing import pack
from PIL import Image

W, H = 120, 90
POINTS = [(0.28, 0.58, 0.41), (-0.15, -0.59, -0.38), (-0.46, -0.3, 0.49), (0.4, 0.06, -0.47)]
EYES = [(2.6, 0.4, 0.3), (-1.3, 2.2, 0.8), (0.2, -0.7, 2.7)]
PLANE = ((0.3, 0.5, 0.81), -0.9)
"""Normal n and offset d of the plane n . X = d behind the points, to test depth with."""

Vector = Sequence[float]
Pixel = tuple[float, float]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cross(a: Vector, b: Vector) -> list[float]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def minus(a: Vector, b: Vector) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def unit(a: Vector) -> list[float]:
    return [x / math.sqrt(dot(a, a)) for x in a]


def axes(eye: Vector) -> tuple[list[float], list[float], list[float]]:
    """Right, down and forward of a camera that looks almost at the origin, rolled a little."""
    forward = unit([0.05 - eye[0], -0.04 - eye[1], 0.03 - eye[2]])
    right = unit(cross(forward, [0.2, 0.1, 1.0]))
    return right, cross(forward, right), forward


def draw(path: Path, dots: list[Pixel], size: tuple[int, int] = (W, H)) -> None:
    """Blobs on black; (x, y) counts from the image's upper left corner, so that pixel [i, j] has (j + .5, i + .5)."""
    width, height = size
    pixels = np.zeros((height, width))
    for x, y in dots:
        for i in range(max(0, int(y) - 8), min(height, int(y) + 9)):
            for j in range(max(0, int(x) - 8), min(width, int(x) + 9)):
                pixels[i, j] += 250 * math.exp(-((j + 0.5 - x) ** 2 + (i + 0.5 - y) ** 2) / 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(pixels.clip(0, 255).round().astype(np.uint8)[..., None], 3, 2)).save(path)


def found_at(image: np.ndarray, x: float, y: float) -> Pixel:
    """The centre of the blob near (x, y)."""
    grey = image[..., 0].astype(float)
    total = sum_x = sum_y = 0.0
    for i in range(max(0, int(y) - 5), min(image.shape[0], int(y) + 6)):
        for j in range(max(0, int(x) - 5), min(image.shape[1], int(x) + 6)):
            total += grey[i, j]
            sum_x += grey[i, j] * (j + 0.5)
            sum_y += grey[i, j] * (i + 0.5)
    assert total > 500, f"no dot near ({x:.1f}, {y:.1f})"
    return sum_x / total, sum_y / total


def assert_dots(store: ViewStore, *, z_up: bool = False) -> None:
    """Every point of the world stands where the view's camera projects it, to a tenth of a pixel.

    With `z_up`, the source's world was turned: its z is the store's y, and its front, -y, the store's z.
    """
    for view in range(store.n_views):
        camera = store.camera(view)
        assert camera is not None, f"view {view} has no camera"
        K, w2c = (matrix.astype(np.float64) for matrix in camera)
        image = store.image(view)
        for point in POINTS:
            here = (point[0], point[2], -point[1]) if z_up else point
            seen = w2c[:3, :3] @ here + w2c[:3, 3]
            assert seen[2] > 0
            x, y, _ = K @ seen / seen[2]
            fx, fy = found_at(image, x, y)
            assert math.hypot(fx - x, fy - y) < 0.1, (view, point, (x, y), (fx, fy))


def assert_plane(store: ViewStore, tolerance: float, *, z_up: bool = False) -> None:
    """The depth of a grid of pixels, lifted at the pixels' centres, lies on the plane."""
    (normal, offset), lifted = PLANE, 0
    for view in range(store.n_views):
        camera, depth = store.camera(view), store.depth(view)
        assert camera is not None
        assert depth is not None
        K, w2c = (matrix.astype(np.float64) for matrix in camera)
        for i in range(1, depth.shape[0], 7):
            for j in range(1, depth.shape[1], 7):
                if depth[i, j] > 0:
                    ray = np.linalg.inv(K) @ (j + 0.5, i + 0.5, 1.0)
                    x, y, z = (w2c[:3, :3].T @ (depth[i, j] * ray - w2c[:3, 3])).tolist()
                    world = [x, -z, y] if z_up else [x, y, z]
                    assert abs(dot(normal, world) - offset) < tolerance, (view, i, j)
                    lifted += 1
    assert lifted > 200


def plane_depth(eye: Vector, ray_at: Callable[[float, float], Vector]) -> np.ndarray:
    """Z-depth of the plane at each pixel; `ray_at(x, y)` gives the world's vector for a step of 1 along the axis."""
    depth = np.zeros((H, W))
    normal, offset = PLANE
    for i in range(H):
        for j in range(W):
            steps = (offset - dot(normal, eye)) / dot(normal, ray_at(j + 0.5, i + 0.5))
            depth[i, j] = steps if 0 < steps < 20 else 0
    return depth


# --- COLMAP -----------------------------------------------------------------------------------------------------------


def hamilton(p: Vector, q: Vector) -> list[float]:
    (a, b, c, d), (e, f, g, h) = p, q
    return [
        a * e - b * f - c * g - d * h,
        a * f + b * e + c * h - d * g,
        a * g - b * h + c * e + d * f,
        a * h + b * g - c * f + d * e,
    ]


def turned(q: Vector, point: Vector) -> list[float]:
    """q v q*, as the document's Hamilton convention has it."""
    return hamilton(hamilton(q, [0, *point]), [q[0], -q[1], -q[2], -q[3]])[1:]


def quaternion_of(eye: Vector) -> list[float]:
    """The rotation of a camera from world to camera: a unit quaternion that turns each of its axes to x, y and z."""
    right, down, forward = axes(eye)
    matrix = np.array([right, down, forward])
    # Its outer product is (1 + the sums and differences of the matrix's entries) / 4; the largest row is a multiple.
    (a, b, c), (d, e, f), (g, h, i) = matrix
    outer = np.array(
        [
            [1 + a + e + i, h - f, c - g, d - b],
            [h - f, 1 + a - e - i, b + d, c + g],
            [c - g, b + d, 1 - a + e - i, f + h],
            [d - b, c + g, f + h, 1 - a - e + i],
        ]
    )
    q = unit(outer[int(np.argmax(np.diag(outer)))].tolist())
    for axis, target in zip((right, down, forward), np.eye(3), strict=True):
        np.testing.assert_allclose(turned(q, axis), target, atol=1e-12)
    return q


MODELS: dict[str, tuple[int, list[float]]] = {
    "SIMPLE_PINHOLE": (0, [100, 58.3, 47.1]),
    "PINHOLE": (1, [100, 104, 58.3, 47.1]),
    "SIMPLE_RADIAL": (2, [100, 58.3, 47.1, 0.08]),
    "RADIAL": (3, [100, 58.3, 47.1, -0.12, 0.03]),
    "OPENCV": (4, [100, 104, 58.3, 47.1, -0.15, 0.04, 0.01, -0.006]),
    "OPENCV_FISHEYE": (5, [100, 104, 58.3, 47.1, 0.03, -0.02, 0.01, -0.003]),
    "FULL_OPENCV": (6, [100, 104, 58.3, 47.1, -0.15, 0.04, 0.01, -0.006, 0.01, 0.02, 0.01, -0.005]),
}


def colmap_pixel(model: str, p: list[float], seen: Vector) -> Pixel:
    """A camera's point in pixels, by COLMAP's sensor/models.h."""
    u, v = seen[0] / seen[2], seen[1] / seen[2]
    r2 = u * u + v * v
    if model == "SIMPLE_PINHOLE":
        return p[0] * u + p[1], p[0] * v + p[2]
    if model == "PINHOLE":
        return p[0] * u + p[2], p[1] * v + p[3]
    if model == "SIMPLE_RADIAL":
        return p[0] * u * (1 + p[3] * r2) + p[1], p[0] * v * (1 + p[3] * r2) + p[2]
    if model == "RADIAL":
        bend = 1 + p[3] * r2 + p[4] * r2 * r2
        return p[0] * u * bend + p[1], p[0] * v * bend + p[2]
    fx, fy, cx, cy, k1, k2, p1, p2 = p[:8]
    if model == "OPENCV_FISHEYE":
        k3, k4 = p1, p2
        theta = math.atan(math.sqrt(r2))
        bent = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
        return fx * u * bent / math.sqrt(r2) + cx, fy * v * bent / math.sqrt(r2) + cy
    bend = 1 + k1 * r2 + k2 * r2 * r2
    if model == "FULL_OPENCV":
        k3, k4, k5, k6 = p[8:]
        bend = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    u2 = u * bend + 2 * p1 * u * v + p2 * (r2 + 2 * u * u)
    v2 = v * bend + 2 * p2 * u * v + p1 * (r2 + 2 * v * v)
    return fx * u2 + cx, fy * v2 + cy


def colmap_scene(folder: Path, model: str, *, text: bool, scale: float = 1.0, masks: bool = False) -> None:
    """An object as COLMAP leaves it; with `scale`, its images were resized behind the model's back."""
    number, parameters = MODELS[model]
    sparse = folder / "sparse/0"
    sparse.mkdir(parents=True)
    images: list[tuple[str, list[float], list[float]]] = []
    for k, eye in enumerate(EYES):
        q = quaternion_of(eye)
        t = [-x for x in turned(q, eye)]
        dots = []
        for point in POINTS:
            x, y = colmap_pixel(model, parameters, [a + b for a, b in zip(turned(q, point), t, strict=True)])
            dots.append((x * scale, y * scale))
        draw(folder / f"images/frame {k + 1}.png", dots, (round(W * scale), round(H * scale)))
        # An image's quaternion need not have length 1.
        images.append((f"frame {k + 1}.png", [1.7 * x for x in q], t))
        if masks:
            mask = np.zeros((H, W), np.uint8)
            mask[: k + 10] = 255
            (folder / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(folder / f"masks/frame {k + 1}.png.png")
    if text:
        line = " ".join(map(str, parameters))
        (sparse / "cameras.txt").write_text(f"# Camera list\n#\n7 {model} {W} {H} {line}\n")
        rows = [
            f"{k} {' '.join(map(repr, [*q, *t]))} 7 {name}\n{'' if k == 1 else '12.5 3.5 -1 4 5 88'}\n"
            for k, (name, q, t) in enumerate(images)
        ]
        (sparse / "images.txt").write_text("# Image list\n# Number of images: 3\n" + "".join(rows))
        return
    camera = struct.pack("<QiiQQ", 1, 7, number, W, H) + struct.pack(f"<{len(parameters)}d", *parameters)
    (sparse / "cameras.bin").write_bytes(camera)
    data = struct.pack("<Q", len(images))
    for k, (name, q, t) in enumerate(images):
        data += struct.pack("<i7di", k, *q, *t, 7) + name.encode() + b"\0" + struct.pack("<Q", k)
        data += struct.pack("<ddq", 1.5, 2.5, -1) * k
    (sparse / "images.bin").write_bytes(data)


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
@pytest.mark.parametrize("model", ["SIMPLE_PINHOLE", "PINHOLE"])
def test_colmap_cameras(tmp_path: Path, model: str, text: bool) -> None:
    colmap_scene(tmp_path / "cup", model, text=text)
    report = pack(tmp_path / "cup", tmp_path / "out.h5")
    assert (report.format, report.objects, report.views, report.skipped.counts) == ("colmap", 1, 3, {})
    store = ViewStore(tmp_path / "out.h5")
    assert store.encoded(1) == (tmp_path / "cup/images/frame 2.png").read_bytes()
    assert_dots(store)


@pytest.mark.parametrize("scale", [0.6, 1.5])
def test_colmap_cameras_follow_resized_images(tmp_path: Path, scale: float) -> None:
    colmap_scene(tmp_path / "cup", "PINHOLE", text=False, scale=scale)
    pack(tmp_path / "cup", tmp_path / "out.h5")
    assert_dots(ViewStore(tmp_path / "out.h5"))


@pytest.mark.parametrize("model", [name for name in MODELS if "PINHOLE" not in name])
def test_bent_lenses_have_no_camera_until_they_are_made_straight(tmp_path: Path, model: str) -> None:
    colmap_scene(tmp_path / "cup", model, text=False, masks=True)
    report = pack(tmp_path / "cup", tmp_path / "bent.h5")
    assert list(report.skipped.counts.values()) == [3]
    assert "undistort" in next(iter(report.skipped.counts))
    assert model in next(iter(report.skipped.counts))
    bent = ViewStore(tmp_path / "bent.h5")
    assert [bent.camera(v) for v in range(3)] == [None] * 3
    assert bent.encoded(0) == (tmp_path / "cup/images/frame 1.png").read_bytes()
    report = pack(tmp_path / "cup", tmp_path / "straight.h5", options={"undistort": True})
    assert report.skipped.counts == {}
    straight = ViewStore(tmp_path / "straight.h5")
    assert_dots(straight)
    for view in range(3):
        mask, straight_mask = bent.mask(view), straight.mask(view)
        assert mask is not None
        assert straight_mask is not None
        assert 0 < straight_mask.sum() != mask.sum()


@pytest.mark.parametrize("model", [name for name in MODELS if "PINHOLE" not in name])
@pytest.mark.parametrize("nearest", [False, True], ids=["bilinear", "nearest"])
def test_straight_images_show_what_the_lens_drew(model: str, nearest: bool) -> None:
    _, parameters = MODELS[model]
    lens = lens_of(model, parameters)
    assert lens is not None
    fx, fy, cx, cy = [parameters[0], *parameters][:4] if len(parameters) < 6 else parameters[:4]
    # Two channels that say where in the bent image they stand: pixel [i, j] has (j + .5, i + .5).
    ramp = np.stack(np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5), -1) * 100
    straight = lens.straighten(ramp, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), nearest=nearest)
    for i in range(0, H, 5):
        for j in range(0, W, 5):
            x, y = colmap_pixel(model, parameters, [(j + 0.5 - cx) / fx, (i + 0.5 - cy) / fy, 1.0])
            if 0.5 < x < W - 0.5 and 0.5 < y < H - 0.5:
                assert math.dist(straight[i, j], (100 * x, 100 * y)) < (71 if nearest else 1.01), (i, j)
            elif not (0 < x < W and 0 < y < H):
                assert not straight[i, j].any(), (i, j)


def test_a_lens_that_folds_back_shows_nothing_twice() -> None:
    # u (1 - 0.3 u^2) grows up to u = sqrt(1 / 0.9) and falls from there on.
    lens = lens_of("SIMPLE_RADIAL", [20.0, 60.0, 45.0, -0.3])
    assert lens is not None
    straight = lens.straighten(np.full((H, W), 200), np.array([[20.0, 0, 60], [0, 20, 45], [0, 0, 1]]), nearest=False)
    for i in range(0, H, 3):
        for j in range(0, W, 3):
            radius = math.hypot(j + 0.5 - 60, i + 0.5 - 45) / 20
            if abs(radius - math.sqrt(1 / 0.9)) > 0.01:
                assert straight[i, j] == (200 if radius < math.sqrt(1 / 0.9) else 0), (i, j)


def test_masks_stand_beside_colmap_images(tmp_path: Path) -> None:
    colmap_scene(tmp_path / "cup", "PINHOLE", text=False, masks=True)
    pack(tmp_path / "cup", tmp_path / "out.h5")
    store = ViewStore(tmp_path / "out.h5")
    masks = [store.mask(v) for v in range(3)]
    assert [int(mask.sum()) for mask in masks if mask is not None] == [(k + 10) * W for k in range(3)]


# --- 3DCorrEnhance ----------------------------------------------------------------------------------------------------


def correnhance_scene(folder: Path, k: list[float]) -> None:
    """Renders with whole-number pixel centres: K (fx, fy, cx, cy) maps to (column, row), not to corners."""
    fx, fy, cx, cy = k
    poses = []
    for number, eye in enumerate(EYES):
        right, down, forward = axes(eye)
        pose = np.eye(4)
        pose[:3, :3] = right, down, forward
        pose[:3, 3] = [-dot(axis, eye) for axis in (right, down, forward)]
        poses.append(pose)
        dots = []
        for point in POINTS:
            seen = [dot(axis, minus(point, eye)) for axis in (right, down, forward)]
            column, row = fx * seen[0] / seen[2] + cx, fy * seen[1] / seen[2] + cy
            dots.append((column + 0.5, row + 0.5))
        draw(folder / f"renders/000-001/cup/color_{number:06d}.png", dots)

        def ray_at(x: float, y: float, frame: Any = (right, down, forward)) -> list[float]:
            a, b = (x - 0.5 - cx) / fx, (y - 0.5 - cy) / fy
            return [a * r + b * d + f for r, d, f in zip(*frame, strict=True)]

        depth = plane_depth(eye, ray_at)
        Image.fromarray(np.round(depth * 1000).astype(np.uint16)).save(
            folder / f"renders/000-001/cup/depth_{number:06d}.png"
        )
        Image.fromarray(((depth > 0) * 255).astype(np.uint8)).save(
            folder / f"renders/000-001/cup/mask_{number:06d}.png"
        )
    np.save(folder / "obj_poses.npy", np.array(poses))


def test_correnhance_cameras_depth_and_masks(tmp_path: Path) -> None:
    correnhance_scene(tmp_path, [100, 104, 58.3, 47.1])
    options = {"intrinsics": "[100, 104, 58.3, 47.1]", "width": str(W), "height": str(H)}
    report = pack(tmp_path / "renders", tmp_path / "out.h5", options=options)
    assert (report.format, report.views, report.skipped.counts) == ("correnhance", 3, {})
    store = ViewStore(tmp_path / "out.h5")
    assert store.object_ids == ["000-001/cup"]
    assert_dots(store, z_up=True)
    assert_plane(store, 0.002, z_up=True)
    for view in range(3):
        depth, mask = store.depth(view), store.mask(view)
        assert depth is not None
        assert mask is not None
        np.testing.assert_array_equal(mask, depth > 0)


def test_correnhance_intrinsics_follow_the_size_of_the_images(tmp_path: Path) -> None:
    # What 560 pixels are to an image of 512, 131.25 are to one of 120.
    scale = W / 512
    correnhance_scene(tmp_path, [560 * scale, 560 * scale, 256.5 * scale - 0.5, (256.5 - 64) * scale - 0.5])
    options = {"intrinsics": "560,560,256,192", "height": "384"}
    pack(tmp_path / "renders", tmp_path / "out.h5", options=options)
    assert_dots(ViewStore(tmp_path / "out.h5"), z_up=True)


# --- nerfstudio, instant-ngp, NeRF ------------------------------------------------------------------------------------


def opengl_pixel(eye: Vector, point: Vector, fx: float, fy: float, cx: float, cy: float) -> Pixel:
    """x right, y up, z backward; (cx, cy) from the image's corner."""
    right, down, forward = axes(eye)
    there = minus(point, eye)
    x, y, z = dot(right, there), -dot(down, there), -dot(forward, there)
    return cx + fx * x / -z, cy - fy * y / -z


def transforms_scene(folder: Path, top: dict[str, Any], k: list[float], **frame: Any) -> None:
    frames = []
    fx, fy, cx, cy = k
    for number, eye in enumerate(EYES):
        right, down, forward = axes(eye)
        columns = [right, [-x for x in down], [-x for x in forward], list(eye)]
        matrix = [[column[row] for column in columns] for row in range(3)] + [[0, 0, 0, 1]]
        draw(folder / f"images/{number}.png", [opengl_pixel(eye, point, *k) for point in POINTS])

        def ray_at(x: float, y: float, frame: Any = (right, down, forward)) -> list[float]:
            a, b = (x - cx) / fx, (y - cy) / fy
            return [a * r + b * d + f for r, d, f in zip(*frame, strict=True)]

        (folder / "depths").mkdir(exist_ok=True)
        depth = np.round(plane_depth(eye, ray_at) * 1000).astype(np.uint16)
        Image.fromarray(depth).save(folder / f"depths/{number}.png")
        frames.append(
            {
                "file_path": f"./images/{number}.png",
                "transform_matrix": matrix,
                "depth_file_path": f"depths/{number}.png",
                **frame,
            }
        )
    (folder / "transforms.json").write_text(json.dumps({**top, "frames": frames}))


ANGLE = 2 * math.atan(W / 2 / 100)


@pytest.mark.parametrize(
    ("top", "frame", "k"),
    [
        ({"fl_x": 100, "fl_y": 104, "cx": 58.3, "cy": 47.1, "w": W, "h": H}, {}, [100, 104, 58.3, 47.1]),
        ({"camera_angle_x": ANGLE}, {}, [100, 100, W / 2, H / 2]),
        ({"camera_angle_x": 0.3}, {"camera_angle_x": ANGLE}, [100, 100, W / 2, H / 2]),
        ({"fl_x": 77, "w": W, "h": H}, {"fl_x": 100, "cx": 58.3, "cy": 47.1}, [100, 100, 58.3, 47.1]),
        # The file speaks of images of twice the size.
        ({"fl_x": 200, "fl_y": 208, "cx": 116.6, "cy": 94.2, "w": 2 * W, "h": 2 * H}, {}, [100, 104, 58.3, 47.1]),
        ({"fl_x": 100, "cx": 60, "cy": 45, "k1": 0.0, "p2": 0, "camera_model": "OPENCV"}, {}, [100, 100, 60, 45]),
    ],
    ids=["top", "angle", "frame's angle", "frame", "resized", "zero distortion"],
)
def test_transforms_cameras_and_depth(
    tmp_path: Path, top: dict[str, Any], frame: dict[str, Any], k: list[float]
) -> None:
    transforms_scene(tmp_path / "cup", top, k, **frame)
    report = pack(tmp_path / "cup", tmp_path / "out.h5")
    assert (report.format, report.objects, report.views, report.skipped.counts) == ("transforms", 1, 3, {})
    store = ViewStore(tmp_path / "out.h5")
    assert_dots(store, z_up=True)
    assert_plane(store, 0.002, z_up=True)


def test_transforms_from_an_opencv_calibration(tmp_path: Path) -> None:
    # OpenCV counts pixel centres as whole numbers: its principal point is half a pixel less.
    transforms_scene(tmp_path / "cup", {"fl_x": 100, "cx": 57.8, "cy": 46.6}, [100, 100, 58.3, 47.1])
    pack(tmp_path / "cup", tmp_path / "out.h5", options={"pixel_centre": 0.0})
    assert_dots(ViewStore(tmp_path / "out.h5"), z_up=True)


@pytest.mark.parametrize("name", ["transforms", "correnhance"])
def test_a_world_with_y_up_is_not_turned(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"up": "y"}
    if name == "transforms":
        transforms_scene(tmp_path / "renders", {"fl_x": 100, "cx": 58.3, "cy": 47.1}, [100, 100, 58.3, 47.1])
    else:
        correnhance_scene(tmp_path, [100, 104, 58.3, 47.1])
        options |= {"intrinsics": (100.0, 104.0, 58.3, 47.1), "width": W, "height": H}
    pack(tmp_path / "renders", tmp_path / "out.h5", options=options)
    assert_dots(ViewStore(tmp_path / "out.h5"))


# --- CO3D -------------------------------------------------------------------------------------------------------------


def co3d_scene(root: Path, form: str) -> None:
    """A category with one sequence: `X_camera = X_world R + T`, x left, y up, z forward, positions from -1 to 1."""
    focal, principal = (1.9, 2.1), (0.07, -0.05)
    frames = []
    for number, eye in enumerate(EYES):
        right, down, forward = axes(eye)
        left, up = [-x for x in right], [-x for x in down]
        R = [[axis[row] for axis in (left, up, forward)] for row in range(3)]
        T = [-dot(axis, eye) for axis in (left, up, forward)]
        half = (W / 2, H / 2) if form == "ndc_norm_image_bounds" else (min(W, H) / 2,) * 2
        dots = []
        for point in POINTS:
            x, y, z = (sum(point[i] * R[i][j] for i in range(3)) + T[j] for j in range(3))
            ndc = focal[0] * x / z + principal[0], focal[1] * y / z + principal[1]
            # +1 is the left and the upper border (of the square in the middle of an image that is wider).
            dots.append((W / 2 - ndc[0] * half[0], H / 2 - ndc[1] * half[1]))
        folder = root / "apple/12_34_56"
        draw(folder / f"images/frame{number:06d}.png", dots)

        def ray_at(x: float, y: float, frame: Any = (left, up, forward), half: Any = half) -> list[float]:
            a = ((W / 2 - x) / half[0] - principal[0]) / focal[0]
            b = ((H / 2 - y) / half[1] - principal[1]) / focal[1]
            return [a * r + b * u + f for r, u, f in zip(*frame, strict=True)]

        depth = (plane_depth(eye, ray_at) / 2.5).astype(np.float16)
        depth[0, 0] = np.inf
        (folder / "depths").mkdir(exist_ok=True)
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(depth.view(np.uint16)).save(folder / f"depths/frame{number:06d}.png")
        good = np.full((H, W), 255, np.uint8)
        good[:, -10:] = 0
        Image.fromarray(good).save(folder / f"depths/good{number:06d}.png")
        soft = np.zeros((H, W), np.uint8)
        soft[:20], soft[20:40] = 200, 100
        Image.fromarray(soft).save(folder / f"masks/frame{number:06d}.png")
        at = "apple/12_34_56"
        frames.append(
            {
                "sequence_name": "12_34_56",
                "frame_number": number,
                "frame_timestamp": number / 30,
                "image": {"path": f"{at}/images/frame{number:06d}.png", "size": [H, W]},
                "depth": {
                    "path": f"{at}/depths/frame{number:06d}.png",
                    "scale_adjustment": 2.5,
                    "mask_path": f"{at}/depths/good{number:06d}.png",
                },
                "mask": {"path": f"{at}/masks/frame{number:06d}.png", "mass": 3000.0},
                "viewpoint": {
                    "R": R,
                    "T": T,
                    "focal_length": focal,
                    "principal_point": principal,
                    "intrinsics_format": form,
                },
                "meta": None,
            }
        )
    with gzip.open(root / "apple/frame_annotations.jgz", "wt") as file:
        json.dump(frames, file)
    with gzip.open(root / "apple/sequence_annotations.jgz", "wt") as file:
        json.dump([{"sequence_name": "12_34_56", "category": "apple", "viewpoint_quality_score": 1.2}], file)


@pytest.mark.parametrize("form", ["ndc_norm_image_bounds", "ndc_isotropic"])
@pytest.mark.parametrize("below", ["", "apple"], ids=["root", "category"])
def test_co3d_cameras_depth_and_masks(tmp_path: Path, form: str, below: str) -> None:
    co3d_scene(tmp_path / "co3d", form)
    report = pack(tmp_path / "co3d" / below, tmp_path / "out.h5")
    assert (report.format, report.views, report.skipped.counts) == ("co3d", 3, {})
    store = ViewStore(tmp_path / "out.h5")
    assert (store.object_ids, store.category(0)) == (["apple/12_34_56"], "apple")
    assert_dots(store)
    assert_plane(store, 0.004)  # half precision: 1 part in 2,048
    depth, mask = store.depth(0), store.mask(0)
    assert depth is not None
    assert mask is not None
    assert depth[0, 0] == 0
    assert not depth[:, -10:].any()
    assert depth[:, -11].any()
    assert mask[:20].all()
    assert not mask[20:].any()


# --- MVImgNet ---------------------------------------------------------------------------------------------------------


def test_mvimgnet_cameras(tmp_path: Path) -> None:
    colmap_scene(tmp_path / "mvi/17/ab01", "SIMPLE_RADIAL", text=False)
    report = pack(tmp_path / "mvi", tmp_path / "out.h5", options={"undistort": "true"})
    assert (report.format, report.skipped.counts) == ("mvimgnet", {})
    store = ViewStore(tmp_path / "out.h5")
    assert store.object_ids == ["17/ab01"]
    assert_dots(store)
