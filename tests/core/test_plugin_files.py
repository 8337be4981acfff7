"""Plugins that the user names by file, module or object, and the hooks that ask them about a run."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
from mvcore.errors import PluginError
from mvcore.hookspecs import hookimpl
from mvcore.plugins import Registry, load_plugins
from mvcore.specs import LossSpec, Problem, Section

HEAD = "from mvcore.api import *\nMVCORE_API = 1\n"

FILE = HEAD + (
    "class Mine:\n    pass\n"
    "@hookimpl\ndef mvcore_register_losses():\n"
    "    return [LossSpec(name='mine', summary='Mine', factory='{stem}:Mine')]\n"
)


def test_a_file_is_a_plugin_named_by_its_stem(install, tmp_path, monkeypatch):
    path = tmp_path / "my_loss.py"
    path.write_text(FILE.format(stem="my_loss"))
    monkeypatch.chdir(tmp_path)
    registry = load_plugins()
    assert registry.load_file("./my_loss.py").name == "my_loss"
    from mvcore.build import resolve

    assert resolve(registry.spec("loss", "my_loss.mine").spec.factory).__name__ == "Mine"
    registry.load_file(path)  # a second time, as two flags or a notebook cell do
    assert list(registry.specs("loss")).count("my_loss.mine") == 1


def test_a_module_is_a_plugin_too(install):
    (install.folder / "mypackage").mkdir()
    (install.folder / "mypackage" / "__init__.py").write_text("")
    (install.folder / "mypackage" / "plugin.py").write_text(FILE.format(stem="mypackage.plugin"))
    assert load_plugins().load_file("mypackage.plugin").name == "mypackage"
    assert "mypackage.mine" in load_plugins().specs("loss")


@pytest.mark.parametrize(
    ("file", "source", "text"),
    [
        ("absent.py", None, "no such Python file"),
        ("json.py", HEAD, "a module 'json' exists already"),
        ("torchvision.py", HEAD, "a module 'torchvision' exists already"),
        ("My.py", HEAD, "is no plugin name"),
        ("data.py", HEAD, "reserved for mvcore-data"),
        ("faulty.py", "1/0", "ZeroDivisionError"),
        ("plain.py", "x = 1", "MVCORE_API = 1"),
        ("good.py", HEAD, "is taken by third-good 1.0"),
        ("empty.py", HEAD, "empty.py registers nothing: mark its hooks with @hookimpl"),
        ("relative.py", f"from .faulty import x\n{HEAD}", "a plugin in one file imports nothing beside it"),
        ("beside.py", f"import helper_of_mine\n{HEAD}", "a plugin in one file imports nothing beside it"),
        ("absent_module.py", f"import not_there\n{HEAD}", "ModuleNotFoundError: No module named 'not_there'"),
    ],
)
def test_a_file_that_is_no_plugin_is_refused(install, tmp_path, file, source, text):
    install.plugin("good", FILE.format(stem="third_good"))
    (tmp_path / "helper_of_mine.py").write_text("x = 1")
    if source is not None:
        (tmp_path / file).write_text(source)
    with pytest.raises(PluginError) as caught:
        load_plugins().load_file(tmp_path / file)
    assert text in str(caught.value)
    assert Path(file).stem not in load_plugins().specs("loss")


def _module(name: str, *losses: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.MVCORE_API = 1  # type: ignore[attr-defined]
    specs = [LossSpec(name=loss, summary="x", factory="x:X") for loss in losses]
    module.mvcore_register_losses = hookimpl(specname="mvcore_register_losses")(lambda: specs)  # type: ignore[attr-defined]
    return module


def test_registering_again_replaces(install):
    registry = load_plugins()
    assert registry.register(_module("note.plugin", "a")).name == "note"
    registry.register(_module("other", "b"), name="note")
    assert [i for i in registry.specs("loss") if i.startswith("note.")] == ["note.b"]
    with pytest.raises(PluginError, match="taken by mvcore"):
        registry.register(_module("x"), name="duoduo")


def test_a_program_that_registers_itself_is_named():
    with pytest.raises(PluginError, match=r"name it, as mvcore\.register\(module, 'mymethod'\)"):
        Registry().register(_module("__main__", "a"))
    assert Registry().register(_module("__main__", "a"), "mine").name == "mine"


# --- hooks with arguments -----------------------------------------------------------------------------------


class _Asked:
    MVCORE_API = 1

    @hookimpl
    def mvcore_check_run(self, config):
        return [Problem(f"saw {config}")]

    @hookimpl
    def mvcore_report_sections(self, run, results):
        return [Section("Mine", f"{run} {results}")]


class _Raises:
    MVCORE_API = 1

    @hookimpl
    def mvcore_check_run(self):
        raise SystemExit(5)


class _Wrong:
    MVCORE_API = 1

    @hookimpl
    def mvcore_check_run(self, plan, config):
        return ["not a Problem"]


class _Silent:
    MVCORE_API = 1

    @hookimpl
    def mvcore_report_sections(self):
        return []


def test_hooks_with_arguments_ask_only_the_named_plugins_each_alone():
    registry = Registry()
    for name, plugin in {"asked": _Asked(), "raises": _Raises(), "wrong": _Wrong(), "silent": _Silent()}.items():
        registry.register(plugin, name)
    answers = registry.call("mvcore_check_run", ["asked", "silent"], config="C", plan="P")
    assert [(answer.plugin, answer.items, answer.error) for answer in answers] == [("asked", (Problem("saw C"),), None)]
    answers = {a.plugin: a for a in registry.call("mvcore_check_run", ["asked", "raises", "wrong"], config=1, plan=2)}
    assert answers["asked"].items == (Problem("saw 1"),)
    assert "plugin 'raises' (_Raises) failed in mvcore_check_run: SystemExit: 5" in str(answers["raises"].error)
    assert "gives a str where Problem belongs" in str(answers["wrong"].error)
    sections = registry.call("mvcore_report_sections", ["asked", "raises"], run="R", results={})
    assert [answer.items for answer in sections] == [(Section("Mine", "R {}"),)]
    with pytest.raises(PluginError, match="unknown plugin 'nobody'"):
        registry.call("mvcore_check_run", ["nobody"], config=1, plan=2)
