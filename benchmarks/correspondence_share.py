"""How many points find their partner in another view: projected by depth, against two independent draws.

Renders meshes to a temporary store, draws points in pairs of views both ways, and asks the mesh itself, ray by ray,
which points of the first view the second sees: a point counts as seen if the first hit of the ray to it is within
0.5 % of the mesh's longest side of it, and is seen from the same side. Prints JSON with the shares of these points, and
of all points, that have a positive.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyvista as pv
import torch
import vtk
from mvcore.api import Cameras, ViewBatch
from mvcore_data import ViewStore
from mvcore_data.render.backgrounds import Background
from mvcore_data.render.items import MeshItem
from mvcore_data.render.manifest import MeshEntry, read_manifest
from mvcore_data.render.meshes import load_mesh
from mvcore_data.render.pipeline import RenderPlan, render_store
from mvcore_data.render.settings import RenderSettings
from mvcore_data.rigs import make_rig
from mvcore_equivariance.correspondences import pairs_of, projected, released
from mvcore_equivariance.geometry import relative_rotation
from torch import Tensor

POSITIVE = 5e-3
"""Of the longest side, as the authors' code has it."""


def batch_of(store: ViewStore, first: int, second: int) -> ViewBatch | None:
    """One pair of views; None without depth in both."""
    depths = [store.depth(view) for view in (first, second)]
    cameras = [store.camera(view) for view in (first, second)]
    if any(depth is None or not depth.any() for depth in depths) or None in cameras:
        return None
    intrinsics, extrinsics = (
        torch.from_numpy(np.stack([camera[k] for camera in cameras if camera is not None])) for k in (0, 1)
    )
    there = torch.ones(2, dtype=torch.bool)
    return ViewBatch.make(
        [2],
        depth=torch.from_numpy(np.stack([depth for depth in depths if depth is not None])),
        depth_valid=there,
        cameras=Cameras(intrinsics, extrinsics),
        camera_valid=there,
    )


class Mesh:
    """Triangles that rays are sent through."""

    def __init__(self, surfaces: Any) -> None:
        mesh = pv.merge([pv.PolyData.from_regular_faces(s.points.astype(float), s.faces) for s in surfaces])
        self.longest = float(np.ptp(mesh.points, axis=0).max())
        self._normals = np.asarray(mesh.compute_normals(point_normals=False, consistent_normals=False)["Normals"])
        self._locator = vtk.vtkStaticCellLocator()
        self._locator.SetDataSet(mesh)
        self._locator.BuildLocator()

    def first_hit(self, origin: Any, end: Any) -> tuple[Any, Any] | None:
        """Where a ray meets the mesh first, and the normal of that triangle."""
        at, cell = [0.0] * 3, cast(Any, vtk.reference(0))
        rest: Any = (vtk.reference(0.0), at, [0.0] * 3, vtk.reference(0), cell)
        if not self._locator.IntersectWithLine(origin, end, 1e-9, *rest):
            return None
        return np.array(at), self._normals[int(cell)]


def centre_of(camera: Any) -> Any:
    return -camera[:3, :3].T @ camera[:3, 3]


def truly_seen(mesh: Mesh, x: Tensor, batch: ViewBatch) -> Any:
    """(P,) whether the second view sees points, from the side that the first sees them from, by rays."""
    assert batch.cameras is not None
    assert batch.depth is not None
    k, first, t = (matrix.double().numpy() for matrix in (batch.cameras.intrinsics[1], *batch.cameras.world_to_camera))
    points = x.double().numpy()
    local = points @ t[:3, :3].T + t[:3, 3]
    image = local @ k.T
    at = image[:, :2] / image[:, 2:]
    inside = (local[:, 2] > 0) & (at >= 0).all(1) & (at < np.array(batch.depth.shape[:0:-1])).all(1)
    origin, near = centre_of(t), POSITIVE * mesh.longest
    seen = np.zeros(len(points), np.bool_)
    for p in np.flatnonzero(inside):
        ray = points[p] - origin
        hit = mesh.first_hit(origin, origin + ray * (1 + near / np.linalg.norm(ray)))
        if hit is not None and np.linalg.norm(hit[0] - points[p]) < near:
            seen[p] = (hit[1] @ ray) * (hit[1] @ (points[p] - centre_of(first))) > 0
    return seen


def shares_of(store: ViewStore, entry: MeshEntry, number: int, options: argparse.Namespace, unit: str) -> list[Any]:
    """(angle, seen, projected, projected of seen, released) of some pairs of an object's views."""
    mesh = Mesh(load_mesh(entry.path, unit))
    rng, found = np.random.default_rng(number), list[Any]()
    views = store.views_of(number)
    while len(found) < options.pairs:
        first, second = (int(views[k]) for k in rng.choice(len(views), 2, replace=False))
        batch = batch_of(store, first, second)
        if batch is None or batch.cameras is None:
            continue
        angle = float(relative_rotation(*batch.cameras.world_to_camera))
        if angle > options.angle:
            continue
        torch.manual_seed(len(found))
        ours = projected(*pairs_of(batch, masks=False), options.points, 0)
        theirs = released(*pairs_of(batch, masks=False), options.points)
        assert ours.own is not None
        valid = ours.source.valid[0]
        some = valid.nonzero()[: options.rays, 0]
        seen = truly_seen(mesh, ours.source.xyz[0, some], batch)
        own = ours.own[0].numpy()
        one, other = (spots.xyz[0][spots.valid[0]] for spots in theirs[:2])
        matched = (torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist") < POSITIVE * mesh.longest).any(
            1
        )
        of_seen = float(own[some][seen].mean()) if seen.any() else None
        shares = (seen.mean(), own[valid.numpy()].mean(), of_seen, float(matched.double().mean()))
        found.append((angle, *shares, seen.sum()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("meshes", type=Path, help="a folder of meshes, or a manifest")
    parser.add_argument("--objects", type=int, default=20, help="evenly spread over the meshes")
    parser.add_argument("--pairs", type=int, default=8, help="of an object's views, at random")
    parser.add_argument("--points", type=int, default=3000)
    parser.add_argument("--rays", type=int, default=500, help="points of a pair that the mesh is asked about")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--angle", type=float, default=120.0, help="highest rotation between the cameras, in degrees")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    entries = read_manifest(options.meshes).meshes
    chosen = [entries[k] for k in np.linspace(0, len(entries) - 1, min(options.objects, len(entries))).astype(int)]
    rig = make_rig("icosphere42")
    settings = RenderSettings(options.size, Background((0, 0, 0)), "jpeg", 90)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        plan = RenderPlan([MeshItem(entry, geometry=True) for entry in chosen], rig, settings)
        failed = render_store(plan, path, workers=options.workers)
        with ViewStore(path) as store:
            by_id = {entry.id: entry for entry in chosen if entry.id not in failed}
            rows = [
                row
                for number, name in enumerate(store.object_ids)
                for row in shares_of(store, by_id[name], number, options, rig.unit)
            ]
    angles, seen, ours, of_seen, theirs, counts = (np.array(column, float) for column in zip(*rows, strict=True))
    some = counts > 0

    def summary(chosen: Any) -> dict[str, Any]:
        """Means over pairs; the share of what is seen over all such points."""
        weights = counts[chosen & some]
        return {
            "pairs": int(chosen.sum()),
            "truly_covisible": round(seen[chosen].mean(), 4),
            "projected": round(ours[chosen].mean(), 4),
            "projected_of_covisible": round(float(np.average(of_seen[chosen & some], weights=weights)), 4),
            "released": round(theirs[chosen].mean(), 4),
            "released_of_covisible": round(float(theirs[chosen].sum() / seen[chosen].sum()), 4),
        }

    report = {"benchmark": "correspondence_share", "target_projected_of_covisible": 0.95, **vars(options)}
    report |= {"meshes": options.meshes.name, "objects": len(by_id), "all": summary(angles >= 0)}
    for low, high in ((0, 45), (45, 75), (75, options.angle)):
        if (bin := (angles >= low) & (angles < high)).any():
            report[f"degrees_{low:g}_{high:g}"] = summary(bin)
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
