"""The PyVista renderer against Blender's Cycles: the same procedural objects from the same cameras, one process each.

Needs `mvcore-data[blender]`. Both sides draw the same views in turn, after one object that is not counted; prints JSON.
`ratio` is PyVista's rate over Blender's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from mvcore_data.render.backgrounds import Background
from mvcore_data.render.probe import configure_process, probe_renderer
from mvcore_data.render.settings import RenderSettings
from mvcore_data.rigs import make_rig
from mvcore_data.synth.names import CATEGORIES

_renderer: Any = None


def start(settings: RenderSettings, window: str, scratch: str) -> None:
    """Prepare a process for one renderer."""
    global _renderer
    configure_process(window)
    from mvcore_data.render.renderer import make_renderer

    _renderer = make_renderer(settings, Path(scratch))


def draw(category: str, views: int, size: int) -> float:
    """Seconds that the views of an object take."""
    from mvcore_data.synth.items import SyntheticItem

    rig = make_rig("upper", views)
    surfaces = SyntheticItem(category, 0, 0, False).build(rig.unit).surfaces
    begin = time.perf_counter()
    assert sum(1 for _ in _renderer.render(surfaces, *rig.cameras(size))) == views
    return time.perf_counter() - begin


def measure(size: int, views: int, objects: int, samples: int) -> dict[str, object]:
    """Rates of both, and their ratio object by object."""
    seconds: dict[str, list[float]] = {"pyvista": [], "blender": []}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        pools = {}
        for name in seconds:
            settings = RenderSettings(size, Background(), "png", 100, renderer=name, samples=samples)
            arguments = (settings, probe_renderer(name), scratch)
            pools[name] = ProcessPoolExecutor(1, context, start, arguments)
        for category in (CATEGORIES[0], *CATEGORIES[:objects]):
            for name, pool in pools.items():
                seconds[name].append(pool.submit(draw, category, views, size).result())
        for pool in pools.values():
            pool.shutdown()
    counted = {name: taken[1:] for name, taken in seconds.items()}
    ratios = [b / p for p, b in zip(counted["pyvista"], counted["blender"], strict=True)]
    return {
        "size": size,
        "samples": samples,
        "views": views * objects,
        "views_per_second": {name: round(views * objects / sum(taken), 2) for name, taken in counted.items()},
        "ratio": round(statistics.median(ratios), 1),
        "ratio_range": [round(min(ratios), 1), round(max(ratios), 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--objects", type=int, default=6)
    parser.add_argument("--samples", type=int, default=64)
    given = parser.parse_args()
    print(json.dumps(measure(given.size, given.views, given.objects, given.samples)))


if __name__ == "__main__":
    main()
