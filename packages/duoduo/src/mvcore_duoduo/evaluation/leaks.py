"""Refuses to measure on objects that a model was trained on.

The public lists of MVImgNet overlap: every id of `mvpnet_val.csv` stands in `mvimgnet_model_ids.txt` too, so a model
trained on the latter has seen all that the former would test it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mvcore.api import ConfigError, DataError, Embedder, build, read_config, resolve_path

from mvcore_duoduo.evaluation.files import plain_id, read_ids
from mvcore_duoduo.evaluation.options import SubsetOptions

AUTO = "auto"


def training_ids(model: Embedder, options: SubsetOptions) -> dict[str, str] | None:
    """Ids of training objects, and where each stands; None where nobody named any.

    Raises:
        DataError: a list or a run's data cannot be read.
        ConfigError: a run's data has no ids.
    """
    run = options.train_run
    if run == AUTO:
        run = model.name if (Path(model.name).expanduser() / "run.json").is_file() else None
    if run is None and not options.train_ids:
        return None
    found: dict[str, str] = {}
    for text in options.train_ids:
        found |= dict.fromkeys(read_ids(text), text)
    if run is not None:
        for name, ids in _objects_of_run(resolve_path(run, what="run")).items():
            found |= dict.fromkeys(ids, f"{run} (data.{name})")
    return found


def overlap_of(
    names: Sequence[str], trained: dict[str, str] | None, options: SubsetOptions, owner: str, source: str
) -> str:
    """How many of the objects to be measured are training objects, for a table.

    Raises:
        DataError: any is, and `allow_overlap` is off.
    """
    if trained is None:
        return "not known"
    leaked = [name for name in names if plain_id(name) in trained]
    if leaked and not options.allow_overlap:
        raise DataError(
            f"{owner}: {len(leaked)} of the {len(names)} objects of source {source!r} are training objects, the first "
            f"{leaked[0]!r} in {trained[plain_id(leaked[0])]}; measure on others, or set allow_overlap: true"
        )
    return str(len(leaked))


def _objects_of_run(folder: Path) -> dict[str, list[str]]:
    """Ids of the objects of each source that a run trained on."""
    if not folder.is_dir():
        raise DataError(f"{folder}: not a run's folder")
    found: dict[str, list[str]] = {}
    for name, part in read_config(folder).data.items():
        # A cache in memory would be filled for nothing.
        args = {key: value for key, value in part.args.items() if key != "cache"}
        dataset = build({"id": part.id, "args": args}, "dataset")
        if not hasattr(dataset, "object_name"):
            raise ConfigError(f"{folder}: data.{name} ({part.id}) names no objects; list them in train_ids")
        found[name] = [plain_id(dataset.object_name(i)) for i in range(len(dataset))]
    return found
