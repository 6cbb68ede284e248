"""What lies in a store: counts and sizes by kind, and who uses each encoder."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.maintenance import gc_roots
from tl_pipeline.maintenance.gc_roots import Reach
from tl_pipeline.maintenance.listing import ARTIFACTS, leftovers, size
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.files import why

Row = dict[str, Any]


@dataclass(frozen=True)
class Inventory:
    """``kinds``, ``encoders`` and ``damaged`` are rows; sizes are in bytes."""

    kinds: list[Row]
    encoders: list[Row]
    damaged: list[Row]

    @property
    def unused_bytes(self) -> int:
        """What no run and no model uses, leftovers included."""
        return sum(row["unused_bytes"] for row in self.kinds)

    def as_json(self) -> Row:
        """Everything, for a script."""
        return asdict(self)


def take(store: Store) -> Inventory:
    """Look at everything in ``store``; parts that are new are read through.

    Of an object store the ids of all embeddings are read, and what lies there counts.
    """
    store.mirror.fetch_each(store.root / "embeddings", "encoder.json")
    there = {name: held.bytes for name, held in store.mirror.held().items()}
    reached = gc_roots.survey(store)
    encoders = list(_encoders(store, reached))
    damaged = [
        {"file": str(path.relative_to(store.root)), "why": why(path) or ""}
        for kind, path in leftovers(store)
        if kind == "damaged"
    ]
    kinds = _kinds_there(there, reached) if there else _kinds(store, reached)
    for row in encoders if there else ():
        place = f"embeddings/encoder={row['encoder_key']}/"
        row["bytes"] = sum(n for name, n in there.items() if name.startswith(place))
    return Inventory(list(kinds), encoders, damaged)


def label(store: Store, encoder_key: str) -> str:
    """The name of an encoder for people; its key if it was never described."""
    try:
        text = (EmbeddingFolder(store, encoder_key).path / "encoder.json").read_text()
    except FileNotFoundError:
        return encoder_key
    return Encoder.model_validate(json.loads(text)).label


def _kinds(store: Store, reached: Reach) -> Iterator[Row]:
    root = store.root
    for kind in ARTIFACTS:
        yield _kind(kind, sorted((root / kind).glob("[!.]*/")), reached)
    folders = sorted((root / "embeddings").glob("encoder=*/"))
    yield _kind("embeddings", folders, reached)
    for kind, pattern in (
        ("runs", "runs/*/[!.]*.json"),
        ("reports", "reports/*/[!.]*.html"),
        ("catalogue", "catalog.duckdb"),
        ("registry", "mlflow.db"),
        ("memo", "memo"),
    ):
        yield _kind(kind, sorted(root.glob(pattern)), None)
    left = [path for _, path in leftovers(store)]
    yield _kind("damaged, unfinished", left, Reach({}, [], []))


def _kinds_there(there: Mapping[str, int], reached: Reach) -> Iterator[Row]:
    """The rows of an object store, whose objects are ``there`` with their bytes."""
    sizes: Counter[tuple[str, ...]] = Counter()
    for name, amount in there.items():
        sizes[tuple(name.split("/")[:2])] += amount
    for kind in (*ARTIFACTS, "embeddings"):
        found = {place[1]: n for place, n in sizes.items() if place[0] == kind}
        unused = [n for n in found if n.removeprefix("encoder=") not in reached]
        yield {
            "kind": kind,
            "count": len(found),
            "bytes": sum(found.values()),
            "unused": len(unused),
            "unused_bytes": sum(found[name] for name in unused),
        }
    for kind in ("runs", "reports", "versions"):
        files = {name: n for name, n in there.items() if name.startswith(f"{kind}/")}
        amounts = {"count": len(files), "bytes": sum(files.values())}
        yield {"kind": kind, **amounts, "unused": 0, "unused_bytes": 0}


def _kind(kind: str, paths: list[Path], reached: Reach | None) -> Row:
    """One row; without ``reached`` all of it counts as used."""
    unused = []
    if reached is not None:
        unused = [p for p in paths if p.name.removeprefix("encoder=") not in reached]
    return {
        "kind": kind,
        "count": len(paths),
        "bytes": sum(map(size, paths)),
        "unused": len(unused),
        "unused_bytes": sum(map(size, unused)),
    }


def _encoders(store: Store, reached: Reach) -> Iterator[Row]:
    for file in sorted((store.root / "embeddings").glob("encoder=*/encoder.json")):
        key = file.parent.name.removeprefix("encoder=")
        folder = EmbeddingFolder(store, key)
        parts = folder.parts().whole
        ids, refused = _ids(parts), _ids(folder.refusal_files().whole)
        yield {
            "encoder": label(store, key),
            "encoder_key": key,
            "images": len(ids),
            "refused": len(refused - ids),
            "parts": len(parts),
            "bytes": size(file.parent),
            "used_by": sorted(reached.users.get(key, ())),
        }


def _ids(files: dict[Path, pa.Table]) -> set[str]:
    return {i for rows in files.values() for i in rows["image_id"].to_pylist()}
