"""`mvcore.load`: a run, an export or a plain library model, ready for use."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvcore import build
from mvcore.checkpoint import WEIGHTS, load_weights
from mvcore.config import Part
from mvcore.encoder_names import encoder_named
from mvcore.errors import ConfigError, DataError, PluginError, WeightsError
from mvcore.model import Model, Pipeline
from mvcore.plugins import load_plugins
from mvcore.resolution import use_plugin
from mvcore.run_folder import checkpoint_of, is_run, read_config, read_record
from mvcore.training.assembly import frozen_digest, make_pipeline
from mvcore.training.planner import Chosen
from mvcore.training.trained import load_pipeline_state, under

EXPORT = "mvcore_export.json"


def load(
    source: str | Path,
    strength: float = 1.0,
    *,
    which: str = "last",
    device: str | torch.device = "cpu",
    encoder: str | Path | None = None,
) -> Model:
    """A model for use.

    Args:
        source: a run's folder, an exported folder, an open_clip name (`ViT-B-32` or `ViT-B-32:laion2b_s34b_b79k`), a
            JSON model config of open_clip, or a timm name (`vit_small_patch14_dinov2.lvd142m`; `timm:NAME` where
            open_clip has one of that name too), or the id of a backbone that a plugin brings, with its own defaults.
        strength: how much of what was learnt is applied: 0 = the untouched model, 1 = as trained.
        which: `last` or `best` checkpoint of a run.
        device: where it shall run.
        encoder: of a run on stored vectors: the model that made them, named as `source`. By default the one that the
            vectors' key names is loaded when the first image comes.

    Returns:
        The model in eval mode.

    Raises:
        MvcoreError: nothing there, damaged, or made for other base weights or by another encoder.
    """
    path = Path(source).expanduser()
    if is_run(path):
        pipeline = _load_run(path, strength, which)
    elif strength != 1.0:
        raise ConfigError(f"{source}: strength applies to runs; this is a plain model or an export")
    elif (path / EXPORT).is_file():
        from mvcore.exporting import load_export

        pipeline = load_export(path)
    else:
        pipeline = _load_plain(str(source))
    pipeline.eval()
    # Adapters keep their marks: an export must know what was trained in those that it cannot merge.
    for _, parameter in pipeline.backbone_parameters():
        parameter.requires_grad_(False)
    if pipeline.backbone.library != "embeddings" or not is_run(path):
        if encoder is not None:
            raise ConfigError(f"{source}: encoder is for runs on stored vectors; this has an encoder of its own")
        return Model(pipeline, name=str(source)).to(device)
    from mvcore.stored_model import StoredModel, behind

    if encoder is not None:
        return behind(load(encoder), pipeline, path).to(device)
    return StoredModel(pipeline, path, str(source)).to(device)


def load_encoder(part_id: str, args: Mapping[str, Any], *, device: str | torch.device = "cpu") -> Model:
    """A backbone by its id and options, for use without training.

    Raises:
        MvcoreError: an unknown id, wrong options, or weights that cannot be had.
    """
    pipeline = make_pipeline(chosen_encoder(args, part_id), [], seed=0)
    pipeline.eval().requires_grad_(False)
    return Model(pipeline, name=part_id).to(device)


def chosen_encoder(args: Mapping[str, Any], part_id: str = "core.open_clip", name: str = "encoder") -> Chosen:
    """An encoder part outside of a run's configuration."""
    registered = load_plugins().spec("encoder", part_id)
    options = build.options(registered, args, name)
    return Chosen(
        name, registered, options, build.needs_of(registered, options), build.provides_of(registered, options)
    )


def _load_plain(source: str) -> Pipeline:
    path = Path(source).expanduser()
    if path.is_dir():
        seeds = sorted(part.parent.name for part in path.glob("seed-*/run.json"))
        if seeds:
            raise ConfigError(f"{source} holds one run for each seed; name one: {', '.join(seeds)}")
        raise ConfigError(f"{source}: neither a run nor an export (it has no run.json and no {EXPORT})")
    part_id, args = encoder_named(source, load_plugins())
    if args.get("pretrained") is None and path.suffix in (".safetensors", ".pt", ".bin", ".ckpt"):
        raise ConfigError(f"{source}: weights alone do not say their model; name the run's folder or an export")
    return make_pipeline(chosen_encoder(args, part_id), [], seed=0)


def _load_run(folder: Path, strength: float, which: str) -> Pipeline:
    if which not in ("last", "best"):
        raise ConfigError(f"which must be 'last' or 'best', not {which!r}")
    config, record = read_config(folder), read_record(folder)
    for plugin in config.plugins:
        # One that is gone is missed, by name, only where one of its parts is needed.
        with suppress(PluginError):
            use_plugin(plugin, load_plugins())
    unknown = [name for name in record.adapters if name not in config.adapters]
    if unknown:
        raise DataError(f"{folder}: its record names the adapter {unknown[0]!r}, which its configuration has not")
    pipeline = make_run_pipeline(config.encoder, {name: config.adapters[name] for name in record.adapters}, record.seed)
    if frozen_digest(pipeline) != record.frozen_sha256:
        raise WeightsError(
            f"{folder}: was trained on other base weights than {config.encoder.args.get('pretrained')} of "
            f"{config.encoder.args.get('model')} holds now; give it the file that it was trained from"
        )
    weights = load_weights(checkpoint_of(folder, which) / WEIGHTS)  # pyright: ignore[reportArgumentType]
    apply_weights(pipeline, weights, strength)
    return pipeline


def make_run_pipeline(encoder: Part, adapters: Mapping[str, Part], seed: int) -> Pipeline:
    """The model of a run before its training."""
    chosen = [chosen_encoder(part.args, part.id, name) for name, part in adapters.items()]
    return make_pipeline(chosen_encoder(encoder.args, encoder.id), chosen, seed)


def apply_weights(pipeline: Pipeline, weights: Mapping[str, Tensor], strength: float = 1.0) -> None:
    """Lays trained weights over a model, in full or in part."""
    before = {name: value.detach().clone() for name, value in pipeline.backbone_state().items()}
    load_pipeline_state(pipeline, weights)
    if strength == 1.0:
        return
    with torch.no_grad():
        for name, value in pipeline.backbone_state().items():
            if value.is_floating_point():
                value.copy_(torch.lerp(before[name], value, strength))
    for link in pipeline.links:
        if under(f"adapters/{link.name}/", weights):
            link.module.set_strength(strength)  # pyright: ignore[reportCallIssue]
