"""Nights disturbed by every kind of fault, at random moments: what the next one makes.

``make faults`` or ``.venv/bin/python benchmarks/faults.py --number 200``: see
``tests/faults.py`` for what a night is and what must hold after the next. A trial is
its kind and its seed: ``--kind killed --first 17 --number 1`` repeats one. With
``--deployed`` nights are runs of a deployment: see ``tests/prefect_faults.py``.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from itertools import count, cycle, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from results import machine, record

from tests import object_store
from tests.faults import FAULTS, Ended, Nights, can_mount
from tests.prefect_faults import KILLED, Deployed


def main() -> None:
    """Try them in turn, and record how many of each kind held."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--number", type=int, default=200)
    arguments.add_argument("--first", type=int, default=0)
    arguments.add_argument("--kind", choices=[*FAULTS, *KILLED], action="append")
    arguments.add_argument("--deployed", action="store_true")
    asked = arguments.parse_args()
    if asked.deployed:
        sys.exit(_deployed(asked))
    kinds = [
        n for n in asked.kind or FAULTS if can_mount() or not FAULTS[n].needs_mount
    ]
    tried: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    at_url = any(FAULTS[name].at_url for name in kinds)
    with tempfile.TemporaryDirectory() as place, object_store.serving() as server:
        os.environ.update(object_store.environment(server))
        os.environ["TL_CACHE"] = f"{place}/cache"
        nights = Nights(Path(place, "nights"), server if at_url else None)
        seeds = (seed for seed in count(asked.first) for _ in kinds)
        some = islice(zip(cycle(kinds), seeds, strict=False), asked.number)
        with suppress(KeyboardInterrupt):  # what was tried until then counts
            for name, seed in some:
                how, said, _ = _tried(nights, name, seed)
                tried[name][how] += 1
                print(f"{name}, seed {seed}: {said}", flush=True)
    if asked.kind:
        print(tried)
    else:
        record("Nights that were disturbed", _table(tried))
    sys.exit(any(found["failed"] for found in tried.values()))


def _deployed(asked: argparse.Namespace) -> bool:
    """Try out deployments, and record how many held; whether one did not."""
    tried: dict[str, list[tuple[str, float]]] = {n: [] for n in asked.kind or KILLED}
    with tempfile.TemporaryDirectory() as place:
        nights = Deployed(Path(place))
        seeds = (seed for seed in count(asked.first) for _ in tried)
        some = islice(zip(cycle(tried), seeds, strict=False), asked.number)
        try:
            for name, seed in some:
                how, said, seconds = _tried(nights, name, seed)
                tried[name].append((how, seconds))
                print(f"{name}, seed {seed}: {said}", flush=True)
        except KeyboardInterrupt:  # what was tried until then counts
            pass
        finally:
            nights.close()
    if not asked.kind:
        record("Deployments whose processes were killed", _table_of_deployed(tried))
    return any(how == "failed" for found in tried.values() for how, _ in found)


def _tried(nights: Nights | Deployed, name: str, seed: int) -> tuple[str, str, float]:
    """``well``, ``not`` or ``failed``; in words; the seconds of ``Ended``."""
    try:
        ended: Ended = nights.try_out(name, seed)
    except (AssertionError, TimeoutError) as fault:
        return "failed", f"FAILED: {fault}", 0.0
    last = ended.said.strip().rpartition("\n")[2]
    how = "well" if ended.code == 0 else "not"
    return how, f"exit code {ended.code}: {last}", ended.seconds


def _table_of_deployed(tried: dict[str, list[tuple[str, float]]]) -> str:
    rows = []
    for name, found in tried.items():
        how = Counter(one for one, _ in found)
        seconds = [taken for one, taken in found if one != "failed"] or [0.0]
        rows.append(
            f"| {name} | {len(found)} | {how['well']} | {how['failed']} | "
            f"{statistics.median(seconds):.0f} | {max(seconds):.0f} |"
        )
    about = (
        f"`make faults`; {machine(('torch', 'prefect'))}.\n\n"
        f"{sum(map(len, tried.values()))} runs of a deployment on a small folder of "
        "scanned digits. At a random moment of a run what is named is killed and "
        "started again, and another run is asked for. That one must complete, and "
        "what holds of nights above must hold. Seconds count from the restart, that "
        "of the server included, to the end of the run.\n"
    )
    head = (
        (
            "| killed | runs | that completed all the same | next ones that did not | "
            "seconds until the next completed, median | most |"
        ),
        "|---|--:|--:|--:|--:|--:|",
    )
    return "\n".join([about, *head, *rows])


def _table(tried: dict[str, Counter[str]]) -> str:
    rows = [
        f"| {name} | {found.total()} | {found['well']} | {found['failed']} |"
        for name, found in tried.items()
    ]
    total = sum(found.total() for found in tried.values())
    about = (
        f"`make faults`; {machine(('torch', 'mlflow-skinny'))}.\n\n"
        f"{total} nights of `tl run --runner direct` on a small folder of scanned "
        "digits, each disturbed at a random moment and followed by one that is not. "
        "The latter must end well, its tables equal those of a store that was never "
        "disturbed, with one champion, no half artifact, and no more room.\n"
    )
    head = (
        "| fault | nights | disturbed ones that ended well | next ones that did not |",
        "|---|--:|--:|--:|",
    )
    return "\n".join([about, *head, *rows])


if __name__ == "__main__":
    main()
