"""The definitions as plain loops in float64, against which the batched code is compared."""

from __future__ import annotations

import math

import numpy as np

EPS = 1e-8


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def view_weight(views: list[np.ndarray], j: int, rule: str, neighbours: int) -> float:
    if rule == "mean":
        return 1.0
    if rule == "inverse_distance":
        distances = [math.sqrt(float(((views[j] - other) ** 2).sum())) for other in views]
        return 1 / (sum(sorted(distances)[:neighbours]) + EPS)
    cosines = [cosine(views[j], other) for i, other in enumerate(views) if i != j]
    nearest = sorted(cosines, reverse=True)[:neighbours]
    mean = sum(nearest) / len(nearest) if nearest else 1.0
    return 1 / (mean + EPS) if mean != 0 else 0.0


def weights_of(views: list[np.ndarray], rule: str, neighbours: int) -> list[float]:
    weights = [view_weight(views, j, rule, neighbours) for j in range(len(views))]
    total = sum(weights)
    return [w / total for w in weights] if total != 0 else [1 / len(views)] * len(views)


def anchors(embeddings: np.ndarray, objects: np.ndarray, rule: str, neighbours: int = 5) -> np.ndarray:
    found = np.zeros((int(objects.max()) + 1, embeddings.shape[1]))
    for o in range(len(found)):
        views = [embeddings[i].astype(np.float64) for i in range(len(objects)) if objects[i] == o]
        for weight, view in zip(weights_of(views, rule, neighbours) if views else [], views, strict=True):
            found[o] += weight * view
    return found


def outliers(embeddings: np.ndarray, objects: np.ndarray, anchor_table: np.ndarray, k: int) -> np.ndarray:
    chosen = np.zeros(len(objects), dtype=bool)
    for o in range(int(objects.max()) + 1):
        rows = [i for i in range(len(objects)) if objects[i] == o]
        far = sorted((cosine(embeddings[i].astype(np.float64), anchor_table[o].astype(np.float64)), i) for i in rows)
        for _, i in far[:k]:
            chosen[i] = True
    return chosen
