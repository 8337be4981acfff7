"""Reading mesh files, bounded, with errors that name what is wrong. For worker processes, never for the parent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from mvcore.api import DataError
from numpy.typing import NDArray
from PIL import Image
from trimesh.visual.material import MultiMaterial, PBRMaterial

from mvcore_data.render.shading import shade
from mvcore_data.render.surfaces import Surface, normalise, to_srgb

SUFFIXES = (".glb", ".obj", ".ply")
_MAX_BYTES = 1 << 29
_MAX_FACES = 4_000_000
_MAX_TEXTURE_SIDE = 2048  # larger textures are reduced: pictures of some hundred pixels show no more
_MAX_TEXTURE_PIXELS = 1 << 26


def load_mesh(path: Path, unit: str) -> list[Surface]:
    """The surfaces of a GLB, OBJ or PLY file, centred and scaled (see `normalise`).

    Normals are computed anew from the triangles. Materials are drawn matt and opaque; textures are cut at alpha 1/2.

    Raises:
        DataError: The file is missing, too large, damaged or empty.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: not a mesh that can be read here ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size > _MAX_BYTES:
        raise DataError(f"{path}: larger than {_MAX_BYTES >> 20} MiB")
    Image.MAX_IMAGE_PIXELS = _MAX_TEXTURE_PIXELS
    try:
        scene = trimesh.load_scene(path, process=False)
        surfaces = [_surface(mesh) for mesh in _placed(scene)]
        if not surfaces:
            raise DataError(f"{path}: holds no triangle")
        if sum(len(surface.faces) for surface in surfaces) > _MAX_FACES:
            raise DataError(f"{path}: more than {_MAX_FACES} triangles")
        return normalise([shade(surface) for surface in surfaces], unit)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # the readers raise whatever a damaged file leads them to
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(f"{path}: cannot be read as a mesh ({type(error).__name__}: {reason[:200]})") from None


def _placed(scene: trimesh.Scene) -> list[trimesh.Trimesh]:
    """The scene's triangle meshes, moved to where its graph puts them."""
    meshes = []
    for node in sorted(scene.graph.nodes_geometry):
        matrix, name = scene.graph[node]
        mesh = scene.geometry[name]
        if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces):
            placed = mesh.copy()
            placed.apply_transform(matrix)
            meshes.append(placed)
    return meshes


def _surface(mesh: trimesh.Trimesh) -> Surface:
    points, faces = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int64)
    if faces.min() < 0 or faces.max() >= len(points):
        raise ValueError("a triangle names a point that is not there")
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is not a finite number")
    visual: Any = mesh.visual
    if visual.kind == "face":
        corners = faces.ravel()
        colours = np.repeat(np.asarray(visual.face_colors)[:, :3], 3, axis=0)
        return Surface(points[corners], np.arange(len(corners)).reshape(-1, 3), colours=colours)
    if visual.kind == "vertex":
        return Surface(points, faces, colours=np.asarray(visual.vertex_colors)[:, :3])
    if visual.kind == "texture":
        return _with_material(Surface(points, faces), mesh)
    return Surface(points, faces)


def _with_material(surface: Surface, mesh: trimesh.Trimesh) -> Surface:
    visual: Any = mesh.visual
    material = visual.material
    if isinstance(material, MultiMaterial):
        raise ValueError("one part with several materials")
    if isinstance(material, PBRMaterial):
        image, factor = material.baseColorTexture, material.baseColorFactor
        # glTF gives colour factors in linear light (glTF 2.0, section 3.9.2).
        colour = (1.0, 1.0, 1.0) if factor is None else _rgb(to_srgb(np.asarray(factor)[:3] / 255))
    else:
        image, factor = material.image, material.diffuse
        # An OBJ's texture stands in place of its diffuse colour: exporters often leave that one dark.
        colour = (1.0, 1.0, 1.0) if image is not None or factor is None else _rgb(np.asarray(factor)[:3] / 255)
    painted = mesh.vertex_attributes.get("color")
    arrays: dict[str, Any] = {"colour": colour}
    if image is not None and visual.uv is not None and len(visual.uv) == len(surface.points):
        arrays |= {"uv": np.nan_to_num(np.asarray(visual.uv, np.float32)[:, :2]), "texture": _pixels(image)}
    elif painted is not None and len(painted) == len(surface.points):
        arrays["colours"] = (_bytes(np.asarray(painted)[:, :3]) * np.array(colour)).astype(np.uint8)
    return Surface(surface.points, surface.faces, **arrays)


def _bytes(colours: NDArray[Any]) -> NDArray[np.uint8]:
    if colours.dtype == np.uint8:
        return colours
    scale = 255 if np.issubdtype(colours.dtype, np.floating) else 255 / np.iinfo(colours.dtype).max
    return np.clip(colours * scale, 0, 255).astype(np.uint8)


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    if image.width * image.height > _MAX_TEXTURE_PIXELS:
        raise ValueError(f"a texture of {image.width} x {image.height} pixels is too large")
    image = image.convert("RGBA")
    image.thumbnail((_MAX_TEXTURE_SIDE, _MAX_TEXTURE_SIDE))
    return np.asarray(image)


def _rgb(colour: NDArray[np.floating]) -> tuple[float, float, float]:
    red, green, blue = np.clip(colour, 0, 1).tolist()
    return red, green, blue
