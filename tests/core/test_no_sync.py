"""A training step of core's parts never asks the device for a value, which would make the host wait for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mvcore.api import Features, ViewBatch, apply_lora
from mvcore.encoders.open_clip import OpenClip
from mvcore.losses.itc import ImageTextContrastive
from mvcore.losses.siglip import SigmoidContrastive
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select", "aten::equal"}


class NoWaiting(TorchDispatchMode):
    """Fails at an operation whose result the host must wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        assert name not in WAITS, f"{name} makes the host wait for the device"
        return func(*args, **(kwargs or {}))


def a_batch() -> ViewBatch:
    captions = ["a red cup", "a shoe", "a red cup", "the shoe from behind"]
    return ViewBatch.make(
        [2, 1, 2],
        images=torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8),
        captions=captions,
        caption_object=torch.tensor([0, 1, 2, 1]),
        caption_view=torch.tensor([-1, -1, -1, 2]),
    )


def steps(backbone: OpenClip, loss: nn.Module, batch: ViewBatch) -> None:
    with parametrize.cached():
        features = backbone.encode(batch, frozenset({"view", "text", "dense", "logit_scale"}))
        features["logit_bias"] = torch.zeros_like(features["logit_scale"])
        result = loss(Features(features), batch)
    (result["loss"] if isinstance(result, dict) else result).backward()


@pytest.fixture
def tuned(tiny_clip_json: Path) -> OpenClip:
    backbone = OpenClip(model=str(tiny_clip_json)).train()
    for site in backbone.attention_sites():
        apply_lora(site.module, site.parameter, rank=2, alpha=2, rows=[site.rows["q"], site.rows["v"]])
    return backbone


LOSSES = [
    ImageTextContrastive(),
    ImageTextContrastive(same_caption="mask", same_object="mask"),
    SigmoidContrastive(same_object="mask"),
]


def test_the_guard_notices_a_wait() -> None:
    with pytest.raises(AssertionError, match="makes the host wait"), NoWaiting():
        torch.ones(1).item()


@pytest.mark.parametrize("loss", LOSSES, ids=["itc", "itc-mask", "siglip"])
def test_a_step_asks_for_no_value(loss: nn.Module, tuned: OpenClip) -> None:
    batch = a_batch()
    with NoWaiting():
        steps(tuned, loss, batch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loss", LOSSES, ids=["itc", "itc-mask", "siglip"])
def test_cuda_sees_no_synchronisation(loss: nn.Module, tuned: OpenClip) -> None:
    tuned.cuda()
    batch = a_batch().pin_memory().to("cuda", non_blocking=True)
    steps(tuned, loss, batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(tuned, loss, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
