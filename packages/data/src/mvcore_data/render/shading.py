"""Normals of triangle meshes: smooth, but for edges that are sharp."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyvista as pv

from mvcore_data.render.surfaces import Surface

_SHARP = 38.0  # degrees between two faces from which on their edge is drawn as an edge


def shade(surface: Surface) -> Surface:
    """The same triangles with normals, every corner a point of its own.

    Points that coincide are one point for the shading, so seams of texture coordinates do not show.
    """
    points, corner = np.unique(surface.points, axis=0, return_inverse=True)
    mesh = pv.PolyData.from_regular_faces(points, corner.reshape(-1)[surface.faces])
    shaded = mesh.compute_normals(
        cell_normals=False, split_vertices=True, feature_angle=_SHARP, consistent_normals=False
    )
    normals = np.asarray(shaded.point_data["Normals"], np.float32)[np.asarray(shaded.regular_faces).ravel()]
    index = surface.faces.ravel()
    return replace(
        surface,
        points=surface.points[index],
        faces=np.arange(len(index)).reshape(-1, 3),
        normals=np.nan_to_num(normals),
        colours=None if surface.colours is None else surface.colours[index],
        uv=None if surface.uv is None else surface.uv[index],
    )
