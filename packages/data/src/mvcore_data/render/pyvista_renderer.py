"""An off-screen renderer on PyVista: colour, mask and z-depth of a mesh from given cameras.

Import it only in a process of its own (see `mvcore_data.render.pool`): without libEGL or libOSMesa VTK kills the
interpreter, and a process that is forked after OpenGL was used hangs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyvista as pv
import vtk
from numpy.typing import NDArray
from vtkmodules.util.numpy_support import vtk_to_numpy

from mvcore_data.render.surfaces import Surface

# Directions and strengths of the lights, fixed to the world: key from the upper front right, fill from the left,
# rim from behind, and a weak one from below so that no side is black.
_LIGHTS = (((2.0, 3.0, 4.0), 0.62), ((-4.0, 1.0, 2.0), 0.30), ((0.5, 2.0, -4.0), 0.38), ((0.0, -4.0, 0.5), 0.18))
_AMBIENT = 0.22

# 3 x 3 samples a pixel, and the middle one lies exactly at the pixel's centre: depth and mask are read there.
_SAMPLES = 3
_LARGEST_WINDOW = 4096


@dataclass(frozen=True)
class RenderedView:
    """One view.

    Attributes:
        image: (H, W, 3) uint8 sRGB over the background colour, antialiased.
        mask: (H, W) bool, True where the ray through the pixel's centre meets the object.
        depth: (H, W) float32 z-depth (along the optical axis) in object units, 0 where there is no object.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    depth: NDArray[np.float32]


class Renderer:
    """Draws objects one after another in one window.

    Args:
        size: Width and height of the pictures in pixels.
        background: sRGB of the background, 0 to 255.
    """

    def __init__(self, size: int, background: tuple[int, int, int]) -> None:
        self.size = size
        self._samples = _SAMPLES if size * _SAMPLES <= _LARGEST_WINDOW else 1
        side = size * self._samples
        self._plotter = pv.Plotter(off_screen=True, window_size=[side, side], lighting="none")
        self._plotter.set_background([channel / 255 for channel in background])  # pyright: ignore[reportArgumentType]
        self._plotter.disable_anti_aliasing()
        self._window: Any = self._plotter.render_window
        self._window.SetMultiSamples(0)
        for direction, strength in _LIGHTS:
            light = pv.Light(position=direction, focal_point=(0, 0, 0), light_type="scene light", intensity=strength)
            light.positional = False
            self._plotter.add_light(light)
        self._plotter.show(auto_close=False)

    def render(
        self, surfaces: Iterable[Surface], intrinsics: NDArray[np.floating], world_to_camera: NDArray[np.floating]
    ) -> Iterator[RenderedView]:
        """Views of an object from each camera, in order.

        Args:
            surfaces: The object's parts.
            intrinsics: (V, 3, 3) for square pixels, with the optical axis in the picture's middle.
            world_to_camera: (V, 4, 4), OpenCV axes.
        """
        surfaces = list(surfaces)
        actors = [self._add(surface) for surface in surfaces]
        reach = max(float(np.linalg.norm(surface.points, axis=1).max()) for surface in surfaces)
        try:
            for matrix, camera in zip(intrinsics, world_to_camera, strict=True):
                near, far = self._place_camera(matrix.astype(np.float64), camera.astype(np.float64), reach)
                self._plotter.render()
                yield self._read(near, far)
        finally:
            for actor in actors:
                self._plotter.remove_actor(actor, render=False)

    def close(self) -> None:
        """Free the window."""
        self._plotter.close()

    def _add(self, surface: Surface) -> Any:
        mesh = pv.PolyData.from_regular_faces(surface.points, surface.faces)
        options: dict[str, Any] = {"color": surface.colour}
        if surface.texture is not None and surface.uv is not None:
            mesh.active_texture_coordinates = surface.uv
            texture = pv.Texture(np.ascontiguousarray(_cut_alpha(surface.texture)))
            texture.repeat = True
            texture.interpolate = True
            texture.mipmap = True
            options["texture"] = texture
        elif surface.colours is not None:
            mesh.point_data["rgb"] = surface.colours
            options = {"scalars": "rgb", "rgb": True}
        if surface.normals is not None:
            mesh.point_data.active_normals = surface.normals
        actor = self._plotter.add_mesh(
            mesh, ambient=_AMBIENT, diffuse=1.0, specular=0.0, reset_camera=False, render=False, **options
        )
        actor.prop.interpolation = "Flat" if surface.normals is None else "Phong"
        actor.ForceOpaqueOn()  # a translucent part would write no depth
        return actor

    def _place_camera(
        self, matrix: NDArray[np.float64], camera: NDArray[np.float64], reach: float
    ) -> tuple[float, float]:
        rotation, translation = camera[:3, :3], camera[:3, 3]
        position = -rotation.T @ translation
        distance = float(translation[2])
        view: Any = self._plotter.camera
        view.position = tuple(position)
        view.focal_point = tuple(position + rotation[2] * distance)
        view.up = tuple(-rotation[1])
        view.view_angle = float(np.rad2deg(2 * np.arctan(self.size / 2 / matrix[1, 1])))
        near, far = max(distance - reach * 1.01, distance * 1e-3), distance + reach * 1.01
        view.clipping_range = (near, far)
        return near, far

    def _read(self, near: float, far: float) -> RenderedView:
        side = self.size * self._samples
        pixels, buffer = vtk.vtkUnsignedCharArray(), vtk.vtkFloatArray()
        self._window.GetPixelData(0, 0, side - 1, side - 1, 0, pixels, 0)
        self._window.GetZbufferData(0, 0, side - 1, side - 1, buffer)
        colour = vtk_to_numpy(pixels).reshape(self.size, self._samples, self.size, self._samples, 3)[::-1]
        image = np.rint(colour.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)
        middle = self._samples // 2
        window_depth = vtk_to_numpy(buffer).reshape(side, side)[middle :: self._samples, middle :: self._samples][::-1]
        mask = window_depth < 1.0
        depth = far * near / (far - window_depth.astype(np.float64) * (far - near))
        return RenderedView(image, mask.copy(), np.where(mask, depth, 0.0).astype(np.float32))


def _cut_alpha(texture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if texture.shape[2] == 3 or bool((texture[..., 3] == 255).all()):
        return texture[..., :3]
    return np.concatenate([texture[..., :3], np.where(texture[..., 3:] < 128, 0, 255).astype(np.uint8)], axis=2)
