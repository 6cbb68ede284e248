"""What runs and models still reach: an artifact that none of them names is waste.

A key is a digest, so naming it is meaning it: everything that looks like a key in a
kept run record, or in the folder of a registered model, is reached. Nothing here knows
which stage makes what, so a stage of a later version is understood too.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tl_pipeline.registry import index, versions
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.keys import keys_in

_DAY = 86_400


@dataclass(frozen=True)
class Retention:
    """Which run records are kept; by default all of them.

    A record goes if its dataset has ``keep_runs`` newer ones and it finished more than
    ``older_than`` days ago. The last one of a dataset always stays.
    """

    keep_runs: int | None = None
    older_than: float | None = None


EVERY_RUN = Retention()


@dataclass(frozen=True)
class Reach:
    """The keys that are reached, by whom, and the records that are not kept.

    ``users`` are the names of datasets, and of models with their versions.
    """

    users: dict[str, set[str]]
    kept: list[Path]
    dropped: list[Path]

    def __contains__(self, key: str) -> bool:
        return key in self.users


def survey(
    store: Store, retention: Retention = EVERY_RUN, dropped: Collection[Path] = ()
) -> Reach:
    """Look at all records and models of ``store``, as they are now.

    Records in ``dropped`` are not kept, whatever ``retention`` says.
    """
    for folder in ("runs", "versions"):
        store.mirror.forget(store.root / folder)
    store.mirror.fetch_folder(store.root / "runs")
    kept: list[Path] = []
    not_kept: list[Path] = []
    for dataset in sorted((store.root / "runs").glob("*/")):
        records = sorted(dataset.glob("*.json"))
        for newer, record in enumerate(reversed(records)):
            drops = record in dropped or _drops(record, newer, retention)
            (not_kept if drops else kept).append(record)
    reach = Reach({}, kept, not_kept)
    for record in kept:
        _add(reach, record.read_text(), f"dataset {record.parent.name}")
    for key, name in _registered(store):
        reach.users.setdefault(key, set()).add(name)
        for file in (store.root / "models" / key).glob("*.json"):
            _add(reach, file.read_text(), name)
    for made in versions.every(store):
        name = f"model {made.dataset} version {made.version}"
        _add(reach, json.dumps([made.model, made.about]), name)
    return reach


def _drops(record: Path, newer: int, retention: Retention) -> bool:
    if retention.keep_runs is None and retention.older_than is None:
        return False
    if newer < max(retention.keep_runs or 1, 1):
        return False
    if retention.older_than is None:
        return True
    finished = datetime.fromisoformat(json.loads(record.read_text())["finished"])
    age = datetime.now(UTC) - finished
    return age.total_seconds() > retention.older_than * _DAY


def _add(reach: Reach, text: str, user: str) -> None:
    for key in keys_in(text):
        reach.users.setdefault(key, set()).add(user)


def _registered(store: Store) -> Iterator[tuple[str, str]]:
    """(key, name) of every registered model, by MLflow and by our own records."""
    names = {
        row["model"]: f"model {row['name']} version {row['version']}"
        for row in index.models(store)
    }
    for file in sorted((store.root / "registry").glob("*.json")):
        names.setdefault(file.stem, f"model {file.stem[:8]}")
    yield from names.items()
