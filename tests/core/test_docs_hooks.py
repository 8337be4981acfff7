"""docs/plugins.md holds every hook with its signature and a working example, and every field of every spec."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import mvcore.api
import pytest
from mvcore import hookspecs
from mvcore.discovery import Status
from mvcore.hookspecs import REGISTRATION_HOOKS
from mvcore.plugin_records import ANSWERS, SPEC_OF_PART
from mvcore.specs import SPEC_TYPES, Spec

PAGE = (Path(__file__).parents[2] / "docs/plugins.md").read_text(encoding="utf-8")
HOOKS: dict[str, Callable[..., Any]] = {
    name: value for name, value in vars(hookspecs).items() if name.startswith("mvcore_") and inspect.isfunction(value)
}
HOOK_ARGUMENTS = {"config": SimpleNamespace(run=SimpleNamespace(precision="16-mixed")), "results": {}}


def section(hook: str) -> str:
    """The text of the hook's own section, from behind its heading."""
    heading = f"### `{hook}{inspect.signature(HOOKS[hook])}`".replace("'", "")
    _, found, after = PAGE.partition(f"\n{heading}\n")
    assert found, f"docs/plugins.md has no heading {heading}"
    return re.split(r"^##", after, maxsplit=1, flags=re.MULTILINE)[0]


def test_all_hooks_are_looked_at():
    assert set(HOOKS) == {*REGISTRATION_HOOKS, *ANSWERS}
    assert set(re.findall(r"^### `(\w+)\(", PAGE, re.MULTILINE)) == set(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_another_test_implements_it(hook: str):
    others = [path for path in Path(__file__).parents[1].rglob("test_*.py") if path.name != Path(__file__).name]
    assert any(f"def {hook}(" in path.read_text(encoding="utf-8") for path in others)


@pytest.mark.parametrize("hook", HOOKS)
def test_its_example_is_the_one_beside_the_code_and_works(hook: str):
    documentation = inspect.getdoc(HOOKS[hook])
    assert documentation is not None
    example = textwrap.dedent(documentation[documentation.index("@hookimpl") :])
    (block,) = re.findall(r"^```python\n(.*?)^```$", section(hook), re.MULTILINE | re.DOTALL)
    assert block.split() == example.split()

    names: dict[str, Any] = {name: getattr(mvcore.api, name) for name in mvcore.api.__all__}
    exec(block, names)
    function = names[hook]
    answers = function(**{name: HOOK_ARGUMENTS[name] for name in inspect.signature(function).parameters})
    wanted = SPEC_OF_PART[REGISTRATION_HOOKS[hook]] if hook in REGISTRATION_HOOKS else ANSWERS[hook]
    assert len(answers) == 1
    assert isinstance(answers[0], wanted)


def rows() -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]


def test_every_field_of_every_spec_is_there_with_its_default():
    shared = {field.name for field in dataclasses.fields(Spec)}
    written: dict[str, dict[str, str]] = {"": {}}
    owner = ""
    for cells in rows():
        if len(cells) == 3 and cells[0].strip("`") in shared:
            written[""][cells[0].strip("`")] = cells[1]
        elif len(cells) == 4 and cells[1].startswith("`"):
            owner = cells[0].strip("`") or owner
            written.setdefault(owner, {})[cells[1].strip("`")] = cells[2]
    expected = {"": shared} | {
        spec.__name__: {field.name for field in dataclasses.fields(spec)} - shared for spec in SPEC_TYPES
    }
    assert {name: set(fields) for name, fields in written.items()} == {k: v for k, v in expected.items() if v}
    for spec in SPEC_TYPES:
        for field in dataclasses.fields(spec):
            text = written.get(spec.__name__, {}).get(field.name)
            if text is not None and (
                field.default not in ("", frozenset()) and field.default is not dataclasses.MISSING
            ):
                assert text.strip("`").strip('"') == str(field.default), f"{spec.__name__}.{field.name}"


def test_every_status_is_explained():
    assert {cells[0].strip("`") for cells in rows() if len(cells) == 2} >= set(get_args(Status))
