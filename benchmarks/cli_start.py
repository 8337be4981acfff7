"""How much longer `mvcore --help` and `mvcore plugins list` take than bare Python: the target is 0.25 s.

The three commands run in turn, so that whatever else the machine does touches all alike; each difference is taken
within its round. Prints JSON: medians in seconds, and the median of the differences. Run it on an idle machine:

    python benchmarks/cli_start.py --rounds 15
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

TARGET = 0.25
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "mvcore --help": ["-m", "mvcore.cli.main", "--help"],
    "mvcore plugins list": ["-m", "mvcore.cli.main", "plugins", "list"],
}
BARE = "python -c pass"


def seconds(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall time and processor time of one run of this Python with the arguments."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used


def measure(rounds: int) -> dict[str, object]:
    """Medians over the rounds, after one round that fills the caches."""
    for arguments in COMMANDS.values():
        seconds(arguments)
    runs = [{name: seconds(arguments) for name, arguments in COMMANDS.items()} for _ in range(rounds)]
    result: dict[str, object] = {"rounds": rounds, "target_s": TARGET}
    for name in COMMANDS:
        over = [run[name][0] - run[BARE][0] for run in runs]
        result[name] = {
            "wall_s": round(statistics.median(run[name][0] for run in runs), 4),
            "processor_s": round(statistics.median(run[name][1] for run in runs), 4),
            "over_bare_python_s": round(statistics.median(over), 4),
            "over_bare_python_min_max_s": [round(min(over), 4), round(max(over), 4)],
            "ratio": round(statistics.median(run[name][0] / run[BARE][0] for run in runs), 2),
            "within_target": statistics.median(over) <= TARGET,
        }
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Start of the program against bare Python.")
    parser.add_argument("--rounds", type=int, default=15)
    print(json.dumps(measure(parser.parse_args().rounds), indent=2))
