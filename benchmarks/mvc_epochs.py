"""1,000 epochs of the object head on stored vectors: the target is five minutes on two CPU cores in float32.

    python benchmarks/mvc_epochs.py [--steps 1000] [--objects 1638] [--loss object] [--threads 2]

One process trains the same head twice on a store of random vectors, 36 views an object in 512 dimensions, one step an
epoch over all objects with 6 of each one's views, drawn anew:

- `mvcore`: `mvcore train --recipe mvc_heads.<loss>-paper`, called as the program calls it, from the command line's
  arguments to the saved checkpoint: Lightning, loader, vectors read from the store and checked, metrics, checkpoints;
- `bare`: a Python loop over the vectors in memory, with the same head, loss, draws of views and fused Adam, and nothing
  else; its time is that of `--bare-steps` steps, scaled.

Prints JSON: seconds of each side by the wall clock and of processor time, and their ratios. `--profile FILE` writes
where mvcore's side spends its time, for `python -m pstats`.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os

from mvcore.cli.process import prepare

# As the program itself does, before torch is imported.
prepare()

import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mvcore.cli.main import run
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.embed import embed_store
from mvcore_mvc_heads import MLPHead, contrastive_loss, object_similarity_loss
from torch import Tensor

TARGET_S = 300
VIEWS, DRAWN, WIDTH = 36, 6, 512


class Cone:
    """Random vectors about one direction, as CLIP's are: what an object's views share, and what is each one's own."""

    def __init__(self, objects: int) -> None:
        kinds = (("image", "view"), ("text", "text"))
        features = {kind: {"feature": feature, "width": WIDTH} for kind, feature in kinds}
        self.key = {"model": {"id": "benchmark"}, "features": features}
        rng = np.random.default_rng(0)
        centre = rng.standard_normal(WIDTH)
        own = centre + 0.6 * rng.standard_normal((objects, 1, WIDTH))
        views = own + 0.35 * rng.standard_normal((objects, VIEWS, WIDTH))
        self._rows = {"image": views.reshape(-1, WIDTH), "text": rng.standard_normal((objects, WIDTH))}

    def rows(self, kind: str, n: int) -> Iterator[Any]:
        yield self._rows[kind]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """(B, D) texts and (B, 36, D) views, in the precision in which a store keeps them."""
        half = {kind: torch.from_numpy(rows.astype(np.float16)).float() for kind, rows in self._rows.items()}
        return half["text"], half["image"].unflatten(0, (-1, VIEWS))


def written(folder: Path, objects: int) -> Cone:
    """A store of so many objects, with vectors under the tag `clip`; its images are tiny and never read."""
    cone, pixels = Cone(objects), np.zeros((VIEWS, 8, 8, 3), np.uint8)
    with ViewStoreWriter(folder) as writer:
        for i in range(objects):
            writer.add_object(f"object{i}", pixels, captions=[f"thing {i}"])
    with ViewStore(folder) as store:
        embed_store(store, cone, "clip")
    return cone


class Clock:
    """Seconds since it was made, by the wall and of processor time in all threads."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, scale: float = 1.0) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"wall_s": round(scale * wall, 2), "cpu_s": round(scale * cpu, 2)}


def bare(cone: Cone, loss: str, steps: int) -> float:
    """Trains on vectors in memory; gives the last loss."""
    text, views = cone.tensors()
    torch.manual_seed(0)
    head = MLPHead(WIDTH)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3, fused=True)
    value = torch.zeros(())
    rows = torch.arange(len(views))[:, None]
    for _ in range(steps):
        drawn = views[rows, torch.rand(views.shape[:2]).topk(DRAWN, dim=1).indices]
        found = head(drawn)
        value = object_similarity_loss(text, found) if loss == "object" else contrastive_loss(text, found)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return float(value.detach())


def trained(store: Path, folder: Path, loss: str, steps: int) -> None:
    """Runs the program."""
    words = ["train", "--recipe", f"mvc_heads.{loss}-paper", "--data", str(store), "--output", str(folder)]
    settings = {"max_steps": steps, "accelerator": "cpu", "workers": 0, "checkpoint_every": max(steps, 1)}
    for name, value in settings.items():
        words += ["--set", f"run.{name}={value}"]
    with redirect_stdout(io.StringIO()):
        code = run(words)
    if code:
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--bare-steps", type=int, default=100)
    parser.add_argument("--objects", type=int, default=1638)
    parser.add_argument("--loss", choices=("object", "contrastive"), default="object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        cone = written(Path(name) / "store", arguments.objects)
        bare(cone, arguments.loss, 3)
        clock = Clock()
        last = bare(cone, arguments.loss, arguments.bare_steps)
        by_hand = clock.read(arguments.steps / arguments.bare_steps)
        profile = cProfile.Profile() if arguments.profile else None
        if profile is not None:
            profile.enable()
        clock = Clock()
        trained(Path(name) / "store", Path(name) / "run", arguments.loss, arguments.steps)
        ours = clock.read()
        if profile is not None:
            profile.disable()
            profile.dump_stats(arguments.profile)
    report = {
        "benchmark": "mvc_epochs",
        "target_s": TARGET_S,
        **{key: value for key, value in vars(arguments).items() if key != "profile"},
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "mvcore": ours,
        "bare": by_hand,
        "wall_ratio": round(ours["wall_s"] / by_hand["wall_s"], 2),
        "cpu_ratio": round(ours["cpu_s"] / by_hand["cpu_s"], 2),
        "bare_loss": round(last, 4),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
