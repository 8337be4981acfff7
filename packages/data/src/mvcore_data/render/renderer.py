"""What a renderer is, and the one that a process uses. Renderers run in spawned processes only (see `pool`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mvcore_data.render.settings import RenderSettings
from mvcore_data.render.surfaces import Surface


@dataclass(frozen=True)
class RenderedView:
    """One view.

    Attributes:
        colour: (H, W, 3) float32 sRGB, 0 to 255, times ``alpha``; antialiased.
        alpha: (H, W) float32, how much of each pixel the object covers, 0 to 1.
        mask: (H, W) bool, True where the ray through the pixel's centre meets the object.
        depth: (H, W) float32 z-depth (along the optical axis) there, in object units; 0 where there is no object.
    """

    colour: NDArray[np.float32]
    alpha: NDArray[np.float32]
    mask: NDArray[np.bool_]
    depth: NDArray[np.float32]

    def over(self, background: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The (H, W, 3) picture before an sRGB background, (H, W, 3) or (3,)."""
        behind = (1 - self.alpha[..., None]) * background.astype(np.float32)
        return np.rint(self.colour + behind).clip(0, 255).astype(np.uint8)


class Renderer(Protocol):
    """Draws objects one after another."""

    def render(
        self, surfaces: Sequence[Surface], intrinsics: NDArray[np.floating], world_to_camera: NDArray[np.floating]
    ) -> Iterator[RenderedView]:
        """Views of an object from each camera, in order.

        Args:
            surfaces: The object's parts.
            intrinsics: (V, 3, 3) for square pixels, with the optical axis in the picture's middle.
            world_to_camera: (V, 4, 4), OpenCV axes.
        """
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def make_renderer(settings: RenderSettings, scratch: Path) -> Renderer:
    """The renderer that the settings name, in the process that is to use it; `scratch` is a folder for its files."""
    if settings.renderer == "blender":
        from mvcore_data.render.blender_renderer import BlenderRenderer

        return BlenderRenderer(settings, scratch)
    from mvcore_data.render.pyvista_renderer import PyVistaRenderer

    return PyVistaRenderer(settings)
