"""The Blender renderer against the PyVista one and against what is known of the meshes.

It needs `mvcore-data[blender]`, so an environment of its own: Python 3.11 or 3.13, numpy below 2.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mvcore_data import ViewStore
from mvcore_data.render.cli import render
from PIL import Image

if importlib.util.find_spec("bpy") is None:
    pytest.skip("needs mvcore-data[blender], in an environment of its own", allow_module_level=True)
trimesh = pytest.importorskip("trimesh")

SIZE = 160
RADIUS = 0.09
POINTS = np.array(
    [(0.9, 0, 0), (-0.9, 0.1, 0.1), (0, 0.9, 0), (0.1, -0.9, 0.1), (0, 0.1, 0.9), (-0.1, 0, -0.9), (0.5, 0.4, 0.5)]
)


def draw(meshes: Path, out: Path, **options: Any) -> Path:
    settings: dict[str, Any] = {"size": SIZE, "workers": 1, "codec": "png", "strict": True}
    settings |= {"samples": 16} if options.get("renderer") == "blender" else {}
    render(meshes, out, **settings | options)
    return out


@pytest.fixture(scope="module")
def markers(gl: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Balls at known points, before white and before black, by both renderers."""
    folder = tmp_path_factory.mktemp("markers")
    (folder / "meshes").mkdir()
    balls = [trimesh.creation.icosphere(subdivisions=3, radius=RADIUS).apply_translation(p) for p in POINTS]
    trimesh.util.concatenate(balls).export(folder / "meshes/balls.ply")
    return {
        f"{renderer}-{name}": draw(
            folder / "meshes",
            folder / f"{renderer}-{name}",
            renderer=renderer,
            background=name,
            rig="zero123-12",
            views=3,
            **({"samples": 64} if renderer == "blender" else {}),
        )
        for renderer in ("pyvista", "blender")
        for name in ("white", "black")
    }


def known_points() -> np.ndarray:
    """Where the balls' centres lie when the longest side is 1."""
    low, high = (POINTS - RADIUS).min(axis=0), (POINTS + RADIUS).max(axis=0)
    return (POINTS - (low + high) / 2) / (high - low).max()


def seen(points: np.ndarray, camera: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    matrix, pose = (array.astype(float) for array in camera)
    inside = points @ pose[:3, :3].T + pose[:3, 3]
    return (inside / inside[:, 2:]) @ matrix.T[:, :2], inside[:, 2]


def coverage(stores: dict[str, Path], renderer: str) -> np.ndarray:
    """(V, H, W): how much of its background each pixel hides."""
    pictures = []
    for name in ("white", "black"):
        with ViewStore(stores[f"{renderer}-{name}"]) as store:
            pictures.append(np.stack([store.image(v) for v in range(store.n_views)]).astype(float))
    return 1 - (pictures[0] - pictures[1]).mean(axis=3) / 255


def centroid(weights: np.ndarray, near: np.ndarray, reach: float) -> np.ndarray:
    rows, columns = np.indices(weights.shape) + 0.5
    close = np.hypot(columns - near[0], rows - near[1]) < reach
    total = (weights * close).sum()
    return np.array([(columns * weights * close).sum(), (rows * weights * close).sum()]) / total


def test_cameras_are_the_same_to_a_tenth_of_a_pixel(markers: dict[str, Path]) -> None:
    found = {renderer: coverage(markers, renderer) for renderer in ("pyvista", "blender")}
    radius = RADIUS / (np.ptp(POINTS, axis=0).max() + 2 * RADIUS)
    compared = 0
    with ViewStore(markers["blender-white"]) as store, ViewStore(markers["pyvista-white"]) as other:
        for v in range(store.n_views):
            camera = store.camera(v)
            assert camera is not None
            for one, same in zip(camera, other.camera(v) or (), strict=True):
                np.testing.assert_array_equal(one, same)
            pixels, depth = seen(known_points(), camera)
            size = radius * camera[0][0, 0] / depth
            apart = np.linalg.norm(pixels[:, None] - pixels, axis=2) + 1e9 * np.eye(len(pixels))
            for k in np.flatnonzero((apart > (size[:, None] + size) * 1.3 + 6).all(axis=1)):
                both = [centroid(found[renderer][v], pixels[k], size[k] * 1.15 + 2) for renderer in found]
                np.testing.assert_allclose(both[0], both[1], atol=0.1)
                np.testing.assert_allclose(both, [pixels[k]] * 2, atol=0.1)
                compared += 1
    assert compared >= 8


def test_masks_and_z_depth_are_the_same_at_the_same_pixels(markers: dict[str, Path]) -> None:
    with ViewStore(markers["blender-white"]) as store, ViewStore(markers["pyvista-white"]) as other:
        for v in range(store.n_views):
            pairs = [(s.mask(v), s.depth(v)) for s in (store, other)]
            (mask, depth), (same_mask, same_depth) = pairs
            assert mask is not None
            assert same_mask is not None
            assert depth is not None
            assert same_depth is not None
            both = mask & same_mask
            assert both.sum() > 250
            assert (mask ^ same_mask).sum() <= 0.002 * both.sum()
            wrong = np.abs(depth - same_depth)[both]
            assert np.quantile(wrong, 0.995) < 2e-4
            np.testing.assert_array_equal(depth > 0, mask)


def test_coverage_is_the_same(markers: dict[str, Path]) -> None:
    difference = np.abs(coverage(markers, "pyvista") - coverage(markers, "blender"))
    assert difference.max() < 0.25  # 9 samples a pixel against 64
    assert difference.mean() < 2e-3


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares that face +Z: red and blue pictures, one with a hole, one with each triangle twice, one painted."""
    folder = tmp_path_factory.mktemp("squares")
    points, uv = [(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)], [(0, 0), (1, 0), (1, 1), (0, 1)]
    faces = [(0, 1, 2), (0, 2, 3)]
    quarters = np.zeros((32, 32, 4), np.uint8)
    quarters[..., 3] = 255
    quarters[:16, :16, 0] = quarters[:16, 16:, 1] = quarters[16:, :16, 2] = 255
    quarters[16:, 16:] = (255, 255, 255, 0)
    red, blue = np.zeros((2, 32, 32, 4), np.uint8) + np.array([0, 0, 0, 255], np.uint8)
    red[..., 0] = blue[..., 2] = 255
    for name, pixels in {"a-red": red, "b-blue": blue, "c-quarters": quarters}.items():
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(pixels))
        visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
        trimesh.Trimesh(points, faces, visual=visual, process=False).export(folder / f"{name}.glb")
    twice = [*faces, *[face[::-1] for face in faces]]
    material = trimesh.visual.material.PBRMaterial(baseColorFactor=[0, 255, 0, 255])
    visual = trimesh.visual.TextureVisuals(material=material)
    trimesh.Trimesh(points, twice, visual=visual, process=False).export(folder / "d-twice.glb")
    painted = trimesh.Trimesh(points, faces, process=False, vertex_colors=[(200, 100, 50, 255)] * 4)
    painted.export(folder / "e-painted.ply")
    return folder


def middle(store: ViewStore, name: str) -> np.ndarray:
    image = store.image(store.views_of(store.object_ids.index(name))[0]).astype(int)
    half = image.shape[0] // 2
    return image[half - 12 : half + 12, half - 12 : half + 12]


def test_materials(squares: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"renderer": "blender", "size": 64, "views": 1, "rig": "ring", "background": "#102030"}
    with ViewStore(draw(squares, tmp_path / "out", **options)) as store:
        # A texture that Cycles kept of the object before would be red here too.
        for name, channel in {"a-red": 0, "b-blue": 2, "d-twice": 1}.items():
            colour = middle(store, name).mean(axis=(0, 1))
            assert colour[channel] > 150, name
            assert np.delete(colour, channel).max() < 5, name
        painted = middle(store, "e-painted").mean(axis=(0, 1)) / 255
        linear = np.where(painted > 0.04045, ((painted + 0.055) / 1.055) ** 2.4, painted / 12.92)
        wanted = ((np.array([200, 100, 50]) / 255 + 0.055) / 1.055) ** 2.4
        np.testing.assert_allclose(linear / linear[0], wanted / wanted[0], atol=0.02)
        quarters = middle(store, "c-quarters")
        assert [quarters[y, x].argmax() for y, x in ((0, 0), (0, -1), (-1, 0))] == [0, 1, 2]
        assert tuple(quarters[-1, -1]) == (0x10, 0x20, 0x30)
        mask = store.mask(store.views_of(store.object_ids.index("c-quarters"))[0])
        assert mask is not None
        assert [bool(mask[y, x]) for y in (20, 44) for x in (20, 44)] == [True, True, True, False]


def test_lights_fixed_to_the_camera(tmp_path: Path) -> None:
    (tmp_path / "meshes").mkdir()
    trimesh.creation.icosphere(subdivisions=3).export(tmp_path / "meshes/ball.ply")
    options: dict[str, Any] = {"renderer": "blender", "size": 40, "views": 3, "rig": "ring", "samples": 128}
    turned = {}
    for lights in ("world", "camera"):
        with ViewStore(draw(tmp_path / "meshes", tmp_path / lights, lights=lights, **options)) as store:
            pictures = [store.image(v).astype(float) for v in range(3)]
        turned[lights] = np.abs(pictures[0] - pictures[1]).mean()
    assert turned["world"] > 2
    assert turned["camera"] < 1


def test_the_same_bytes_again_and_other_noise_with_another_seed(squares: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"renderer": "blender", "size": 32, "views": 2, "rig": "upper", "samples": 2}

    def views(name: str, **more: Any) -> list[bytes]:
        with ViewStore(draw(squares, tmp_path / name, **options | more)) as store:
            return [store.encoded(v) for v in range(store.n_views)]

    first = views("one")
    assert views("two", workers=2) == first
    assert views("seed", seed=1) != first
    assert not list(tmp_path.glob("*.partial"))


def test_a_gpu_that_is_not_there_is_told_in_one_line(squares: Path, tmp_path: Path) -> None:
    from mvcore.api import DeviceError
    from mvcore_data.render.probe import probe_renderer

    try:
        probe_renderer("blender", "gpu")
        said = ""
    except DeviceError as error:
        said = str(error)
    if not said:
        with ViewStore(draw(squares, tmp_path / "out", renderer="blender", device="gpu", size=32, views=1)) as store:
            assert len(store) == 5
        return
    assert "finds no GPU here" in said
    assert "use --device cpu" in said
    assert "\n" not in said
