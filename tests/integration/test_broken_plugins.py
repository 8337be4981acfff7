"""What one broken third-party plugin does to the installed program: nothing, until it is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mvcore.cli.main import run

pytestmark = pytest.mark.process

HEAD = "from mvcore.api import *\nMVCORE_API = 1\n"
GOOD = HEAD + (
    "@hookimpl\ndef mvcore_register_losses():\n"
    "    return [LossSpec(name='pull', summary='Pulls', factory='third_good:Pull')]\n"
    "@hookimpl\ndef mvcore_register_commands():\n"
    "    return [CommandSpec(name='hello', summary='Says hello', factory='third_good_cli:hello')]\n"
)
KINDS = {
    "import": "import a_module_that_is_not_there",
    "exit": "import sys\nsys.exit(3)",
    "hook": HEAD + "@hookimpl\ndef mvcore_register_losses():\n    raise KeyError('x')",
    "typo": HEAD + "@hookimpl\ndef mvcore_register_loses():\n    return []",
    "api": "MVCORE_API = 99",
}


def mvcore(folder: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the program in a process that sees the distributions in `folder`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MVCORE_")}
    environment |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    command = [sys.executable, "-m", "mvcore.cli.main", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)


@pytest.fixture
def site(install) -> Path:
    install.plugin("good", GOOD)
    (install.folder / "third_good_cli.py").write_text("def hello():\n    print('hello')\n")
    for name, source in KINDS.items():
        install.plugin(f"bad_{name}", source)
    install("third-one", {"same": "third_one"}, {"third_one.py": HEAD})
    install("third-two", {"same": "third_two"}, {"third_two.py": HEAD})
    return install.folder


def test_listing_shows_them_as_rows_beside_the_good_ones(site):
    done = mvcore(site, "plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    rows = {(row["name"], row["distribution"]): row for row in json.loads(done.stdout)}
    for name in KINDS:
        assert rows[f"bad_{name}", f"third-bad_{name}"]["status"] == ("incompatible" if name == "api" else "broken")
    assert rows["same", "third-one"]["status"] == rows["same", "third-two"]["status"] == "conflict"
    assert rows["good", "third-good"]["parts"]["loss"] == ["good.pull"]
    assert rows["core", "mvcore"]["status"] == "ok"

    table = mvcore(site, "plugins", "list")
    assert table.returncode == 0
    assert "broken: ModuleNotFoundError: No module named 'a_module_that_is_not_there'" in table.stdout
    assert "Traceback" not in table.stdout + table.stderr
    verbose = mvcore(site, "plugins", "list", "-v")
    assert verbose.returncode == 0
    assert 'third_bad_import.py", line 1' in verbose.stdout


def test_help_and_commands_that_need_none_of_them_work(site):
    assert "hello" in mvcore(site, "--help").stdout
    hello = mvcore(site, "hello")
    assert (hello.returncode, hello.stdout, hello.stderr) == (0, "hello\n", "")


@pytest.mark.parametrize("name", [*(f"bad_{kind}" for kind in KINDS), "same"])
def test_using_one_is_one_line_with_its_distribution_and_where_to_look(site, name, capsys):
    assert run(["plugins", "show", f"{name}.anything"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"error: plugin {name!r} (third-")
    assert " 1.0) is " in line
    assert line.endswith("see 'mvcore plugins list -v'")


def test_strict_makes_any_of_them_exit_2(site):
    strict = {"MVCORE_STRICT_PLUGINS": "1", "MVCORE_PLUGINS": "good,bad_import"}
    listing = mvcore(site, "plugins", "list", **strict)
    assert listing.returncode == 2
    assert "broken: ModuleNotFoundError" in listing.stdout  # the table is still printed
    done = mvcore(site, "hello", **strict)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: MVCORE_STRICT_PLUGINS is set and plugin 'bad_import' (third-bad_import 1.0)")
    clean = mvcore(site, "hello", MVCORE_STRICT_PLUGINS="1", MVCORE_PLUGINS="good")
    assert (clean.returncode, clean.stdout) == (0, "hello\n")


def test_the_registry_warns_of_unused_ones_in_one_line_each(site):
    code = "from mvcore.plugins import warn_about_broken\nwarn_about_broken({'good', 'core'})"
    environment = {**os.environ, "PYTHONPATH": str(site), "MVCORE_PLUGINS": "good,bad_import,bad_exit"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == ""
    assert [line.split(" is broken: ")[0] for line in done.stderr.splitlines()] == [
        "warning: plugin 'bad_exit' (third-bad_exit 1.0)",
        "warning: plugin 'bad_import' (third-bad_import 1.0)",
    ]
