"""A step of Omniview-Tuning against one that re-encodes outliers and texts, as the authors' code does: target 1.2x.

    python benchmarks/ovt_step.py [--model ViT-B-32] [--scale 1] [--rounds 5] [--threads 1]

One model at random weights (LoRA of rank 8 on q, k and v of every vision block, VIFormer, logit scale; text tower
frozen) takes whole steps (forward, backward, clipping, AdamW) in three ways, in turn, in one process:

- `mvcore`: each view goes through the model once, the consistency loss reads the rows of its outliers, and the texts
  come from the text cache, as they do from a caption's second use on;
- `mvcore_new_captions`: the same with captions that were never seen, as in the first pass over the data;
- `released`: the frozen text tower runs on the whole batch, tokenised before, and the outliers are encoded again.

Two batches of the same make-up as in the runs: `paper`, multi-view and plain images 2 : 1 with 11 % of the multi-view
ones outliers (5 of an object's 46 views), and `demo`, multi-view images alone with 21 % outliers (5 of 24). Prints
JSON: for each batch the largest differences of loss and gradients between `mvcore` and `released` (both in float32;
measured before anything is timed, and the run stops where they disagree), the time of a step of each way, by the wall
clock and of processor time, and the median over the rounds of the ratios, with their range.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from mvcore.encoders.open_clip import OpenClip
from mvcore.losses.itc import ImageTextContrastive
from mvcore.model import Link, Pipeline
from mvcore.packing import concatenate
from mvcore.training.objective import Objective
from mvcore.training.terms import Term
from mvcore.types import ViewBatch
from mvcore_ovt.consistency import ViewpointConsistency
from mvcore_ovt.lora import LoraAdapter
from mvcore_ovt.scale import LogitScaleAdapter
from mvcore_ovt.viformer import ViformerAdapter
from torch import Tensor, nn
from torch.nn.utils import parametrize

TARGET = 1.2
MARGIN = 0.3
TOLERANCE = 1e-4
VIEW, SCALE = frozenset({"view"}), frozenset({"logit_scale"})
STATE = frozenset({"state:ovt.anchors", "state:ovt.outliers"})


@dataclass(frozen=True)
class Makeup:
    """How many images a batch has."""

    multi_view: int
    plain: int
    outliers: int


MAKEUPS = {"paper": Makeup(9, 5, 1), "demo": Makeup(14, 0, 3)}


class Published:
    """Fixed anchors and outliers in the place of the mining trainer."""

    def __init__(self, makeup: Makeup, width: int) -> None:
        self.anchors = torch.randn(makeup.multi_view, width)
        self.outliers = torch.zeros(makeup.multi_view, dtype=torch.bool)
        self.outliers[torch.randperm(makeup.multi_view)[: makeup.outliers]] = True

    def state(self, batch: ViewBatch) -> dict[str, Tensor]:
        return {"ovt.anchors": self.anchors, "ovt.outliers": self.outliers}


def tuned_model(model: str) -> Pipeline:
    """The model of the recipe `ovt.paper`, with LoRA factors that are not zero, so that every gradient is live."""
    backbone = OpenClip(model=model, pretrained=None)
    lora = LoraAdapter(rank=8)
    links = (
        Link("ovt.lora", lora),
        Link("ovt.viformer", ViformerAdapter(), VIEW, VIEW),
        Link("ovt.logit_scale", LogitScaleAdapter(), frozenset(), SCALE),
    )
    for link in links:
        link.module.attach(backbone)  # pyright: ignore[reportCallIssue]
    for update in lora.updates:
        nn.init.normal_(update.b, std=0.02)  # pyright: ignore[reportArgumentType]
    return Pipeline(backbone, links).train()


def size_of(pipeline: Pipeline) -> int:
    size = pipeline.backbone.image_size
    assert size is not None
    return size


def images_with_captions(count: int, size: int, kind: str) -> ViewBatch:
    """One view of each of `count` objects, each with a caption of its own."""
    return ViewBatch.make(
        [1] * count,
        images=torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8),
        captions=[f"a photo of {kind} number {i}, on a table" for i in range(count)],
        caption_object=torch.arange(count),
        caption_view=torch.full((count,), -1),
    )


class OursStep:
    """What `mvcore train` does with a batch."""

    def __init__(self, pipeline: Pipeline, batches: dict[str, ViewBatch], published: Published) -> None:
        keys = VIEW | SCALE | {"text"}
        terms = [
            Term("core.itc", ImageTextContrastive(), keys | {"captions"}, tuple(batches)),
            Term("ovt.vc", ViewpointConsistency(MARGIN), VIEW | STATE, ("multi_view",)),
        ]
        self.objective = Objective(
            pipeline,
            terms,
            dict.fromkeys(batches, keys),
            dict.fromkeys(batches, size_of(pipeline)),
            {"state:ovt.anchors": published.state, "state:ovt.outliers": published.state},
            {"state:ovt.anchors": "object", "state:ovt.outliers": "view"},
        )
        self.batches = batches
        self.times = 0

    def step(self) -> Tensor:
        return self.objective.step(self.batches, Tensor.backward).total

    def step_on_new_captions(self) -> Tensor:
        self.times += 1
        fresh = {
            name: replace(batch, captions=tuple(f"{text}, take {self.times}" for text in batch.captions))
            for name, batch in self.batches.items()
        }
        return self.objective.step(fresh, Tensor.backward).total


class ReleasedStep:
    """The released loop's arithmetic on the same model, spared what it wastes beside the two re-encodings."""

    def __init__(self, pipeline: Pipeline, batches: dict[str, ViewBatch], published: Published) -> None:
        self.pipeline = pipeline
        backbone: Any = pipeline.backbone
        self.clip = backbone.clip
        self.whole = concatenate(list(batches.values()))
        self.tokens = backbone.tokenizer(list(self.whole.captions))
        self.multi_view = batches["multi_view"]
        self.published = published

    def step(self) -> Tensor:
        with parametrize.cached():
            features = self.pipeline(self.whole, VIEW | SCALE)
            text = self.clip.encode_text(self.tokens)
            logits = features.logit_scale.exp() * F.normalize(features.view, dim=-1) @ F.normalize(text, dim=-1).T
            labels = torch.arange(len(logits))
            contrast = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
            outliers = self.published.outliers
            assert self.multi_view.images is not None
            again = ViewBatch.make([1] * int(outliers.sum()), images=self.multi_view.images[outliers])
            view = self.pipeline(again, VIEW).view
            distance = 1 - F.cosine_similarity(view, self.published.anchors[outliers])
            terms = F.relu(distance + MARGIN)
            loss = contrast + terms.sum() / torch.count_nonzero(terms)
            loss.backward()
        return loss.detach()


def disagreement(ours: OursStep, released: ReleasedStep, parameters: Sequence[nn.Parameter]) -> dict[str, float]:
    """The largest differences of loss and gradients, the latter relative to the largest entry of each parameter's.

    Raises:
        SystemExit: the two compute different things.
    """
    losses: list[float] = []
    grads: list[list[Tensor]] = []
    for step in (ours.step, released.step):
        for parameter in parameters:
            parameter.grad = None
        losses.append(float(step()))
        grads.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
    relative = [
        float((a - b).abs().max() / torch.maximum(a.abs().max(), b.abs().max()).clamp(min=1e-12))
        for a, b in zip(*grads, strict=True)
    ]
    found = {"loss": abs(losses[0] - losses[1]), "gradient_relative": max(relative)}
    if max(found.values()) > TOLERANCE or not any(bool(grad.any()) for grad in grads[0]):
        raise SystemExit(f"the two steps disagree: {found}")
    return found


def measured(steps: dict[str, Callable[[], Tensor]], optimizer: torch.optim.Optimizer, rounds: int) -> dict[str, Any]:
    """Times of a whole step of each way, each first in its turn, after one round that fills the caches."""
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in steps} for clock in ("wall", "cpu")}
    for turn in range(rounds + 1):
        names = list(steps)[turn % len(steps) :] + list(steps)[: turn % len(steps)]
        for name in names:
            wall, cpu = time.perf_counter(), time.process_time()
            optimizer.zero_grad()
            steps[name]()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if turn:
                times["wall"][name].append(time.perf_counter() - wall)
                times["cpu"][name].append(time.process_time() - cpu)
    found: dict[str, Any] = {}
    for clock, taken in times.items():
        row: dict[str, Any] = {f"{name}_s": round(statistics.median(values), 3) for name, values in taken.items()}
        for name in ("mvcore", "mvcore_new_captions"):
            ratios = [slow / fast for slow, fast in zip(taken["released"], taken[name], strict=True)]
            row[f"released_over_{name}"] = round(statistics.median(ratios), 3)
            row[f"released_over_{name}_min_max"] = [round(min(ratios), 3), round(max(ratios), 3)]
        found[clock] = row
    return found


def compare(pipeline: Pipeline, makeup: Makeup, scale: int, rounds: int) -> dict[str, Any]:
    """Both sides on one batch."""
    grown = Makeup(scale * makeup.multi_view, scale * makeup.plain, scale * makeup.outliers)
    batches = {"multi_view": images_with_captions(grown.multi_view, size_of(pipeline), "object")}
    if grown.plain:
        batches["plain"] = images_with_captions(grown.plain, size_of(pipeline), "scene")
    published = Published(grown, pipeline.backbone.dims["view"])
    ours, released = OursStep(pipeline, batches, published), ReleasedStep(pipeline, batches, published)
    parameters = [p for p in pipeline.parameters() if p.requires_grad]
    differences = disagreement(ours, released, parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    steps = {"mvcore": ours.step, "mvcore_new_captions": ours.step_on_new_captions, "released": released.step}
    return {
        "multi_view_images": grown.multi_view,
        "plain_images": grown.plain,
        "outliers": grown.outliers,
        "largest_difference": differences,
        **measured(steps, optimizer, rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--scale", type=int, default=1, help="how many times 14 images a batch has")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    pipeline = tuned_model(arguments.model)
    result: dict[str, Any] = {"benchmark": "ovt_step", "target_ratio": TARGET, **vars(arguments)}
    for name, makeup in MAKEUPS.items():
        result[name] = compare(pipeline, makeup, arguments.scale, arguments.rounds)
    result["load_average"] = [round(value, 1) for value in os.getloadavg()]
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
