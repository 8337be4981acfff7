"""The program `mvcore` as a tree of commands, for tests that hold the documents against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import typer
from mvcore.cli import main


class Program:
    """Every command with its parameters, and a parser that runs nothing."""

    def __init__(self) -> None:
        self.root: Any = typer.main.get_command(main.app)

    def commands(self) -> dict[tuple[str, ...], Any]:
        """Commands by their words, groups left out."""
        context = self.root.make_context("mvcore", [], resilient_parsing=True)
        return dict(self._below(self.root, context, ()))

    def _below(self, group: Any, context: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name in group.list_commands(context):
            _, command, _ = group.resolve_command(context, [name])
            here = (*words, name)
            if hasattr(command, "list_commands"):
                yield from self._below(command, command.make_context(name, [], context, resilient_parsing=True), here)
            else:
                yield here, command

    def fault(self, arguments: Sequence[str], *, complete: bool = True) -> str:
        """What is wrong with a command line, or nothing; what it would do is not done.

        Args:
            complete: whether missing arguments are a fault.
        """
        command, context, rest, name = self.root, None, list(arguments), "mvcore"
        try:
            while True:
                if hasattr(command, "list_commands") and (not rest or rest == ["--help"]):
                    return ""
                context = command.make_context(name, rest, context)
                if not hasattr(command, "list_commands"):
                    return ""
                rest = [*context._protected_args, *context.args]
                name, command, rest = command.resolve_command(context, rest)
        except typer.Exit:  # --help, --version
            return ""
        except Exception as error:
            if not complete and type(error).__name__ == "MissingParameter":
                return ""
            told = getattr(error, "format_message", None)
            return told() if told else f"{type(error).__name__}: {error}"


@pytest.fixture(scope="session")
def program() -> Program:
    return Program()
