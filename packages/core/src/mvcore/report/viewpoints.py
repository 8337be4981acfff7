"""The picture of a run: how often each model is right, by the camera's azimuth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mvcore.evaluation.results import EvalResult
from mvcore.report.figures import accuracy_by_azimuth, draw_by_viewpoint

EVALUATOR = "core.zero_shot"


def draw_rows_by_viewpoint(
    rows: Mapping[str, Sequence[Mapping[str, EvalResult]]], path: Path, *, title: str = ""
) -> Path | None:
    """Top-1 of each row against azimuth, over all measured sources and the mean of its seeds.

    Args:
        rows: by name, one result a seed and evaluator.
        path: of the PNG.
        title: above the picture.

    Returns:
        `path`, or None where zero-shot was not measured or no camera is known.
    """
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, seeds in rows.items():
        found = [
            accuracy_by_azimuth(result[EVALUATOR], _sources(result[EVALUATOR]))
            for result in seeds
            if EVALUATOR in result
        ]
        if found and len(found[0][0]):
            curves[name] = (found[0][0], np.mean([accuracy for _, accuracy in found], axis=0))
    if not curves:
        return None
    return draw_by_viewpoint(curves, path, quantity="zero-shot top-1", percent=True, title=title)


def _sources(result: EvalResult) -> list[str]:
    names = (figure.name.split("/") for figure in result.figures)
    return sorted({parts[2] for parts in names if len(parts) == 4 and parts[1] == "azimuth"})
