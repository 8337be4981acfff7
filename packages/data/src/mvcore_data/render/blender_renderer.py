"""An off-screen renderer on Blender's Cycles: path-traced colour, coverage, mask and z-depth from given cameras.

Import it only in a process of its own (see `mvcore_data.render.pool`): Blender as a module keeps one scene and many
globals per process. Pictures go through a file, since `bpy` gives no other way to a render's float pixels.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bpy  # pyright: ignore[reportMissingImports]
import numpy as np
import OpenEXR  # pyright: ignore[reportMissingImports]
from mvcore.api import DeviceError
from numpy.typing import NDArray

from mvcore_data.render.blender_objects import BlenderObject
from mvcore_data.render.renderer import RenderedView
from mvcore_data.render.scene import AMBIENT, LIGHTS, depth_range, light_directions, reach_of
from mvcore_data.render.settings import RenderSettings
from mvcore_data.render.surfaces import Surface, to_srgb, without_doubles

_GPU_KINDS = ("OPTIX", "CUDA", "HIP", "ONEAPI", "METAL")
_BLUR = 0.2  # how large a light looks, radians; softens the rims of shadows
# Cycles adds the lights up in linear light, where the sums of their strengths look brighter than in sRGB.
_EXPOSURE = 0.75
_AXES = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV's camera axes to Blender's


class BlenderRenderer:
    """Draws objects one after another in one scene.

    Args:
        settings: Size, lights, samples, device and seed.
        scratch: A folder for the picture's file.

    Raises:
        DeviceError: The GPU is wanted and Cycles finds none.
    """

    def __init__(self, settings: RenderSettings, scratch: Path) -> None:
        self._settings = settings
        self._file = scratch / f"blender-{os.getpid()}.exr"
        bpy.ops.wm.read_factory_settings(use_empty=True)
        self._scene: Any = bpy.context.scene
        self._set_up_output()
        self._set_up_cycles()
        self._camera = self._add("camera", bpy.data.cameras.new("camera"))
        self._scene.camera = self._camera
        self._lights = [self._add("light", _sun(light.strength)) for light in LIGHTS]
        self._scene.world = _ambient_world()

    def render(
        self, surfaces: Sequence[Surface], intrinsics: NDArray[np.floating], world_to_camera: NDArray[np.floating]
    ) -> Iterator[RenderedView]:
        """Views of an object from each camera; see `Renderer`."""
        # Of two triangles in one place each would lie in the other's shadow.
        objects = [BlenderObject(self._scene, surface) for surface in without_doubles(surfaces)]
        reach = reach_of(surfaces)
        try:
            for v, (matrix, camera) in enumerate(zip(intrinsics, world_to_camera.astype(np.float64), strict=True)):
                self._place_camera(float(matrix[0, 0]), camera, depth_range(camera, reach))
                for light, towards in zip(self._lights, light_directions(self._settings.lights, camera), strict=True):
                    light.matrix_world = _turned_to(towards)
                colour, alpha = self._draw_colour(v)
                mask, depth = self._draw_geometry()
                yield RenderedView(colour, alpha, mask, depth)
        finally:
            for drawn in objects:
                drawn.remove()
            self._forget()

    def close(self) -> None:
        """Free the scene."""
        bpy.ops.wm.read_factory_settings(use_empty=True)

    def _add(self, name: str, data: Any) -> Any:
        added = bpy.data.objects.new(name, data)
        self._scene.collection.objects.link(added)
        return added

    def _set_up_output(self) -> None:
        render = self._scene.render
        render.engine = "CYCLES"
        render.resolution_x = render.resolution_y = self._settings.size
        render.resolution_percentage = 100
        render.film_transparent = True
        render.use_persistent_data = True
        render.threads_mode, render.threads = "FIXED", 1  # the pool has a process for every core
        render.filepath = str(self._file)
        image = render.image_settings
        image.media_type = "MULTI_LAYER_IMAGE"
        image.file_format = "OPEN_EXR_MULTILAYER"
        image.color_depth, image.exr_codec = "32", "NONE"
        self._scene.view_layers[0].use_pass_z = True

    def _set_up_cycles(self) -> None:
        cycles = self._scene.cycles
        cycles.use_adaptive_sampling = False
        cycles.use_denoising = False
        cycles.film_exposure = _EXPOSURE
        cycles.device = "CPU"
        if self._settings.device == "gpu":
            _use_gpu()
            cycles.device = "GPU"

    def _place_camera(self, focal: float, camera: NDArray[np.float64], depths: tuple[float, float]) -> None:
        self._camera.matrix_world = (np.linalg.inv(camera) @ _AXES).T
        lens = self._camera.data
        lens.sensor_fit, lens.sensor_width = "HORIZONTAL", 32.0
        lens.lens = focal * lens.sensor_width / self._settings.size
        lens.clip_start, lens.clip_end = depths

    def _draw_colour(self, view: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        cycles = self._scene.cycles
        cycles.samples, cycles.seed = self._settings.samples, (self._settings.seed * 4096 + view) % (1 << 31)
        cycles.pixel_filter_type = "BOX"  # a pixel is the mean over its area, as in the other renderer
        drawn = self._draw()
        alpha = drawn["A"].clip(0, 1)
        straight = np.stack([drawn[name] for name in "RGB"], axis=2) / np.maximum(alpha, 1e-6)[..., None]
        return (to_srgb(straight.clip(0, 1)) * (255 * alpha[..., None])).astype(np.float32), alpha

    def _draw_geometry(self) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Mask and z-depth, by one ray through the centre of each pixel."""
        cycles = self._scene.cycles
        cycles.samples, cycles.seed = 1, 0
        cycles.pixel_filter_type, cycles.filter_width = "GAUSSIAN", 0.01
        drawn = self._draw()
        mask = drawn["A"] > 0.5
        return mask, np.where(mask, drawn["Z"], 0).astype(np.float32)

    def _forget(self) -> None:
        """Drop what Cycles keeps from view to view: a new texture at an old one's address would pass for that one."""
        self._scene.render.use_persistent_data = False
        self._draw()
        self._scene.render.use_persistent_data = True

    def _draw(self) -> dict[str, NDArray[np.float32]]:
        """Channels R, G, B (linear light, times A), A and Z, each (H, W)."""
        self._scene.update_tag()  # else Cycles goes on with the samples and the filter of the picture before
        with _silent():
            bpy.ops.render.render(write_still=True)
        with OpenEXR.File(str(self._file), separate_channels=True) as file:
            channels = {name: channel.pixels for part in file.parts for name, channel in part.channels.items()}
            found = {name.rsplit(".", 1)[-1]: np.array(pixels) for name, pixels in channels.items()}
        self._file.unlink()
        return found


def first_render(device: str, scratch: str) -> None:
    """Draw one triangle: it works, or this process says why not."""
    from mvcore_data.render.backgrounds import Background
    from mvcore_data.rigs import make_rig

    settings = RenderSettings(16, Background(), "png", 100, renderer="blender", samples=1, device=device)
    triangle = Surface(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]))
    (view,) = BlenderRenderer(settings, Path(scratch)).render([triangle], *make_rig("upper", 1).cameras(16))
    if not view.mask.any():
        raise DeviceError("Blender draws nothing")


def _use_gpu() -> None:
    preferences: Any = bpy.context.preferences.addons["cycles"].preferences
    for kind in _GPU_KINDS:
        with contextlib.suppress(TypeError, ValueError):  # kinds that this build has not
            found = preferences.get_devices_for_type(kind)
            if any(device.type == kind for device in found):
                preferences.compute_device_type = kind
                for device in found:
                    device.use = device.type == kind
                return
    raise DeviceError(f"Cycles finds no GPU here ({', '.join(_GPU_KINDS)}); use --device cpu")


def _sun(strength: float) -> Any:
    sun: Any = bpy.data.lights.new("light", "SUN")
    sun.energy = np.pi * strength  # so that a white surface that faces it shows the strength
    sun.angle = _BLUR
    return sun


def _ambient_world() -> Any:
    world: Any = bpy.data.worlds.new("ambient")
    background = world.node_tree.nodes["Background"]
    background.inputs["Color"].default_value = (1, 1, 1, 1)
    background.inputs["Strength"].default_value = AMBIENT
    return world


def _turned_to(towards: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix, transposed as Blender takes it, of a light whose +Z axis points that way."""
    side = np.cross(towards, np.eye(3)[np.abs(towards).argmin()])
    side /= np.linalg.norm(side)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([side, np.cross(towards, side), towards])
    return matrix


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Blender writes a line for each picture on the process's standard output."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
