"""`mvcore train`: trains a model with one or more methods and shows what changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mvcore.config_layers import to_yaml
from mvcore.errors import ConfigError
from mvcore.launching import among_processes, launch, must_launch
from mvcore.plugins import load_plugins
from mvcore.resolution import Request, resolve
from mvcore.run_folder import run_to_resume


def train(
    ctx: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="A YAML run configuration.", show_default=False)] = None,
    plugin: Annotated[
        list[str] | None, typer.Option("--plugin", "-p", help="A method by name, or a plugin's file; may be repeated.")
    ] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="A recipe, as paper or ovt.paper; may be repeated.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A multi-view store, as PATH or PATH#SPLIT; without it the embedded demo is used."),
    ] = None,
    validate: Annotated[str | None, typer.Option(help="A store to measure on, as PATH or PATH#SPLIT.")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="An open_clip or timm model, as ViT-B-32:laion2b_s34b_b79k, or the id of a backbone."),
    ] = None,
    loss: Annotated[
        list[str] | None, typer.Option(help="Sets or adds a loss, as ovt.vc=0.5; weight 0 drops it; may be repeated.")
    ] = None,
    only_losses: Annotated[bool, typer.Option("--only-losses", help="Keep just the losses named by --loss.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Sets a key, as optimizer.lr=1e-4; may be repeated.")
    ] = None,
    control: Annotated[
        bool | None, typer.Option("--control/--no-control", help="Also train without the method's own losses.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Runs once a seed and averages, as 0,1,2.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="The run's folder, which must be new.")] = None,
    resume: Annotated[str | None, typer.Option(help="Goes on with a run: its folder, or auto for the newest.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Prints the merged configuration with each key's source, and stops.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Builds everything, runs one batch forward and backward, and stops.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print tracebacks of errors.")] = False,
) -> None:
    """Tunes a model with one or more methods; without data of yours, on the embedded demo."""
    if resume is not None:
        flags_given = {
            "FILE": file,
            "--plugin": plugin,
            "--recipe": recipe,
            "--data": data,
            "--validate": validate,
            "--encoder": encoder,
            "--loss": loss,
            "--only-losses": only_losses,
            "--set": set_,
            "--control": control,
            "--seeds": seeds,
            "--output": output,
            "--print-config": print_config,
            "--dry-run": dry_run,
        }
        given = [name for name, value in flags_given.items() if value not in (None, False, [])]
        if given:
            raise ConfigError(f"--resume goes on with a run as it was configured; leave out {', '.join(given)}")
        with among_processes():
            _resume(resume)
        return
    flags: dict[str, Any] = {}
    if output is not None:
        flags["run"] = {"output": output}
    if control is not None:
        flags["control"] = control
    request = Request(
        file=file,
        plugins=plugin or (),
        recipes=recipe or (),
        data=data,
        validate=validate,
        encoder=encoder,
        losses=loss or (),
        only_losses=only_losses,
        assignments=set_ or (),
        flags=flags,
    )
    with among_processes():
        resolved = resolve(request, load_plugins())
        config = resolved.layers.config()
        if print_config:
            typer.echo(to_yaml(resolved.layers, config), nl=False)
            return
        if dry_run:
            from mvcore.cli.dry_run import dry

            dry(config, resolved.layers, resolved.notes)
            return
        own_seeds = _seeds(seeds, config.run.seed)
        if must_launch(config.run.devices):
            raise SystemExit(launch(ctx.obj, int(config.run.devices)))
        from mvcore.stages import start

        start(config, resolved.layers, resolved.notes, own_seeds)


def _resume(where: str) -> None:
    folder, layers, seeds = run_to_resume(where)
    devices = layers.config().run.devices
    if must_launch(devices):
        raise SystemExit(launch(["train", "--resume", str(folder)], int(devices)))
    from mvcore.stages import go_on

    go_on(folder, layers, seeds)


def _seeds(text: str | None, default: int) -> list[int]:
    if text is None:
        return [default]
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise ConfigError(f"--seeds {text!r}: write different whole numbers, as 0,1,2")
    return found
