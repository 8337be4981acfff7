"""What the program sets for its own process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from mvcore.cli.process import prepare

{prepare}

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    arrays = [np.ones(20 << 17) for _ in range(3)]  # 20 MiB each
    del arrays

step()
before = faults()
for _ in range(4):
    step()
print(faults() - before)
"""


def page_faults(prepare: str, **environment: str) -> int:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    found = subprocess.run(
        [sys.executable, "-c", FAULTS.format(prepare=prepare)],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_memory_that_a_step_freed_is_there_for_the_next() -> None:
    left = page_faults("")
    assert left > 1000  # else there is nothing to show here
    assert page_faults("prepare()") < left / 20


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_what_the_environment_says_of_memory_holds() -> None:
    assert page_faults("prepare()", MALLOC_TRIM_THRESHOLD_="131072") > 1000


def test_threads_that_wait_sleep_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = [
        sys.executable,
        "-c",
        "import os; from mvcore.cli.process import prepare; prepare(); print(os.environ['OMP_WAIT_POLICY'])",
    ]
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert subprocess.check_output(ask, text=True).strip() == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert subprocess.check_output(ask, text=True).strip() == "ACTIVE"
