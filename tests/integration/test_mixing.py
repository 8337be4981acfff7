"""Losses of several methods in one run: each on the rows it can use, and every view through the encoder once a step."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from mvcore.cli.main import run
from mvcore.config_layers import Layers
from mvcore.plugins import load_plugins
from mvcore.report.figures import read_metrics
from mvcore.running import open_session
from mvcore.training.fit import Training, prepare
from mvcore_data import ViewStoreWriter

if TYPE_CHECKING:
    from conftest import Workshop


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of six objects with a caption of its own for each view, and neither cameras nor depth."""
    path = tmp_path_factory.mktemp("described") / "store"
    rng = np.random.default_rng(1)
    with ViewStoreWriter(path, codec="png") as store:
        for i in range(6):
            views = rng.integers(0, 256, (4, 4, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
            store.add_object(f"thing-{i}", views, view_captions=[f"thing {i}, side {k}" for k in range(4)])
    return path


def values(workshop: Workshop, described: Path) -> dict[str, Any]:
    """Four methods on two sources: captions for each view without depth, and depth without captions."""
    return {
        "encoder": {"id": "core.open_clip", "model": str(workshop.clip), "pretrained": None, "train": "all"},
        "adapters": {"duoduo.cross_view": {"cross_view_from": 1}, "duoduo.log_scale": {}},
        "data": {
            "described": {"id": "data.views", "path": str(described), "batch_size": 3, "views_per_object": [2, 4]},
            "deep": {
                "id": "data.views",
                "path": "demo",
                "split": "train",
                "limit_objects": 4,
                "image_size": 32,
                "sampling": "pairs",
                "pair_angle": [0, 60],
                "batch_size": 2,
                "depth": True,
                "captions": "none",
            },
        },
        "losses": {
            "core.itc": {},
            "ovt.vc": {"weight": 0.5},
            "mvc_heads.contrastive": {"weight": 0.1},
            "equivariance.smooth_ap": {"weight": 0.5, "points": 100},
            "duoduo.shape_text": {"weight": 0.2},
        },
        "trainers": {"ovt.outlier_mining": {"k": 1, "neighbours": 2}},
        "run": {"max_steps": 2, "accelerator": "cpu", "log_every": 1, "workers": 0},
    }


def prepared(config: dict[str, Any], folder: Path) -> Training:
    layers = Layers()
    layers.merge(config, "test")
    session = open_session(layers.config(), load_plugins())
    return prepare(session.plan, session.sources, folder)


def test_each_loss_works_on_the_rows_that_it_can_use(workshop: Workshop, described: Path, tmp_path: Path) -> None:
    training = prepared(values(workshop, described), tmp_path)
    assert {term.part.name: term.sources for term in training.plan.losses} == {
        "core.itc": ("described",),
        "ovt.vc": ("described", "deep"),
        "mvc_heads.contrastive": ("described",),
        "equivariance.smooth_ap": ("deep",),
        "duoduo.shape_text": ("described",),
    }


@pytest.mark.parametrize("micro_batch", ["auto", 4])
def test_such_a_run_trains_every_term(workshop: Workshop, described: Path, tmp_path: Path, micro_batch: Any) -> None:
    config = values(workshop, described)
    config["run"] |= {"micro_batch": micro_batch, "gradients": {"every": 1}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert run(["train", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "run")]) == 0
    found = read_metrics(tmp_path / "run/metrics.csv")
    for name in config["losses"]:
        assert np.isfinite(found[f"train/{name}"][1]).all(), name
    terms = json.loads((tmp_path / "run/gradients.json").read_text())["terms"]
    assert {name for name, term in terms.items() if term["norm"] > 0} == set(config["losses"])


def test_every_view_goes_through_the_encoder_once_a_step_whatever_the_number_of_losses(
    workshop: Workshop, described: Path, tmp_path: Path
) -> None:
    passes = {}
    for few in (True, False):
        config = values(workshop, described)
        if few:
            config["losses"] = {name: config["losses"][name] for name in ("core.itc", "equivariance.smooth_ap")}
            config["trainers"] = config["adapters"] = {}
        training = prepared(config, tmp_path)
        for trainer in training.trainers:
            trainer.mine()
        clip: Any = training.pipeline.backbone.model
        count, rows = Counter[str](), Counter[str]()

        def note(name: str, batch_first: bool, count: Any = count, rows: Any = rows) -> Any:
            def hook(module: Any, args: Any, output: Any) -> None:
                count[name] += 1
                rows[name] += args[0].shape[0 if batch_first else 1]

            return hook

        first, last = clip.visual.transformer.resblocks[0], clip.visual.transformer.resblocks[-1]
        texts = clip.transformer.resblocks[0]
        for name, block in (("first", first), ("last", last), ("texts", texts)):
            block.register_forward_hook(note(name, getattr(block.attn, "batch_first", True)))
        assert training.module.make_loader is not None
        batches = next(iter(training.module.make_loader(0, 1, 0)))
        training.module.objective.step(batches, lambda total: total.backward())
        views = {name: batch.n_views for name, batch in batches.items()}
        captions = sum(len(batch.captions) for batch in batches.values())
        assert rows["first"] == sum(views.values())
        assert rows["texts"] == captions
        passes[few] = dict(count)
        # Attention across views alone goes through the last block a second time, for the views that it needs.
        assert rows["last"] - rows["first"] == (0 if few else views["described"])
    assert passes[True]["first"] == passes[False]["first"] == 2  # one for each source
    assert passes[True]["texts"] == passes[False]["texts"] == 1


def test_the_command_of_three_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["data[objects].batch_size=16", "data[frontal].batch_size=12", "run.max_steps=2"]
    small += [f"data[{name}].limit_objects=6" for name in ("objects", "frontal")]
    small += [f"validate.data[{name}]=null" for name in ("clean", "ood")]
    small += ["run.accelerator=cpu", "run.gradients.every=2", "losses[equivariance.smooth_ap].points=100"]
    flags = [part for text in small for part in ("--set", text)]
    losses = ["--loss", "equivariance.smooth_ap=0.5", "--loss", "mvc_heads.contrastive=0.1"]
    assert run(["train", "--plugin", "ovt", *losses, *flags, "--no-control", "-o", str(tmp_path / "run")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "source pairs from recipe equivariance.demo on the data of source objects" in printed
    assert "equivariance.smooth_ap needs sampling: pairs" in printed
    assert "loss equivariance.smooth_ap: weight 0.5 on pairs" in printed
    assert "adapter equivariance.dense of recipe equivariance.demo is not taken" in printed
    assert "gradients: DEMO tuned" in printed
    config = (tmp_path / "run/config.yaml").read_text()
    assert "depth: only  # recipe equivariance.demo" in config
    assert "for equivariance.smooth_ap" in config
    found = read_metrics(tmp_path / "run/metrics.csv")
    assert {"core.itc", "ovt.vc", "equivariance.smooth_ap", "mvc_heads.contrastive"} <= {
        name.removeprefix("train/") for name in found
    }
