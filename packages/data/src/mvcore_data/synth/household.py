"""Objects of the house: vessels, furniture, a clock, a camera."""

from __future__ import annotations

import numpy as np
import trimesh
from numpy.random import Generator

from mvcore_data.synth.shapes import Sculpture, arc, ball, box, disc, lathe, line, plate, ring, rod, tube


def mug(rng: Generator) -> Sculpture:
    """An open cup with a handle on +X."""
    height, radius = rng.uniform(1.1, 1.9), rng.uniform(0.55, 0.75)
    top = radius * rng.uniform(0.9, 1.25)
    made = Sculpture("tall" if height / radius > 2.3 else "wide")
    wall = 0.07
    made.add(lathe([(0, 0), (radius, 0), (top, height), (top - wall, height), (radius - wall, 0.1), (0, 0.1)]), "main")
    middle = (radius + top) / 2 - 0.04
    reach, tall = rng.uniform(0.4, 0.6), height * rng.uniform(0.28, 0.36)
    handle = arc((middle, height * 0.5, 0), (reach, tall), -92, 92)
    if rng.random() < 0.4:
        handle = np.array(
            [(middle, y, 0) for y in (height / 2 - tall,)]
            + [
                (middle + reach, height / 2 - tall, 0),
                (middle + reach, height / 2 + tall, 0),
                (middle, height / 2 + tall, 0),
            ]
        )
    made.add(tube(handle, rng.uniform(0.07, 0.1)), "second")
    return made


def teapot(rng: Generator) -> Sculpture:
    """A pot with its spout to -X, its handle on +X and a lid."""
    radius, squash = rng.uniform(0.75, 0.9), rng.uniform(0.7, 1.1)
    made = Sculpture("round" if squash > 0.9 else "low")
    angles = np.deg2rad(np.linspace(-65, 62, 14))
    body = [(radius * np.cos(a), radius * squash * np.sin(a)) for a in angles]
    made.add(lathe([(0, body[0][1]), *body, (0, body[-1][1])]), "main")
    lid = body[-1]
    made.add(lathe([(lid[0] * 1.1, lid[1]), (lid[0] * 0.7, lid[1] + 0.12), (0, lid[1] + 0.17)]), "second")
    made.add(ball(rng.uniform(0.08, 0.13)), "second", (0, lid[1] + 0.24, 0))
    lift = rng.uniform(0.3, 0.5)
    spout = [
        (-radius * 0.8, -0.2 * squash, 0),
        (-radius - 0.25, -0.02, 0),
        (-radius - 0.4, lift * 0.7, 0),
        (-radius - 0.62, lift + 0.12, 0),
    ]
    made.add(tube(spout, [0.2, 0.15, 0.1, 0.08]), "main")
    made.add(tube(arc((radius * 0.82, 0.02, 0), (0.55, 0.42 * squash), -95, 95), 0.07), "second")
    return made


def bottle(rng: Generator) -> Sculpture:
    """A bottle with a neck, a label and a cap."""
    radius, body, neck = rng.uniform(0.35, 0.6), rng.uniform(1.0, 1.6), rng.uniform(0.35, 0.8)
    thin = rng.uniform(0.12, 0.18)
    made = Sculpture("slim" if radius < 0.45 else "fat")
    shoulder = rng.uniform(0.2, 0.5)
    curve = [
        (thin + (radius - thin) * np.cos(t) ** 1.5, body + shoulder * np.sin(t)) for t in np.linspace(0, np.pi / 2, 7)
    ]
    made.add(
        lathe(
            [
                (0, 0),
                (radius * 0.95, 0),
                (radius, 0.06),
                *curve,
                (thin, body + shoulder + neck),
                (0, body + shoulder + neck),
            ]
        ),
        "main",
    )
    made.add(rod(thin * 1.25, 0.2), "second", (0, body + shoulder + neck - 0.05, 0))
    low, high = body * rng.uniform(0.15, 0.3), body * rng.uniform(0.6, 0.85)
    made.add(lathe([(radius, low), (radius * 1.03, low), (radius * 1.03, high), (radius, high)]), "light")
    return made


def chair(rng: Generator) -> Sculpture:
    """A chair that faces +Z."""
    width, depth, leg = rng.uniform(0.9, 1.2), rng.uniform(0.85, 1.1), rng.uniform(0.7, 1.0)
    back, thick = rng.uniform(0.85, 1.4), rng.uniform(0.08, 0.2)
    made = Sculpture("high" if back > 1.1 else "low")
    made.add(box(width, thick, depth), "main", (0, leg, 0))
    x, z, r = width / 2 - 0.07, depth / 2 - 0.07, rng.uniform(0.045, 0.075)
    for side in (-1, 1):
        for end in (-1, 1):
            made.add(box(2 * r, leg, 2 * r), "wood", (side * x, leg / 2, end * z))
        made.add(box(2 * r, back, 2 * r), "wood", (side * x, leg + back / 2, -z))
    style = rng.integers(3)
    if style == 0:
        made.add(box(width - 0.1, back * 0.6, 0.08), "main", (0, leg + back * 0.7, -z))
    elif style == 1:
        for step in (0.35, 0.65, 0.95):
            made.add(box(width - 0.1, back * 0.16, 0.07), "main", (0, leg + back * step, -z))
    else:
        made.add(box(width, 0.16, 0.1), "main", (0, leg + back, -z))
        for step in np.linspace(-0.6, 0.6, 4):
            made.add(box(0.06, back, 0.05), "second", (step * x, leg + back / 2, -z))
    if rng.random() < 0.35:
        for side in (-1, 1):
            made.add(box(0.1, 0.07, depth * 0.9), "second", (side * x, leg + 0.42, 0))
            made.add(box(0.08, 0.42, 0.08), "second", (side * x, leg + 0.21, z * 0.8))
    return made


def lamp(rng: Generator) -> Sculpture:
    """A table lamp: foot, pole and shade."""
    pole, low, tall = rng.uniform(0.9, 1.4), rng.uniform(0.55, 0.8), rng.uniform(0.5, 0.8)
    top = low * rng.uniform(0.35, 0.75)
    made = Sculpture("tall" if pole > 1.15 else "short")
    made.add(rod(rng.uniform(0.35, 0.5), 0.1), "second")
    made.add(rod(0.06, pole + 0.2), "metal")
    if rng.random() < 0.5:
        made.add(ball(rng.uniform(0.16, 0.3)), "second", (0, rng.uniform(0.25, 0.45), 0))
    made.add(lathe([(low, pole), (top, pole + tall), (top - 0.04, pole + tall), (low - 0.04, pole)]), "main")
    made.add(ball(0.16, 0.2), "light", (0, pole + 0.22, 0))
    if rng.random() < 0.5:
        made.add(line((low * 0.6, pole + 0.05, 0), (low * 0.6, pole - 0.4, 0), 0.02), "metal")
    return made


def clock(rng: Generator) -> Sculpture:
    """A clock whose face looks to +Z: a wall clock, or an alarm clock with feet and bells."""
    made = Sculpture("round")
    thick = rng.uniform(0.2, 0.5)
    if rng.random() < 0.3:
        made.shape = "square"
        made.add(box(2.05, 2.05, thick), "main")
    else:
        made.add(disc(1.05, thick), "main")
        made.add(ring(1.0, 0.09), "second", (0, 0, thick / 2))
    made.add(disc(0.88, 0.06), "light", (0, 0, thick / 2 + 0.02))
    front = thick / 2 + 0.07
    for hour in range(12):
        angle = np.deg2rad(hour * 30)
        long = 0.2 if hour % 3 == 0 else 0.12
        made.add(box(0.07, long, 0.03), "dark", (0.72 * np.sin(angle), 0.72 * np.cos(angle), front), ("z", -hour * 30))
    for length, width in ((0.42, 0.11), (0.62, 0.07)):
        turn = float(rng.uniform(0, 360))
        angle = np.deg2rad(turn)
        made.add(
            box(width, length, 0.03),
            "dark",
            (length / 2 * np.sin(angle), length / 2 * np.cos(angle), front + 0.02),
            ("z", -turn),
        )
    if rng.random() < 0.55:
        for side in (-1, 1):
            made.add(line((side * 0.6, -0.75, 0), (side * 0.85, -1.3, 0.1), 0.09), "metal")
            made.add(ball(0.3, 0.26, 0.26), "second", (side * 0.6, 1.05, 0))
    return made


def camera(rng: Generator) -> Sculpture:
    """A photo camera whose lens looks to +Z."""
    width, height, depth = rng.uniform(1.6, 2.1), rng.uniform(1.0, 1.3), rng.uniform(0.5, 0.8)
    lens, long = height * rng.uniform(0.32, 0.42), rng.uniform(0.3, 0.9)
    made = Sculpture("compact" if long < 0.5 else "long")
    made.add(box(width, height, depth), "main")
    made.add(box(width * 1.01, height * 0.18, depth * 1.01), "second", (0, height * 0.42, 0))
    x = width * rng.uniform(-0.1, 0.12)
    for radius, start, end, slot in (
        (lens, 0.0, long, "dark"),
        (lens * 1.12, long * 0.6, long * 0.8, "metal"),
        (lens * 0.72, long * 0.9, long + 0.02, "glass"),
    ):
        made.add(disc(radius, end - start), slot, (x, -0.05, depth / 2 + (start + end) / 2))
    made.add(box(width * 0.3, height * 0.24, depth * 0.7), "second", (x, height * 0.6, 0))
    made.add(disc(0.13, 0.12), "metal", (-width * 0.36, height * 0.54, 0), ("x", 90))
    made.add(box(0.26, 0.16, 0.05), "light", (width * 0.36, height * 0.36, depth / 2 + 0.02))
    return made


def umbrella(rng: Generator) -> Sculpture:
    """An open umbrella with a hooked handle."""
    radius, rise, ribs = rng.uniform(0.95, 1.25), rng.uniform(0.45, 0.75), int(rng.integers(6, 10))
    made = Sculpture("wide" if radius > 1.1 else "small")
    length = rng.uniform(1.3, 1.7)
    rims = np.linspace(0, 360, ribs + 1)
    for step in range(ribs):
        slot = "main" if step % 2 == 0 or rng.random() < 0.5 else "second"
        made.add(_gore(radius, rise, rims[step], rims[step + 1]), slot, (0, length - rise, 0))
    made.add(line((0, 0, 0), (0, length + 0.15, 0), 0.035), "metal")
    made.add(tube(arc((0.17, 0, 0), (0.17, 0.2), 180, 360), 0.06), "wood")
    return made


def _gore(radius: float, rise: float, start: float, end: float) -> trimesh.Trimesh:
    rows = []
    for t in np.linspace(0, 1, 6):
        angle = np.deg2rad(np.linspace(start, end, 5))
        reach = radius * np.sin(t * np.pi / 2) * (1 - 0.06 * t * np.sin(np.linspace(0, np.pi, 5)))
        rows.append(
            np.stack([reach * np.sin(angle), np.full(5, rise * np.cos(t * np.pi / 2)), reach * np.cos(angle)], 1)
        )
    corner = (np.arange(5)[:, None] * 5 + np.arange(4)).ravel()
    faces = np.concatenate(
        [np.stack([corner, corner + 5, corner + 1], 1), np.stack([corner + 1, corner + 5, corner + 6], 1)]
    )
    return trimesh.Trimesh(np.concatenate(rows), faces, process=False)


def key(rng: Generator) -> Sculpture:
    """A key that lies in the XY plane, its bow to the left."""
    length, bow = rng.uniform(1.4, 2.0), rng.uniform(0.3, 0.45)
    made = Sculpture("long" if length > 1.7 else "short")
    thick = rng.uniform(0.09, 0.13)
    if rng.random() < 0.6:
        made.add(ring(bow, thick), "main")
    else:
        for x, y in ((-bow * 0.5, 0), (bow * 0.25, bow * 0.7), (bow * 0.25, -bow * 0.7)):
            made.add(ring(bow * 0.55, thick * 0.8), "main", (x, y, 0))
    made.add(line((bow, 0, 0), (bow + length, 0, 0), thick * 0.9), "main")
    made.add(line((bow + 0.05, 0, 0), (bow + 0.2, 0, 0), thick * 1.5), "second")
    teeth = int(rng.integers(2, 5))
    for x in np.linspace(bow + length * 0.62, bow + length - 0.08, teeth):
        tall = rng.uniform(0.22, 0.48)
        made.add(box(0.13, tall, thick * 1.3), "main", (float(x), -tall / 2, 0))
    return made


def hammer(rng: Generator) -> Sculpture:
    """A hammer that stands on its handle, its head along X."""
    length, head = rng.uniform(1.6, 2.2), rng.uniform(0.35, 0.5)
    made = Sculpture("heavy" if head > 0.43 else "light")
    made.add(rod(0.11, length, 0.08), "main")
    made.add(rod(0.13, length * 0.4), "second")
    made.add(box(0.34, 0.3, 0.3), "metal", (0, length, 0))
    made.add(disc(head * 0.45, head), "metal", (0.17 + head / 2, length, 0), ("y", 90))
    if rng.random() < 0.65:
        claw = [
            (-0.1, length + 0.12),
            (-0.1, length - 0.1),
            (-0.45, length - 0.14),
            (-0.85, length - 0.4),
            (-0.5, length + 0.02),
        ]
        for z in (-0.1, 0.1):
            made.add(plate(claw[::-1], 0.1), "metal", (0, 0, z))
    else:
        made.add(disc(head * 0.45, head), "metal", (-0.17 - head / 2, length, 0), ("y", 90))
    return made
