"""What YAML, paths of keys and assignments of the command line may say, and how the rest is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mvcore.config_layers import parse_set, parse_yaml, read_yaml
from mvcore.errors import ConfigError
from mvcore.key_path import parse_path, show_path

# --- YAML -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5e-3", 0.5e-3),
        ("2.", 2.0),
        ("-.inf", float("-inf")),
        ("12", 12),
        ("-3", -3),
        ("1_000", 1000),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("e4", "e4"),
        ("-", [None]),
    ],
)
def test_yaml_reads_numbers_and_words_as_people_write_them(text, value):
    (found, _) = parse_yaml(text, "x")
    assert found == value
    assert type(found) is type(value)


def test_on_is_a_key_and_not_true():
    values, sources = parse_yaml("losses:\n  ovt.vc:\n    on: [mine]\n", "run.yaml")
    assert values == {"losses": {"ovt.vc": {"on": ["mine"]}}}
    assert sources["losses", "ovt.vc", "on"] == "run.yaml:3"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: a stands twice (first at x.yaml:1)"),
        ("a:\n  b.c: 1\n  b.c: 2\n", "x.yaml:3: a[b.c] stands twice (first at x.yaml:2)"),
        ("a: [1\nb: 2\n", "x.yaml:2: not valid YAML"),
        ("a: 1\n\tb: 2\n", "x.yaml:2: not valid YAML"),
        ("!!python/object:os.system {}\n", "x.yaml:1: not valid YAML"),
        ("[" * 5000, "x.yaml: not valid YAML: nested too deeply"),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused_with_its_line(text, line):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "x.yaml")
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff\xfe", "cannot be read: not UTF-8 text"),
        (b"- 1\n", "must hold keys and values at its top"),
        (b"", "must hold keys and values at its top"),
        (b"#" * 1_000_001, "larger than 1 MB"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: bytes | None, text: str):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert text in str(caught.value)


def test_a_folder_is_no_configuration(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)


# --- paths of keys ----------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.one_of(st.from_regex(r"\w+", fullmatch=True), st.from_regex(r"[\w.-]+", fullmatch=True)),
        min_size=1,
        max_size=4,
    )
)
def test_a_path_is_read_as_it_is_shown(names):
    names[0] = "losses"
    assert parse_path(show_path(names)) == tuple(names)


@pytest.mark.parametrize("text", ["", ".", "a.", "a[", "a[]", "a b", "a..b", "[a]", "a]b"])
def test_what_is_no_path_is_refused(text):
    with pytest.raises(ConfigError, match=r"a key looks like optimizer\.lr or 'losses"):
        parse_path(text)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("losses[ovt.vc].margin=0.1", ("losses", "ovt.vc", "margin"), 0.1),
        ("optimizer.lr=1e-4", ("optimizer", "lr"), 1e-4),
        ("encoder.pretrained=null", ("encoder", "pretrained"), None),
        ("data[a].path=x=y", ("data", "a", "path"), "x=y"),
        ("run.output=", ("run", "output"), None),
        ("validate.on=[core.zero_shot]", ("validate", "on"), ["core.zero_shot"]),
        ("losses[ovt.vc]={weight: 2}", ("losses", "ovt.vc"), {"weight": 2}),
    ],
)
def test_assignments(text, path, value):
    assert parse_set(text) == (path, value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("optimizer.lr", "--set 'optimizer.lr': write KEY=VALUE"),
        ("losses[ovt.vc]margin=1", "--set 'losses[ovt.vc]margin': a key looks like"),
        ("optimizer.lr=[", "--set optimizer.lr:1: not valid YAML"),
    ],
)
def test_an_assignment_that_is_none_is_refused(text, line):
    with pytest.raises(ConfigError) as caught:
        parse_set(text)
    assert str(caught.value).startswith(line)
