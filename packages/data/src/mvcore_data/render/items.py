"""A mesh file as something to render."""

from __future__ import annotations

from dataclasses import dataclass

from mvcore_data.render.jobs import Drawable
from mvcore_data.render.manifest import MeshEntry


@dataclass(frozen=True)
class MeshItem:
    """One mesh of a manifest."""

    entry: MeshEntry
    geometry: bool

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def category(self) -> str | None:
        return self.entry.category

    @property
    def licence(self) -> str | None:
        return self.entry.licence

    @property
    def source(self) -> str | None:
        return self.entry.source

    def build(self, unit: str) -> Drawable:
        from mvcore_data.render.meshes import load_mesh

        return Drawable(load_mesh(self.entry.path, unit), self.entry.captions)

    def fingerprint(self) -> str:
        try:
            state = self.entry.path.stat()
        except OSError:
            return "missing"
        return f"{self.entry}\0{state.st_size}\0{state.st_mtime_ns}"
