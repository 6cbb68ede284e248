"""How long the commands take when there is nothing to do: `make bench`.

Runs the digits demo once in a temporary store, then times each command as a whole
process, in turn, several rounds; writes medians to RESULTS.md beside this file.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import machine, record

HERE = Path(__file__).parent
TL = (sys.executable, "-m", "tl_pipeline.cli")
EMPTY_FLOW = "from prefect import flow; flow(lambda: None, name='empty')()"
COMMANDS = {
    "tl --help": (*TL, "--help"),
    "tl plan digits": (*TL, "plan", "digits"),
    "tl run digits --runner direct": (*TL, "run", "digits", "--runner", "direct"),
    "tl run digits (what make demo does)": (*TL, "run", "digits"),
    "an empty Prefect flow": (sys.executable, "-c", EMPTY_FLOW),
}


def seconds(command: tuple[str, ...], environment: dict[str, str]) -> float:
    """Wall seconds of one whole process; it must succeed."""
    started = time.perf_counter()
    subprocess.run(
        command, env=environment, cwd=HERE.parent, capture_output=True, check=True
    )
    return time.perf_counter() - started


def main() -> None:
    """Time every command and write RESULTS.md."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    rounds = arguments.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "TL_STORE": f"{folder}/tl_store",
            "PREFECT_HOME": f"{folder}/prefect",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
            "DO_NOT_TRACK": "1",
        }
        first = seconds(COMMANDS["tl run digits (what make demo does)"], environment)
        for _ in range(rounds):
            for name, command in COMMANDS.items():
                times[name].append(seconds(command, environment))
    rows = "\n".join(
        f"| `{name}` | {statistics.median(t):.2f} | {min(t):.2f} | {max(t):.2f} |"
        for name, t in times.items()
    )
    record(
        "Nothing to do: whole processes, the digits demo, everything cached",
        f"`make bench`, {rounds} rounds in turn; {machine()}.\n\n"
        f"| command | median s | min | max |\n|---|---|---|---|\n{rows}\n\n"
        "The very first `tl run digits`, which computes everything and makes Prefect's "
        f"database, took {first:.1f} s. The cached demo is mostly Prefect: an empty "
        "flow on a temporary server costs what the table says; our own share is the "
        "line with `--runner direct`.",
    )


if __name__ == "__main__":
    main()
