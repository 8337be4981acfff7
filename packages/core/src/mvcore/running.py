"""A whole run: measure the untouched model, train the control and the method, measure, export, and compare."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mvcore.checkpoint import WEIGHTS, load_weights
from mvcore.config import LEDGER, RunConfig
from mvcore.config_layers import Layers, to_yaml
from mvcore.encoders.plain_library import LIBRARIES
from mvcore.errors import ConfigError, DataError, Interrupted, MvcoreError, WeightsError
from mvcore.evaluation.results import EvalResult, load_result
from mvcore.evaluation.runner import evaluate
from mvcore.evaluation.stored import stored_views
from mvcore.exporting import export, load_export
from mvcore.key_path import show_path
from mvcore.loading import apply_weights
from mvcore.model import Model, Pipeline
from mvcore.model_card import write_training_data
from mvcore.plugins import Registry
from mvcore.report.ledger import draw_ledger, ledger_table
from mvcore.report.long_table import save_long_table
from mvcore.report.tables import Comparison, Results, compare, save_comparison
from mvcore.report.viewpoints import draw_rows_by_viewpoint
from mvcore.resolution import use_plugin
from mvcore.run_folder import CONFIG, RunRecord, checkpoint_of, is_run, read_record, versions, write_text
from mvcore.training.assembly import check_image_sizes, frozen_digest, make_pipeline, open_sources
from mvcore.training.distributed import rank, world_size
from mvcore.training.fit import Specified, fit, prepare, specifications
from mvcore.training.planner import Blueprint, Plan, choose, plan
from mvcore.training.ranks import agreed, check_processes
from mvcore.training.sampling import SourceSpecification, check_indexed, sampler_of
from mvcore.training.weights import WeightSchedule
from mvcore.validation import Written, nowhere

Rows = dict[str, dict[str, EvalResult]]
EXPORTED = "exported"


@dataclass
class Session:
    """A validated run with its sources open; no weight is loaded yet."""

    config: RunConfig
    blueprint: Blueprint
    plan: Plan
    sources: Mapping[str, Any]
    specified: Specified
    measured: Mapping[str, Any]
    evaluators: Mapping[str, Any]
    ledger: Mapping[str, Any]
    registry: Registry
    written: Written = nowhere

    def with_seed(self, seed: int) -> Session:
        """The same run with another seed, on the same opened data."""
        config = self.config.model_copy(update={"run": self.config.run.model_copy(update={"seed": seed})})
        return self._planned(config)

    def control(self) -> Session | None:
        """The control of the run, on the same opened data; None where it has no loss to train with."""
        config = control_config(self.config)
        return None if config is None else self._planned(config)

    def _planned(self, config: RunConfig) -> Session:
        blueprint = choose(config, self.registry, self.written)
        planned = plan(blueprint, self.sources, self.registry)
        return replace(self, config=config, blueprint=blueprint, plan=planned)


def open_session(config: RunConfig, registry: Registry, written: Written = nowhere) -> Session:
    """Resolves the parts, opens the data and checks that everything fits together.

    Raises:
        MvcoreError: what does not, before any weight is loaded.
    """
    check_processes(config.run)
    named = {use_plugin(plugin, registry).name for plugin in config.plugins}
    blueprint = choose(config, registry, written)
    registry.warn_about_broken(blueprint.plugins | named)
    sources, measured = open_sources(blueprint)
    for name, dataset in measured.items():
        check_indexed(dataset, f"validate.data.{name}")
    planned = plan(blueprint, sources, registry)
    if world_size() > 1 and (stepping := [t.part.name for t in planned.trainers if t.part.spec.replaces_step]):
        text = "makes the steps itself, which only one process can; set run.devices to 1"
        raise ConfigError(f"trainers.{stepping[0]} {text}")
    _warn_about_weights(planned)
    _ask_plugins(planned, registry)
    evaluators = {part.name: part.make() for part in blueprint.evaluators} if measured else {}
    if blueprint.evaluators and not measured:
        print("warning: nothing will be measured: name data for it with --validate STORE#SPLIT", file=sys.stderr)
    specified = specifications(planned, sources)
    for source in specified[0].values():
        sampler_of(source, config.run.seed).check_ranks(world_size())  # refuses what cannot be drawn
        _warn_about_pairs(source)
    ledger = {LEDGER: blueprint.ledger.make()} if measured and blueprint.ledger is not None else {}
    session = Session(config, blueprint, planned, sources, specified, measured, evaluators, ledger, registry, written)
    return session


def _warn_about_weights(planned: Plan) -> None:
    used = {term.part.name for term in planned.losses}
    for name, part in planned.config.losses.items():
        if isinstance(part.weight, WeightSchedule) and name not in used:
            text = f"its weight is 0 in all {planned.config.run.max_steps} steps ({part.weight})"
            print(f"warning: {show_path(('losses', name))} is left out: {text}", file=sys.stderr)


def _warn_about_pairs(source: SourceSpecification) -> None:
    if source.pairs is not None and source.pairs.left_out:
        print(
            f"warning: data.{source.name}: {source.pairs.left_out} of {len(source.dataset)} objects have no two views "
            f"with {source.pairs_like} and are left out",
            file=sys.stderr,
        )


def _ask_plugins(planned: Plan, registry: Registry) -> None:
    """What the run's plugins have against it: warnings on stderr, errors together in one line."""
    errors: list[str] = []
    for answer in registry.call("mvcore_check_run", planned.blueprint.plugins, config=planned.config, plan=planned):
        if answer.error is not None:
            raise answer.error
        errors += [f"{answer.plugin}: {problem.text}" for problem in answer.items if problem.severity == "error"]
        for problem in answer.items:
            if problem.severity == "warning":
                print(f"warning: {answer.plugin}: {problem.text}", file=sys.stderr)
    if errors:
        raise ConfigError("; ".join(errors))


def control_config(config: RunConfig) -> RunConfig | None:
    """The same run with the methods' own loss terms at weight 0: same steps, same data, same adapters.

    None where the methods' own losses are all that there are: then the control is the model as training begins, with
    whatever its new parts, as a convolution drawn at random, do to it before they have learnt anything.
    """
    losses = {
        name: part if part.id.startswith("core.") else part.model_copy(update={"weight": 0.0})
        for name, part in config.losses.items()
    }
    if all(part.weight == 0 for part in losses.values()):
        return None
    return config.model_copy(update={"losses": losses, "control": False})


def run(session: Session, folder: Path, yaml_text: str, console: Console, title: str = "") -> Rows:
    """Goes through all stages of one seed; stages that an earlier call finished are not done again.

    Returns:
        Results by row (`untouched`, `control`, `tuned`, `exported`) and evaluator; on the first of several processes,
        which alone measures.

    Raises:
        Interrupted: Ctrl-C, with everything saved.
        MvcoreError: what went wrong.
    """
    config = session.config
    rows: Rows = {}
    measuring = bool(session.evaluators or session.ledger) and rank() == 0
    if measuring:
        untouched = Model(make_pipeline(session.blueprint.encoder, [], config.run.seed))
        connect(untouched.pipeline, session)
        output, tag = folder / "evaluation" / "untouched", untouched.backbone.embeddings
        rows["untouched"] = _measure(session, untouched, output, console, "untouched", tag)
        del untouched
    if config.control:
        control = _control(session, folder, console, f"{title}control")
        if measuring:
            rows["control"] = _measure(session, control, folder / "evaluation" / "control", console, "control")
        del control
    tuned = _trained(session, folder, yaml_text, console, f"{title}tuned")
    if measuring:
        rows["tuned"] = _measure(session, tuned, folder / "evaluation" / "tuned", console, "tuned")
        if tuned.backbone.library in LIBRARIES:
            rows[EXPORTED] = _exported(session, tuned, folder, console)
    return rows


def _control(session: Session, folder: Path, console: Console, title: str) -> Model:
    other = session.control()
    if other is not None:
        return _trained(other, folder / "control", to_yaml(Layers(), other.config), console, title)
    console.print(f"{title}: no loss but the methods' own, so it is the model at step 0")
    pipeline = make_pipeline(session.blueprint.encoder, session.plan.adapters, session.config.run.seed)
    connect(pipeline, session)
    return Model(pipeline)


def _trained(session: Session, folder: Path, yaml_text: str, console: Console, title: str) -> Model:
    """The model of a finished training, trained now or before."""
    record, resume = agreed(lambda: _state_of(folder))
    training = prepare(session.plan, session.sources, folder, specified=session.specified)
    connect(training.pipeline, session)
    if record is not None and record.status == "finished":
        apply_weights(training.pipeline, load_weights(checkpoint_of(folder) / WEIGHTS))
        return training.model
    frozen = frozen_digest(training.pipeline)
    if frozen != agreed(lambda: frozen):
        text = f"the frozen weights of process {rank()} are not those of process 0"
        raise WeightsError(f"{text}; give every machine the same files")
    adapters = [part.name for part in session.plan.adapters]
    record = RunRecord("running", session.config.run.seed, adapters, frozen, versions())
    if rank() == 0:
        write_text(folder / CONFIG, yaml_text)
        write_training_data(folder, session.config, session.sources)
        record.save(folder)
    evaluators = session.evaluators

    def measure(model: Model, output: Path) -> Mapping[str, float]:
        found = evaluate(model, evaluators, session.measured, output)
        return {figure.name: figure.value for result in found.values() for figure in result.figures}

    try:
        fit(training, folder, title=title, console=console, resume=resume, measure=measure if evaluators else None)
        record.status = "finished"
    except Interrupted:
        record.status = "stopped"
        raise
    except MvcoreError:
        record.status = "failed"
        raise
    finally:
        if rank() == 0:
            record.save(folder)
    return training.model


def _state_of(folder: Path) -> tuple[RunRecord | None, Path | None]:
    """What an earlier call left: its record, and the checkpoint to go on from."""
    record = read_record(folder) if is_run(folder) else None
    pointed = record is not None and (folder / "checkpoints" / "last.json").exists()
    return record, checkpoint_of(folder) if pointed else None


def connect(pipeline: Pipeline, session: Session) -> None:
    """Lets a model's backbone find what is stored for it beside the session's data."""
    measured = {f"validate.{name}": dataset for name, dataset in session.measured.items()}
    pipeline.backbone.connect({**session.sources, **measured})


def _measure(
    session: Session, model: Model, output: Path, console: Console, row: str, tag: str | None = None
) -> dict[str, EvalResult]:
    # What was exported is there to be compared with the tuned model, not to be judged again.
    judged = row != EXPORTED and "view" in model.pipeline.provides
    evaluators = {**session.evaluators, **(session.ledger if judged else {})}
    saved = _saved(output, evaluators)
    if saved is not None:
        return saved
    check_image_sizes("validate.data", session.measured, model.backbone)
    model.views_per_batch = session.config.validation.views_per_batch
    stored = None if tag is None else stored_views(model, session.measured, tag)
    if stored is not None:
        names = ", ".join(stored.sources)
        console.print(f"{row}: views of {names} read from the stored embeddings {tag}", markup=False, highlight=False)
    with console.status(f"measuring {row}"):
        return evaluate(model, evaluators, session.measured, output, stored=stored)


def _saved(output: Path, evaluators: Mapping[str, Any]) -> dict[str, EvalResult] | None:
    """What an earlier call of this run measured; None unless all of it is there."""
    try:
        return {name: load_result(output / name) for name in evaluators}
    except DataError:
        return None


def _exported(session: Session, tuned: Model, folder: Path, console: Console) -> dict[str, EvalResult]:
    """Exports the tuned model and measures what the plain library has of it."""
    target = folder / "export"
    if not target.exists():
        entries = {part.name: session.config.adapters[part.name] for part in session.plan.adapters}
        done = export(tuned, target, adapters=entries, run=folder)
        console.print(describe_export(done))
    plain: Pipeline = load_export(target, plain=True)
    return _measure(session, Model(plain), folder / "evaluation" / EXPORTED, console, EXPORTED)


def describe_export(done: Any) -> str:
    """What an export did, in one or two lines."""
    text = f"exported to {done.folder} ({done.library} loads it as local-dir:{done.folder}); "
    text += f"merged: {', '.join(done.merged) or 'nothing'}; largest difference {done.largest_difference:.1g}"
    if done.in_place:
        text += f"; trained in place: {', '.join(done.in_place)}"
    if done.beside:
        beside = [f"{name} (in part; the rest is merged)" if name in done.in_part else name for name in done.beside]
        text += f"\nnot mergeable, exported beside it and missing in plain {done.library}: {', '.join(beside)}"
    return text


def report(seeds: list[Rows], folder: Path, console: Console, *, demo: bool) -> Comparison | None:
    """The before/after table and the ledger over all seeds, printed and saved under `report/` with their pictures."""
    names = [name for name in seeds[0] if all(name in rows for rows in seeds)]
    if not names:
        return None
    labels = {EXPORTED: "tuned, as exported"}
    rows = {labels.get(name, name): [found[name] for found in seeds] for name in names}
    comparison = compare(rows, demo=demo)
    save_comparison(comparison, folder / "report", "comparison")
    draw_rows_by_viewpoint(rows, folder / "report" / "viewpoints.png", title="DEMO" if demo else "")
    if comparison.columns:
        console.print(comparison.to_rich())
    report_ledger(rows, folder, console, demo=demo)
    return comparison


def report_ledger(rows: Mapping[str, Sequence[Results]], folder: Path, console: Console, *, demo: bool) -> None:
    """The ledger, printed and saved under `report/`; the pictures are those of the first seed."""
    table = ledger_table(rows, demo=demo)
    if table is None:
        return
    save_long_table(table, folder / "report", "ledger")
    console.print(table.to_rich())
    first = next(path for path in (folder, *sorted(folder.glob("seed-*"))) if (path / "evaluation").is_dir())
    found = {row: seeds[0][LEDGER] for row, seeds in rows.items() if LEDGER in seeds[0]}
    folders = {row: first / "evaluation" / row / LEDGER for row in found}
    draw_ledger(folders, found, folder / "report", demo=demo)
