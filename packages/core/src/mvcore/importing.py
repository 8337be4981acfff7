"""The way in: a checkpoint of a method's authors as a run or an export that `mvcore.load` opens."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvcore import build
from mvcore.checkpoint import WEIGHTS, save_weights
from mvcore.config import Part, RunConfig
from mvcore.config_layers import Layers, nested, parse_set, read_yaml, to_yaml
from mvcore.errors import ConfigError, PluginError, WeightsError
from mvcore.exporting import export
from mvcore.foreign_checkpoint import read_tensors
from mvcore.loading import make_run_pipeline
from mvcore.model import Model
from mvcore.parts import copy_strictly
from mvcore.plugins import Registered, Registry, load_plugins, recipe_path
from mvcore.run_folder import CONFIG, POINTER, RunRecord, versions, write_text
from mvcore.specs import CORE_AXES
from mvcore.suggest import listed
from mvcore.training.assembly import frozen_digest
from mvcore.training.trained import load_pipeline_state, under

ORIGIN = "import.json"
"""What an import was made from: the file's name and SHA-256, and the recipe."""
_CHECKPOINT = "imported"


@dataclass(frozen=True)
class Imported:
    """What an import wrote.

    Args:
        folder: a run's folder, or with `whole` an export, whose file holds every weight of the model.
        tensors, values: how many were kept.
    """

    folder: Path
    whole: bool
    tensors: int
    values: int


def importer_of(text: str, registry: Registry) -> Registered:
    """The recipe, `PLUGIN` or `PLUGIN.RECIPE`, whose authors' checkpoints can be imported.

    Raises:
        PluginError: no such plugin or recipe, or no importer.
    """
    plugin, dot, name = text.partition(".")
    if dot:
        found = [registry.recipe(plugin, name)]
    else:
        registry.plugin(plugin)
        found = [entry for entry in registry.specs("recipe").values() if entry.plugin == plugin]
    able = [entry for entry in found if entry.spec.importer]
    if len(able) == 1:
        return able[0]
    if able:
        raise PluginError(f"--as {text}: say of which recipe: {listed(entry.id for entry in able)}")
    known = [entry.id for entry in registry.specs("recipe").values() if entry.spec.importer]
    raise PluginError(f"--as {text}: it imports no checkpoint (those that do: {listed(known) or 'none'})")


def import_checkpoint(
    file: Path,
    recipe: Registered,
    folder: Path,
    *,
    pretrained: str | None = None,
    assignments: Sequence[str] = (),
    tensors_only: bool = False,
) -> Imported:
    """Reads a checkpoint of a method's authors into the model of a recipe and writes it for `mvcore.load`.

    Args:
        file: the checkpoint; see `read_tensors`.
        recipe: names the model, its adapters, and the function that renames the checkpoint's tensors.
        folder: must not exist yet.
        pretrained: weights of the base model. Then all weights that do not train are compared with them, and a run's
            folder holds the others. None keeps the whole model, as an export; where the checkpoint holds nothing of
            the base model, it is then the recipe's own.
        assignments: `--set` texts, on top of the recipe.
        tensors_only: see `read_tensors`.

    Raises:
        ConfigError: the folder exists, or wrong options.
        WeightsError: the checkpoint does not fit the model or its base.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists and is never overwritten; name another")
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = build.resolve(recipe.spec.importer, recipe.id)
    weights = rename(read_tensors(file, tensors_only=tensors_only))
    over_base = not under("backbone/", weights)
    origin = _origin(file, recipe)
    layers = _layers(file, recipe, {} if over_base and pretrained is None else {"pretrained": pretrained}, assignments)
    config = layers.config()
    adapters = _for_use(config, weights)
    if over_base:
        _check_has_base(file, config.encoder.args)
    pipeline = make_run_pipeline(config.encoder, adapters, config.run.seed)
    kept = weights
    if not over_base:
        base: dict[str, Tensor] = pipeline.backbone.model.state_dict()
        given = {name: torch.empty_like(value) for name, value in base.items()}
        copy_strictly(under("backbone/", weights), given, f"{config.encoder.args.get('model')} ({file.name})")
        trained = pipeline.backbone_state().keys()
        beside = {name: value for name, value in weights.items() if not name.startswith("backbone/")}
        kept = {**beside, **{f"backbone/{name}": given[name] for name in trained}}
        base_weights = config.encoder.args.get("pretrained")
        if base_weights is None:
            with torch.no_grad():
                for name, value in base.items():
                    value.copy_(given[name])
            load_pipeline_state(pipeline, kept)
            export(Model(pipeline, name=file.name), folder, adapters=adapters)
            write_text(folder / ORIGIN, origin)
            return _imported(folder, {**given, **beside}, whole=True)
        _check_base(file, str(base_weights), base, given, trained)
    record = RunRecord("finished", config.run.seed, list(adapters), frozen_digest(pipeline), versions())
    load_pipeline_state(pipeline, kept)
    _write_run(folder, to_yaml(layers, config), record, kept, origin)
    return _imported(folder, kept, whole=False)


def _layers(file: Path, recipe: Registered, encoder: Mapping[str, Any], assignments: Sequence[str]) -> Layers:
    """The recipe with the base model that the file's name tells, options of the encoder and the user's assignments.

    Raises:
        ConfigError: the user names another base model than the file does.
    """
    find: Callable[[str], Mapping[str, Any]] | None = None
    if recipe.spec.importer_base:
        find = build.resolve(recipe.spec.importer_base, recipe.id)
    known = {} if find is None else dict(find(file.name))
    layers = Layers()
    layers.merge(read_yaml(recipe_path(recipe))[0], f"recipe {recipe.id}")
    layers.merge({"plugins": [recipe.plugin], "encoder": {**known, **encoder}}, "import")
    for assignment in assignments:
        layers.merge(nested(*parse_set(assignment)), "--set")
    model, given = known.get("model"), layers.config().encoder.args.get("model")
    # A tag names weights of a model, not another model.
    if model is not None and str(given).partition(".")[0] != str(model).partition(".")[0]:
        raise ConfigError(f"{file.name} was trained over encoder.model {model}, not {given}; leave encoder.model out")
    return layers


def _check_has_base(file: Path, encoder: Mapping[str, Any]) -> None:
    """Refuses random base weights under a checkpoint that holds none.

    Raises:
        ConfigError: the encoder has no weights.
    """
    if not encoder.get("pretrained") and not str(encoder.get("model")).startswith(("local-dir:", "hf-hub:")):
        raise ConfigError(
            f"{file} holds only what was trained beside its base model; name the base's weights with --pretrained, a "
            "tag or a file"
        )


def _imported(folder: Path, tensors: Mapping[str, Tensor], *, whole: bool) -> Imported:
    return Imported(folder, whole, len(tensors), sum(tensor.numel() for tensor in tensors.values()))


def _for_use(config: RunConfig, weights: Mapping[str, Tensor]) -> dict[str, Part]:
    """The adapters that a loaded model needs; those that only make what a loss reads are left out."""
    found: dict[str, Part] = {}
    for name, part in config.adapters.items():
        registered = load_plugins().spec("encoder", part.id)
        provides = build.provides_of(registered, build.options(registered, part.args, f"adapters[{name}]"))
        if not provides or provides & CORE_AXES.keys() or under(f"adapters/{name}/", weights):
            found[name] = part
    return found


def _check_base(file: Path, named: str, base: Mapping[str, Tensor], given: Mapping[str, Tensor], trained: Any) -> None:
    """Refuses base weights that are not those under the checkpoint."""
    other = [name for name in base if name not in trained and not torch.equal(base[name], given[name])]
    if other:
        raise WeightsError(
            f"{file}: {len(other)} of the weights that this recipe keeps frozen are not those of --pretrained {named} "
            f"(first: {other[0]}); name the base that it was trained from, say with --set which weights train, or "
            "leave --pretrained out to keep the whole model"
        )


def _origin(file: Path, recipe: Registered) -> str:
    """What `import.json` says."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return json.dumps({"file": file.name, "sha256": digest, "as": recipe.id}, indent=1) + "\n"


def _write_run(folder: Path, config: str, record: RunRecord, weights: dict[str, Tensor], origin: str) -> None:
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write_text(partial / CONFIG, config)
        write_text(partial / ORIGIN, origin)
        write_text(partial / POINTER, json.dumps({"last": _CHECKPOINT}) + "\n")
        (partial / "checkpoints" / _CHECKPOINT).mkdir()
        save_weights(partial / "checkpoints" / _CHECKPOINT / WEIGHTS, weights)
        record.save(partial)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def describe(done: Imported) -> str:
    """What was written, in one line."""
    what = "the whole model" if done.whole else "what was trained"
    also = "; plain open_clip loads it too, one view at a time" if done.whole else ""
    return f"imported {what}, {done.tensors} tensors of {done.values:,} values, to {done.folder}{also}"
