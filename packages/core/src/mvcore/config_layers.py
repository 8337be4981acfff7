"""Layers of configuration: YAML files and overrides, merged in order, each key with where it came from."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mvcore.config import RunConfig, listed_entries, normalised
from mvcore.errors import ConfigError
from mvcore.key_path import KeyPath, parse_path, show_path
from mvcore.validation import Place, validate

DEFAULT = "default"
"""The source of a key that nobody set."""

PART_SECTIONS = ("adapters", "data", "losses", "trainers")


class _Loader(yaml.SafeLoader):
    """PyYAML's YAML 1.1 with rules of 1.2: `1e-4` is a number; `on`, `off`, `yes`, `no` and dates are words."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: quotes every word that it would take for something else."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
for _first, _resolvers in list(_Loader.yaml_implicit_resolvers.items()):
    unwanted = ("timestamp", "bool") if _first in "yYnNoO" else ("timestamp",)
    _kept = [item for item in _resolvers if item[0].rpartition(":")[2] not in unwanted]
    # Integers must still be integers: their resolver has to be asked before the one for floats.
    _Loader.yaml_implicit_resolvers[_first] = sorted(_kept, key=lambda item: item[0].endswith(":float"))
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


@dataclass
class Layers:
    """Merged values and, for each key that was set, its source (`run.yaml:12`, `recipe ovt.demo`, `--set`)."""

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    sources: dict[KeyPath, str] = field(default_factory=dict[KeyPath, str])

    def merge(self, values: Mapping[str, Any], sources: Mapping[KeyPath, str] | str) -> None:
        """Lays `values` over what is there: mappings merge, all else is replaced, null removes a part below.

        An entry that names another id than the one below replaces it whole, since its options are another part's.
        """
        self._merge(self.values, values, (), sources)

    def _merge(
        self, into: dict[str, Any], values: Mapping[str, Any], path: KeyPath, sources: Mapping[KeyPath, str] | str
    ) -> None:
        for key, value in values.items():
            here = (*path, str(key))
            below = into.get(key)
            if value is None and _is_part(here) and key in into:
                del into[key]
                self._forget(here)
                continue
            if isinstance(value, Mapping):
                if here == ("validate", "on"):
                    below = into[key] = listed_entries(below)
                if _is_weight(here) and isinstance(below, (int, float)):
                    # A schedule's keys laid over a number keep it.
                    below, self.sources[(*here, "to")] = {"to": below}, self.source_of(here)
                    into[key] = below
                changed = isinstance(below, dict) and "id" in value and value["id"] != below.get("id", key)
                if not isinstance(below, dict) or changed:
                    self._forget(here)
                    below = into[key] = {}
                self._merge(below, value, here, sources)
            else:
                into[key] = copy.deepcopy(value)
            self.sources[here] = sources if isinstance(sources, str) else sources.get(here, "")

    def _forget(self, path: KeyPath) -> None:
        for known in [key for key in self.sources if key[: len(path)] == path]:
            del self.sources[known]

    def source_of(self, path: Sequence[str]) -> str:
        """The source of a key, or of the nearest one above it that is known."""
        parts = tuple(path)
        while parts:
            if self.sources.get(parts):
                return self.sources[parts]
            parts = parts[:-1]
        return DEFAULT

    def config(self) -> RunConfig:
        """The validated configuration.

        Raises:
            ConfigError: one line with every fault: the key, where it stands, and the nearest name.
        """
        return validate(RunConfig, normalised(self.values), Place(written=self.written))

    def written(self, path: Sequence[str | int]) -> str:
        """The source of a key for the text of errors: nothing where it is a default."""
        source = self.source_of([str(key) for key in path])
        return "" if source == DEFAULT else source


def section_of(values: Any, *path: str) -> dict[str, Any]:
    """The mapping at a path of keys, or an empty one; what is no mapping is left for the validation to find."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _is_part(path: KeyPath) -> bool:
    return (len(path) == 2 and path[0] in PART_SECTIONS) or (len(path) == 3 and path[0] == "validate")


def _is_weight(path: KeyPath) -> bool:
    return len(path) == 3 and path[0] == "losses" and path[2] == "weight"


def parse_set(assignment: str) -> tuple[KeyPath, Any]:
    """`optimizer.lr=1e-4` as its path and its YAML value."""
    key, equals, value = assignment.partition("=")
    # The sign may stand inside brackets only if a name held one, and none does.
    if not equals:
        raise ConfigError(f"--set {assignment!r}: write KEY=VALUE")
    return parse_path(key.strip()), parse_yaml(value, f"--set {key}")[0]


def nested(path: KeyPath, value: Any) -> dict[str, Any]:
    """`value` inside mappings along `path`."""
    for key in reversed(path):
        value = {key: value}
    return value


def parse_yaml(text: str, name: str) -> tuple[Any, dict[KeyPath, str]]:
    """A YAML document and where each of its keys stands, as `name:line`.

    Raises:
        ConfigError: text that is no YAML, or a key that stands twice.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        sources: dict[KeyPath, str] = {}
        _note_lines(node, (), name, sources)
        return loader.construct_document(node), sources
    except RecursionError:
        raise ConfigError(f"{name}: not valid YAML: nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    finally:
        loader.dispose()


def _note_lines(node: yaml.Node, path: KeyPath, name: str, sources: dict[KeyPath, str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*path, str(key.value))
        if here in sources:
            raise ConfigError(
                f"{name}:{key.start_mark.line + 1}: {show_path(here)} stands twice (first at {sources[here]})"
            )
        sources[here] = f"{name}:{key.start_mark.line + 1}"
        _note_lines(value, here, name, sources)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """A YAML file that holds a mapping, with the line of each key.

    Raises:
        ConfigError: the file is absent, not text, too large or not a mapping.
    """
    try:
        if path.stat().st_size > 1_000_000:
            raise ConfigError(f"{path}: larger than 1 MB, which no run configuration is")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    values, sources = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold keys and values at its top, as `run: {{max_steps: 100}}`")
    return values, sources


def to_yaml(layers: Layers, config: RunConfig) -> str:
    """The merged configuration as YAML that runs as it is, with each key's source as a comment."""
    lines: list[str] = []
    _write_yaml(config.to_plain(), (), layers, lines)
    return "\n".join(lines) + "\n"


def _write_yaml(values: Mapping[str, Any], path: KeyPath, layers: Layers, lines: list[str]) -> None:
    indent = "  " * len(path)
    for key, value in values.items():
        here = (*path, str(key))
        if isinstance(value, Mapping) and value:
            lines.append(f"{indent}{shown_value(key)}:")
            _write_yaml(value, here, layers, lines)
        else:
            lines.append(f"{indent}{shown_value(key)}: {shown_value(value)}  # {_source(here, layers)}")


def _source(path: KeyPath, layers: Layers) -> str:
    # An id that is not written is the entry's name, so it comes from where the entry does.
    return layers.sources.get(path) or (layers.source_of(path) if path[-1] == "id" else DEFAULT)


def shown_value(value: Any) -> str:
    """A plain value as YAML on one line."""
    text = _dumped(value, None)
    # YAML's own style breaks a text at its line ends, of which there are more kinds than one; quoted, they are escaped.
    return text if len(text.splitlines()) == 1 else _dumped(value, '"')


def _dumped(value: Any, style: str | None) -> str:
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, default_style=style, width=10**9, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")
