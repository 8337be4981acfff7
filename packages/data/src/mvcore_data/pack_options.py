"""Options of a format from `KEY=VALUE` texts or a mapping, each checked by the format's own model."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mvcore.api import ConfigError, Options
from pydantic import ValidationError

from mvcore_data.importers.base import Format

ALLOW_PICKLE = "allow_pickle"


def parse_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """`["views=12"]` as `{"views": "12"}`.

    Raises:
        ConfigError: a text without `=`, or a key that is given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option {pair!r}: give KEY=VALUE")
        if key in found:
            raise ConfigError(f"--option {key}: given twice")
        found[key] = value
    return found


def make_options(found: Format, given: Mapping[str, Any], *, allow_pickle: bool = False) -> Options:
    """The options of a format; texts become what the model asks for, as numbers and JSON lists.

    Raises:
        ConfigError: an unknown key, or a value that the option cannot have.
    """
    known = found.options.model_fields
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            names = ", ".join(known) or "none"
            raise ConfigError(f"format {found.name!r} has no option {key!r}{hint} (options: {names})")
    values = dict(given)
    if allow_pickle and ALLOW_PICKLE in known:
        values[ALLOW_PICKLE] = True
    try:
        return found.options(**values)
    except ValidationError as error:
        values = _parsed(values, {str(part["loc"][0]) for part in error.errors() if part["loc"]})
    try:
        return found.options(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"format {found.name!r}: option {key}: {message[:1].lower()}{message[1:]}") from None


def _parsed(values: dict[str, Any], failing: set[str]) -> dict[str, Any]:
    """Texts that were no value of their option, read as JSON or as a list with commas."""
    parsed = dict(values)
    for key in failing:
        text = values.get(key)
        if isinstance(text, str):
            try:
                parsed[key] = json.loads(text)
            except ValueError:
                parsed[key] = [part.strip() for part in text.split(",")] if "," in text else text
    return parsed
