"""The examples, which belong to no package: each keeps the contract, computes what it says, and trains."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from mvcore.cli.main import run
from mvcore.errors import DataError
from mvcore.plugins import load_plugins, reset
from mvcore.testing import assert_plugin_ok
from mvcore_data import ViewStore

if TYPE_CHECKING:
    from conftest import Workshop

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Plugins that a test loads are gone after it."""
    reset()
    yield
    reset()
    for path in FILES:
        sys.modules.pop(path.stem, None)


def module(name: str) -> ModuleType:
    """An example as a module."""
    load_plugins().load_file(EXAMPLES / f"{name}.py")
    return sys.modules[name]


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def tars(workshop: Workshop, tmp_path: Path) -> Path:
    """The workshop's store as two WebDataset shards."""
    folder = tmp_path / "tars"
    assert run(["data", "unpack", str(workshop.store), str(folder), "--format", "webdataset"]) == 0
    (whole,) = folder.glob("*.tar")
    with tarfile.open(whole) as tar:
        files = [(member, tar.extractfile(member)) for member in tar]
        keys = list(dict.fromkeys(member.name.partition(".")[0] for member, _ in files))
        for number, part in enumerate((keys[:2], keys[2:])):
            with tarfile.open(folder / f"part-{number}.tar", "w") as shard:
                for member, file in files:
                    if member.name.partition(".")[0] in part:
                        shard.addfile(member, file)
    whole.unlink()
    return folder


def test_all_are_tried():
    assert [path.stem for path in FILES] == ["distillation", "supervised_contrastive", "webdataset_stream"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_short(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.process
@pytest.mark.parametrize("name", ["distillation", "supervised_contrastive"])
def test_it_keeps_the_contract(name: str):
    assert_plugin_ok(EXAMPLES / f"{name}.py")


@pytest.mark.process
def test_the_stream_keeps_the_contract(tars: Path):
    args = {"webdataset_stream.tars": {"path": str(tars), "image_size": 32}}
    findings = assert_plugin_ok(EXAMPLES / "webdataset_stream.py", args=args)
    assert {"begins alike", "resuming", "pickling"} <= {found.check for found in findings if found.status == "ok"}


# --- supervised contrastive -------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(3, 1, 2), (1, 1), (4,), (1,)])
def test_supcon_is_the_papers_sum(counts: tuple[int, ...]):
    example = module("supervised_contrastive")
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    views = torch.randn(len(labels), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = views.clone().requires_grad_(), views.clone().requires_grad_()
    unit = [view / view.norm() for view in theirs]
    terms: list[Any] = []
    for i in range(len(unit)):
        positives = [p for p in range(len(unit)) if p != i and labels[p] == labels[i]]
        others = [torch.exp(unit[i] @ unit[a] / 0.2) for a in range(len(unit)) if a != i]
        if positives:
            logs = [torch.log(torch.exp(unit[i] @ unit[p] / 0.2) / sum(others)) for p in positives]
            terms.append(-sum(logs) / len(positives))
    expected: torch.Tensor = torch.stack(terms).mean() if terms else theirs.sum() * 0
    value = example.supcon(ours, labels, 0.2)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_supcon_trains_beside_a_method(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(workshop.yaml(validate=""))
    file = str(EXAMPLES / "supervised_contrastive.py")
    loss = "supervised_contrastive.supcon=0.5"
    assert run(["train", "run.yaml", "--plugin", file, "--loss", loss, "-o", "run"]) == 0
    rows = metrics(Path("run"))
    assert {"train/ovt.vc", "train/core.itc", "train/supervised_contrastive.supcon"} <= rows[0].keys()
    assert len(rows) == 3


# --- the stream ---------------------------------------------------------------------------------------------------


def test_the_stream_gives_what_the_store_holds(workshop: Workshop, tars: Path):
    objects = list(module("webdataset_stream").Tars(str(tars), 32))
    with ViewStore(workshop.store) as store:
        assert len(objects) == len(store)
        for i, batch in enumerate(objects):
            assert list(batch.captions) == store.captions(i)
            pixels = torch.stack([torch.from_numpy(store.image(view)) for view in store.views_of(i)])
            assert torch.equal(batch.images, pixels.permute(0, 3, 1, 2))


STREAM = "{tars: {id: webdataset_stream.tars, path: TARS, image_size: 32, batch_size: 3}}"


def streamed(workshop: Workshop, tars: Path, steps: int) -> str:
    """A run on the stream in the place of the store."""
    return workshop.yaml(
        data=STREAM.replace("TARS", str(tars)),
        adapters="{ovt.lora: {rank: 2}}",
        losses="{core.itc: {}}",
        trainers="",
        run=f"{{max_steps: {steps}, accelerator: cpu, log_every: 1, epoch_steps: 4, checkpoint_every: 3}}",
        validate="",
    )


def test_a_run_on_the_stream_is_resumed_where_it_stopped(
    workshop: Workshop, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    plugin = ["--plugin", str(EXAMPLES / "webdataset_stream.py")]
    Path("run.yaml").write_text(streamed(workshop, tars, steps=6))
    assert run(["train", "run.yaml", *plugin, "-o", "whole"]) == 0
    assert run(["train", "run.yaml", *plugin, "-o", "parted"]) == 0
    column = "train/core.itc"
    whole = [row[column] for row in metrics(Path("whole"))]
    assert len(whole) == 6
    # As if it had been stopped behind its checkpoint of step 3, in the middle of the stream.
    cut_back(Path("parted"), 3)
    assert run(["train", "--resume", "parted"]) == 0
    assert [row[column] for row in metrics(Path("parted"))] == whole


def cut_back(folder: Path, step: int) -> None:
    """Leaves a run as it was when it had saved a step."""
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    last = folder / "checkpoints" / "last.json"
    last.write_text(json.dumps({**json.loads(last.read_text()), "last": f"step-{step:08d}"}))
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "stopped"}))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (("epoch_steps: 4, ", ""), "data.tars: a stream has no length; say what an epoch is with run.epoch_steps"),
        (("batch_size: 3", "batch_size: 3, sampling: views"), "data.tars: sampling needs a dataset with an index"),
        (("log_every: 1", "log_every: 1, workers: 2"), "set run.workers to 0"),
        (("{core.itc: {}}", "{ovt.vc: {}}"), "ovt.vc"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(
    workshop: Workshop, tars: Path, fault: Callable[..., str], tmp_path: Path, changed: tuple[str, str], text: str
):
    yaml = streamed(workshop, tars, steps=2)
    assert changed[0] in yaml
    (tmp_path / "run.yaml").write_text(yaml.replace(*changed))
    assert text in fault("train", "run.yaml", "--plugin", EXAMPLES / "webdataset_stream.py", "-o", "run")


def test_a_stream_cannot_be_measured_on(workshop: Workshop, tars: Path, fault: Callable[..., str], tmp_path: Path):
    measured = (
        f"{{data: {{held: {{id: webdataset_stream.tars, path: {tars}, image_size: 32}}}}, on: [core.consistency]}}"
    )
    (tmp_path / "run.yaml").write_text(workshop.yaml(validate=measured))
    line = fault("train", "run.yaml", "--plugin", EXAMPLES / "webdataset_stream.py", "-o", "run")
    assert line.startswith("validate.data.held: Tars is a stream")


@pytest.mark.parametrize("damage", ["not a tar", "not an image"])
def test_a_damaged_shard_is_named(tars: Path, damage: str):
    first = min(tars.glob("*.tar"))
    if damage == "not a tar":
        first.write_bytes(b"no tar at all" * 100)
    else:
        with tarfile.open(first, "w") as tar:
            info = tarfile.TarInfo("cup.000.png")
            info.size = 4
            tar.addfile(info, io.BytesIO(b"PNG?"))
    module("webdataset_stream")
    with pytest.raises(DataError, match=r"is no readable (tar file|image)"):
        list(sys.modules["webdataset_stream"].Tars(str(tars), 32))


# --- distillation -------------------------------------------------------------------------------------------------


def test_match_is_the_mean_over_pairs():
    example = module("distillation")
    generator = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn(4, width, dtype=torch.float64, generator=generator) for width in (5, 3))

    def cosine(rows: torch.Tensor, i: int, j: int) -> torch.Tensor:
        return rows[i] @ rows[j] / rows[i].norm() / rows[j].norm()

    pairs = [(cosine(student, i, j) - cosine(teacher, i, j)) ** 2 for i in range(4) for j in range(4)]
    torch.testing.assert_close(example.match(student, teacher), sum(pairs) / len(pairs))


def test_a_student_learns_from_its_teacher_and_its_checkpoint_holds_none_of_it(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from safetensors.torch import load_file

    monkeypatch.chdir(tmp_path)
    adapters = "{ovt.lora: {rank: 2}, distillation.teacher: {teacher: {model: test_vit}, id_of_teacher: core.timm}}"
    yaml = workshop.yaml(adapters=adapters, losses="{distillation.match: {}}", trainers="", validate="")
    Path("run.yaml").write_text(yaml.replace("max_steps: 3", "max_steps: 12") + "optimizer: {lr: 1.0e-2}\n")
    assert run(["train", "run.yaml", "--plugin", str(EXAMPLES / "distillation.py"), "-o", "run"]) == 0
    rows = [float(row["train/distillation.match"]) for row in metrics(Path("run"))]
    assert rows[-1] < rows[0]
    (weights,) = Path("run/checkpoints").rglob("step-*/*.safetensors")
    names = set(load_file(weights))
    assert names
    assert not [name for name in names if "teacher" in name]
