"""A training step of mvcore against a bare PyTorch loop around the same model and loss: the target is 5 % at ViT-B/32.

    python benchmarks/training_step.py [--model ViT-B-32] [--batch 8] [--block 1] [--pairs 8] [--threads 1]

One process trains two copies of an open_clip model at random weights, all of it, with image-text contrast and AdamW:

- `mvcore`: `mvcore.training.fit` as `mvcore train` calls it: Lightning, loader over a store cached in memory,
  tokenizer, callbacks, metrics, progress bar;
- `bare`: a Python loop over the very same batches, which lie in memory with their tokens, with the same fused AdamW.

The two take turns, a block of steps each. What counts as mvcore's is everything between two blocks of the bare loop, so
nothing that it does is left out. Prints JSON: medians over the pairs of blocks of the time of a step, by the wall clock
and of the process's processor time, which other programs on the machine disturb less; the ratios with their range; the
difference in milliseconds a step; and by how much the losses of the two copies differ at the last step. `--model tiny`
takes a model that costs next to nothing, so that the difference is what mvcore adds to any step; `--profile FILE`
writes where mvcore's blocks spend their time, for `python -m pstats`.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from mvcore.config import OptimizerSettings
from mvcore.config_layers import Layers
from mvcore.plugins import load_plugins
from mvcore.running import open_session
from mvcore.training.fit import Training, fit, prepare
from mvcore.types import ViewBatch
from mvcore_data import ViewStoreWriter
from rich.console import Console
from torch import Tensor, nn

TARGET = 1.05
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


class Block(NamedTuple):
    """Seconds that a block of steps took by the wall clock, and of processor time in all threads."""

    wall: float
    cpu: float


class Stopwatch:
    """Time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Block:
        return Block(time.perf_counter() - self._wall, time.process_time() - self._cpu)


class BareLoop:
    """What one writes by hand around an open_clip model."""

    def __init__(self, clip: nn.Module, settings: OptimizerSettings) -> None:
        self.clip: Any = clip
        self.parameters = list(clip.parameters())
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, settings.lr, settings.betas, settings.eps, fused=True)
        self.clip_norm = settings.clip_norm or float("inf")
        self.mean = 255 * torch.tensor(self.clip.visual.image_mean).view(1, 3, 1, 1)
        self.std = 255 * torch.tensor(self.clip.visual.image_std).view(1, 3, 1, 1)

    def step(self, images: Tensor, tokens: Tensor) -> Tensor:
        pixels = (images.float() - self.mean) / self.std
        view = F.normalize(self.clip.encode_image(pixels), dim=-1)
        text = F.normalize(self.clip.encode_text(tokens), dim=-1)
        logits = self.clip.logit_scale.exp() * view @ text.T
        labels = torch.arange(len(images))
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        return loss.detach()


class TakeTurns(Callback):
    """Lets the bare loop go over mvcore's last batches each time that mvcore has done a block of steps."""

    def __init__(self, bare: BareLoop, tokenizer: Any, block: int, profile: cProfile.Profile | None) -> None:
        self.bare = bare
        self.tokenizer = tokenizer
        self.block = block
        self.profile = profile
        self.pairs: list[tuple[Block, Block]] = []
        self.losses = (float("nan"), float("nan"))
        self._batches: list[ViewBatch] = []
        self._since = Stopwatch()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batches.append(batch["objects"])
        if len(self._batches) < self.block:
            return
        ours = self._since.read()
        if self.profile is not None:
            self.profile.disable()
        ready: list[tuple[Any, Tensor]] = [(b.images, self.tokenizer(list(b.captions))) for b in self._batches]
        watch = Stopwatch()
        for images, tokens in ready:
            loss = self.bare.step(images, tokens)
        self.pairs.append((ours, watch.read()))
        self.losses = (float(pl_module.outcome.total), float(loss))  # pyright: ignore[reportPossiblyUnboundVariable]
        self._batches.clear()
        if self.profile is not None:
            self.profile.enable()
        self._since = Stopwatch()


def training(arguments: argparse.Namespace, folder: Path) -> Training:
    """mvcore's side, ready to train."""
    model, size = arguments.model, 224
    if model == "tiny":
        size, path = 32, folder / "tiny.json"
        path.write_text(json.dumps(TINY))
        model = str(path)
    rng = np.random.default_rng(0)
    with ViewStoreWriter(folder / "store") as writer:
        for i in range(max(64, arguments.batch)):
            image = rng.integers(0, 256, (1, size, size, 3), dtype=np.uint8)
            writer.add_object(f"object{i}", image, captions=[f"a picture of thing {i}"])
    source = {"id": "data.views", "path": str(folder / "store"), "sampling": "views", "cache": "memory"}
    layers = Layers()
    layers.merge(
        {
            "encoder": {"id": "core.open_clip", "model": model, "pretrained": None, "train": "all"},
            "data": {"objects": {**source, "batch_size": arguments.batch}},
            "losses": {"core.itc": {}},
            "optimizer": {"lr": 1.0e-5, "schedule": "constant"},
            "run": {
                "max_steps": arguments.block * (1 + arguments.pairs),
                "checkpoint_every": 10**9,
                "accelerator": "cpu",
                "workers": 0,
            },
        },
        "benchmark",
    )
    session = open_session(layers.config(), load_plugins())
    return prepare(session.plan, session.sources, folder / "run")


def spread(values: list[float], digits: int = 3) -> list[float]:
    return [round(min(values), digits), round(max(values), digits)]


def report(pairs: list[tuple[Block, Block]], block: int) -> dict[str, object]:
    """Medians over all pairs but the first, in which optimizers and caches are made."""
    found: dict[str, object] = {}
    for clock in Block._fields:
        times = [(getattr(ours, clock) / block, getattr(bare, clock) / block) for ours, bare in pairs[1:]]
        ratios = [ours / bare for ours, bare in times]
        more = [1000 * (ours - bare) for ours, bare in times]
        found[clock] = {
            "mvcore_step_s": round(statistics.median(ours for ours, _ in times), 4),
            "bare_step_s": round(statistics.median(bare for _, bare in times), 4),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_min_max": spread(ratios),
            "more_ms_a_step": round(statistics.median(more), 2),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--block", type=int, default=1, help="steps before the other side's turn")
    parser.add_argument("--pairs", type=int, default=8, help="blocks of each side that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    profile_path: Path | None = arguments.profile
    profile = None if profile_path is None else cProfile.Profile()
    with tempfile.TemporaryDirectory() as name, Path(os.devnull).open("w") as nowhere:
        folder = Path(name)
        made = training(arguments, folder)
        backbone: Any = made.pipeline.backbone
        bare = BareLoop(copy.deepcopy(backbone.clip), made.plan.config.optimizer)
        turns = TakeTurns(bare, backbone.tokenizer, arguments.block, profile)
        made.trainers.append(turns)
        console = Console(file=nowhere, force_terminal=True)  # the progress bar is drawn as on a terminal
        fit(made, folder / "run", title="benchmark", console=console)
    if profile is not None and profile_path is not None:
        profile.disable()
        profile.dump_stats(profile_path)
    result = {
        "benchmark": "training_step",
        "target_ratio": TARGET,
        **{key: value for key, value in vars(arguments).items() if key != "profile"},
        "load_average": [round(value, 1) for value in os.getloadavg()],
        **report(turns.pairs, arguments.block),
        "loss_of_mvcore_and_bare": [round(value, 6) for value in turns.losses],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
