"""A new plugin's package, written from the template that mvcore brings along.

A file of the template holds `@NAME@` (the plugin) and `@MODULE@` (its package) and blocks for some kinds of part only:
from a line `#? loss & !trainer` to the next line `#.`. A file of which nothing is left is not written.
"""

from __future__ import annotations

import keyword
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from mvcore.discovery import RESERVED, bad_name
from mvcore.errors import ConfigError
from mvcore.plugin_records import BUILTIN_COMMANDS
from mvcore.plugins import KNOWN_PACKAGES, load_plugins
from mvcore.specs import NAME, SPEC_TYPES
from mvcore.suggest import did_you_mean, listed

TEMPLATE = Path(__file__).with_name("template")
SUFFIX = ".tmpl"
KINDS = tuple(spec.part for spec in SPEC_TYPES)


def write_plugin(name: str, folder: Path, kinds: Iterable[str] = KINDS) -> Path:
    """Writes a package for a new plugin, all of it or nothing.

    Args:
        name: the plugin's name, which begins its ids.
        folder: what is written; it must not be there yet.
        kinds: which kinds of part it gets an example of.

    Returns:
        The folder.

    Raises:
        ConfigError: a name that no plugin may have, an unknown kind, or a folder that is there.
    """
    module = name.replace("-", "_")
    _check_name(name, module)
    chosen = set(kinds)
    if not chosen:
        raise ConfigError(f"--kinds: name at least one of: {listed(KINDS)}")
    for kind in chosen - set(KINDS):
        raise ConfigError(f"--kinds: unknown kind {kind!r}{did_you_mean(kind, KINDS)} (known: {listed(KINDS)})")
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} exists already, and is left as it is; choose another place with --output")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            whole = Path(scratch) / folder.name
            for path, text in rendered(name, chosen):
                target = whole / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
            shutil.move(whole, folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder


def _check_name(name: str, module: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(bad_name(name))
    if name in RESERVED:
        raise ConfigError(f"the name {name!r} is reserved for {RESERVED[name]}; choose another")
    if name in BUILTIN_COMMANDS:
        raise ConfigError(f"{name!r} is a command of mvcore's own, which a plugin cannot take; choose another name")
    owner = _owner(name)
    if owner:
        raise ConfigError(
            f"a plugin {name!r} is there already ({owner}), and two of one name shut each other out; "
            "choose another name"
        )
    if keyword.iskeyword(module):
        raise ConfigError(f"{module!r} is a word of Python's, which no module can be named; choose another name")
    if not module.isidentifier() or _is_taken(module):
        raise ConfigError(f"a module {module!r} is there already, which the plugin's would hide; choose another name")


def _owner(name: str) -> str:
    """Whose plugin has that name: an installed one's, or one of ours that is not installed."""
    for record in load_plugins(check_strict=False).records:
        if record.name == name and record.distribution:
            return record.provider
    return KNOWN_PACKAGES.get(name, "")


def _is_taken(module: str) -> bool:
    import sys
    from importlib.util import find_spec

    if module in sys.stdlib_module_names:
        return True
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return True


def rendered(name: str, kinds: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The files of a new plugin: paths relative to its folder and texts."""
    module, chosen = name.replace("-", "_"), set(kinds)
    for source in sorted(TEMPLATE.rglob(f"*{SUFFIX}")):
        text = _chosen_lines(source.read_text(encoding="utf-8"), chosen)
        if not text.strip() and source.stat().st_size:
            continue
        path = source.relative_to(TEMPLATE).as_posix().removesuffix(SUFFIX)
        path = path.replace("src/module/", f"src/{module}/").replace("docs/name.", f"docs/{name}.")
        yield path, text.replace("@NAME@", name).replace("@MODULE@", module)


def _chosen_lines(text: str, kinds: set[str]) -> str:
    kept: list[str] = []
    wanted = True
    for line in text.splitlines(keepends=True):
        if line.startswith("#? "):
            wanted = _holds(line.removeprefix("#? ").strip(), kinds)
        elif line.rstrip() == "#.":
            wanted = True
        elif wanted:
            kept.append(line)
    return "".join(kept)


def _holds(condition: str, kinds: set[str]) -> bool:
    """`a & !b | c` of kinds, `&` before `|`."""
    return any(
        all((word.strip().removeprefix("!") in kinds) != word.strip().startswith("!") for word in words.split("&"))
        for words in condition.split("|")
    )
