"""What goes with every export: how many objects of which licence, source and creator, and the splits."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from mvcore_data import licences
from mvcore_data.exporters.base import ExportObject, safe_name, write_file
from mvcore_data.folder_metadata import LICENCES_FILE, README_FILE, SPLIT_FILE

_COLUMNS = ("licence", "source", "creator")
_LISTED = 20


@dataclass
class Card:
    """Counts over the objects of an export.

    Args:
        objects, views: by (licence, source, creator), "" = none is known.
        codecs: views by file suffix.
        ids: of the objects.
    """

    objects: Counter[tuple[str, ...]] = field(default_factory=Counter)
    views: Counter[tuple[str, ...]] = field(default_factory=Counter)
    codecs: Counter[str] = field(default_factory=Counter)
    ids: set[str] = field(default_factory=set)

    def add(self, item: ExportObject) -> None:
        """Counts one object."""
        origin = tuple(item.names.get(column, "") for column in _COLUMNS)
        self.objects[origin] += 1
        self.views[origin] += len(item.views)
        self.codecs.update(view.suffix for view in item.views)
        self.ids.add(item.id)

    def write(self, folder: Path, layout: str, splits: dict[str, list[str]]) -> None:
        """Writes `LICENCES.csv`, `README.md` and a list of ids for each split.

        Args:
            folder: of the export.
            layout: what it looks like, in a sentence.
            splits: object ids by split, of the whole store.
        """
        write_file(folder / LICENCES_FILE, self._csv())
        write_file(folder / README_FILE, self._readme(layout))
        for name, ids in splits.items():
            lines = "".join(f"{one}\n" for one in ids if one in self.ids)
            write_file(folder / SPLIT_FILE.format(safe_name(name)), lines)

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_COLUMNS, "objects", "views"])
        writer.writerows([*origin, count, self.views[origin]] for origin, count in self.objects.most_common())
        return text.getvalue()

    def _readme(self, layout: str) -> str:
        codecs = ", ".join(f"{suffix} {count}" for suffix, count in self.codecs.most_common())
        lines = [
            "# Multi-view images",
            "",
            f"{sum(self.objects.values())} objects, {sum(self.views.values())} views ({codecs}), written by mvcore-data"
            f" {version('mvcore-data')}. {layout}",
            "",
            f"The images keep the licences of their sources; `{LICENCES_FILE}` counts them with sources and creators.",
        ]
        for k, column in enumerate(_COLUMNS):
            counts: Counter[str] = Counter()
            for origin, count in self.objects.items():
                counts[licences.normalise(origin[k]) if origin[k] and column == "licence" else origin[k]] += count
            lines += ["", f"| {column} | objects |", "|---|---|"]
            lines += [f"| {_cell(name)} | {count} |" for name, count in counts.most_common(_LISTED)]
            if len(counts) > _LISTED:
                lines.append(f"| and {len(counts) - _LISTED} more | |")
        return "\n".join(lines) + "\n"


def _cell(name: str) -> str:
    return name.replace("\\", "\\\\").replace("|", "\\|") or "unknown"
