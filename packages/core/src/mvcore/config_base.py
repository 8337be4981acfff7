"""The base of every options model: strict, immutable, no unknown keys. Imports neither torch nor the plugins."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Options of a part. Unknown keys and silently converted types are refused; a list is accepted for a tuple."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())
