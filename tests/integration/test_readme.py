"""The documents hold: the README's plugin works, every command line parses, every name and link exists."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from mvcore.api import Features, ViewBatch, build
from mvcore.cli import main as cli
from mvcore_data.demo import store_path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/**/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and text."""
    return FENCE.findall(path.read_text(encoding="utf-8"))


# --- the plugin of the README -------------------------------------------------------------------------------


@pytest.fixture
def tighten(install, monkeypatch):
    files: dict[str, str] = {}
    for _, text in blocks(README):
        if found := re.match(r"# (pyproject\.toml|\w+/\w+\.py)\n", text):
            files[found[1]] = text
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    assert len(files) == 2
    install(
        project["name"], project["entry-points"]["mvcore"], {"tighten/__init__.py": "", **files}, project["version"]
    )
    monkeypatch.setenv("MVCORE_PLUGINS", project["name"])


def test_the_plugin_is_listed_and_shown(tighten, capsys):
    assert cli.run(["plugins", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["tighten"]["status"], rows["tighten"]["reason"]) == ("ok", "")
    assert rows["tighten"]["parts"] == {"loss": ["tighten.spread"]}
    assert cli.run(["plugins", "show", "tighten.spread", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert [(option["name"], option["default"]) for option in shown["options"]] == [("margin", 0.1)]


def test_the_loss_computes_what_it_says(tighten):
    loss = build({"id": "tighten.spread", "args": {"margin": 0.05}}, "loss")
    counts = [3, 1, 2]
    batch = ViewBatch.make(counts)
    views = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss(Features({"view": views}), batch)
    terms: list[torch.Tensor] = []
    start = 0
    for count in counts:
        units = [view / view.norm() for view in views[start : start + count]]
        centre = sum(units, torch.zeros(5, dtype=torch.float64))
        terms += [(1 - unit @ (centre / centre.norm()) - 0.05).clamp(min=0) for unit in units]
        start += count
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(value, expected)
    assert float(value.detach()) > 0
    (got,) = torch.autograd.grad(value, views)
    (wanted,) = torch.autograd.grad(expected, views)
    torch.testing.assert_close(got, wanted)


# --- command lines ------------------------------------------------------------------------------------------


def in_blocks(path: Path) -> Iterator[str]:
    for _, text in blocks(path):
        for line in text.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;(?=\s)", re.sub(r"(^|\s)#\s.*$", "", line)):
                if found := re.match(r"(?:uv run |\w+=\S+ )*mvcore(?= |$)(.*?)(?: > \S+)?$", part.strip()):
                    yield found[1]


def in_text(path: Path) -> Iterator[str]:
    for found in re.finditer(r"`(?:uv run )?mvcore ([^`]*)`", FENCE.sub("", path.read_text(encoding="utf-8"))):
        yield " ".join(found[1].split())


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_command_lines_parse(path: Path, program):
    faults = {line: program.fault(shlex.split(line)) for line in in_blocks(path)}
    for line in in_text(path):
        if not re.search(r"\.\.\.|[|,]", line):  # an abbreviation, not a command line
            faults[line] = program.fault(shlex.split(line), complete=False)
    # The command of the plugin that the tutorial makes; test_plugin_template.py runs it.
    own = {"mymethod"} if path.name == "your-own-plugin.md" else set[str]()
    assert not {line: fault for line, fault in faults.items() if fault and line.split()[0] not in own}


def test_the_parser_finds_faults(program):
    assert program.fault(["train", "--plugin", "ovt"]) == ""
    assert program.fault(["plugins"]) == program.fault(["--help"]) == program.fault(["data", "render", "--help"]) == ""
    assert "--plugn" in program.fault(["train", "--plugn", "ovt"])
    assert "nonsense" in program.fault(["nonsense"])
    assert "rendr" in program.fault(["data", "rendr", "a", "b"])
    assert "--size" in program.fault(["data", "render", "a", "b", "--size", "large"])
    assert "Missing" in program.fault(["data", "render", "a"])
    assert program.fault(["data", "render"], complete=False) == ""


def test_the_readme_has_the_two_commands():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert "pip install uv && uv run mvcore train --plugin ovt" in lines
    assert "uv run pytest" in lines
    assert (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()[-1] == "uv run pytest"


# --- code and links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_python_blocks_parse_and_their_imports_exist(path: Path):
    for language, text in blocks(path):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(text, named(path))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0].startswith("mvcore"):
                module = importlib.import_module(node.module or "")
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], node.module


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_lead_to_files(path: Path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    targets = [found.partition("#")[0] for found in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in found]
    assert not [target for target in targets if target and not (path.parent / target).exists()]


def test_the_site_lists_every_page():
    def pages(entries: list[dict[str, str | list]]) -> Iterator[str]:
        for entry in entries:
            for value in entry.values():
                yield from pages(value) if isinstance(value, list) else [value]

    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages(navigation)) == sorted(
        str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")
    )


def test_the_first_run_counts_the_demonstration_set_right():
    index = json.loads((store_path() / "index.json").read_text(encoding="utf-8"))
    total = sum(shard["objects"] for shard in index["shards"])
    views = sum(shard["views"] for shard in index["shards"]) // total
    train, test = (len(index["splits"][name]) for name in ("train", "test"))
    text = " ".join((ROOT / "docs/tutorials/first-run.md").read_text(encoding="utf-8").split())
    assert f"{train} of {total} procedural objects, each seen from {views} known viewpoints" in text
    assert f"on {test} objects that no training saw" in text
