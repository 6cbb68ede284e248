"""The nearest 10 of many stored embeddings: ours in Python and SQL beside others.

    python -m benchmarks.query --peers-python /tmp/peers/bin/python

Vectors are made up; each way answers the same question, and that it gives the same
images is checked. faiss and LanceDB have an environment of their own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.results import machine, processor, record

K, TIMES, PART = 10, 5, 16_384
SIZES = ("1000000x512", "200000x2048")
WAYS = (
    "numpy",
    "ours, Python",
    "ours, SQL",
    "SQL on Parquet",
    "DuckDB table",
    "DuckDB on Arrow",
    "faiss",
    "lancedb",
)


def vectors(rows: int, width: int) -> np.ndarray:
    """Unit vectors (rows, width), float32."""
    made = np.random.default_rng(1).standard_normal((rows, width), np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def queries(width: int) -> np.ndarray:
    """Unit vectors of 100 questions."""
    return vectors(100, width)[:, ::-1].copy()


def names(start: int, end: int) -> list[str]:
    """Image ids."""
    return [f"{number:032x}" for number in range(start, end)]


def store(folder: Path, made: np.ndarray) -> None:
    """A store of one run on these images."""
    from tests.query.made import described, manifest  # noqa: PLC0415
    from tests.runs.made import record as run  # noqa: PLC0415
    from tl_pipeline.runs import records  # noqa: PLC0415
    from tl_pipeline.store.artifacts import Store  # noqa: PLC0415
    from tl_pipeline.store.embeddings import EmbeddingFolder  # noqa: PLC0415

    opened = Store.open(str(folder))
    opened.create()
    key = described(opened, "a" * 64)
    embeddings = EmbeddingFolder(opened, key)
    for start in range(0, len(made), PART):
        some = made[start : start + PART]
        embeddings.add(names(start, start + len(some)), some)
    rows = [(name, f"{name}.jpg", "x", "train") for name in names(0, len(made))]
    manifest(opened, "a" * 32, rows)
    records.write(opened, run("20260101T000000000-000001"))


def question(vector: np.ndarray) -> str:
    """The SQL of one question."""
    return f"FROM nearest_to({vector.tolist()}, {K}, 'lenet5')"


Answer = Callable[[np.ndarray], list[list[str]]]


def one_by_one(ask: Callable[[np.ndarray], list[str]]) -> Answer:
    """A way that has no better one for many questions."""
    return lambda asked: [ask(one) for one in asked]


def by_numpy(folder: Path) -> Answer:
    """All in memory; of 100 questions a block of products at a time."""
    held = np.load(folder / "vectors.npy")
    step = PART * 2

    def ask(asked: np.ndarray) -> list[list[str]]:
        if len(asked) == 1:
            cosines = (held @ asked[0])[None]
        else:
            blocks = range(0, len(held), step)
            cosines = np.hstack([asked @ held[at : at + step].T for at in blocks])
        top = np.argpartition(-cosines, K, axis=1)[:, :K]
        found = []
        for row, some in zip(cosines, top, strict=True):
            best = some[np.argsort(-row[some])]
            found.append([f"{number:032x}" for number in best])
        return found

    return ask


def by_python(folder: Path) -> Answer:
    """Our unit vectors, as ``Reader.neighbours`` asks them."""
    from tl_pipeline.query import connect  # noqa: PLC0415
    from tl_pipeline.query.neighbours import Neighbours  # noqa: PLC0415
    from tl_pipeline.store.artifacts import Store  # noqa: PLC0415

    opened = Store.open(str(folder / "store"))
    with connect(opened) as connection:
        near = Neighbours(opened, connection)
    return lambda asked: [
        [name for name, _ in some] for some in near.nearest_to(asked, K, "lenet5")
    ]


def by_sql(folder: Path) -> Answer:
    """``tl sql``, from the statement to the rows."""
    from tl_pipeline.query import ask  # noqa: PLC0415
    from tl_pipeline.store.artifacts import Store  # noqa: PLC0415

    opened = Store.open(str(folder / "store"))
    return one_by_one(lambda one: ask(opened, question(one))["image_id"].to_pylist())


def by_parquet(folder: Path) -> Answer:
    """The same statement in a DuckDB of its own, which reads the parts."""
    import duckdb  # noqa: PLC0415

    held = duckdb.connect(str(folder / "store" / "catalog.duckdb"), read_only=True)
    return one_by_one(
        lambda one: [row[1] for row in held.sql(question(one)).fetchall()]
    )


def by_table(folder: Path) -> Answer:
    """A table of DuckDB's own, FLOAT[width], on disk."""
    import duckdb  # noqa: PLC0415

    parts = folder / "store" / "embeddings" / "*" / "*.parquet"
    held = duckdb.connect(str(folder / "table.duckdb"))
    width = held.sql(f"SELECT len(embedding) FROM '{parts}' LIMIT 1").fetchall()[0][0]
    held.execute(
        "CREATE TABLE IF NOT EXISTS e AS "
        f"SELECT image_id, embedding::FLOAT[{width}] AS v FROM '{parts}'"
    )
    return one_by_one(lambda one: _products(held, "e", one))


def by_arrow(folder: Path) -> Answer:
    """DuckDB on the very file that we map."""
    import duckdb  # noqa: PLC0415
    import pyarrow as pa  # noqa: PLC0415

    from tl_pipeline.store import unit_vectors  # noqa: PLC0415
    from tl_pipeline.store.artifacts import Store  # noqa: PLC0415

    opened = Store.open(str(folder / "store"))
    (key,) = [f.name[8:] for f in (folder / "store" / "embeddings").iterdir()]
    found = unit_vectors.opened(opened, key)
    flat = pa.array(found.vectors.reshape(-1))
    units = pa.FixedSizeListArray.from_arrays(flat, found.vectors.shape[1])
    table = pa.table({"image_id": found.ids, "v": units})
    held = duckdb.connect()
    batches = pa.Table.from_batches(table.to_batches(max_chunksize=PART))
    held.register("mapped", batches)
    return one_by_one(lambda one: _products(held, "mapped", one))


def _products(held: "object", table: str, one: np.ndarray) -> list[str]:
    asked = f"{one.tolist()}::FLOAT[{len(one)}]"
    rows = held.sql(  # type: ignore[attr-defined]
        f"SELECT image_id FROM {table} "
        f"ORDER BY array_inner_product(v, {asked}) DESC LIMIT {K}"
    ).fetchall()
    return [row[0] for row in rows]


def by_faiss(folder: Path) -> Answer:
    """A flat index in memory."""
    import faiss  # noqa: PLC0415 # pyright: ignore[reportMissingImports]

    made = np.load(folder / "vectors.npy", mmap_mode="r")
    held = faiss.IndexFlatIP(made.shape[1])
    for start in range(0, len(made), PART):
        held.add(np.ascontiguousarray(made[start : start + PART]))
    return lambda asked: [
        [f"{number:032x}" for number in row] for row in held.search(asked, K)[1]
    ]


def by_lancedb(folder: Path) -> Answer:
    """A table without an index."""
    import lancedb  # noqa: PLC0415 # pyright: ignore[reportMissingImports]
    import pyarrow as pa  # noqa: PLC0415

    made = np.load(folder / "vectors.npy", mmap_mode="r")
    held = lancedb.connect(str(folder / "lance"))

    def batches() -> "object":
        for start in range(0, len(made), PART):
            some = np.ascontiguousarray(made[start : start + PART])
            flat = pa.FixedSizeListArray.from_arrays(some.reshape(-1), made.shape[1])
            rows = pa.array(names(start, start + len(some)))
            yield pa.record_batch([rows, flat], ["image_id", "vector"])

    kind = pa.list_(pa.float32(), made.shape[1])
    schema = pa.schema({"image_id": pa.string(), "vector": kind})
    table = held.create_table("e", batches(), schema=schema, mode="overwrite")

    def ask(one: np.ndarray) -> list[str]:
        asked = table.search(one).distance_type("dot").limit(K).select(["image_id"])
        return asked.to_arrow()["image_id"].to_pylist()

    return one_by_one(ask)


BY = dict(
    zip(
        WAYS,
        (
            by_numpy,
            by_python,
            by_sql,
            by_parquet,
            by_table,
            by_arrow,
            by_faiss,
            by_lancedb,
        ),
        strict=True,
    )
)


def measure(way: str, folder: Path, width: int, *, many: bool) -> dict[str, object]:
    """Times of one way, in this process."""
    asked = queries(width)
    started = time.perf_counter()
    ask = BY[way](folder)
    first = ask(asked[:1])
    told: dict[str, object] = {"ready": time.perf_counter() - started}
    told["answer"] = first[0]
    seconds, busy = [], []
    for number in range(TIMES):
        clock, cpu = time.perf_counter(), time.process_time()
        ask(asked[number : number + 1])
        seconds.append(time.perf_counter() - clock)
        busy.append(time.process_time() - cpu)
    told |= {"seconds": statistics.median(seconds), "cpu": statistics.median(busy)}
    if many:
        some = []
        for _ in range(3):
            cpu = time.process_time()
            ask(asked)
            some.append(time.process_time() - cpu)
        told["hundred"] = statistics.median(some)
    status = Path("/proc/self/status").read_text()
    told["mb"] = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return told


def run(way: str, python: str, folder: Path, width: int) -> dict[str, object]:
    """``measure`` in a process of its own."""
    many = "--many" if way in ("numpy", "ours, Python", "faiss") else "--one"
    command = [python, "-m", "benchmarks.query", "--way", way, str(folder), str(width)]
    done = subprocess.run(
        [*command, many], stdout=subprocess.PIPE, check=True, env=os.environ
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(told: dict[str, dict[str, object]]) -> str:
    """The figures of one size, with those of numpy as 1."""
    base = told["numpy"]
    lines = [
        "| | CPU s | of numpy | wall s | 100: CPU s | of numpy | ready s | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, row in told.items():
        ratio = row["cpu"] / base["cpu"]  # type: ignore[operator]
        cells = [way, f"{row['cpu']:.3f}", f"{ratio:.1f}", f"{row['seconds']:.3f}"]
        if "hundred" in row:
            of = row["hundred"] / base["hundred"]  # type: ignore[operator]
            cells += [f"{row['hundred']:.2f}", f"{of:.1f}"]
        else:
            cells += ["", ""]
        cells += [f"{row['ready']:.1f}", f"{row['mb']:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all ways, or one of them in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers-python", help="of faiss and LanceDB")
    parser.add_argument("--folder", type=Path, help="for some gigabytes")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="images x values")
    parser.add_argument("--way", nargs=3)
    parser.add_argument("--many", action="store_true")
    parser.add_argument("--one", action="store_true")
    given = parser.parse_args()
    if given.way:
        way, folder, width = given.way
        told = measure(way, Path(folder), int(width), many=given.many)
        print(json.dumps(told))
        return
    ways = [way for way in WAYS if given.peers_python or way not in WAYS[-2:]]
    text = (
        f"`python -m benchmarks.query`, medians of {TIMES}, each way in a process of "
        f"its own; {machine(('numpy', 'duckdb', 'pyarrow'))}; "
        f"{processor()}.\n"
    )
    for size in given.sizes:
        rows, width = map(int, size.split("x"))
        with tempfile.TemporaryDirectory(dir=given.folder) as place:
            folder = Path(place)
            made = vectors(rows, width)
            np.save(folder / "vectors.npy", made)
            store(folder / "store", made)
            del made
            told = {}
            for way in ways:
                python = given.peers_python if way in WAYS[-2:] else sys.executable
                told[way] = run(way, python, folder, width)
                assert told[way]["answer"] == told["numpy"]["answer"], way
        text += f"\n**{rows:,} x {width:,}, float32**\n\n{table(told)}\n"
    text += """
`100` are so many questions at once, of which numpy sorts all cosines. `ready` is from
nothing to the first answer: reading or mapping, for ours in Python also making the unit
vectors (once a store), for DuckDB and LanceDB making the table. MB is the peak of
resident memory, mapped files included. `DuckDB on Arrow` is DuckDB's own product over
the file that we map; `ours, SQL` is the whole of `tl sql` but its imports."""
    record("The nearest 10 of many embeddings", text)


if __name__ == "__main__":
    main()
