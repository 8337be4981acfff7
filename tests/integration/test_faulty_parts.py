"""Parts that raise, exit, lie, print or are slow: each is named in one line, and only a run that uses it feels it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mvcore.cli.main import run

if TYPE_CHECKING:
    from conftest import Workshop

PLUGIN = """
from mvcore.api import *

MVCORE_API = 1

@hookimpl
def mvcore_register_losses():
    return [LossSpec(name=name, summary="x", needs={"view"}, factory=f"third_odd.parts:Loss{name.capitalize()}")
            for name in ("fine", "raises", "exits", "made")]

@hookimpl
def mvcore_register_encoders():
    adapter = dict(summary="x", kind="adapter", needs={"view"}, provides={"odd.vector"}, axes={"odd.vector": "view"})
    return [EncoderSpec(name="short", factory="third_odd.parts:Short", **adapter),
            EncoderSpec(name="leaves", factory="third_odd.parts:Leaves", **adapter),
            *[EncoderSpec(name=f"clip-{fault}", summary="x", provides={"view", "text", "logit_scale"},
                          factory=f"third_odd.parts:Clip{fault.capitalize()}",
                          config="mvcore.encoders.options:OpenClipOptions") for fault in ("rows", "keys", "fails")]]

@hookimpl
def mvcore_register_datasets():
    return [DatasetSpec(name=name, summary="x", factory=f"third_odd.parts:Data{name.capitalize()}",
                        config="mvcore_data.options:ViewsOptions") for name in ("fails", "lies")]

@hookimpl
def mvcore_register_trainers():
    return [TrainerSpec(name=name, summary="x", needs={"view"}, factory=f"third_odd.parts:Trainer{name.capitalize()}")
            for name in ("binds", "starts", "observes", "embeds", "exits")]

@hookimpl
def mvcore_register_evaluators():
    return [EvaluatorSpec(name=name, summary="x", needs={"view"}, factory=f"third_odd.parts:Eval{name.capitalize()}")
            for name in ("raises", "exits", "other")]

@hookimpl
def mvcore_register_commands():
    return [CommandSpec(name="odd-raises", summary="x", factory="third_odd.commands:raises"),
            CommandSpec(name="odd-exits", summary="x", factory="third_odd.commands:exits"),
            CommandSpec(name="odd-gone", summary="x", factory="third_odd.commands:gone")]

@hookimpl
def mvcore_register_checks():
    return [CheckSpec(name="exits", summary="x", factory="third_odd.commands:exits"),
            CheckSpec(name="other", summary="x", factory="third_odd.commands:other")]
"""

PARTS = """
import sys
import lightning.pytorch as pl
from torch import nn
from mvcore.api import Adapter
from mvcore.encoders.open_clip import OpenClip
from mvcore_data.views import Views

class LossFine(nn.Module):
    def forward(self, features, batch):
        return features.view.square().mean()

class LossRaises(LossFine):
    def forward(self, features, batch):
        return {}["nothing"]

class LossExits(LossFine):
    def forward(self, features, batch):
        sys.exit(7)

class LossMade(LossFine):
    def __init__(self):
        sys.exit(7)

class Short(Adapter):
    def forward(self, features, batch):
        return {"odd.vector": features.view[:-1]}

class Leaves(Adapter):
    def attach(self, backbone):
        sys.exit("leaving")
    def forward(self, features, batch):
        return {"odd.vector": features.view}

class ClipRows(OpenClip):
    def encode(self, batch, keys):
        return {key: value[:1] if key == "view" else value for key, value in super().encode(batch, keys).items()}

class ClipKeys(OpenClip):
    def encode(self, batch, keys):
        return super().encode(batch, keys - {"view"})

class ClipFails(OpenClip):
    def encode(self, batch, keys):
        return 1 / 0

class DataFails(Views):
    load_many = None
    def load(self, i, views, rng):
        raise KeyError("a view")
    def load_many(self, requests, rng_of):
        return self.load(0, [], None)

class DataLies(Views):
    def __init__(self, **options):
        super().__init__(**options)
        self.provides = self.provides | {"depth"}

class TrainerBinds(pl.Callback):
    def bind(self, run):
        raise ValueError("no run for me")

class TrainerStarts(pl.Callback):
    def on_train_batch_start(self, *args):
        raise ValueError("not today")

class TrainerObserves(pl.Callback):
    def observe(self, batch, features):
        features.text

class TrainerEmbeds(pl.Callback):
    def bind(self, run):
        self.run = run
    def on_train_start(self, *args):
        self.run.embed("mine", frozenset({"view", "dense"}))

class TrainerExits(pl.Callback):
    def on_train_epoch_start(self, *args):
        sys.exit(0)

class EvalRaises:
    def __call__(self, model, sources, output):
        return sources["nowhere"]

class EvalExits:
    def __call__(self, model, sources, output):
        sys.exit(0)

class EvalOther:
    def __call__(self, model, sources, output):
        return {"accuracy": 1.0}
"""

COMMANDS = """
import sys

def raises():
    raise RuntimeError("out of order")

def exits():
    sys.exit(5)

def other():
    return ["all well"]
"""

ADAPTERS = "{ovt.lora: {rank: 2}, ovt.logit_scale: {}"
CASES = {
    "loss raises": ({"losses": "{odd.raises: {}}"}, "loss odd.raises failed: KeyError: 'nothing' (parts.py:"),
    "loss exits": ({"losses": "{odd.exits: {}}"}, "loss odd.exits failed: SystemExit: 7 (parts.py:"),
    "loss cannot be made": ({"losses": "{odd.made: {}}"}, "odd.made: LossMade(...) failed: SystemExit: 7"),
    "adapter gives other rows": (
        {"adapters": f"{ADAPTERS}, odd.short: {{}}}}", "losses": "{mvcore-probe.read: {}}"},
        "adapter odd.short gave 'odd.vector' as (11, 16) for a batch of 12 rows",
    ),
    "adapter exits": (
        {"adapters": f"{ADAPTERS}, odd.leaves: {{}}}}", "losses": "{mvcore-probe.read: {}}"},
        "adapter odd.leaves failed: SystemExit: leaving (parts.py:",
    ),
    "encoder gives other rows": ({"encoder": "clip-rows"}, "encoder odd.clip-rows gave 'view' as (1, 16) for a batch"),
    "encoder leaves a key out": ({"encoder": "clip-keys"}, "encoder odd.clip-keys gave []"),
    "encoder raises": ({"encoder": "clip-fails"}, "encoder odd.clip-fails failed: ZeroDivisionError"),
    "dataset raises": ({"data": "fails"}, "data.mine failed: KeyError: 'a view' (parts.py:"),
    "dataset promises": ({"data": "lies"}, "data.mine: DataLies says that it provides depth, and gave none"),
    "trainer fails in bind": ({"trainers": "{odd.binds: {}}"}, "trainer odd.binds failed: ValueError: no run for me"),
    "trainer fails in a hook": ({"trainers": "{odd.starts: {}}"}, "trainer odd.starts failed: ValueError: not today"),
    "trainer reads undeclared": ({"trainers": "{odd.observes: {}}"}, "reads 'text'"),
    "trainer embeds undeclared": (
        {"trainers": "{odd.embeds: {}}"},
        "trainer odd.embeds embeds 'dense' but does not declare it (its needs: view); add it to `needs` in its spec",
    ),
    "trainer exits": ({"trainers": "{odd.exits: {}}"}, "trainer odd.exits failed: SystemExit: 0 (parts.py:"),
    "evaluator raises": ({"validate": "odd.raises"}, "evaluator odd.raises failed: KeyError: 'nowhere' (parts.py:"),
    "evaluator exits": ({"validate": "odd.exits"}, "evaluator odd.exits failed: SystemExit: 0 (parts.py:"),
    "evaluator gives something else": ({"validate": "odd.other"}, "evaluator odd.other gave dict; it must return an"),
}

PROBE = """
from mvcore.api import *
MVCORE_API = 1
@hookimpl
def mvcore_register_losses():
    return [LossSpec(name="read", summary="x", needs={"odd.vector"}, factory="third_probe_parts:Read")]
"""


@pytest.fixture
def odd(install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A plugin of faulty parts, and one that reads what its adapters give."""
    monkeypatch.chdir(tmp_path)
    modules = {"third_odd/__init__.py": "", "third_odd/plugin.py": PLUGIN, "third_odd/parts.py": PARTS}
    install("third-odd", {"odd": "third_odd.plugin"}, {**modules, "third_odd/commands.py": COMMANDS})
    install(
        "third-probe",
        {"mvcore-probe": "third_probe"},
        {
            "third_probe.py": PROBE,
            "third_probe_parts.py": "from torch import nn\nclass Read(nn.Module):\n"
            "    def forward(self, features, batch):\n        return features['odd.vector'].square().mean()\n",
        },
    )
    return install


def written(workshop: Workshop, changes: dict[str, str]) -> str:
    sections = {"validate": "", "losses": "{odd.fine: {}}", "trainers": "", "adapters": f"{ADAPTERS}}}", **changes}
    if "encoder" in changes:
        sections["encoder"] = f"{{id: odd.{changes['encoder']}, model: {workshop.clip}, pretrained: null, train: none}}"
    if "data" in changes:
        data = f"id: odd.{changes['data']}, path: {workshop.store}, sampling: views, batch_size: 12"
        sections["data"] = f"{{mine: {{{data}}}}}"
    if "validate" in changes:
        held = f"{{seen: {{id: data.views, path: {workshop.store}}}}}"
        sections["validate"] = f"{{data: {held}, on: [{changes['validate']}]}}"
    return workshop.yaml(**sections)


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_uses_it_stops_and_names_it(odd, workshop: Workshop, case: str, capsys: pytest.CaptureFixture[str]):
    changes, text = CASES[case]
    Path("run.yaml").write_text(written(workshop, changes))
    assert run(["train", "run.yaml", "-o", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert text in line


def test_a_run_that_uses_none_of_them_feels_nothing(odd, workshop: Workshop, capsys: pytest.CaptureFixture[str]):
    Path("run.yaml").write_text(written(workshop, {}))
    assert run(["train", "run.yaml", "-o", "run"]) == 0
    assert capsys.readouterr().err == ""
    assert json.loads(Path("run/run.json").read_text())["status"] == "finished"


def test_commands_and_checks(odd, capsys: pytest.CaptureFixture[str]):
    assert run(["odd-raises"]) == 2
    assert (
        capsys.readouterr().err
        == "error: command 'odd-raises' of the plugin 'odd' failed: RuntimeError: out of order\n"
    )
    assert run(["odd-exits"]) == 5  # a command's own exit code
    assert run(["odd-gone"]) == 2
    assert "has no 'gone'" in capsys.readouterr().err
    assert run(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "the check itself failed: SystemExit: 5" in out
    assert "it gives a str where CheckResult belongs" in out


ASKED = """
from mvcore.api import *
MVCORE_API = 1
@hookimpl
def mvcore_check_run(config):
    {body}
@hookimpl
def mvcore_register_losses():
    return [LossSpec(name="fine", summary="x", needs={{"view"}}, factory="third_odd.parts:LossFine")]
"""


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("raise KeyError('x')", "plugin 'asked' (third-asked 1.0) failed in mvcore_check_run: KeyError: 'x'"),
        ("import sys; sys.exit(0)", "failed in mvcore_check_run: SystemExit: 0"),
        ("return ['no']", "it gives a str where Problem belongs"),
        ("return None", ""),
    ],
)
def test_a_hook_that_is_asked_of_a_run(
    odd, workshop: Workshop, body: str, text: str, capsys: pytest.CaptureFixture[str]
):
    odd.plugin("asked", ASKED.format(body=body))
    Path("run.yaml").write_text(written(workshop, {"losses": "{asked.fine: {}}"}))
    code = run(["train", "run.yaml", "-o", "run", "--dry-run"])
    err = capsys.readouterr().err
    assert (code, text in err) == (2 if text else 0, True)
    # The same plugin is not asked about a run that does not use it.
    Path("run.yaml").write_text(written(workshop, {}))
    assert run(["train", "run.yaml", "-o", "run", "--dry-run"]) == 0


def test_a_slow_and_a_loud_plugin_are_named(install, capsys: pytest.CaptureFixture[str]):
    install.plugin("slow", "import time\ntime.sleep(2.1)\nMVCORE_API = 1")
    install.plugin("loud", "print('welcome to loud')\nMVCORE_API = 1")
    assert run(["plugins", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["slow"]["status"] == "ok"
    assert rows["slow"]["seconds"] > 2
    assert run(["plugins", "list"]) == 0
    assert "ok: slow, 2." in capsys.readouterr().out
    run(["doctor"])
    out = capsys.readouterr().out
    assert "slow (third-slow 1.0) takes 2." in out
    assert "loud (third-loud 1.0) prints 'welcome to loud' when it is loaded" in out
