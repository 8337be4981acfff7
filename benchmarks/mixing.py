"""What mixing methods costs: a step with three methods' losses, a loss of weight 0, and settling a mixed run.

    python benchmarks/mixing.py [--model ViT-B-32] [--objects 4] [--rounds 9] [--threads 1] [--quick]

- `three_methods`: a step with `ovt.vc`, `mvc_heads.contrastive` and `equivariance.smooth_ap` on pairs of views of the
  demo set, against the sum of one pass through the encoder, there and back with the gradients that the losses give it,
  and of each loss alone on given features, there and back. The target is 1.1.
- `weight_0`: a step with a further loss of weight 0, and with one that begins later, against the step without it. The
  target is 1.01. Such a loss is not part of the step at all; the number of tensor operations is compared too, which no
  other program disturbs.
- `settling`: seconds to resolve and validate `--plugin ovt --loss equivariance.smooth_ap=0.5 --loss
  mvc_heads.contrastive=0.1` once everything is imported, without opening data and with it. The target is 0.5 s.
- `refusal`: an impossible mix; seconds to its refusal, what it says, and how many models were built by then.

`--quick` measures the last two alone, which train nothing.

The two sides of a ratio take turns in one process. Prints JSON: medians over the rounds of the process's own time,
which other programs on the machine disturb less than the wall clock, with the ratio's quartiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mvcore.config_layers import Layers
from mvcore.encoders.open_clip import OpenClip
from mvcore.errors import MvcoreError
from mvcore.plugins import load_plugins
from mvcore.resolution import Request, resolve
from mvcore.running import open_session
from mvcore.training.fit import Training, prepare
from mvcore.training.planner import choose
from mvcore.training.rows import leaf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LOSSES: dict[str, Any] = {
    "ovt.vc": {},
    "mvc_heads.contrastive": {"weight": 0.1},
    "equivariance.smooth_ap": {"weight": 0.5, "points": 500},
}


def timed(call: Callable[[], Any]) -> float:
    """Seconds of processor time."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def prepared(arguments: argparse.Namespace, folder: Path, more: Mapping[str, Any]) -> Training:
    """A run on pairs of views with depth and captions, whose every weight trains."""
    size = 64 if arguments.model.endswith(".json") else 224
    source = {"id": "data.views", "path": "demo", "split": "train", "image_size": size, "depth": True}
    source |= {"limit_objects": 6, "sampling": "pairs", "pair_angle": [0, 60], "batch_size": arguments.objects}
    layers = Layers()
    layers.merge(
        {
            "encoder": {"id": "core.open_clip", "model": arguments.model, "pretrained": None, "train": "all"},
            "data": {"objects": source},
            "losses": {**LOSSES, **more},
            "trainers": {"ovt.outlier_mining": {"k": 2, "neighbours": 3, "refresh": "epoch"}},
            "run": {"accelerator": "cpu", "workers": 0},
        },
        "benchmark",
    )
    session = open_session(layers.config(), load_plugins())
    training = prepare(session.plan, session.sources, folder)
    for trainer in training.trainers:
        trainer.mine()
    return training


def first_batch(training: Training) -> Any:
    if training.module.make_loader is None:
        raise RuntimeError("no loader")
    return next(iter(training.module.make_loader(0, 1, 0)))


def stepping(training: Training, batches: Any) -> Callable[[], None]:
    objective = training.module.objective

    def step() -> None:
        objective.zero_grad(set_to_none=True)
        objective.step(batches, Tensor.backward)

    return step


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def operations(call: Callable[[], Any]) -> int:
    """How many tensor operations a call makes, there and back."""
    with _Count() as count:
        call()
    return count.calls


def three_methods(training: Training, batches: Any, rounds: int) -> dict[str, Any]:
    objective, pipeline = training.module.objective, training.pipeline
    batch, keys = batches["objects"], objective.keys["objects"]
    rows = objective.encode({"objects": batch})
    # What the losses together give back to the encoder: no gradient to a feature that none of them asks one of.
    met = leaf(rows["objects"])
    objective.evaluate({"objects": met}, objective.terms).total.backward()
    towards = {key: value.grad for key, value in met.features.items() if value.grad is not None}

    def encode() -> None:
        objective.zero_grad(set_to_none=True)
        features = pipeline(batch, keys)
        torch.stack([(features[key] * towards[key]).sum() for key in sorted(towards)]).sum().backward()

    def alone(term: Any) -> Callable[[], None]:
        given = {"objects": leaf(rows["objects"])}
        return lambda: objective.evaluate(given, [term]).total.backward()

    sides = {"mixed": stepping(training, batches), "encoder": encode}
    sides |= {term.name: alone(term) for term in objective.terms}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, call in sides.items():
            found = timed(call)
            if number:
                seconds[name].append(found)
    apart = [sum(parts) for parts in zip(*(seconds[name] for name in sides if name != "mixed"), strict=True)]
    ratios = [mixed / parts for mixed, parts in zip(seconds["mixed"], apart, strict=True)]
    return {
        "target": 1.1,
        **ratio_of(ratios),
        "seconds": {k: round(statistics.median(v), 4) for k, v in seconds.items()},
    }


def weight_0(arguments: argparse.Namespace, folder: Path, base: Training, batches: Any, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {"target": 1.01}
    for name, weight in (("always", 0.0), ("begins_later", {"start": 500})):
        # It would need texts of its own scale and a gradient of the text tower, which no other loss here asks for.
        other = prepared(arguments, folder / name, {"core.itc": {"weight": weight}})
        other.pipeline.load_state_dict(base.pipeline.state_dict())
        one, two = stepping(base, batches), stepping(other, batches)
        ratios: list[float] = []
        for number in range(2 * rounds + 1):
            # Who goes first changes from round to round.
            first, second = (one, two) if number % 2 else (two, one)
            times = [timed(first), timed(second)]
            without, with_it = times if number % 2 else times[::-1]
            if number:
                ratios.append(with_it / without)
        found[name] = {**ratio_of(ratios), "operations_ratio": operations(two) / operations(one)}
    return found


def ratio_of(ratios: list[float]) -> dict[str, Any]:
    ordered = sorted(ratios)
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(ordered[len(ordered) // 4], 4), round(ordered[-1 - len(ordered) // 4], 4)],
    }


def settling(rounds: int) -> dict[str, Any]:
    request = Request(plugins=["ovt"], losses=["equivariance.smooth_ap=0.5", "mvc_heads.contrastive=0.1"])

    def settle(opened: bool) -> float:
        begun, registry = time.process_time(), load_plugins()
        layers = resolve(request, registry).layers
        if opened:
            open_session(layers.config(), registry, layers.written)
        else:
            choose(layers.config(), registry, layers.written)
        return time.process_time() - begun

    first = settle(opened=False)
    return {
        "target_s": 0.5,
        "resolve_and_validate_s": round(statistics.median(settle(opened=False) for _ in range(rounds)), 4),
        "with_the_data_opened_s": round(statistics.median(settle(opened=True) for _ in range(rounds)), 4),
        "first_call_with_imports_s": round(first, 4),
    }


def refusal() -> dict[str, Any]:
    built: list[int] = []
    make = OpenClip.__init__

    def counted(self: Any, *args: Any, **options: Any) -> None:
        built.append(1)
        make(self, *args, **options)

    OpenClip.__init__ = counted
    begun, registry = time.perf_counter(), load_plugins()
    try:
        layers = resolve(Request(plugins=["ovt"], losses=["mvc_heads.autoencoder=0.1"]), registry).layers
        open_session(layers.config(), registry, layers.written)
        said = "nothing"
    except MvcoreError as error:
        said = str(error)
    finally:
        OpenClip.__init__ = make
    return {"seconds": round(time.perf_counter() - begun, 4), "models_built": len(built), "said": said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--objects", type=int, default=4, help="pairs of views of a step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="only settling and refusal")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"benchmark": "mixing", **vars(arguments), "settling": settling(arguments.rounds)}
    result["refusal"] = refusal()
    if not arguments.quick:
        with tempfile.TemporaryDirectory() as name:
            training = prepared(arguments, Path(name) / "base", {})
            batches = first_batch(training)
            result["three_methods"] = three_methods(training, batches, arguments.rounds)
            result["weight_0"] = weight_0(arguments, Path(name), training, batches, arguments.rounds)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
