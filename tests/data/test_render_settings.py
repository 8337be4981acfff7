"""What a user chooses about pictures: lights, backgrounds, materials, and which results are drawn anew for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mvcore.api import ConfigError, DataError, DeviceError
from mvcore_data import ViewStore
from mvcore_data.render import pipeline, probe
from mvcore_data.render.cli import render
from mvcore_data.render.scene import LIGHTS, light_directions
from mvcore_data.render.surfaces import Surface, to_linear, to_srgb, without_doubles
from mvcore_data.rigs import look_at
from PIL import Image, ImageOps

trimesh = pytest.importorskip("trimesh", reason="needs mvcore-data[render]")

SIZE = 32


@pytest.fixture
def ball(tmp_path: Path) -> Path:
    """A red ball."""
    return make_ball(tmp_path / "meshes")


def make_ball(folder: Path) -> Path:
    folder.mkdir()
    mesh = trimesh.creation.icosphere(subdivisions=3)
    mesh.visual.vertex_colors = np.tile(np.array([220, 60, 40, 255], np.uint8), (len(mesh.vertices), 1))
    mesh.export(folder / "ball.ply")
    return folder


def draw(meshes: Path, out: Path, **options: Any) -> np.ndarray:
    """(V, H, W, 3) pictures of the first object, as numbers that can be subtracted."""
    settings: dict[str, Any] = {"size": SIZE, "views": 3, "rig": "ring", "workers": 1, "codec": "png", "strict": True}
    render(meshes, out, **settings | options)
    with ViewStore(out) as store:
        return np.stack([store.image(v) for v in store.views_of(0)]).astype(int)


def gradient(path: Path, seed: int, shape: tuple[int, int] = (40, 60)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def square(path: Path) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    return np.asarray(ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.LANCZOS)).astype(int)


def outside(picture: np.ndarray) -> tuple[slice, slice]:
    """A corner where no ball is."""
    return slice(0, 4), slice(0, 4)


# Lights


def test_lights_fixed_to_the_camera_turn_with_it(gl: str, ball: Path, tmp_path: Path) -> None:
    world = draw(ball, tmp_path / "world")
    camera = draw(ball, tmp_path / "camera", lights="camera")
    assert np.abs(world[0] - world[1]).mean() > 2
    assert np.abs(camera[0] - camera[1]).mean() < 0.5
    assert np.abs(camera[0] - camera[2]).mean() < 0.5


def test_a_level_camera_in_front_sees_the_same_lights_either_way() -> None:
    camera = look_at(np.array([0.0, 0.0, 4.0]))
    np.testing.assert_allclose(light_directions("camera", camera), light_directions("world", camera), atol=1e-12)


@given(st.tuples(*[st.floats(-5, 5)] * 3))
def test_directions_of_lights(position: tuple[float, ...]) -> None:
    if np.linalg.norm(position) < 0.1:
        return
    camera, front = look_at(np.array(position)), look_at(np.array([0.0, 0.0, 4.0]))
    fixed, turned = light_directions("world", camera), light_directions("camera", camera)
    for light, direction in zip(LIGHTS, fixed, strict=True):
        np.testing.assert_allclose(direction, np.array(light.towards) / np.linalg.norm(light.towards))
    # In each camera's own axes they are where the one in front has them.
    np.testing.assert_allclose(turned @ camera[:3, :3].T, fixed @ front[:3, :3].T, atol=1e-9)


# Backgrounds


def test_an_image_behind_the_object(gl: str, ball: Path, tmp_path: Path) -> None:
    path = gradient(tmp_path / "behind.png", 0)
    seen = draw(ball, tmp_path / "image", background=str(path))
    black, white = draw(ball, tmp_path / "black", background="#000000"), draw(ball, tmp_path / "white")
    free = (black == 0).all(axis=3) & (white == 255).all(axis=3)
    assert free[:, 0, 0].all()
    assert (seen[free] == np.broadcast_to(square(path), seen.shape)[free]).all()
    through = (white - black) / 255  # what each pixel lets through of its background
    np.testing.assert_allclose(seen, black + through * square(path), atol=1.5)
    assert ((through > 0.05) & (through < 0.95)).any()


def test_a_folder_of_images_is_drawn_from_for_each_view(gl: str, ball: Path, tmp_path: Path) -> None:
    (tmp_path / "images/more").mkdir(parents=True)
    paths = [gradient(tmp_path / "images" / name, k) for k, name in enumerate(("a.png", "more/b.png", "c.png"))]
    (tmp_path / "images/notes.txt").write_text("no image")
    (ball / "other.ply").write_bytes((ball / "ball.ply").read_bytes())
    options = {"background": str(tmp_path / "images"), "views": 12}
    first = draw(ball, tmp_path / "one", **options)
    np.testing.assert_array_equal(first, draw(ball, tmp_path / "two", workers=2, **options))
    corner = outside(first[0])
    taken = [[(view[corner] == square(path)[corner]).all() for path in paths].index(True) for view in first]
    assert set(taken) == {0, 1, 2}
    assert (first != draw(ball, tmp_path / "seed", seed=1, **options)).any()
    with ViewStore(tmp_path / "one") as store:
        other = [store.image(v).astype(int) for v in store.views_of(1)]
    assert taken != [[(view[corner] == square(path)[corner]).all() for path in paths].index(True) for view in other]


def test_a_damaged_background_stops_the_render(gl: str, ball: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    whole = gradient(tmp_path / "images/a.png", 0).read_bytes()
    (tmp_path / "images/a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"background .*a\.png") as caught:
        draw(ball, tmp_path / "out", background=str(tmp_path / "images"), strict=False)
    assert "ball" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"--background .*a\.png"):
        draw(ball, tmp_path / "out", background=str(tmp_path / "images/a.png"))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_refused(ball: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no image in this folder"):
        draw(ball, tmp_path / "out", background=str(ball))


# Materials


def test_grey_leaves_materials_out(gl: str, ball: Path, tmp_path: Path) -> None:
    coloured, grey = draw(ball, tmp_path / "file"), draw(ball, tmp_path / "grey", materials="grey")
    assert np.ptp(coloured, axis=3).max() > 50
    assert np.ptp(grey, axis=3).max() == 0
    assert grey[0, SIZE // 2, SIZE // 2, 0] < 230


# What counts as another picture


class StopError(Exception):
    """Ends a render where it would begin to draw."""


def missing(folder: Path, **options: Any) -> list[str]:
    """The objects that a render of that folder, where an earlier one ended early, would draw."""
    found: list[str] = []

    def watch(jobs, *arguments, **more):
        found.extend(job.item.id for job in jobs)
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "render_all", watch)
        patch.setattr(pipeline, "probe_renderer", lambda *arguments: "")
        with pytest.raises(StopError):
            draw(folder / "meshes", folder / "out", **usual(folder) | options)
    return found


def usual(folder: Path) -> dict[str, Any]:
    return {"rig": "random-upper-100", "background": str(folder / "behind.png")}


def end_early(folder: Path) -> Path:
    """Draws all but one object."""
    make_ball(folder / "meshes")
    (folder / "meshes/broken.glb").write_bytes(b"glTF" + bytes(40))
    gradient(folder / "behind.png", 0)
    with pytest.raises(DataError, match="'broken' failed"):
        draw(folder / "meshes", folder / "out", **usual(folder))
    assert len(list((folder / "out.partial").glob("*.npz"))) == 1
    return folder


@pytest.fixture(scope="module")
def ended_early(gl: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return end_early(tmp_path_factory.mktemp("early"))


@pytest.mark.parametrize(
    "other",
    [
        {"renderer": "blender"},
        {"renderer": "blender", "samples": 1},
        {"lights": "camera"},
        {"background": "#ffffff"},
        {"materials": "grey"},
        {"seed": 1},
        {"rig": "upper"},
        {"views": 2},
        {"codec": "webp"},
        {"quality": 50},
    ],
)
def test_results_of_other_settings_are_not_taken(ended_early: Path, other: dict[str, Any]) -> None:
    assert missing(ended_early) == ["broken"]
    assert missing(ended_early, **other) == ["ball", "broken"]


def test_results_before_another_background_image_are_not_taken(gl: str, tmp_path: Path) -> None:
    folder = end_early(tmp_path)
    gradient(folder / "behind.png", 7, (30, 30))
    assert missing(folder) == ["ball", "broken"]


# Refusals


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"renderer": "vtk"}, "--renderer 'vtk': must be one of pyvista, blender"),
        ({"lights": "sun"}, "--lights 'sun': must be one of world, camera"),
        ({"materials": "red"}, "--materials 'red': must be one of file, grey"),
        ({"renderer": "blender", "device": "tpu"}, "--device 'tpu': must be one of cpu, gpu"),
        ({"renderer": "blender", "samples": 0}, "--samples 0"),
        ({"samples": 8}, "--samples 8: only with --renderer blender"),
        ({"device": "gpu"}, "--device gpu: only with --renderer blender"),
        ({"seed": -1}, "--seed -1"),
        ({"background": "#12345"}, "--background '#12345'"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, options: dict[str, Any], name: str) -> None:
    (tmp_path / "a.glb").touch()
    with pytest.raises(ConfigError, match=name):
        render(tmp_path, tmp_path / "out", **options)


@pytest.mark.process
def test_a_machine_without_blender_is_told_in_one_line(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child that tries it finds a module of that name that is not there, installed or not."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/bpy.py").write_text("raise ModuleNotFoundError(\"No module named 'bpy'\", name='bpy')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"))
    probe.probe_renderer.cache_clear()
    with pytest.raises(DeviceError) as caught:
        draw(ball, tmp_path / "out", renderer="blender")
    probe.probe_renderer.cache_clear()
    assert "No module named 'bpy'" in str(caught.value)
    assert "pip install 'mvcore-data[blender]'" in str(caught.value)
    assert "Python 3.11 or 3.13" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.partial").exists()


# Parts


triangles = st.lists(st.tuples(*[st.tuples(*[st.integers(-1, 1)] * 3)] * 3), min_size=1, max_size=6)


@given(st.lists(triangles, min_size=1, max_size=3))
def test_without_doubles_keeps_the_last_of_equal_triangles(parts: list[list[tuple[Any, ...]]]) -> None:
    surfaces = [
        Surface(np.array(part, np.float32).reshape(-1, 3), np.arange(3 * len(part)).reshape(-1, 3)) for part in parts
    ]
    every = [(p, tuple(sorted(triangle))) for p, part in enumerate(parts) for triangle in part]
    last = {triangle: p for p, triangle in every}
    kept = [
        tuple(sorted(map(tuple, surface.points[face].astype(int).tolist())))
        for surface in without_doubles(surfaces)
        for face in surface.faces
    ]
    assert sorted(kept) == sorted(last)


def test_srgb_and_linear_light_are_inverse() -> None:
    levels = np.arange(256) / 255
    np.testing.assert_allclose(to_srgb(to_linear(levels)), levels, atol=1e-7)
    np.testing.assert_allclose(to_linear(np.array([0.5])), [0.21404], atol=1e-5)
