"""Three processes read a store while runs, gc and compact change it.

``python -m benchmarks.readers`` runs 20 times on a folder that grows, with gc and
compact in between. Each reader asks 200 times, in one statement, for numbers that are
equal where they are of one run: Python by ``query.ask``, by ``tl_pipeline.open``, and
DuckDB alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.photos import linked, small
from benchmarks.results import machine, record
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.maintenance import compaction, gc
from tl_pipeline.pipeline import wiring
from tl_pipeline.store.artifacts import Store

RUNS, READS, FIRST, MORE = 20, 200, 60, 4
ENDED = "ended"
WAYS = ("query.ask", "tl_pipeline.open", "DuckDB alone")
SQL = """
SELECT
    (SELECT images FROM runs ORDER BY run_id DESC LIMIT 1) AS told,
    (SELECT count(*) FROM images) AS images,
    (SELECT count(*) FROM images JOIN embeddings USING (image_id)) AS embedded,
    (SELECT count(*) FROM predictions WHERE role = 'best') AS predicted
"""


def reader(way: str, root: Path) -> Callable[[], tuple[int, ...]]:
    """What asks once in that way."""
    import duckdb  # noqa: PLC0415

    import tl_pipeline  # noqa: PLC0415
    from tl_pipeline import query  # noqa: PLC0415

    def alone() -> tuple[int, ...]:
        with duckdb.connect(root / "catalog.duckdb", read_only=True) as connection:
            return connection.execute(SQL).fetchall()[0]

    store, opened = Store.open(root), tl_pipeline.open(root)
    return {
        "query.ask": lambda: tuple(query.ask(store, SQL).to_pylist()[0].values()),
        "tl_pipeline.open": lambda: tuple(opened.sql(SQL).iloc[0].tolist()),
        "DuckDB alone": alone,
    }[way]


def read(way: str, root: Path) -> None:
    """Ask until enough was read and the runs ended; print what was found."""
    ask, errors, mixed, seen = reader(way, root), [], 0, Counter[int]()
    number = 0
    while number < READS or not (root / ENDED).exists():
        number += 1
        try:
            numbers = ask()
        except Exception as error:  # noqa: BLE001 - it is what is counted
            errors.append(f"{type(error).__name__}: {error}")
            continue
        seen[numbers[0]] += 1
        mixed += len(set(numbers)) > 1
    told = {"reads": number, "states": len(seen), "mixed": mixed, "errors": errors}
    print(json.dumps(told))


def run(store: Store, images: Path, number: int) -> None:
    """Run on images of which some are new; then gc or compact, now and then."""
    pool = small(images.parent, FIRST + MORE * RUNS)
    first = FIRST + MORE * (number - 1) if number else 0
    linked(pool, images, range(first, FIRST + MORE * number))
    spec = RunSpec(
        dataset=str(images),
        backbones=(EncoderSpec(backbone="lenet5"),),
        heads=(HeadSpec.parse("ridge:alpha=1"),),
        controls=False,
    )
    found = wiring.run(wiring.prepare(spec, store))
    if number % 5 == 4:
        gc.collect(store)
    if number % 4 == 3:
        for key in {result.encoder_key for result in found.results}:
            compaction.compact(store, key)


def main() -> None:
    """Run, read meanwhile, and record what readers found."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--read", nargs=2)
    asked = arguments.parse_args()
    if asked.read:
        read(asked.read[0], Path(asked.read[1]))
        return
    with tempfile.TemporaryDirectory() as place:
        root, images = Path(place, "store"), Path(place, "images")
        store = Store.open(root)
        run(store, images, 0)
        command = [sys.executable, "-m", "benchmarks.readers", "--read"]
        readers = {
            way: subprocess.Popen([*command, way, str(root)], stdout=subprocess.PIPE)
            for way in WAYS
        }
        for number in range(1, RUNS):
            run(store, images, number)
        (root / ENDED).touch()
        found = {way: json.loads(r.communicate()[0]) for way, r in readers.items()}
    rows = "".join(
        f"| {way} | {told['reads']} | {told['states']} | {told['mixed']} | "
        f"{len(told['errors'])} |\n"
        for way, told in found.items()
    )
    for way, told in found.items():
        print(way, Counter(told["errors"]).most_common(3))
    record(
        "Readers of a store that changes",
        f"`python -m benchmarks.readers`; {machine(('duckdb', 'pyarrow'))}.\n\n"
        f"{RUNS} runs on a folder that grows by {MORE} images each, gc 4 times and "
        "compact 5 times in between; three processes read meanwhile. A read asks in "
        "one statement how many images the last run tells, and how many images, "
        "embeddings and predictions there are; mixed is where they differ.\n\n"
        "| reader | reads | runs seen | mixed | errors |\n|---|---|---|---|---|\n"
        f"{rows}",
    )


if __name__ == "__main__":
    main()
