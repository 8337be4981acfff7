"""The renderer through its command: geometry, colour, texture, and a machine that cannot render."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mvcore.api import ConfigError
from mvcore_data import ViewStore
from mvcore_data.render.cli import render
from mvcore_data.rigs import make_rig
from mvcore_data.viewpoints import azimuth_elevation
from PIL import Image

trimesh = pytest.importorskip("trimesh", reason="needs mvcore-data[render]")

SIZE = 80
HALF = np.array([0.6, 0.35, 0.2])  # a box of three different sides
SIDES = {"+z": (200, 30, 30), "+x": (30, 200, 30), "-z": (30, 30, 200), "-x": (200, 200, 30), "y": (128, 128, 128)}


def painted_box():
    """A box about a point off the origin, one colour a side."""
    box = trimesh.creation.box(2 * HALF)
    names: dict[tuple[int, ...], str]
    names = {(0, 0, 1): "+z", (1, 0, 0): "+x", (0, 0, -1): "-z", (-1, 0, 0): "-x", (0, 1, 0): "y", (0, -1, 0): "y"}
    facing = [tuple(row) for row in box.face_normals.round().astype(int).tolist()]
    colours = [(*SIDES[names[side]], 255) for side in facing]
    box.visual = trimesh.visual.ColorVisuals(box, face_colors=colours)
    return box.apply_translation([3, -1, 2])


def textured_square(image: Image.Image):
    """A square in the XY plane whose texture stands upright as seen from +Z."""
    points = [(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)]
    uv = [(0, 0), (1, 0), (1, 1), (0, 1)]
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image, doubleSided=True)
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return trimesh.Trimesh(points, [(0, 1, 2), (0, 2, 3)], visual=visual, process=False)


def quadrants(alpha: int) -> Image.Image:
    """Red, green / blue, white from the upper left on; the white one with this alpha."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[:16, :16, 0] = pixels[:16, 16:, 1] = pixels[16:, :16, 2] = 255
    pixels[16:, 16:] = (255, 255, 255, alpha)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def store(gl: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViewStore]:
    folder = tmp_path_factory.mktemp("render")
    meshes = folder / "meshes"
    meshes.mkdir()
    painted_box().export(meshes / "box.ply")
    textured_square(quadrants(255)).export(meshes / "square.glb")
    textured_square(quadrants(0)).export(meshes / "cut.glb")
    (meshes / "flat.mtl").write_text("newmtl m\nKd 0.1 0.8 0.2\n")
    (meshes / "flat.obj").write_text(
        "mtllib flat.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
    )
    out = folder / "store"
    render(meshes, out, size=SIZE, views=4, rig="ring", background="#102030", workers=1, codec="png", strict=True)
    with ViewStore(out) as store:
        yield store


def views(store: ViewStore, name: str) -> range:
    return store.views_of(store.object_ids.index(name))


def project(points: np.ndarray, camera: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    matrix, pose = (array.astype(float) for array in camera)
    seen = points @ pose[:3, :3].T + pose[:3, 3]
    return (seen / seen[:, 2:]) @ matrix.T[:, :2]


def lift(depth: np.ndarray, camera: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    matrix, pose = (array.astype(float) for array in camera)
    rows, columns = np.nonzero(depth)
    pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], axis=1)
    seen = pixels @ np.linalg.inv(matrix).T * depth[rows, columns][:, None]
    return (seen - pose[:3, 3]) @ pose[:3, :3]


def test_projected_corners_are_where_the_mask_ends(store: ViewStore) -> None:
    corners = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * HALF / np.linalg.norm(HALF)
    for v in views(store, "box"):
        camera, mask = store.camera(v), store.mask(v)
        assert camera is not None
        assert mask is not None
        seen = project(corners, camera)
        rows, columns = np.nonzero(mask)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(edges, [*seen.min(axis=0), *seen.max(axis=0)], atol=1.0)


def test_depth_lifts_to_the_surface(store: ViewStore) -> None:
    half = HALF / np.linalg.norm(HALF)
    for v in views(store, "box"):
        depth, camera = store.depth(v), store.camera(v)
        assert depth is not None
        assert camera is not None
        points = lift(depth, camera)
        assert len(points) > 300
        np.testing.assert_allclose((np.abs(points) / half).max(axis=1), 1, atol=2e-3)


def test_masks_are_where_depth_is(store: ViewStore) -> None:
    for v in range(store.n_views):
        depth, mask = store.depth(v), store.mask(v)
        assert depth is not None
        np.testing.assert_array_equal(mask, depth > 0)


def test_cameras_follow_the_convention(store: ViewStore) -> None:
    poses = np.stack([camera[1] for v in views(store, "box") if (camera := store.camera(v))])
    azimuth, elevation = azimuth_elevation(poses)
    np.testing.assert_allclose(np.mod(azimuth, 360), [0, 90, 180, 270], atol=1e-3)
    np.testing.assert_allclose(elevation, 15, atol=1e-3)


def test_each_camera_sees_its_side(store: ViewStore) -> None:
    for v, side in zip(views(store, "box"), ("+z", "+x", "-z", "-x"), strict=True):
        seen = store.image(v)[SIZE // 2 + 2, SIZE // 2].astype(float)
        wanted = np.array(SIDES[side], float)
        np.testing.assert_allclose(seen / seen.max(), wanted / wanted.max(), atol=0.03)


def test_the_background_is_exact(store: ViewStore) -> None:
    for v in views(store, "box"):
        image, mask = store.image(v), store.mask(v)
        assert mask is not None
        near = np.any([np.roll(mask, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0)
        assert (image[~near] == (0x10, 0x20, 0x30)).all()


def test_textures_stand_upright_and_are_not_mirrored(store: ViewStore) -> None:
    image = store.image(views(store, "square")[0]).astype(int)
    low, high = SIZE // 2 - 12, SIZE // 2 + 12
    assert image[low, low].argmax() == 0
    assert image[low, high].argmax() == 1
    assert image[high, low].argmax() == 2
    assert np.ptp(image[high, high]) <= 2


def test_transparent_texture_is_cut_away(store: ViewStore) -> None:
    v = views(store, "cut")[0]
    mask = store.mask(v)
    assert mask is not None
    low, high = SIZE // 2 - 12, SIZE // 2 + 12
    assert [bool(mask[row, column]) for row in (low, high) for column in (low, high)] == [True, True, True, False]
    assert tuple(store.image(v)[high, high]) == (0x10, 0x20, 0x30)


def test_flat_material_of_an_obj(store: ViewStore) -> None:
    v = views(store, "flat")[0]
    mask = store.mask(v)
    assert mask is not None
    colour = np.median(store.image(v)[mask].astype(float), axis=0)
    np.testing.assert_allclose(colour / colour.max(), np.array([0.1, 0.8, 0.2]) / 0.8, atol=0.03)


def test_mvc36_normalises_by_the_longest_side(gl: str, tmp_path: Path) -> None:
    painted_box().export(tmp_path / "box.ply")
    render(tmp_path, tmp_path / "out.h5", size=48, rig="mvc36", workers=1)
    with ViewStore(tmp_path / "out.h5") as store:
        assert store.n_views == 36
        camera, depth = store.camera(24), store.depth(24)
        assert camera is not None
        assert depth is not None
        points = lift(depth, camera)
        np.testing.assert_allclose((np.abs(points) / (HALF / HALF.max() / 2)).max(axis=1), 1, atol=5e-3)
        np.testing.assert_allclose(camera[0], make_rig("mvc36").cameras(48)[0][24])


@pytest.mark.process
def test_a_machine_without_opengl_is_told_in_one_line(gl: str, tmp_path: Path) -> None:
    if ctypes.util.find_library("OSMesa"):
        pytest.skip("OSMesa would step in")
    painted_box().export(tmp_path / "box.ply")
    hidden = {"__EGL_VENDOR_LIBRARY_DIRS": str(tmp_path), "__EGL_VENDOR_LIBRARY_FILENAMES": ""}
    command = ["data", "render", str(tmp_path), str(tmp_path / "out"), "--size=16"]
    child = subprocess.run(
        [sys.executable, "-c", "from mvcore.cli.main import main; main()", *command],
        env={**os.environ, **hidden},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 2
    assert "apt-get install libegl1 or libosmesa6" in " ".join(child.stderr.split())
    assert "Traceback" not in child.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["box.ply"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"size": 4}, "--size 4"),
        ({"background": "no-colour"}, "--background 'no-colour'"),
        ({"codec": "gif"}, "--codec 'gif'"),
        ({"quality": 0}, "--quality 0"),
        ({"workers": 0}, "--workers 0"),
        ({"rig": "cube"}, "rig 'cube'"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict, name: str) -> None:
    (tmp_path / "a.glb").touch()
    with pytest.raises(ConfigError, match=name):
        render(tmp_path, tmp_path / "out", **options)
