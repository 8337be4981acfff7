"""Makes the parts of a run from its blueprint: sources first, then the model, then the losses and trainers."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mvcore import build
from mvcore.blame import blamed_on
from mvcore.errors import ConfigError
from mvcore.model import Link, Pipeline
from mvcore.model_key import backbone_key
from mvcore.parts import Backbone
from mvcore.training.planner import Blueprint, Chosen, Plan


def open_sources(blueprint: Blueprint) -> tuple[dict[str, Any], dict[str, Any]]:
    """The training and the validation datasets by name.

    Raises:
        MvcoreError: a source that cannot be opened; the text begins with its place.
        ConfigError: a source whose images the encoder cannot take, as far as its options tell.
    """
    trained = {name: part.make() for name, part in blueprint.sources.items()}
    measured = {name: part.make() for name, part in blueprint.measured.items()}
    wanted = build.wanted_size_of(blueprint.encoder.registered, blueprint.encoder.options)
    _check_image_sizes("data", trained, wanted)
    _check_image_sizes("validate.data", measured, wanted)
    return trained, measured


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Random initialisation that depends on the seed and the part's name alone; the global state is restored."""
    with torch.random.fork_rng():
        torch.manual_seed((seed * 0x9E3779B97F4A7C15 + zlib.crc32(name.encode())) % 2**63)
        yield


def make_pipeline(encoder: Chosen, adapters: Iterable[Chosen], seed: int) -> Pipeline:
    """The backbone with every adapter attached, in order.

    Raises:
        MvcoreError: weights that cannot be had, or an adapter that does not fit the backbone.
    """
    with seeded(seed, "backbone"):
        backbone: Backbone = encoder.make()
    backbone.origin = _made_of(encoder)
    if backbone.embeddings is not None:
        backbone.untouched_key = backbone_key(backbone)  # before an adapter changes it
    links: list[Link] = []
    for part in adapters:
        with seeded(seed, f"adapter {part.name}"):
            module: nn.Module = part.make()
            attach = getattr(module, "attach", None)
            before = backbone.provides
            if attach is not None:
                with blamed_on(f"adapter {part.name}"):
                    attach(backbone)
        axes = build.axes_of(part.registered, part.options)
        # What it branched off the backbone's blocks the backbone gives itself.
        gives = part.provides - (backbone.provides - before)
        links.append(Link(part.name, module, part.needs, gives, axes, _made_of(part)))
    return Pipeline(backbone, links)


def _made_of(part: Chosen) -> dict[str, Any]:
    """A part's id and its options, as plain values."""
    options = {} if part.options is None else part.options.model_dump(mode="json")
    return {"id": part.id, **options}


def make_losses(plan: Plan, seed: int) -> dict[str, nn.Module]:
    """The loss modules by name."""
    modules: dict[str, nn.Module] = {}
    for term in plan.losses:
        with seeded(seed, f"loss {term.part.name}"):
            modules[term.part.name] = term.part.make()
    return modules


def check_image_sizes(section: str, datasets: Mapping[str, Any], backbone: Backbone) -> None:
    """Refuses sources whose images the backbone cannot take.

    Raises:
        ConfigError: names the source and both sizes.
    """
    _check_image_sizes(section, datasets, backbone.image_size)


def _check_image_sizes(section: str, datasets: Mapping[str, Any], wanted: int | None) -> None:
    for name, dataset in datasets.items():
        if wanted is not None and dataset.image_size != wanted:
            raise ConfigError(
                f"{section}[{name}].image_size is {dataset.image_size}, but the encoder takes {wanted}; set it so"
            )


def frozen_digest(pipeline: Pipeline) -> str:
    """SHA-256 over the backbone's weights that do not train, by the library's names: what a checkpoint relies on."""
    digest = hashlib.sha256()
    for name, parameter in sorted(pipeline.backbone_parameters(), key=lambda item: item[0]):
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(_bytes_of(parameter))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
