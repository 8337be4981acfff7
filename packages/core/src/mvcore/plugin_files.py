"""Plugins that the user names on the command line: a Python file, or a module that is not installed as a plugin."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from mvcore.discovery import Candidate
from mvcore.errors import PluginError


def file_candidate(path_or_module: str | Path) -> Candidate:
    """The plugin in a file (`./my_loss.py`, named by its stem) or a module (`my_package.my_loss`).

    Raises:
        PluginError: no such file or module, or a file that would hide an importable module of the same name.
    """
    text = str(path_or_module)
    if isinstance(path_or_module, Path) or text.endswith(".py") or "/" in text or "\\" in text:
        path = Path(path_or_module).expanduser().resolve()
        if not path.is_file() or path.suffix != ".py":
            raise PluginError(f"--plugin {text}: no such Python file")
        _refuse_to_hide(path, text)
        return Candidate(path.stem, str(path), "", "", lambda: _import_file(path))
    name = text.removesuffix(".plugin").rpartition(".")[2]
    return Candidate(name, text, "", "", lambda: importlib.import_module(text))


def _refuse_to_hide(path: Path, text: str) -> None:
    """A file is imported under its stem, so that its specs can name their factories as `my_loss:MyLoss`."""
    loaded = sys.modules.get(path.stem)
    if loaded is not None:
        origin = getattr(loaded, "__file__", None)
    else:
        try:
            found = importlib.util.find_spec(path.stem)
        except (ImportError, ValueError):
            found = None
        if found is None:
            return
        origin = found.origin
    if origin is None or Path(origin).resolve() != path:
        raise PluginError(f"--plugin {text}: a module {path.stem!r} exists already ({origin}); rename the file")


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(path.stem, None)
        if isinstance(error, ImportError) and _names_a_neighbour(error, path):
            text = (
                f"{error}: a plugin in one file imports nothing beside it; put both into a package, and name its module"
            )
            raise ImportError(text) from error
        raise
    return module


def _names_a_neighbour(error: ImportError, path: Path) -> bool:
    """Whether what cannot be imported is relative to the file, or stands in its folder."""
    name = (error.name or "").partition(".")[0]
    beside = name and (path.with_name(f"{name}.py").is_file() or path.with_name(name).is_dir())
    return "relative import" in str(error) or bool(beside)
