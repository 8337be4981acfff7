"""An off-screen renderer on PyVista: colour, coverage, mask and z-depth of a mesh from given cameras.

Import it only in a process of its own (see `mvcore_data.render.pool`): without libEGL or libOSMesa VTK kills the
interpreter, and a process that is forked after OpenGL was used hangs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyvista as pv
import vtk
from numpy.typing import NDArray
from vtkmodules.util.numpy_support import vtk_to_numpy

from mvcore_data.render.renderer import RenderedView
from mvcore_data.render.scene import AMBIENT, LIGHTS, depth_range, light_directions, reach_of
from mvcore_data.render.settings import RenderSettings
from mvcore_data.render.surfaces import Surface

# 3 x 3 samples a pixel, and the middle one lies exactly at the pixel's centre: depth and mask are read there.
_SAMPLES = 3
_LARGEST_WINDOW = 4096


class PyVistaRenderer:
    """Draws objects one after another in one window.

    Args:
        settings: Size and lights.
    """

    def __init__(self, settings: RenderSettings) -> None:
        self.size, self._fixed_to = settings.size, settings.lights
        self._samples = _SAMPLES if self.size * _SAMPLES <= _LARGEST_WINDOW else 1
        side = self.size * self._samples
        self._plotter = pv.Plotter(off_screen=True, window_size=[side, side], lighting="none")
        self._plotter.set_background("black")  # pyright: ignore[reportArgumentType]
        self._plotter.disable_anti_aliasing()
        self._window: Any = self._plotter.render_window
        self._window.SetMultiSamples(0)
        self._window.SetAlphaBitPlanes(1)
        self._plotter.renderer.SetBackgroundAlpha(0.0)
        self._lights = [pv.Light(light_type="scene light", intensity=light.strength) for light in LIGHTS]
        for light in self._lights:
            light.positional = False
            light.focal_point = (0, 0, 0)
            self._plotter.add_light(light)
        self._plotter.show(auto_close=False)

    def render(
        self, surfaces: Sequence[Surface], intrinsics: NDArray[np.floating], world_to_camera: NDArray[np.floating]
    ) -> Iterator[RenderedView]:
        """Views of an object from each camera; see `Renderer`."""
        actors = [self._add(surface) for surface in surfaces]
        reach = reach_of(surfaces)
        try:
            for matrix, camera in zip(intrinsics, world_to_camera.astype(np.float64), strict=True):
                near, far = depth_range(camera, reach)
                self._place_camera(float(matrix[1, 1]), camera, (near, far))
                for light, towards in zip(self._lights, light_directions(self._fixed_to, camera), strict=True):
                    light.position = tuple(towards)
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
            mesh, ambient=AMBIENT, diffuse=1.0, specular=0.0, reset_camera=False, render=False, **options
        )
        actor.prop.interpolation = "Flat" if surface.normals is None else "Phong"
        actor.ForceOpaqueOn()  # a translucent part would write no depth
        return actor

    def _place_camera(self, focal: float, camera: NDArray[np.float64], depths: tuple[float, float]) -> None:
        rotation, translation = camera[:3, :3], camera[:3, 3]
        position = -rotation.T @ translation
        view: Any = self._plotter.camera
        view.position = tuple(position)
        view.focal_point = tuple(position + rotation[2] * translation[2])
        view.up = tuple(-rotation[1])
        view.view_angle = float(np.rad2deg(2 * np.arctan(self.size / 2 / focal)))
        view.clipping_range = depths

    def _read(self, near: float, far: float) -> RenderedView:
        side, n = self.size * self._samples, self._samples
        pixels, buffer = vtk.vtkUnsignedCharArray(), vtk.vtkFloatArray()
        self._window.GetRGBACharPixelData(0, 0, side - 1, side - 1, 0, pixels, 0)
        self._window.GetZbufferData(0, 0, side - 1, side - 1, buffer)
        # Black behind all, nothing of it in the alpha channel: the colours come times their alpha.
        drawn = vtk_to_numpy(pixels).reshape(self.size, n, self.size, n, 4)[::-1].mean(axis=(1, 3), dtype=np.float32)
        window_depth = vtk_to_numpy(buffer).reshape(side, side)[::-1]
        centres = window_depth[n // 2 :: n, n // 2 :: n].astype(np.float64)
        mask = centres < 1.0
        depth = np.where(mask, far * near / (far - centres * (far - near)), 0.0).astype(np.float32)
        return RenderedView(drawn[..., :3], drawn[..., 3] / 255, mask, depth)


def _cut_alpha(texture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if texture.shape[2] == 3 or bool((texture[..., 3] == 255).all()):
        return texture[..., :3]
    return np.concatenate([texture[..., :3], np.where(texture[..., 3:] < 128, 0, 255).astype(np.uint8)], axis=2)
