"""Captions by a real vision-language model of tiny size, and the file beside the store that holds them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mvcore.api import ConfigError, DataError, WeightsError
from mvcore_data import ViewStore, ViewStoreWriter
from mvcore_data.caption import caption_store, keeps_category
from mvcore_data.caption_files import ViewCaptions, captions_path
from mvcore_data.caption_prompts import GUIDED, UNGUIDED
from mvcore_data.captioner import Generation
from mvcore_data.cli import app
from mvcore_data.views import Views
from mvcore_ovt import caption_prompt
from numpy.typing import NDArray
from pydantic import ValidationError
from typer.testing import CliRunner

transformers = pytest.importorskip("transformers", reason="needs mvcore-data[caption]")

WORDS = "a an the red blue cup chair boat lamp write short description for image noting that main instance of is . ,"


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<pad>", "</s>", "<unk>", "<image>"]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS.split())}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, additional_special_tokens=["<image>"], padding_side="left", **names
    )


@pytest.fixture(scope="module")
def instructblip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """InstructBLIP with a T5 behind it, of the real classes, at random weights."""
    from transformers import BlipImageProcessor, InstructBlipProcessor

    torch.manual_seed(0)
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.InstructBlipConfig(
        vision_config={**width, "image_size": 32, "patch_size": 16},
        qformer_config={**width, "vocab_size": 40, "encoder_hidden_size": 16, "max_position_embeddings": 64},
        text_config={
            "model_type": "t5", "vocab_size": 26, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2,
            "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
        },
        num_query_tokens=4,
        image_token_index=3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("instructblip")
    transformers.InstructBlipForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    InstructBlipProcessor(images, tokenizer(), tokenizer(), num_query_tokens=4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP-2 with a decoder-only OPT behind it."""
    from transformers import Blip2Processor, BlipImageProcessor

    torch.manual_seed(0)
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Blip2Config(
        vision_config={**width, "image_size": 32, "patch_size": 16},
        qformer_config={**width, "encoder_hidden_size": 16},
        text_config={
            "model_type": "opt", "vocab_size": 26, "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 128,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
        },
        num_query_tokens=4,
        image_token_index=3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("blip2")
    transformers.Blip2ForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(images, tokenizer(), num_query_tokens=4).save_pretrained(folder)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two cups and an object without a category, with three views each."""
    path = tmp_path / "store"
    rng = np.random.default_rng(0)
    with ViewStoreWriter(path) as writer:
        for i, category in enumerate(["cup", "tea_cup", None]):
            pixels = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
            writer.add_object(f"object-{i}", pixels, category=category, captions=["its own"])
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- prompts and the check ---------------------------------------------------------------------------------------------


def test_the_prompt_is_the_papers() -> None:
    assert GUIDED.replace("{category}", "school bus") == caption_prompt("school bus")
    assert caption_prompt("cup") == (
        "Write a short description for the image, noting that the main instance of the image is a cup."
    )


@pytest.mark.parametrize(
    ("caption", "category", "kept"),
    [
        ("a red cup on a table", "cup", True),
        ("A Cup.", "cup", True),
        ("two cups", "cup", True),
        ("three buses", "bus", True),
        ("some berries", "berry", True),
        ("a cupboard", "cup", False),
        ("a mug", "cup", False),
        ("a school bus in the rain", "school_bus", True),
        ("a bus at a school", "school bus", False),
        ("", "cup", False),
        ("anything", "", True),
    ],
)
def test_keeps_category(caption: str, category: str, kept: bool) -> None:
    assert keeps_category(caption, category) is kept


# -- real models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["instructblip", "blip2"])
def test_a_real_model_captions_every_view(store: Path, model: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(model)
    given = ["caption", str(store), "--model", str(folder), "--require-category", "keep", "--max-length", "6"]
    done = CliRunner().invoke(app, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    header, *found = lines(store / "captions" / "captions.jsonl")
    assert header["schema"] == "mvcore.captions"
    assert (header["model"], header["prompt"], header["beams"]) == (str(folder), GUIDED, 5)
    assert [(line["object"], line["view"]) for line in found] == [
        (f"object-{i}", v) for i in range(3) for v in range(3)
    ]
    written = [line["caption"] for line in found if line["caption"]]
    assert f"{len(written)} captions written" in done.output
    for caption in written:
        assert 1 <= len(caption.split()) <= 6  # the prompt itself is no part of it
        assert "<" not in caption.replace("<unk>", "")
    assert [path.name for path in (store / "captions").iterdir()] == ["captions.jsonl"]


def test_the_captions_are_those_of_the_library_alone(store: Path, instructblip: Path) -> None:
    """The same beams in transformers without our code, an image at a time."""
    from mvcore_data.captioner import Captioner
    from PIL import Image

    opened = ViewStore(store)
    images, prompt = [opened.image(v) for v in range(9)], caption_prompt("cup")
    settings = Generation(beams=3, max_length=8)
    found = Captioner(str(instructblip)).describe(images, [prompt] * 9, settings)
    processor = transformers.AutoProcessor.from_pretrained(instructblip)
    model = transformers.InstructBlipForConditionalGeneration.from_pretrained(instructblip).eval()
    for image, caption in zip(images, found, strict=True):
        inputs = processor(images=Image.fromarray(image), text=prompt, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, num_beams=3, max_length=8, length_penalty=-1.0, do_sample=False)
        assert " ".join(processor.batch_decode(tokens, skip_special_tokens=True)[0].split()) == caption


def test_sampling_again_leaves_the_random_state_alone(store: Path, instructblip: Path) -> None:
    from mvcore_data.captioner import Captioner

    captioner, image = Captioner(str(instructblip)), ViewStore(store).image(0)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, second, other = (captioner.describe([image], [UNGUIDED], Generation(), sample_seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == second != other


def test_models_that_cannot_be_loaded_are_one_line(store: Path, instructblip: Path, tmp_path: Path) -> None:
    from mvcore_data.captioner import Captioner

    for name in (str(tmp_path / "nothing"), str(tmp_path)):
        with pytest.raises(WeightsError, match="no vision-language model can be loaded") as caught:
            Captioner(name)
        assert "\n" not in str(caught.value)
    # Weights as a pickle are not read.
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in instructblip.iterdir():
        if file.is_file() and file.suffix == ".json":
            (pickled / file.name).write_bytes(file.read_bytes())
    (pickled / "qformer_tokenizer").symlink_to(instructblip / "qformer_tokenizer")
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="no vision-language model"):
        Captioner(str(pickled))
    with pytest.raises(ConfigError, match="dtype 'int8'"):
        Captioner(str(instructblip), dtype="int8")


@pytest.mark.process
def test_without_transformers_it_is_one_clear_line(store: Path) -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from mvcore_data.captioner import Captioner\n"
        "try: Captioner('x')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ConfigError captions need transformers: pip install 'mvcore-data[caption]'\n"


# -- policies, resuming, the file --------------------------------------------------------------------------------------


class Scripted:
    """Says what a test needs a model to say; counts what it is asked."""

    def __init__(self, *, fails_after: int | None = None, says: str = "a red {} here", sampled: str = "a boat") -> None:
        self.says, self.sampled, self.left = says, sampled, fails_after
        self.asked: list[tuple[str, int | None]] = []

    def describe(
        self,
        images: Sequence[NDArray[np.uint8]],
        prompts: Sequence[str],
        generation: Generation,
        *,
        sample_seed: int | None = None,
    ) -> list[str]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        assert all(image.shape == (32, 32, 3) for image in images)
        self.asked += [(prompt, sample_seed) for prompt in prompts]
        if sample_seed is not None:
            return [self.sampled]
        return [self.says.format(prompt.partition("image is a ")[2].strip(".")) for prompt in prompts]


def run(store: Path, captioner: Scripted, name: str = "test", **options: Any) -> Any:
    with ViewStore(store) as opened:
        return caption_store(opened, captioner, name, model="scripted", **options)


def test_each_view_is_asked_with_the_prompt_of_its_category(store: Path) -> None:
    captioner = Scripted()
    report = run(store, captioner)
    assert [prompt for prompt, _ in captioner.asked] == [
        *[caption_prompt("cup")] * 3,
        *[caption_prompt("tea cup")] * 3,
        *[UNGUIDED] * 3,
    ]
    assert (report.written, report.unguided, report.without_category, report.left_out) == (9, 3, 0, 0)


@pytest.mark.parametrize(
    ("policy", "sampled", "written", "retried", "without", "left_out"),
    [
        ("keep", "x", 9, 0, 6, 0),
        ("drop", "x", 3, 0, 6, 6),
        ("retry", "my cup", 6, 6, 3, 3),
        ("retry", "my tea cup", 9, 6, 0, 0),
        ("retry", "nothing of it", 3, 6, 6, 6),
    ],
)
def test_captions_without_the_category(
    store: Path, policy: str, sampled: str, written: int, retried: int, without: int, left_out: int
) -> None:
    captioner = Scripted(says="a mug", sampled=sampled)
    report = run(store, captioner, require_category=policy)
    assert (report.written, report.retried, report.without_category) == (written, retried, without)
    assert report.left_out == left_out
    found = ViewCaptions(ViewStore(store), captions_path(store, "test"))
    assert found.count == written
    assert not len(found.missing)
    assert found.of_view(8) == ["a mug"]
    assert found.of_view(0) == {"keep": ["a mug"], "drop": []}.get(policy, [sampled] if "cup" in sampled else [])
    seeds = [seed for _, seed in captioner.asked if seed is not None]
    assert len(set(seeds)) == len(seeds)


def test_an_interrupted_run_goes_on_and_gives_the_same_file(store: Path) -> None:
    run(store, Scripted(), "whole", batch=2)
    with pytest.raises(KeyboardInterrupt):
        run(store, Scripted(fails_after=2), batch=2)
    partial = store / "captions" / "test.jsonl.tmp"
    assert len(lines(partial)) == 5
    with pytest.raises(DataError, match="no such captions"):
        Views(path=str(store), captions_from="test")
    with partial.open("a") as file:
        file.write('{"object": "object-1", "vi')  # what a killed process leaves
    captioner = Scripted()
    report = run(store, captioner, batch=2)
    assert (report.before, report.written, len(captioner.asked)) == (4, 5, 5)
    assert (store / "captions" / "test.jsonl").read_bytes() == (store / "captions" / "whole.jsonl").read_bytes()
    assert not partial.exists()
    # Once more: nothing is left to do.
    captioner = Scripted()
    assert (run(store, captioner).before, captioner.asked) == (9, [])


def test_a_store_that_has_grown_is_gone_on_with(store: Path) -> None:
    run(store, Scripted())
    with ViewStoreWriter(store, append=True) as writer:
        writer.add_object("new", np.zeros((1, 32, 32, 3), np.uint8), category="boat")
    captioner = Scripted()
    assert run(store, captioner).written == 1
    assert captioner.asked == [(caption_prompt("boat"), None)]
    assert ViewCaptions(ViewStore(store), captions_path(store, "test")).of_view(9) == ["a red boat here"]


def test_captions_made_otherwise_are_not_mixed(store: Path) -> None:
    run(store, Scripted())
    before = (store / "captions" / "test.jsonl").read_bytes()
    with pytest.raises(DataError, match=r"made otherwise \(beams 5, not 3\).*--replace"):
        run(store, Scripted(), generation=Generation(beams=3))
    assert (store / "captions" / "test.jsonl").read_bytes() == before
    with pytest.raises(KeyboardInterrupt):
        run(store, Scripted(fails_after=0), generation=Generation(beams=3), replace=True)
    assert (store / "captions" / "test.jsonl").read_bytes() == before
    run(store, Scripted(says="new {}"), generation=Generation(beams=3))
    assert lines(store / "captions" / "test.jsonl")[1]["caption"] == "new cup"


def test_a_single_shard_has_its_captions_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "one.h5"
    with ViewStoreWriter(path) as writer:
        writer.add_object("a", np.zeros((2, 32, 32, 3), np.uint8), category="cup")
    run(path, Scripted())
    assert captions_path(path, "test") == tmp_path / "one.h5.captions" / "test.jsonl"
    assert Views(path=str(path), captions_from="test").provides >= {"captions"}


def test_a_source_gives_them_in_the_place_of_its_own(store: Path) -> None:
    run(store, Scripted(says="a mug"), require_category="drop")
    source = Views(path=str(store), captions_from="test")
    batch = source.load(2, [8, 6], None)
    assert batch.captions == ("a mug", "a mug")
    assert batch.caption_view is not None
    assert batch.caption_view.tolist() == [0, 1]
    assert source.load(0, [0], None).captions == ()
    assert Views(path=str(store)).load(2, [8], None).captions == ("its own",)
    assert "captions" not in Views(path=str(store), captions_from="test", captions="none").provides
    with pytest.raises(ValidationError, match="leave out captions_from"):
        Views(path=str(store), captions_from="test", embeddings=["x"])


HEADER = '{"schema": "mvcore.captions", "version": 1}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("{", "line 1: not JSON"),
        ("[1]\n", "line 1: not a mapping"),
        ('{"schema": "other"}\n', "not a file of captions"),
        (HEADER + '{"object": "who", "view": 0, "caption": "x"}\n', "line 2: the store holds no object 'who'"),
        (HEADER + '{"object": "object-0", "view": 3, "caption": "x"}\n', "line 2: object 'object-0' has no view 3"),
        (HEADER + '{"object": "object-0", "view": -1, "caption": "x"}\n', "has no view -1"),
        (HEADER + '{"object": "object-0", "view": true, "caption": "x"}\n', "has no view True"),
        (HEADER + '{"object": ["a"], "view": 0, "caption": "x"}\n', "holds no object"),
        (HEADER + '{"object": "object-0", "view": 0, "caption": ""}\n', "the caption is no text"),
        (HEADER + '{"object": "object-0", "view": 0, "caption": "\\ud800"}\n', "not valid Unicode"),
        (HEADER + '{"object": "object-0", "view": 0, "caption": "x"}\n' * 2, "line 3: a second caption"),
        (HEADER + '{"object": "' + "x" * 70_000 + '"}\n', "line 2: longer than"),
    ],
)
def test_damaged_files_are_one_line(store: Path, text: str, said: str) -> None:
    path = captions_path(store, "bad")
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        Views(path=str(store), captions_from="bad")
    assert "\n" not in str(caught.value)
    assert "bad.jsonl" in str(caught.value)


def test_names_and_prompts_that_cannot_be(store: Path) -> None:
    for name in ("../x", "a/b", "", ".hidden", "a..b"):
        with pytest.raises(ConfigError, match="a name has letters"):
            captions_path(store, name)
    with pytest.raises(ConfigError, match=r"it must hold \{category\}"):
        run(store, Scripted(), prompt="What is it?")
