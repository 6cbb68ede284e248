"""Registrations in an object store: ``versions/<dataset>/<number>.json``.

They are a list to which one writer at a time adds: a number is given once, with the
decision about ``champion`` made in knowledge of all lower numbers. MLflow's index of
each machine follows it. A local store has no such list: there a lock does.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tl_pipeline.store.artifacts import Store


@dataclass(frozen=True)
class Version:
    """One registration; ``about`` is what ``model.json`` says.

    ``champion`` is whether it became that then: the last such version is it now.
    """

    dataset: str
    version: int
    model: str
    champion: bool
    reason: str
    about: dict[str, Any]


def every(store: Store) -> list[Version]:
    """All versions by dataset and number; none of a local store."""
    folder = store.root / "versions"
    store.mirror.fetch_folder(folder)
    files = sorted(folder.glob("*/*.json"))
    return [Version(**json.loads(file.read_text())) for file in files]


def append(store: Store, version: Version) -> bool:
    """Add ``version``; False if another machine gave that number meanwhile."""
    return store.mirror.append(_file(store, version), asdict(version))


def is_registered(store: Store, model: str) -> bool:
    """Whether the model of that key has a version, and its index can tell."""
    if any(version.model == model for version in every(store)):
        return True
    # MLflow's database may be deleted: it is made again from the folders.
    files = (f"registry/{model}.json", "mlflow.db")
    return all((store.root / file).exists() for file in files)


def _file(store: Store, version: Version) -> Path:
    return store.root / "versions" / version.dataset / f"{version.version:06d}.json"
