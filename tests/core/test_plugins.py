"""Discovery, validation and look-up of plugins, with distributions that are really installed."""

from __future__ import annotations

import sys

import pytest
from mvcore import hookspecs
from mvcore.errors import PluginError
from mvcore.hookspecs import REGISTRATION_HOOKS
from mvcore.plugins import PluginRecord, Registry, load_plugins, reset, warn_about_broken
from mvcore.specs import SPEC_TYPES

GOOD = """
from mvcore.api import *
MVCORE_API = 1

@hookimpl
def mvcore_register_losses():
    return [LossSpec(name="pull", summary="Pulls", factory="third_good:Pull", needs={"view"})]

@hookimpl
def mvcore_register_recipes():
    return [RecipeSpec(name="paper", summary="Paper", path="third_good:recipes/paper.yaml", default=True),
            RecipeSpec(name="released", summary="Released", path="third_good:recipes/released.yaml")]
"""

HEAD = "from mvcore.api import *\nMVCORE_API = 1\n"


def row(name: str) -> PluginRecord:
    return next(record for record in load_plugins().records if record.name == name)


def test_a_good_plugin_is_listed_with_its_distribution(install):
    install.plugin("good", GOOD, version="1.2")
    record = row("good")
    assert (record.status, record.distribution, record.version) == ("ok", "third-good", "1.2")
    assert load_plugins().spec("loss", "good.pull").spec.needs == {"view"}


BROKEN = {
    "import": ("import a_module_that_is_not_there", "broken", "ModuleNotFoundError: No module named 'a_module_that"),
    "syntax": ("def (:", "broken", "SyntaxError"),
    "exits": ("raise SystemExit(3)", "broken", "SystemExit: 3"),
    "no_api": ("from mvcore.api import hookimpl", "broken", "MVCORE_API = 1"),
    "api_of_other_kind": ("MVCORE_API = '1'", "broken", "MVCORE_API = 1"),
    "newer_api": ("MVCORE_API = 2", "incompatible", "written for plugin interface 2, this mvcore speaks 1"),
    "typo": (HEAD + "@hookimpl\ndef mvcore_register_lossses(): return []", "broken", "mvcore_register_lossses"),
    "argument": (HEAD + "@hookimpl\ndef mvcore_register_losses(registry): return []", "broken", "registry"),
    "unmarked": (HEAD + "def mvcore_register_losses(): return []", "broken", "not marked with @hookimpl"),
    "raises": (HEAD + "@hookimpl\ndef mvcore_register_losses(): return [1/0]", "broken", "ZeroDivisionError"),
    "hook_exits": (HEAD + "@hookimpl\ndef mvcore_register_losses(): raise SystemExit(4)", "broken", "SystemExit: 4"),
    "generator": (HEAD + "@hookimpl\ndef mvcore_register_losses():\n    yield 1/0", "broken", "ZeroDivisionError"),
    "none": (
        HEAD + "@hookimpl\ndef mvcore_register_losses(): pass",
        "broken",
        "returns None; return a list of LossSpec",
    ),
    "not_a_list": (
        HEAD + "@hookimpl\ndef mvcore_register_losses(): return LossSpec(name='a', summary='a', factory='a:A')",
        "broken",
        "returns a LossSpec, not a list of LossSpec",
    ),
    "other_kind": (
        HEAD + "@hookimpl\ndef mvcore_register_losses(): return [DatasetSpec(name='a', summary='a', factory='a:A')]",
        "broken",
        "gives a DatasetSpec where LossSpec belongs",
    ),
    "bad_spec": (
        HEAD + "@hookimpl\ndef mvcore_register_losses(): return [LossSpec(name='Bad', summary='a', factory='a:A')]",
        "broken",
        "LossSpec 'Bad': a name is lower-case",
    ),
    "twice": (
        HEAD + "@hookimpl\ndef mvcore_register_losses(): return [LossSpec(name='a', summary='a', factory='a:A')] * 2",
        "broken",
        "gives the name 'a' twice",
    ),
    "two_defaults": (
        HEAD + "@hookimpl\ndef mvcore_register_recipes(): return [RecipeSpec(name=n, summary='a', path='a:a.yaml',"
        " default=True) for n in 'ab']",
        "broken",
        "more than one recipe is the default: a, b",
    ),
    "takes_train": (
        HEAD
        + "@hookimpl\ndef mvcore_register_commands(): return [CommandSpec(name='train', summary='a', factory='a:A')]",
        "broken",
        "the command 'train' is mvcore's own",
    ),
    "takes_data": (
        HEAD
        + "@hookimpl\ndef mvcore_register_commands(): return [CommandSpec(name='data', summary='a', factory='a:A')]",
        "broken",
        "reserved for the plugin 'data'",
    ),
    "no_word": (
        HEAD + "@hookimpl\ndef mvcore_register_losses(): return [LossSpec(name=5, summary='a', factory='a:A')]",
        "broken",
        "LossSpec 5: a name is lower-case",
    ),
    "skips": ("import pytest\npytest.skip('not here', allow_module_level=True)", "broken", "Skipped: not here"),
    "waits": (
        HEAD + "@hookimpl\nasync def mvcore_register_losses(): return []",
        "broken",
        "mvcore_register_losses is asynchronous; write a plain function",
    ),
    "moves": ("import os\nos.chdir('/')\nMVCORE_API = 1", "broken", "it changes the working folder when it is loaded"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_plugin_is_a_row_and_the_others_work(install, name):
    source, status, reason = BROKEN[name]
    install.plugin("bad", source)
    install.plugin("good", GOOD)
    record = row("bad")
    assert record.status == status
    assert reason in record.reason
    assert "\n" not in record.reason
    assert "Traceback" in record.traceback
    assert (record.distribution, record.version, record.specs) == ("third-bad", "1.0", ())
    assert row("good").status == "ok"
    assert row("core").status == "ok"
    with pytest.raises(PluginError, match=r"plugin 'bad' \(third-bad 1\.0\) is .*see 'mvcore plugins list -v'"):
        load_plugins().spec("loss", "bad.x")


def test_an_entry_point_without_its_module_or_attribute_is_broken(install):
    install("third-a", {"gone": "a_module_that_is_not_there"}, {})
    install("third-b", {"attribute": "third_b:nothing"}, {"third_b.py": HEAD})
    assert "No module named" in row("gone").reason
    assert "AttributeError" in row("attribute").reason


def test_an_entry_point_may_name_an_object(install):
    source = HEAD + (
        "class Plugin:\n    MVCORE_API = 1\n    @hookimpl\n    def mvcore_register_losses(self):\n"
        "        return [LossSpec(name='a', summary='a', factory='a:A')]\nplugin = Plugin()\n"
    )
    install("third-b", {"thing": "third_b:plugin"}, {"third_b.py": source})
    assert row("thing").status == "ok"
    assert "thing.a" in load_plugins().specs("loss")


def test_one_module_under_two_names_is_one_plugin(install):
    install("third-b", {"first": "third_b", "second": "third_b"}, {"third_b.py": GOOD})
    assert (row("first").status, row("second").status) == ("ok", "broken")
    assert row("second").reason == "third_b is the plugin 'first' already"
    assert "first.pull" in load_plugins().specs("loss")
    assert "second.pull" not in load_plugins().specs("loss")
    with pytest.raises(PluginError, match="third_b is the plugin 'first' already"):
        load_plugins().register(sys.modules["third_b"], "third")
    assert all(record.name != "third" for record in load_plugins().records)


def test_two_distributions_with_one_name_are_both_in_conflict(install):
    install("third-one", {"same": "third_one"}, {"third_one.py": "raise RuntimeError('imported')"})
    install("third-two", {"same": "third_two"}, {"third_two.py": HEAD}, version="2.0")
    rows = [record for record in load_plugins().records if record.name == "same"]
    assert [record.status for record in rows] == ["conflict", "conflict"]
    assert all("third-one 1.0 and third-two 2.0" in record.reason for record in rows)
    assert "third_two" not in sys.modules
    with pytest.raises(PluginError, match=r"third-one 1\.0 and third-two 2\.0"):
        load_plugins().spec("loss", "same.x")


@pytest.mark.parametrize("name", ["core", "data"])
def test_reserved_names_stay_with_their_distributions(install, name):
    install.plugin(name, HEAD)
    rows = {record.distribution: record for record in load_plugins().records if record.name == name}
    assert rows[f"third-{name}"].status == "broken"
    assert "reserved" in rows[f"third-{name}"].reason
    assert "conflict" not in {record.status for record in rows.values()}
    assert load_plugins().plugin("core").distribution == "mvcore"


@pytest.mark.parametrize("name", ["Upper", "with.dot", "1st", "a b"])
def test_a_name_that_cannot_begin_an_id_is_broken(install, name):
    install("third-name", {name: "third_name"}, {"third_name.py": HEAD})
    assert "is no plugin name" in row(name).reason


def test_a_second_copy_further_down_the_path_is_not_a_conflict(install, tmp_path, monkeypatch):
    install.plugin("good", GOOD, version="2.0")
    older = tmp_path / "older"
    older.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(older)])
    type(install)(older).plugin("good", "raise RuntimeError", version="1.0")
    assert [(r.status, r.version) for r in load_plugins().records if r.name == "good"] == [("ok", "2.0")]


def test_damaged_metadata_hides_nothing_else(install):
    install("third-damaged", "[mvcore]\nthis line is no entry point\n", {})
    install.plugin("good", GOOD)
    (install.folder / "nameless-1.0.dist-info").mkdir()
    (install.folder / "nameless-1.0.dist-info" / "entry_points.txt").write_text("[mvcore]\nnameless = third_nameless\n")
    (install.folder / "other-1.0.dist-info").mkdir()
    (install.folder / "other-1.0.dist-info" / "entry_points.txt").write_bytes(b"\xff\xfe[mvcore]\n")
    assert row("good").status == "ok"
    assert row("third-damaged").reason.startswith("entry_points.txt cannot be read")
    assert row("nameless").distribution == "nameless"


def test_what_a_plugin_prints_while_it_is_imported_is_not_output(install, capsys):
    text = "print('hello')\nimport sys\nprint('careful', file=sys.stderr)\nsys.stdout.close()\nMVCORE_API = 1"
    install.plugin("loud", text)
    assert row("loud").status == "ok"
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert row("loud").said == "hello"


def test_plugins_are_asked_once(install):
    source = "asked = []\n@hookimpl\ndef mvcore_register_losses():\n    asked.append(1)\n    return []"
    install.plugin("counts", HEAD + source)
    first = load_plugins()
    assert load_plugins() is first
    assert sys.modules["third_counts"].asked == [1]
    reset()
    assert load_plugins() is not first
    assert sys.modules["third_counts"].asked == [1, 1]


# --- MVCORE_PLUGINS and MVCORE_STRICT_PLUGINS ---------------------------------------------------------------


def test_the_variable_restricts_and_adds(install, monkeypatch):
    install.plugin("good", GOOD)
    install.plugin("idle", "raise RuntimeError('imported')")
    (install.folder / "extra_module.py").write_text(HEAD)
    monkeypatch.setenv("MVCORE_PLUGINS", "good, mine=extra_module")
    status = {record.name: record.status for record in load_plugins().records}
    assert status["good"] == status["mine"] == status["core"] == "ok"
    assert status["idle"] == "disabled"
    with pytest.raises(PluginError, match="is disabled: not named in MVCORE_PLUGINS"):
        load_plugins().plugin("idle")


def test_the_variable_only_adds_when_it_names_no_plugin(install, monkeypatch):
    install.plugin("good", GOOD)
    (install.folder / "extra_module.py").write_text(HEAD)
    monkeypatch.setenv("MVCORE_PLUGINS", "mine=extra_module")
    assert (row("good").status, row("mine").status) == ("ok", "ok")


def test_the_variable_puts_a_module_in_the_place_of_an_installed_plugin(install, monkeypatch):
    install.plugin("good", GOOD)
    (install.folder / "extra_module.py").write_text(HEAD)
    monkeypatch.setenv("MVCORE_PLUGINS", "good=extra_module")
    rows = {record.provider: record.status for record in load_plugins().records if record.name == "good"}
    assert rows == {"extra_module": "ok", "third-good 1.0": "disabled"}
    assert load_plugins().plugin("good").source == "extra_module"


@pytest.mark.parametrize(
    ("value", "name", "reason"),
    [
        ("goood", "goood", "not installed, did you mean 'good'?"),
        ("good,=x", "=x", "neither a plugin's name nor name=module"),
        ("mine=", "mine", "neither a plugin's name nor name=module"),
        ("core=extra_module", "core", "reserved for the distribution mvcore"),
        ("mine=not_there", "mine", "No module named 'not_there'"),
    ],
)
def test_a_wrong_variable_is_a_broken_row(install, monkeypatch, value, name, reason):
    install.plugin("good", GOOD)
    monkeypatch.setenv("MVCORE_PLUGINS", value)
    broken = [record for record in load_plugins().records if record.name == name and record.status == "broken"]
    assert len(broken) == 1
    assert reason in broken[0].reason
    assert load_plugins().has("core")


def test_strict_makes_a_broken_plugin_an_error(install, monkeypatch):
    install.plugin("bad", "import a_module_that_is_not_there")
    monkeypatch.setenv("MVCORE_PLUGINS", "bad")
    assert row("bad").status == "broken"
    monkeypatch.setenv("MVCORE_STRICT_PLUGINS", "1")
    with pytest.raises(
        PluginError, match=r"MVCORE_STRICT_PLUGINS is set and plugin 'bad' \(third-bad 1\.0\) is broken"
    ):
        load_plugins()


def test_strict_accepts_disabled_plugins(install, monkeypatch):
    install.plugin("bad", "import a_module_that_is_not_there")
    monkeypatch.setenv("MVCORE_PLUGINS", "core")
    monkeypatch.setenv("MVCORE_STRICT_PLUGINS", "1")
    assert load_plugins().has("core")


# --- look-up ------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(install, monkeypatch) -> Registry:
    install.plugin("good", GOOD)
    install.plugin("empty", HEAD)
    monkeypatch.setenv("MVCORE_PLUGINS", "good,empty")
    return load_plugins()


@pytest.mark.parametrize(
    ("part", "part_id", "text"),
    [
        (
            "loss",
            "good.pul",
            "unknown loss 'good.pul', did you mean 'good.pull'? (known: core.itc, core.siglip, good.pull)",
        ),
        ("loss", "pull", "unknown loss 'pull', did you mean 'good.pull'?"),
        ("loss", "qqqq.zzz", "unknown loss 'qqqq.zzz' (known: core.itc, core.siglip, good.pull)"),
        ("encoder", "good.pull", "'good.pull' is no encoder: it is a loss"),
        ("loss", "core.open_clip", "'core.open_clip' is no loss: it is an encoder"),
    ],
)
def test_an_unknown_id_names_the_nearest_and_all(registry, part, part_id, text):
    with pytest.raises(PluginError) as caught:
        registry.spec(part, part_id)
    assert text in str(caught.value)


@pytest.mark.parametrize("name", ["ovt", "duoduo", "equivariance", "mvc_heads"])
def test_an_absent_package_of_ours_says_what_to_install(name):
    with pytest.raises(PluginError, match=f"'pip install mvcore-{name.replace('_', '-')}'"):
        Registry().spec("loss", f"{name}.anything")
    with pytest.raises(PluginError, match=f"'pip install mvcore-{name.replace('_', '-')}'"):
        Registry().plugin(name)


def test_an_unknown_plugin_names_the_nearest(registry):
    with pytest.raises(
        PluginError, match=r"unknown plugin 'goood', did you mean 'good'\? \(installed: core, empty, good\)"
    ):
        registry.plugin("goood")


def test_recipes(registry):
    assert registry.recipe("good").id == "good.paper"
    assert registry.recipe("good", "released").id == "good.released"
    with pytest.raises(
        PluginError, match=r"no recipe 'relased', did you mean 'released'\? \(it has: paper, released\)"
    ):
        registry.recipe("good", "relased")
    with pytest.raises(PluginError, match="brings no recipe"):
        registry.recipe("empty")
    with pytest.raises(PluginError, match="'core' has no default recipe; name one of: pretrain"):
        registry.recipe("core")


def test_warnings_name_broken_plugins_that_are_not_used(install, monkeypatch, capsys):
    install.plugin("bad", "import a_module_that_is_not_there")
    install.plugin("good", GOOD)
    monkeypatch.setenv("MVCORE_PLUGINS", "bad,good")
    warn_about_broken({"good"})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: plugin 'bad' (third-bad 1.0) is broken: ModuleNotFoundError")
    with pytest.raises(PluginError, match=r"plugin 'bad' \(third-bad 1\.0\) is broken"):
        warn_about_broken({"good", "bad"})


# --- the hook set -------------------------------------------------------------------------------------------


def test_every_spec_type_has_a_registration_hook():
    assert set(REGISTRATION_HOOKS.values()) == {spec.part for spec in SPEC_TYPES}
    declared = {name for name in vars(hookspecs) if name.startswith("mvcore_")}
    assert declared == {*REGISTRATION_HOOKS, "mvcore_check_run", "mvcore_report_sections"}


@pytest.mark.parametrize("hook", [name for name in vars(hookspecs) if name.startswith("mvcore_")])
def test_the_example_of_each_hook_is_a_valid_plugin(install, hook):
    import inspect

    example = inspect.cleandoc(getattr(hookspecs, hook).__doc__).split("\n\n", 1)[1]
    install.plugin("example", HEAD + example)
    record = row("example")
    assert record.status == "ok", record.reason
    registers = {REGISTRATION_HOOKS[hook]} if hook in REGISTRATION_HOOKS else set()
    assert {spec.part for spec in record.specs} == registers


def test_core_and_our_method_packages_load(install):
    for name in ("core", "duoduo", "equivariance", "mvc_heads"):
        assert load_plugins().plugin(name).status == "ok"
    assert {"core.itc", "core.siglip"} <= set(load_plugins().specs("loss"))
    assert "core.pretrain" in load_plugins().specs("recipe")
