"""The program `mvcore`: a group whose commands, its own and the plugins', are imported only when they are called."""

from __future__ import annotations

import keyword
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from mvcore.cli.process import prepare
from mvcore.discovery import RESERVED
from mvcore.errors import ConfigError, MvcoreError, PluginError
from mvcore.plugin_records import BUILTIN_COMMANDS

ENV_VERBOSE = "MVCORE_VERBOSE"


class LazyGroup(TyperGroup):
    """Lists commands by their summaries alone, and imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        from mvcore.plugins import load_plugins

        return [*BUILTIN_COMMANDS, *sorted(load_plugins().commands())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in that carries the summary for the help; `resolve_command` gives the real one."""
        summary = BUILTIN_COMMANDS.get(cmd_name)
        if summary is None:
            from mvcore.plugins import load_plugins

            owners = load_plugins().commands().get(cmd_name)
            if not owners:
                return None
            summary = owners[0].spec.summary
            if len(owners) > 1:
                summary = f"Claimed by several plugins: {', '.join(owner.plugin for owner in owners)}."
        return TyperCommand(cmd_name, help=summary, rich_markup_mode=self.rich_markup_mode)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name.startswith("-"):
            return super().resolve_command(ctx, args)
        target = _builtin(name) if name in BUILTIN_COMMANDS else _of_plugin(name)
        return name, _as_command(target, name), args[1:]


def _builtin(name: str) -> Any:
    """`app` of the command's module, or the function that has its name."""
    import importlib

    # A module cannot be imported under a word of the language.
    module = importlib.import_module(f"mvcore.cli.{name}{'_' * keyword.iskeyword(name)}")
    return getattr(module, "app", None) or getattr(module, name)


def _of_plugin(name: str) -> Any:
    from mvcore.build import resolve
    from mvcore.plugins import load_plugins
    from mvcore.suggest import did_you_mean, listed

    registry = load_plugins()
    commands = registry.commands()
    owners = commands.get(name, [])
    if len(owners) == 1:
        return resolve(owners[0].spec.factory, f"command {name!r}")
    if owners:
        providers = " and ".join(registry.plugin(owner.plugin).provider for owner in owners)
        raise PluginError(f"the command {name!r} is claimed by {providers}; uninstall or disable all but one")
    if not registry.has(name) and (name == "data" or any(record.name == name for record in registry.records)):
        raise PluginError(f"unknown command {name!r}: {registry.explain(name)}")
    known = [*BUILTIN_COMMANDS, *commands]
    raise ConfigError(f"unknown command {name!r}{did_you_mean(name, known)} (known: {listed(known)})")


def _as_command(target: Any, name: str) -> Any:
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(add_completion=False)
        target.command()(function)
    target.rich_markup_mode = app.rich_markup_mode
    command = typer.main.get_command(target)
    command.name = name
    # An app of its own would bring its own completion options; the program has them already.
    command.params = [p for p in command.params if p.name not in ("install_completion", "show_completion")]
    return command


# Plain help: typer's panels would import rich's Markdown, which takes as long as all else that `--help` does.
app = typer.Typer(cls=LazyGroup, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"mvcore {metadata.version('mvcore')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print tracebacks of errors.")] = False,
) -> None:
    """Makes vision models consistent across viewpoints: methods as plugins over one training and evaluation stack."""


def run(argv: Sequence[str]) -> int:
    """Runs the program in this process and returns its exit code.

    0 is success, 1 a check that failed, 2 a fault that the user can mend, 130 an interruption.
    """
    arguments = list(argv) or ["--help"]
    try:
        result = typer.main.get_command(app).main(arguments, prog_name="mvcore", standalone_mode=False, obj=arguments)
        if result == 130:  # typer turns Ctrl-C into an exit code without a word
            return _fail("interrupted", 130)
        return result if type(result) is int else 0
    except MvcoreError as exc:
        if os.environ.get(ENV_VERBOSE, "") not in ("", "0") or {"-v", "--verbose"} & set(arguments):
            traceback.print_exc()
        return _fail(str(exc), exc.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 0 if exc.code is None else _fail(str(exc.code), 1)
    except Exception as exc:
        # Usage errors: typer keeps their class to itself, so they are known by what they offer.
        if not (hasattr(exc, "format_message") and hasattr(exc, "exit_code")):
            return _foreign_error(exc, arguments)
        return _usage_error(exc)


def _foreign_error(exc: Exception, arguments: Sequence[str]) -> int:
    """An unexpected error in a plugin's command, named; one of our own passes through."""
    name = next((word for word in arguments if not word.startswith("-")), "")
    if name in BUILTIN_COMMANDS:
        raise exc
    from mvcore.plugins import load_plugins

    owners = load_plugins(check_strict=False).commands().get(name) or ()
    if not owners or owners[0].plugin in RESERVED:
        raise exc
    if os.environ.get(ENV_VERBOSE, "") not in ("", "0") or {"-v", "--verbose"} & set(arguments):
        traceback.print_exception(exc)
    return _fail(f"command {name!r} of the plugin {owners[0].plugin!r} failed: {type(exc).__name__}: {exc}")


def _usage_error(exc: Any) -> int:
    context = getattr(exc, "ctx", None)
    if type(exc).__name__ == "NoArgsIsHelpError":
        exc.show()
        return exc.exit_code
    where = f" (see '{context.command_path} --help')" if context is not None else ""
    return _fail(f"{exc.format_message().rstrip('.')}{where}", exc.exit_code)


def _fail(text: str, code: int = 2) -> int:
    start = "" if code == 130 else "error: "
    typer.secho(f"{start}{' '.join(text.split())}", fg="red", err=True)
    return code


def main() -> None:
    """The entry point of the installed program."""
    prepare()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
