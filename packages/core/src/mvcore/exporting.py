"""The way back: a model's weights for the plain library, checked by loading them there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvcore.checkpoint import load_weights, save_weights
from mvcore.config import Part, gathered
from mvcore.encoders.library import loading
from mvcore.encoders.plain_library import LIBRARIES
from mvcore.errors import ConfigError, WeightsError
from mvcore.loading import EXPORT, make_run_pipeline
from mvcore.lora import merge_lora
from mvcore.model import Model, Pipeline, evaluating
from mvcore.model_card import CARD, TRAINING_DATA, model_card
from mvcore.run_folder import write_text
from mvcore.training.trained import load_pipeline_state, trained_state

_NOT_OPTIONS = ("id", "model", "pretrained", "train", "embeddings")
"""Of a backbone's origin: what an export answers itself."""
BESIDE = "mvcore_adapters.safetensors"


@dataclass(frozen=True)
class Export:
    """What an export wrote.

    Args:
        library: whose files they are.
        folder: holds the library's own files, and `mvcore_adapters.safetensors` where something could not be merged.
        merged, in_place, beside: names of the adapters folded into the weights, of those that only let the library's
            own weights train, which stand in its file, and of those exported beside them.
        in_part: those exported beside of which a part was folded into the weights.
        largest_difference: between unit vectors of the merged model here and in the plain library.
    """

    library: str
    folder: Path
    merged: tuple[str, ...]
    in_place: tuple[str, ...]
    beside: tuple[str, ...]
    in_part: tuple[str, ...]
    largest_difference: float


def export(
    model: Model,
    folder: Path,
    *,
    to: str | None = None,
    adapters: dict[str, Part] | None = None,
    dtype: torch.dtype = torch.float32,
    run: Path | None = None,
    measured: bool = True,
) -> Export:
    """Merges what can be merged, writes the library's own files, reloads them in the plain library and compares.

    The model is changed: merged adapters are gone from it.

    Args:
        folder: must not exist yet.
        to: the library that the files are for; None = the model's own.
        adapters: the run's adapter entries by name, so that what is exported beside can be made again.
        dtype: of the written weights; float16 halves the file and rounds.
        run: the folder of the run that trained the model, for the model card.
        measured: the run's figures are those of these weights.

    Raises:
        ConfigError: another library than the model's, or the folder exists.
        WeightsError: the plain library does not give the same vectors.
    """
    own = model.backbone.library
    if own not in LIBRARIES:
        raise ConfigError(f"{model.name}: a model of {own} cannot be exported")
    if to is not None and to != own:
        raise ConfigError(f"--to {to}: this model is of {own}; it can go to {own}")
    if folder.exists():
        raise ConfigError(f"{folder} exists and is never overwritten; name another")
    pipeline = model.pipeline
    before = {link.name: len(trained_state(link.module)) for link in pipeline.links}
    merged = tuple(link.name for link in pipeline.links if _merge(link.module))
    merge_lora(pipeline.backbone.model)
    others = [link for link in pipeline.links if link.name not in merged]
    in_place = tuple(link.name for link in others if not link.provides and not trained_state(link.module))
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(pipeline, partial, merged, others, adapters or {}, dtype)
        difference = compare_with_plain(pipeline, partial, 1e-4 if dtype == torch.float32 else 1e-2)
        beside = tuple(link.name for link in others if link.name not in in_place)
        in_part = tuple(link.name for link in others if len(trained_state(link.module)) < before[link.name])
        done = Export(own, folder, merged, in_place, beside, in_part, difference)
        _write_card(partial, done, run, measured)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return done


def _merge(module: nn.Module) -> bool:
    merge = getattr(module, "merge", None)
    return bool(merge()) if merge is not None else False


def _write(
    pipeline: Pipeline,
    folder: Path,
    merged: Iterable[str],
    beside: Iterable[Any],
    adapters: dict[str, Part],
    dtype: torch.dtype,
) -> None:
    backbone: Any = pipeline.backbone
    library = LIBRARIES[backbone.library]
    state = backbone.model.state_dict()
    save_weights(folder / library.weights, {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()})
    write_text(folder / library.config, json.dumps(backbone.library_config(), indent=1) + "\n")
    left: dict[str, Tensor] = {}
    entries: dict[str, Any] = {}
    for link in beside:
        left |= {f"adapters/{link.name}/{key}": value for key, value in trained_state(link.module).items()}
        if link.name in adapters:
            entries[link.name] = adapters[link.name].flat()
    if entries or left:
        save_weights(folder / BESIDE, left)
    options = {key: value for key, value in backbone.origin.items() if key not in _NOT_OPTIONS}
    about = {"library": backbone.library, "options": options, "merged": list(merged), "beside": entries}
    write_text(folder / EXPORT, json.dumps(about, indent=1) + "\n")


def _write_card(partial: Path, done: Export, run: Path | None, measured: bool) -> None:
    fates = {"merged": done.merged, "in place": done.in_place, "beside": done.beside}
    adapters = {name: fate for fate, names in fates.items() for name in names}
    write_text(partial / CARD, model_card(done.folder.name, done.library, adapters, run, measured=measured))
    if run is not None and (run / TRAINING_DATA).is_file():
        shutil.copyfile(run / TRAINING_DATA, partial / TRAINING_DATA)


def load_export(folder: Path, *, plain: bool = False) -> Pipeline:
    """The model of an exported folder; `plain` leaves out what could not be merged, as the library alone would.

    Raises:
        WeightsError: damaged or incomplete.
    """
    try:
        about: dict[str, Any] = json.loads((folder / EXPORT).read_text(encoding="utf-8"))
        entries = {name: Part.model_validate(gathered(entry, Part)) for name, entry in about["beside"].items()}
        options = dict(about.get("options", {}))
        library = str(about["library"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{folder / EXPORT}: damaged: {' '.join(str(error).split())}") from None
    if library not in LIBRARIES:
        raise WeightsError(f"{folder / EXPORT}: is of the library {library!r}, which is not known")
    encoder = Part(id=f"core.{library}", args={**options, "model": f"local-dir:{folder.absolute()}"})
    pipeline = make_run_pipeline(encoder, {} if plain else entries, seed=0)
    if entries and not plain:
        # What adapters let train of the library's own weights stands in the library's file.
        for _, parameter in pipeline.backbone_parameters():
            parameter.requires_grad_(False)
        load_pipeline_state(pipeline, load_weights(folder / BESIDE))
    return pipeline


def compare_with_plain(pipeline: Pipeline, folder: Path, tolerance: float) -> float:
    """Loads an export strictly into the plain library, without mvcore's classes, and compares unit vectors.

    Returns:
        The largest absolute difference over a few images and, where the model has any, texts.

    Raises:
        WeightsError: it is larger than `tolerance`.
    """
    backbone: Any = pipeline.backbone
    library = LIBRARIES[backbone.library]
    with evaluating(pipeline):
        mine = library.mine(backbone)
        with loading(f"the export in plain {backbone.library}", hub=False):
            theirs = library.theirs(backbone, folder)
    unit = nn.functional.normalize
    difference = max(
        float((unit(a.cpu().float(), dim=-1) - unit(b.float(), dim=-1)).abs().max())
        for a, b in zip(mine, theirs, strict=True)
    )
    if not difference <= tolerance:
        raise WeightsError(f"the plain library gives other vectors (largest difference {difference:.2g}); not exported")
    return difference
