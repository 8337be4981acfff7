"""`mvcore recipes`: the run configurations that plugins bring."""

from __future__ import annotations

from typing import Annotated

import typer

from mvcore.cli.output import print_json, print_table
from mvcore.plugins import load_plugins, recipe_path

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Lists the recipes of the plugins and shows them.")


@app.command("list")
def list_recipes(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Every recipe, and which is its plugin's default."""
    recipes = load_plugins().specs("recipe")
    if json:
        print_json(
            [
                {"id": part_id, "summary": found.spec.summary, "default": found.spec.default, "path": found.spec.path}
                for part_id, found in recipes.items()
            ]
        )
        return
    rows = [(i, "default" if found.spec.default else "", found.spec.summary) for i, found in recipes.items()]
    print_table(("recipe", "", "summary"), rows)


@app.command("show")
def show(name: Annotated[str, typer.Argument(metavar="PLUGIN[.NAME]", help="As ovt or ovt.paper.")]) -> None:
    """Prints a recipe's YAML as it stands in the package; without a name, the plugin's default."""
    plugin, _, recipe = name.partition(".")
    typer.echo(recipe_path(load_plugins().recipe(plugin, recipe or None)).read_text(encoding="utf-8"), nl=False)
