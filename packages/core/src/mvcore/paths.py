"""How a path in a configuration is read: `~`, relative to a base, or `package:` for a file inside a package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mvcore.errors import DataError, MvcoreError

PACKAGE = "package:"
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Of the files of weights that are read."""


def resolve_path(
    text: str | Path, *, base: Path | None = None, what: str = "file", error: type[MvcoreError] = DataError
) -> Path:
    """The existing file or folder that a configuration names.

    Args:
        text: a path (`~` is the home folder) or, inside an installed package, `package:mvcore_data/demo/clip.json`.
        base: the folder that a relative path starts from; None = the working folder.
        what: what it is, for the text of the error.
        error: which error to raise.

    Raises:
        MvcoreError: of the given type: nothing is there, or the package is not installed or leads outside itself.
    """
    if isinstance(text, str) and text.startswith(PACKAGE):
        return _package_path(text, what, error)
    path = Path(text).expanduser()
    path = path if path.is_absolute() or base is None else base / path
    if not path.exists():
        raise error(f"{what} {str(text)!r} does not exist (looked at {path.absolute()})")
    return path


def _package_path(text: str, what: str, error: type[MvcoreError]) -> Path:
    package, _, inside = text.removeprefix(PACKAGE).partition("/")
    # Found without being imported: a package's __init__ may be slow, and its data needs none of it.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise error(f"{what} {text!r}: no package {package!r} is installed; write package:NAME/FOLDER/FILE")
    for folder in spec.submodule_search_locations:
        root = Path(folder).resolve()
        path = (root / inside).resolve()
        if not path.is_relative_to(root):
            raise error(f"{what} {text!r} leads outside the package {package!r}")
        if path.exists():
            return path
    raise error(f"{what} {text!r}: the package {package!r} has no {inside!r}")


def model_and_tag(text: str) -> tuple[str, str | None]:
    """`NAME:PRETRAINED` as its two parts; `hf-hub:`, `local-dir:` and `package:` begin a name and bring no tag.

    `timm:` before a name belongs to it.
    """
    if text.startswith("timm:"):
        model, tag = model_and_tag(text.removeprefix("timm:"))
        return f"timm:{model}", tag
    if text.startswith(("hf-hub:", "local-dir:", PACKAGE)):
        return text, None
    model, _, tag = text.partition(":")
    return model, tag or None
