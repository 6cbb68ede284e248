"""What runs and models need: what none of them names is garbage.

A key is a digest, so naming it is meaning it: everything that looks like a key, or like
the hash of weights, in a kept run record, the folder of a registered model, or the file
of a run under way, is live. Nothing here knows which stage makes what, so a stage
of a later version is understood too.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tl_pipeline.registry import index
from tl_pipeline.runs.records import BatchRecord, RunRecord
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.checks import read_json
from tl_pipeline.store.embeddings import described
from tl_pipeline.store.keys import keys_in

_DAY = 86_400


@dataclass(frozen=True)
class RunPolicy:
    """Which run records are kept; by default all of them.

    A record of a run, or of a batch, goes if its dataset has ``keep_runs`` newer ones
    and it finished more than ``older_than`` days ago. The last one always stays.
    """

    keep_runs: int | None = None
    older_than: float | None = None


EVERY_RUN = RunPolicy()


@dataclass(frozen=True)
class Roots:
    """Live keys with the names of who uses them, and which run records are kept.

    Names are those of datasets, of models with their versions, and of machines with
    runs under way.
    """

    users: dict[str, set[str]] = field(default_factory=dict)
    kept: list[Path] = field(default_factory=list)
    dropped: list[Path] = field(default_factory=list)

    @property
    def live_keys(self) -> set[str]:
        """The keys that somebody names."""
        return set(self.users)


def survey(
    store: Store, policy: RunPolicy = EVERY_RUN, under_way: Iterable[Path] = ()
) -> Roots:
    """Look at all records and models of ``store``, and at the runs ``under_way``."""
    roots = Roots()
    _add_runs(store, policy, roots)
    _add_models(store, roots)
    for file in under_way:
        with suppress(FileNotFoundError):
            store.mirror.fetch([file])
        # None of a run that has ended, or left nothing when the power went
        if about := read_json(file):
            _add(roots, about["keys"], f"a run on {about['host']}")
    _add_weights(store, roots)
    return roots


def _add_runs(store: Store, policy: RunPolicy, roots: Roots) -> None:
    folders = [store.root / kind.folder for kind in (RunRecord, BatchRecord)]
    for folder in folders:
        store.mirror.forget(folder)
        store.mirror.fetch_folder(folder)
    for dataset in (found for one in folders for found in sorted(one.glob("*/"))):
        records = sorted(dataset.glob("[!.]*.json"))
        for newer, record in enumerate(reversed(records)):
            text = record.read_text()
            if _drops(text, newer, policy):
                roots.dropped.append(record)
            else:
                roots.kept.append(record)
                _add(roots, keys_in(text), f"dataset {record.parent.name}")


def _drops(text: str, newer: int, policy: RunPolicy) -> bool:
    if policy.keep_runs is None and policy.older_than is None:
        return False
    if newer < max(policy.keep_runs or 1, 1):
        return False
    if policy.older_than is None:
        return True
    try:
        finished = datetime.fromisoformat(json.loads(text)["finished"])
    except (ValueError, KeyError):  # damaged, or of a newer version
        return False
    age = datetime.now(UTC) - finished
    return age.total_seconds() > policy.older_than * _DAY


def _add_models(store: Store, roots: Roots) -> None:
    for model in index.registered(store):
        for version in model.versions:
            name = f"model {model.name} version {version.number}"
            _add(roots, keys_in(version.model_dump_json()), name)
            made = store.find("models", version.model) if version.model else None
            for file in store.path(made).glob("*.json") if made else ():
                _add(roots, keys_in(file.read_text()), name)


def _add_weights(store: Store, roots: Roots) -> None:
    """Name the weights of encoders that are used."""
    for key, file in described(store).items():
        for user in list(roots.users.get(key, ())):
            _add(roots, keys_in(file.read_text()), user)


def _add(roots: Roots, keys: Iterable[str], user: str) -> None:
    for key in keys:
        roots.users.setdefault(key, set()).add(user)
