"""The run's metrics as one CSV file that a resumed run goes on with."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger

from mvcore.errors import DataError
from mvcore.evaluation.files import write_atomic


class MetricsCsv(Logger):
    """Writes `metrics.csv`: a row per logged step, a column per metric.

    Lightning's own CSV logger deletes the rows of an interrupted run when it is resumed; this one keeps those up to the
    step at which it goes on.

    Args:
        folder: the run's folder.
        start: the step from which the run goes on; rows after it are dropped, since they are made again.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.columns: list[str] = ["step"]
        self.rows: dict[int, dict[str, Any]] = {}
        if self.path.exists():
            with self.path.open(newline="") as stream:
                reader = csv.DictReader(stream)
                self.columns = list(reader.fieldnames or self.columns)
                for row in reader:
                    if int(row["step"]) <= start:
                        self.rows[int(row["step"])] = {key: value for key, value in row.items() if value}

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsCsv:
        return self

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The resolved configuration stands beside the metrics; nothing to add."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds to the row of a step.

        Raises:
            DataError: the file cannot be written.
        """
        again = (step or 0) in self.rows
        row = self.rows.setdefault(step or 0, {"step": step or 0})
        new = [key for key in metrics if key not in self.columns]
        row.update({key: f"{value:.6g}" for key, value in metrics.items()})
        if new or again or not self.path.exists():
            self.columns += new
            self.save()
            return
        with self._writing(), self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, self.columns).writerow(row)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}; free space and resume") from None

    @rank_zero_only
    def save(self) -> None:
        """Writes the whole file anew.

        Raises:
            DataError: it cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows[step] for step in sorted(self.rows))
        with self._writing():
            write_atomic(self.path, text.getvalue().encode())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
