"""Objects from outdoors: vehicles, animals, a house, a tree; and those with a profile: guitar and boot."""

from __future__ import annotations

import numpy as np
import trimesh
from numpy.random import Generator

from mvcore_data.synth.shapes import Sculpture, ball, box, disc, line, plate, ring, rod, smooth, tube


def car(rng: Generator) -> Sculpture:
    """A car seen from its side, its nose to +X."""
    low, roof, width = rng.uniform(0.38, 0.5), rng.uniform(0.4, 0.6), rng.uniform(0.85, 1.05)
    nose, tail = rng.uniform(0.35, 0.75), rng.uniform(0.05, 0.5)
    made = Sculpture("tall" if roof > 0.5 else "flat")
    made.add(
        plate(smooth([(-1.2, 0), (1.2, 0), (1.2, low * 0.8), (1.0, low), (-1.15, low), (-1.2, low * 0.8)], 2), width),
        "main",
    )
    cabin = np.array([(-1.1 + tail, low), (1.1 - nose, low), (0.75 - nose, low + roof), (-0.85 + tail, low + roof)])
    made.add(plate(cabin, width * 0.86), "main")
    inner = (cabin - cabin.mean(axis=0)) * [0.86, 0.7] + cabin.mean(axis=0)
    made.add(plate(inner, width * 0.9), "glass")
    front = [(1.1 - nose - 0.02, low + 0.04), (0.79 - nose, low + roof * 0.9)]
    made.add(line((*front[0], 0), (*front[1], 0), 0.05), "glass")
    wheel = rng.uniform(0.24, 0.32)
    for x in (-0.72, 0.72):
        for side in (-1, 1):
            made.add(disc(wheel, 0.2), "dark", (x, 0.02, side * (width / 2 - 0.04)))
            made.add(disc(wheel * 0.5, 0.22), "metal", (x, 0.02, side * (width / 2 - 0.04)))
    for side in (-1, 1):
        made.add(ball(0.09), "light", (1.18, low * 0.6, side * width * 0.33))
        made.add(ball(0.07), "second", (-1.18, low * 0.6, side * width * 0.33))
    return made


def airplane(rng: Generator) -> Sculpture:
    """An aeroplane seen from its side, its nose to +X."""
    span, sweep = rng.uniform(0.9, 1.35), rng.uniform(0.0, 0.6)
    radius = rng.uniform(0.17, 0.26)
    made = Sculpture("slim" if radius < 0.21 else "fat")
    path = [
        (-1.3, 0.16, 0),
        (-0.9, 0.06, 0),
        (-0.4, 0, 0),
        (0.6, 0, 0),
        (0.95, 0, 0),
        (1.15, -0.02, 0),
        (1.25, -0.04, 0),
    ]
    made.add(tube(path, [0.03, radius * 0.6, radius, radius, radius * 0.9, radius * 0.55, 0.05]), "main")
    lift = rng.uniform(0.1, 0.35)
    for side in (-1, 1):
        wing = [(0.35, 0), (0.35 - sweep - 0.1, side * span), (0.1 - sweep - 0.1, side * span), (-0.35, 0)]
        made.add(_wing(wing, side, 0.06), "second", (0.1, -0.06, 0), ("x", -side * float(np.rad2deg(np.arctan(lift)))))
        tail = [(-0.85, 0), (-1.15, side * span * 0.4), (-1.32, side * span * 0.4), (-1.22, 0)]
        made.add(_wing(tail, side, 0.05), "second", (0, 0.14, 0))
    if rng.random() < 0.5:
        for side in (-1, 1):
            made.add(tube([(0.4, -0.16, side * span * 0.4), (0, -0.16, side * span * 0.4)], 0.12), "metal")
    else:
        made.add(box(0.03, 0.75, 0.1), "dark", (1.28, -0.04, 0), ("x", float(rng.uniform(0, 90))))
        made.add(ball(0.08), "metal", (1.28, -0.04, 0))
    made.add(plate([(-1.3, 0.12), (-0.8, 0.12), (-1.1, 0.7), (-1.36, 0.7)], 0.06), "main")
    for x in np.linspace(-0.35, 0.55, 5):
        for side in (-1, 1):
            made.add(ball(0.055), "glass", (float(x), 0.05, side * radius * 0.97))
    made.add(ball(0.2, 0.11, radius * 0.7), "glass", (0.88, radius * 0.65, 0))
    return made


def _wing(outline: list[tuple[float, float]], side: int, thickness: float) -> trimesh.Trimesh:
    """A plate over the XZ plane from (x, z) corners."""
    flat = np.array([(x, -z) for x, z in outline])
    if side > 0:
        flat = flat[::-1]
    area = np.sum(flat[:, 0] * np.roll(flat[:, 1], -1) - np.roll(flat[:, 0], -1) * flat[:, 1])
    mesh = plate(flat if area > 0 else flat[::-1], thickness)
    mesh.apply_transform([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    return mesh


def bicycle(rng: Generator) -> Sculpture:
    """A bicycle seen from its side, its front wheel to +X."""
    wheel = rng.uniform(0.5, 0.62)
    made = Sculpture("tall" if wheel > 0.56 else "low")
    tyre = rng.uniform(0.05, 0.08)
    for x in (-0.82, 0.82):
        made.add(ring(wheel, tyre), "dark", (x, 0, 0))
        made.add(disc(0.09, 0.14), "metal", (x, 0, 0))
        for turn in range(0, 180, 30):
            made.add(box(wheel * 2, 0.025, 0.02), "metal", (x, 0, 0), ("z", turn))
    seat, head, pedal = (-0.35, 0.72, 0), (0.6, 0.78, 0), (-0.12, -0.05, 0)
    bar = rng.uniform(0.055, 0.08)
    for start, end in (
        (pedal, seat),
        (pedal, head),
        (seat, head),
        (seat, (-0.82, 0, 0)),
        (pedal, (-0.82, 0, 0)),
        (head, (0.82, 0, 0)),
    ):
        made.add(line(start, end, bar), "main")
    made.add(line(seat, (-0.4, 0.92, 0), 0.04), "metal")
    made.add(ball(0.24, 0.07, 0.13), "second", (-0.4, 0.97, 0))
    made.add(line(head, (0.54, 1.02, 0), 0.045), "metal")
    made.add(line((0.54, 1.02, -0.42), (0.54, 1.02, 0.42), 0.045), "second")
    made.add(disc(0.17, 0.05), "second", (-0.12, -0.05, 0.06))
    made.add(line((-0.12, -0.05, 0.15), (0.05, -0.3, 0.15), 0.035), "metal")
    return made


def sailboat(rng: Generator) -> Sculpture:
    """A sailing boat seen from its side, its bow to +X."""
    tall, half = rng.uniform(1.5, 2.1), rng.uniform(0.28, 0.42)
    made = Sculpture("tall" if tall > 1.8 else "small")
    hull = tube(
        [(-1.0, 0.02, 0), (-0.95, 0, 0), (-0.5, -0.04, 0), (0.2, -0.04, 0), (0.75, 0.02, 0), (1.15, 0.12, 0)],
        [0.2, half * 0.8, half, half, half * 0.6, 0.04],
    )
    hull.vertices[:, 1] = np.where(
        hull.vertices[:, 1] > 0.05, 0.05 + 0.1 * hull.vertices[:, 0].clip(0), hull.vertices[:, 1] * 1.2
    )
    made.add(hull, "second")
    made.add(line((0.1, 0, 0), (0.1, tall, 0), 0.04), "wood")
    rear = rng.uniform(0.75, 1.0)
    made.add(plate([(0.04, 0.25), (0.04, tall * 0.97), (-rear, 0.25)], 0.04), "main")
    made.add(line((0.1, 0.22, 0), (-rear, 0.22, 0), 0.03), "wood")
    if rng.random() < 0.75:
        made.add(plate([(0.16, 0.28), (1.0, 0.28), (0.16, tall * rng.uniform(0.7, 0.9))], 0.04), "light")
    if rng.random() < 0.5:
        made.add(plate([(0.1, tall), (0.4, tall + 0.1), (0.1, tall + 0.2)], 0.03), "second")
    return made


def house(rng: Generator) -> Sculpture:
    """A house with its door to +Z."""
    width, height, depth, roof = (
        rng.uniform(1.3, 1.9),
        rng.uniform(0.8, 1.3),
        rng.uniform(1.0, 1.6),
        rng.uniform(0.5, 0.95),
    )
    made = Sculpture("tall" if height > 1.05 else "low")
    made.add(box(width, height, depth), "main", (0, height / 2, 0))
    over = 0.14
    if rng.random() < 0.6:
        gable = [(-width / 2 - over, height), (width / 2 + over, height), (0, height + roof)]
        made.add(plate(gable, depth + 2 * over), "second")
    else:
        gable = [(-depth / 2 - over, height), (depth / 2 + over, height), (0, height + roof)]
        made.add(plate(gable, width + 2 * over), "second", turn=("y", 90))
    front = depth / 2 + 0.02
    door = rng.uniform(-0.25, 0.25) * width
    made.add(box(0.3, height * 0.52, 0.05), "wood", (door, height * 0.26, front))
    for x in (-0.34, 0.34):
        if abs(x * width - door) > 0.34:
            made.add(box(0.3, 0.3, 0.05), "glass", (x * width, height * 0.6, front))
    for side in (-1, 1):
        made.add(box(0.05, 0.3, 0.3), "glass", (side * (width / 2 + 0.01), height * 0.6, 0))
    if rng.random() < 0.7:
        made.add(box(0.2, roof * 0.9, 0.2), "dark", (width * 0.28, height + roof * 0.6, -depth * 0.1))
    return made


def tree(rng: Generator) -> Sculpture:
    """A tree: a fir of stacked cones, or a round crown."""
    trunk, thick = rng.uniform(0.4, 0.9), rng.uniform(0.1, 0.17)
    made = Sculpture("round")
    if rng.random() < 0.5:
        made.shape = "pointed"
        layers, radius, y = int(rng.integers(2, 5)), rng.uniform(0.65, 0.9), trunk
        for _ in range(layers):
            made.add(rod(radius, 0.75, 0.0), "main", (0, y, 0))
            radius, y = radius * 0.78, y + 0.42
    else:
        crown = rng.uniform(0.5, 0.65)
        for _ in range(int(rng.integers(4, 7))):
            at = rng.uniform(-0.4, 0.4, 3) * [1.1, 0.8, 1.1] + [0, trunk + crown, 0]
            made.add(ball(crown * rng.uniform(0.7, 1.0)), "main", tuple(at))
        for _ in range(int(rng.integers(0, 9))):
            direction = rng.normal(size=3)
            made.add(ball(0.09), "second", tuple(direction / np.linalg.norm(direction) * 0.7 + [0, trunk + crown, 0]))
    made.add(rod(thick, trunk + 0.4, thick * 0.7), "wood")
    return made


def fish(rng: Generator) -> Sculpture:
    """A fish seen from its side, its head to -X."""
    tall, thick = rng.uniform(0.38, 0.65), rng.uniform(0.2, 0.3)
    made = Sculpture("slim" if tall < 0.5 else "round")
    body = ball(1.0, tall, thick)
    made.add(body, "main")
    spread = rng.uniform(0.4, 0.6)
    notch = rng.uniform(1.1, 1.3)
    made.add(plate([(0.85, 0), (1.5, -spread), (notch + 0.05, 0), (1.5, spread)], 0.07), "second")
    fin = rng.uniform(0.25, 0.45)
    made.add(
        plate([(-0.35, tall * 0.85), (0.55, tall * 0.7), (0.3, tall + fin * 0.6), (-0.05, tall + fin)], 0.06), "second"
    )
    made.add(plate([(0.0, -tall * 0.9), (0.15, -tall - fin * 0.7), (0.4, -tall * 0.8)], 0.06), "second")
    for side in (-1, 1):
        made.add(ball(0.11, 0.11, 0.07), "light", (-0.66, tall * 0.22, side * thick * 0.74))
        made.add(ball(0.06, 0.06, 0.06), "dark", (-0.68, tall * 0.22, side * (thick * 0.74 + 0.04)))
        made.add(
            plate([(-0.2, 0.02), (-0.18, -0.2), (0.2, -0.14), (0.2, -0.02)], 0.04),
            "second",
            (0, 0, side * (thick + 0.02)),
        )
    return made


def dog(rng: Generator) -> Sculpture:
    """A dog seen from its side, its head to -X."""
    length, leg, stout = rng.uniform(0.6, 0.95), rng.uniform(0.45, 0.85), rng.uniform(0.24, 0.36)
    made = Sculpture("long" if length > 0.78 else "short")
    made.add(ball(length, stout, stout * 0.9), "main", (0, leg + stout * 0.6, 0))
    for x in (-length * 0.62, length * 0.62):
        for side in (-1, 1):
            made.add(line((x, leg + 0.1, side * stout * 0.55), (x, 0.05, side * stout * 0.55), 0.1), "main")
            made.add(ball(0.15, 0.08, 0.11), "second", (x - 0.06, 0.06, side * stout * 0.55))
    head = (-length - 0.12, leg + stout + rng.uniform(0.3, 0.45), 0)
    made.add(line((-length * 0.7, leg + stout * 0.8, 0), head, stout * 0.5), "main")
    made.add(ball(0.28, 0.25, 0.24), "main", head)
    made.add(ball(0.24, 0.12, 0.14), "second", (head[0] - 0.3, head[1] - 0.07, 0))
    made.add(ball(0.06), "dark", (head[0] - 0.53, head[1] - 0.03, 0))
    floppy = rng.random() < 0.5
    for side in (-1, 1):
        made.add(ball(0.045), "dark", (head[0] - 0.2, head[1] + 0.1, side * 0.17))
        if floppy:
            made.add(ball(0.09, 0.24, 0.05), "second", (head[0] + 0.1, head[1] - 0.02, side * 0.25))
        else:
            made.add(rod(0.1, 0.3, 0.0), "second", (head[0] + 0.06, head[1] + 0.16, side * 0.14))
    lift = rng.uniform(0.1, 0.5)
    made.add(
        tube(
            [
                (length * 0.9, leg + stout * 0.8, 0),
                (length + 0.2, leg + stout + lift * 0.6, 0),
                (length + 0.32, leg + stout + lift, 0),
            ],
            [0.09, 0.07, 0.04],
        ),
        "main",
    )
    return made


def guitar(rng: Generator) -> Sculpture:
    """A guitar that stands upright, its strings to +Z."""
    width, waist, depth = rng.uniform(0.62, 0.75), rng.uniform(0.38, 0.48), rng.uniform(0.18, 0.32)
    neck = rng.uniform(1.1, 1.5)
    made = Sculpture("long" if neck > 1.3 else "short")
    shoulder = width * rng.uniform(0.7, 0.85)
    right = [
        (0.0, -0.72),
        (width * 0.75, -0.72),
        (width, -0.3),
        (waist, 0.1),
        (shoulder, 0.45),
        (shoulder * 0.6, 0.75),
        (0.12, 0.75),
    ]
    outline = smooth([*right, *[(-x, y) for x, y in right[:0:-1]]], 3)
    made.add(plate(outline, depth), "main")
    front = depth / 2
    made.add(disc(0.2, 0.03), "dark", (0, 0.18, front))
    made.add(box(0.4, 0.08, 0.06), "dark", (0, -0.38, front))
    made.add(box(0.16, neck, 0.1), "wood", (0, 0.7 + neck / 2, front))
    made.add(box(0.28, 0.36, 0.1), "second", (0, 0.8 + neck, front))
    for side in (-1, 1):
        for y in (0.7, 0.88):
            made.add(disc(0.05, 0.16), "metal", (side * 0.18, y + neck, front), ("y", 90))
    for x in (-0.045, 0.0, 0.045):
        made.add(box(0.012, neck + 1.05, 0.012), "light", (x, 0.16 + neck / 2, front + 0.07))
    return made


def boot(rng: Generator) -> Sculpture:
    """A boot seen from its side, its toe to -X."""
    shaft, width = rng.uniform(0.6, 1.5), rng.uniform(0.5, 0.65)
    made = Sculpture("high" if shaft > 1.0 else "low")
    toe = rng.uniform(0.32, 0.45)
    side = smooth(
        [
            (-1.0, 0.1),
            (0.5, 0.1),
            (0.56, 0.6),
            (0.5, 0.6 + shaft),
            (-0.22, 0.6 + shaft),
            (-0.2, 0.72),
            (-0.75, toe + 0.1),
            (-1.05, toe),
        ],
        2,
    )
    made.add(plate(side, width), "main")
    made.add(plate(smooth([(-1.1, -0.06), (0.55, -0.06), (0.58, 0.12), (-1.1, 0.12)], 2), width * 1.1), "dark")
    made.add(box(0.42, 0.16, width * 1.06), "dark", (0.34, -0.12, 0))
    made.add(box(0.8, 0.16, width * 1.12), "second", (0.14, 0.5 + shaft, 0))
    for step in range(int(rng.integers(2, 5))):
        made.add(
            line(
                (-0.42 + step * 0.09, 0.54 + step * 0.1, -width * 0.4),
                (-0.42 + step * 0.09, 0.54 + step * 0.1, width * 0.4),
                0.05,
            ),
            "light",
        )
    return made
