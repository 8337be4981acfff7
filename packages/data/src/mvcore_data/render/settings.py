"""How views are drawn, whatever draws them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from mvcore_data.render.backgrounds import Background

CHOICES = {
    "renderer": ("pyvista", "blender"),
    "lights": ("world", "camera"),
    "materials": ("file", "grey"),
    "device": ("cpu", "gpu"),
}
"""The words that each of these settings may be."""


@dataclass(frozen=True)
class RenderSettings:
    """How views are drawn and encoded.

    Attributes:
        size: Width and height of a view in pixels.
        background: What is behind the object.
        codec: ``jpeg``, ``png`` or ``webp``.
        quality: Of JPEG and WebP, 1 to 100.
        renderer: Who draws, ``pyvista`` or ``blender``.
        lights: What the lights are fixed to: the ``world`` or the ``camera``.
        materials: Those of the ``file``, or ``grey`` for all.
        samples: Light paths a pixel; of the Blender renderer.
        device: Where the Blender renderer computes, ``cpu`` or ``gpu``.
        seed: Of drawn backgrounds and of the Blender renderer's noise.
    """

    size: int
    background: Background
    codec: str
    quality: int
    renderer: str = "pyvista"
    lights: str = "world"
    materials: str = "file"
    samples: int = 64
    device: str = "cpu"
    seed: int = 0

    def fingerprint(self) -> str:
        """Another one for other pictures."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()
