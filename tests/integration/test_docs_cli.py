"""docs/cli.md holds every command of the program, its options and their defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mvcore.cli.eval import DEFAULT

PAGE = (Path(__file__).parents[2] / "docs/cli.md").read_text(encoding="utf-8")


def sections() -> dict[tuple[str, ...], str]:
    """The text of each command's section by the words of its command."""
    found: dict[tuple[str, ...], str] = {}
    for heading, text in re.findall(r"^## `mvcore ([^`]+)`\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL):
        words = tuple(word for word in heading.split() if re.fullmatch(r"[a-z]+", word))
        assert words not in found
        found[words] = text
    return found


def table(text: str) -> dict[frozenset[str], str]:
    """Options (all their spellings) and defaults."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `-")]
    assert all(len(cells) == 3 and cells[2].strip() for cells in rows)
    return {frozenset(re.findall(r"`(-[^`]+)`", cells[0])): cells[1].strip() for cells in rows}


def spellings(parameter: Any) -> frozenset[str]:
    return frozenset([*parameter.opts, *parameter.secondary_opts])


def default_text(parameter: Any) -> str | None:
    """How the page writes the default, or None where words describe it."""
    if isinstance(parameter.default, bool):
        return "on" if parameter.default else "off"
    return None if parameter.default is None else f"`{parameter.default}`"


def options_of(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == "option"]


def test_every_command_has_a_section(program):
    commands = set(program.commands())
    assert set(sections()) == commands
    assert {("train",), ("data", "render"), ("plugins", "show")} <= commands


def test_every_option_stands_in_its_table_with_its_default(program):
    for words, command in program.commands().items():
        written = table(sections()[words])
        assert set(written) == {spellings(parameter) for parameter in options_of(command)}, words
        for parameter in options_of(command):
            expected = default_text(parameter)
            if expected is not None:
                assert written[spellings(parameter)] == expected, (words, parameter.opts)


def test_the_default_evaluators_are_named(program):
    assert table(sections()[("eval",)])[frozenset({"--on"})] == f"`{','.join(DEFAULT)}`"


def test_the_options_of_the_program_itself_are_named(program):
    for parameter in program.root.params:
        if "completion" not in parameter.name:
            assert any(option in PAGE for option in spellings(parameter)), parameter.opts
