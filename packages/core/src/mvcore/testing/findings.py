"""What a check of a part found, and the error that carries all that failed."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from mvcore.errors import MvcoreError, PluginError

FindingStatus: TypeAlias = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One check of one part.

    Args:
        part: kind and id, as `loss mymethod.triplet`.
        check: what was looked at.
        status: `ok`, `failed`, or `skipped` where it could not be looked at.
        text: what is wrong and what to do, or why it was skipped; empty where it is ok.
    """

    part: str
    check: str
    status: FindingStatus
    text: str = ""

    @property
    def line(self) -> str:
        return f"{self.part}: {self.check}: {self.text}"


class ConformanceError(AssertionError):
    """A part does not keep its contract; the text has one line for each fault."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(finding.line for finding in self.findings if finding.status == "failed"))


class Unfit(Exception):  # noqa: N818 - not an error of the program: it ends a check
    """Ends a check with a fault of the part; the text says what is wrong and what to do."""


class Skip(Exception):  # noqa: N818 - as above
    """Ends a check that cannot be made; the text says why."""


class Examination:
    """Collects what is found out about one part: each check alone, so that a fault hides no other.

    Args:
        part: kind and id.
    """

    def __init__(self, part: str) -> None:
        self.part = part
        self.findings: list[Finding] = []

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Notes how the block ends: normally, with a fault, or with a refusal of the example."""
        try:
            yield
        except Unfit as fault:
            self._note(name, "failed", str(fault))
        except Skip as reason:
            self._note(name, "skipped", str(reason))
        except PluginError as error:
            self._note(name, "failed", str(error))
        except MvcoreError as error:
            self._note(name, "skipped", f"it refuses the example: {error}")
        except (Exception, SystemExit) as error:
            self._note(name, "failed", described(error))
        else:
            self._note(name, "ok", "")

    def _note(self, name: str, status: FindingStatus, text: str) -> None:
        self.findings.append(Finding(self.part, name, status, " ".join(text.split())))

    def passed(self, name: str) -> bool:
        """Whether a check was made and found nothing."""
        return any(finding.check == name and finding.status == "ok" for finding in self.findings)

    def result(self) -> tuple[Finding, ...]:
        """All findings.

        Raises:
            ConformanceError: a check failed.
        """
        return settled(self.findings)


def settled(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings, unless one of them failed.

    Raises:
        ConformanceError: a check failed.
    """
    found = tuple(findings)
    if any(finding.status == "failed" for finding in found):
        raise ConformanceError(found)
    return found


def described(error: BaseException) -> str:
    """An unexpected error in one line, with the place that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"it raised {type(error).__name__}: {error}{place}"


def require(condition: bool, text: str) -> None:
    """Ends the check with a fault unless the condition holds.

    Raises:
        Unfit: it does not.
    """
    if not condition:
        raise Unfit(text)
