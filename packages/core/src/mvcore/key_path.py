"""How a key of a configuration is written and read: `losses[ovt.vc].margin`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mvcore.errors import ConfigError

KeyPath = tuple[str, ...]


def show_path(path: Sequence[str | int]) -> str:
    """`losses[ovt.vc].margin`: positions in a list, and keys that are no plain words, stand in brackets."""
    shown = ""
    for part in path:
        plain = isinstance(part, str) and (re.fullmatch(r"\w+", part) or not shown)
        shown += f"[{part}]" if not plain else f".{part}" if shown else str(part)
    return shown


def parse_path(text: str) -> KeyPath:
    """The reverse of `show_path`.

    Raises:
        ConfigError: text that is no path.
    """
    if not re.fullmatch(r"\w+(?:\.\w+|\[[^\[\]]+\])*", text):
        raise ConfigError(f"--set {text!r}: a key looks like optimizer.lr or 'losses[ovt.vc].margin'")
    return tuple(bracket or plain for plain, bracket in re.findall(r"(\w+)|\[([^\[\]]+)\]", text.replace("].", "]")))
