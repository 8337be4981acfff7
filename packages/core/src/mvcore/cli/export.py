"""`mvcore export`: a run's weights for a plain library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    to: Annotated[str | None, typer.Option(help="The library: open_clip or timm; default: the model's own.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New folder; default: RUN/export-LIBRARY.")
    ] = None,
    which: Annotated[str, typer.Option(help="The checkpoint: last or best.")] = "last",
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, float16 or bfloat16.")] = "float32",
    strength: Annotated[float, typer.Option(help="How much of what was learnt is applied; 1 = all.")] = 1.0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print tracebacks of errors.")] = False,
) -> None:
    """Merges what can be merged, writes the library's own files, reloads them there and prints the difference."""
    import torch

    from mvcore.errors import ConfigError
    from mvcore.exporting import export as write
    from mvcore.loading import load
    from mvcore.run_folder import read_config, read_record
    from mvcore.running import describe_export

    record, config = read_record(run), read_config(run)
    model = load(run, strength, which=which)
    entries = {name: config.adapters[name] for name in record.adapters}
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ConfigError(f"--dtype {dtype!r}: write float32, float16 or bfloat16")
    target = output or run / f"export-{model.backbone.library.replace('_', '-')}"
    measured = which == "last" and strength == 1.0
    done = write(model, target, to=to, adapters=entries, dtype=getattr(torch, dtype), run=run, measured=measured)
    typer.echo(describe_export(done))
