"""The command line as a user meets it: what is printed, where, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from mvcore.cli import main as cli
from mvcore.plugin_records import BUILTIN_COMMANDS

HEAD = "from mvcore.api import *\nMVCORE_API = 1\n"

FULL = """
from typing import Literal
from mvcore.api import *
MVCORE_API = 1

class PullOptions(Options):
    margin: float = 0.3
    rule: Literal["mean", "max"] = "mean"
    rank: int

@hookimpl
def mvcore_register_losses():
    return [LossSpec(name="pull", summary="Pulls views together", factory="third_full:Pull", config=PullOptions,
                     needs={"view"}, sampling="pairs")]

@hookimpl
def mvcore_register_encoders():
    return [EncoderSpec(name="pull", summary="Adapts", kind="adapter", factory="third_full:Adapt", provides={"view"})]

@hookimpl
def mvcore_register_commands():
    return [CommandSpec(name="fetch", summary="Fetches [all] of the data.", factory="third_full_cli:app"),
            CommandSpec(name="greet", summary="Greets.", factory="third_full_cli:greet")]

@hookimpl
def mvcore_register_checks():
    return [CheckSpec(name="key", summary="Key", factory="third_full_cli:key")]
"""

FULL_CLI = """
import sys
sys.stderr.write("third_full_cli imported\\n")
import typer
from mvcore.api import CheckResult, DataError
app = typer.Typer()

@app.command()
def all(url: str = "u"):
    print("fetched", url)

@app.command()
def fail(kind: str):
    if kind == "mvcore":
        raise DataError("the store\\nis empty")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "exit":
        raise SystemExit(7)
    raise ZeroDivisionError(kind)

def greet(name: str):
    print("hello", name)

def key():
    return [CheckResult("failed", "no key", "buy one")]
"""


@pytest.fixture
def full(install, monkeypatch):
    install.plugin("full", FULL)
    (install.folder / "third_full_cli.py").write_text(FULL_CLI)
    monkeypatch.setenv("MVCORE_PLUGINS", "full,bad,rival")
    return install


# --- the group ----------------------------------------------------------------------------------------------


def test_help_lists_all_commands_by_summary_without_importing_them(full, capsys):
    assert cli.run(["--help"]) == 0
    out, err = capsys.readouterr()
    for name, summary in {**BUILTIN_COMMANDS, "fetch": "Fetches", "greet": "Greets."}.items():
        assert name in out
        assert summary in " ".join(out.split())
    assert "third_full_cli imported" not in err


def test_no_argument_prints_the_help(full, capsys):
    assert cli.run([]) == 0
    assert "Usage: mvcore" in capsys.readouterr().out


def test_version(capsys):
    from importlib import metadata

    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"mvcore {metadata.version('mvcore')}\n"


def test_commands_of_plugins_run(full, capsys):
    assert cli.run(["fetch", "all", "--url", "here"]) == 0
    assert cli.run(["greet", "you"]) == 0
    assert capsys.readouterr().out == "fetched here\nhello you\n"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["trian"], "unknown command 'trian', did you mean 'train'? (known: "),
        (["fetc"], "unknown command 'fetc', did you mean 'fetch'?"),
        (["plugins", "lsit"], "No such command 'lsit'. Did you mean 'list'? (see 'mvcore plugins --help')"),
        (["plugins", "list", "--jsn"], "No such option: --jsn (Possible options: --json) (see 'mvcore plugins list --"),
        (["--verbos"], "No such option: --verbos"),
        (["greet"], "(see 'mvcore greet --help')"),
        (["data", "check"], "unknown command 'data': plugin 'data' (mvcore-data 0.1.0) is disabled"),
        (["fetch", "fail", "mvcore"], "the store is empty"),
    ],
)
def test_faults_of_the_user_are_one_line_and_exit_2(full, capsys, argv, text):
    assert cli.run(argv) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line != "third_full_cli imported"]
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert text in lines[0]


def test_a_traceback_is_printed_only_when_asked_for(full, capsys, monkeypatch):
    assert cli.run(["-v", "fetch", "fail", "mvcore"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("MVCORE_VERBOSE", "1")
    assert cli.run(["fetch", "fail", "mvcore"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1] == "error: the store is empty"


def test_interruption_exits_and_faults_of_the_program(full, capsys):
    assert cli.run(["fetch", "fail", "interrupt"]) == 130
    assert cli.run(["fetch", "fail", "exit"]) == 7
    assert cli.run(["fetch", "fail", "bug"]) == 2
    assert "command 'fetch' of the plugin 'full' failed: ZeroDivisionError: bug" in capsys.readouterr().err


def test_a_command_claimed_twice_fails_only_its_callers(full, capsys):
    rival = "@hookimpl\ndef mvcore_register_commands(): return [CommandSpec(name='fetch', summary='s', factory='a:b')]"
    full.plugin("rival", HEAD + rival)
    assert cli.run(["fetch", "all"]) == 2
    assert "'fetch' is claimed by third-full 1.0 and third-rival 1.0" in capsys.readouterr().err
    assert cli.run(["greet", "you"]) == 0
    assert cli.run(["--help"]) == 0
    assert "Claimed by several plugins" in capsys.readouterr().out


def test_a_command_whose_module_fails_names_itself(full, capsys):
    (full.folder / "third_full_cli.py").write_text("import a_module_that_is_not_there")
    assert cli.run(["greet", "you"]) == 2
    assert "command 'greet': cannot import 'third_full_cli'" in capsys.readouterr().err
    assert cli.run(["plugins", "list"]) == 0


# --- plugins ------------------------------------------------------------------------------------------------


def test_list_as_table_and_json(full, capsys):
    assert cli.run(["plugins", "list"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "third-full 1.0" in line)
    assert line.split() == [
        "full",
        "ok",
        "third-full",
        "1.0",
        "1",
        "adapter,",
        "1",
        "loss,",
        "2",
        "commands,",
        "1",
        "check",
    ]
    assert cli.run(["plugins", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["full"].pop("seconds") >= 0
    assert rows["full"] == {
        "name": "full",
        "status": "ok",
        "reason": "",
        "distribution": "third-full",
        "version": "1.0",
        "source": "third_full",
        "error": "",
        "traceback": "",
        "parts": {
            "encoder": ["full.pull"],
            "loss": ["full.pull"],
            "command": ["full.fetch", "full.greet"],
            "check": ["full.key"],
        },
    }
    assert rows["core"]["status"] == "ok"


def test_show_prints_every_kind_that_has_the_id(full, capsys):
    assert cli.run(["plugins", "show", "full.pull", "--json"]) == 0
    adapter, loss = json.loads(capsys.readouterr().out)
    assert (adapter["kind"], adapter["provides"], adapter["options"]) == ("adapter", ["view"], [])
    assert (loss["kind"], loss["needs"], loss["sampling"], loss["scope"]) == ("loss", ["view"], "pairs", "batch")
    assert loss["options"] == [
        {"name": "margin", "type": "float", "required": False, "default": 0.3, "description": ""},
        {"name": "rule", "type": "'mean' | 'max'", "required": False, "default": "mean", "description": ""},
        {"name": "rank", "type": "int", "required": True, "description": ""},
    ]
    assert cli.run(["plugins", "show", "full.pull"]) == 0
    out = capsys.readouterr().out
    assert "full.pull (adapter): Adapts" in out
    assert "full.pull (loss): Pulls views together" in out
    assert "needs: view" in out
    assert ["rank", "int", "required"] in [line.split() for line in out.splitlines()]


def test_show_of_a_plugin(full, capsys):
    assert cli.run(["plugins", "show", "full"]) == 0
    out = capsys.readouterr().out
    assert "full (third-full 1.0)" in out
    assert "Fetches [all] of the data." in out
    assert cli.run(["plugins", "show", "full", "--json"]) == 0
    assert [part["id"] for part in json.loads(capsys.readouterr().out)["parts"]][:2] == ["full.pull", "full.pull"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("full.pul", "unknown id 'full.pul', did you mean 'full.pull'?"),
        ("ful", "unknown plugin 'ful', did you mean 'full'?"),
        ("ful.pull", "unknown plugin 'ful', did you mean 'full'?"),
        ("ovt.vc", "plugin 'ovt' (mvcore-ovt 0.1.0) is disabled"),
    ],
)
def test_show_of_nothing(full, capsys, name, text):
    assert cli.run(["plugins", "show", name]) == 2
    assert text in capsys.readouterr().err


def test_parts_without_options_can_be_shown(capsys):
    for name in ("core.versions", "core.pretrain"):
        assert cli.run(["plugins", "show", name, "--json"]) == 0
    assert "mvcore:recipes/pretrain.yaml" in capsys.readouterr().out


# --- recipes and doctor -------------------------------------------------------------------------------------


@pytest.fixture
def recipes(install, monkeypatch):
    spec = "RecipeSpec(name={0!r}, summary='As the {0}', path='cook:recipes/{0}.yaml', default={1})"
    specs = f"[{spec.format('paper', True)}, {spec.format('absent', False)}]"
    install(
        "cook-book",
        {"cook": "cook.plugin"},
        {
            "cook/__init__.py": "",
            "cook/plugin.py": f"{HEAD}@hookimpl\ndef mvcore_register_recipes(): return {specs}",
            "cook/recipes/paper.yaml": "# as printed\nrun: {max_steps: 3}\n",
        },
    )
    monkeypatch.setenv("MVCORE_PLUGINS", "cook")


def test_recipes(recipes, capsys):
    assert cli.run(["recipes", "list", "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["cook.paper"]["default"] is True
    assert cli.run(["recipes", "list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cook.paper", "default", "As", "the", "paper"] in lines
    assert ["cook.absent", "As", "the", "absent"] in lines
    for name in ("cook", "cook.paper"):
        assert cli.run(["recipes", "show", name]) == 0
        out = capsys.readouterr().out
        assert out == "# as printed\nrun: {max_steps: 3}\n"
        assert yaml.safe_load(out) == {"run": {"max_steps": 3}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cook.papr", "no recipe 'papr', did you mean 'paper'?"),
        ("cook.absent", "recipe cook.absent"),
        ("cok", "unknown plugin 'cok', did you mean 'cook'?"),
    ],
)
def test_recipes_that_are_not_there(recipes, capsys, name, text):
    assert cli.run(["recipes", "show", name]) == 2
    assert text in capsys.readouterr().err


def test_doctor_reports_every_check_and_fails_if_one_does(full, capsys):
    assert cli.run(["doctor", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert {"check": "full.key", "status": "failed", "text": "no key", "advice": "buy one"} in rows
    by_check = {row["check"]: row for row in rows}
    assert set(by_check) >= {"core.versions", "core.device", "core.attention", "core.disk", "core.plugins"}
    texts = " ".join(row["text"] for row in rows)
    assert f"Python {sys.version.split()[0]}" in texts
    assert "open-clip-torch" in texts
    assert cli.run(["doctor"]) == 1
    assert "buy one" in capsys.readouterr().out


def test_doctor_survives_a_check_that_raises(full, capsys):
    (full.folder / "third_full_cli.py").write_text("def key(): raise SystemExit(9)")
    full.plugin("bad", "import a_module_that_is_not_there")
    assert cli.run(["doctor", "--json"]) == 1
    by_check = {row["check"]: row for row in reversed(json.loads(capsys.readouterr().out))}
    assert by_check["full.key"]["text"] == "the check itself failed: SystemExit: 9"
    assert "bad (third-bad 1.0) is broken" in by_check["core.plugins"]["text"]


def test_doctor_is_content_without_broken_plugins(install, monkeypatch, capsys):
    monkeypatch.setenv("MVCORE_PLUGINS", "core")
    code = cli.run(["doctor", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert code == (1 if any(row["status"] == "failed" for row in rows) else 0)
    assert {"check": "core.plugins", "status": "ok", "text": "1 plugins loaded", "advice": ""} in rows


# --- a process of its own -----------------------------------------------------------------------------------

PROBE = """
import sys
from mvcore.cli.main import run
code = run(sys.argv[1:])
heavy = {"torch", "lightning", "open_clip", "timm", "numpy", "torchvision", "h5py", "click"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy else code)
"""


@pytest.mark.process
@pytest.mark.parametrize(
    "argv",
    [["--help"], ["plugins", "list"], ["plugins", "list", "--json"], ["plugins", "show", "core"], ["recipes", "list"]],
    ids=" ".join,
)
def test_help_and_listings_import_nothing_heavy(argv):
    done = subprocess.run([sys.executable, "-c", PROBE, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
