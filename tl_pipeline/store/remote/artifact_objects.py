"""The objects of one artifact in an object store.

A file is the object ``<kind>/<key>/<name>-<sha256><ending>``, and ``provenance.json``,
which lists the files, is written last and deleted first. Objects of two builders of one
key lie side by side, and a reader sees all files of one of them.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tl_pipeline.storage.objects import Objects, at_once
from tl_pipeline.store.checks import PROVENANCE

_TRIES = 2  # what arrives damaged is fetched once more
_UNUSABLE = (FileNotFoundError, LookupError, AttributeError, TypeError, ValueError)


def fetch(objects: Objects, place: str, folder: Path) -> bool:
    """Fill the new ``folder`` with what is at ``place``; False if that is not whole."""
    folder.mkdir(parents=True)

    def bring(item: tuple[str, Mapping[str, Any]]) -> None:
        name, facts = item
        file = folder / _inside(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        objects.fetch(f"{place}/{_object(name, facts)}", file)
        with file.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if found != facts["sha256"]:
            raise ValueError(f"{place}/{name} has other bytes")

    for _ in range(_TRIES):
        # gone, damaged, or just being replaced
        with contextlib.suppress(*_UNUSABLE):
            text = objects.read(f"{place}/{PROVENANCE}")
            at_once(bring, json.loads(text)["files"].items())
            (folder / PROVENANCE).write_bytes(text)
            return True
    return False


def send(objects: Objects, place: str, folder: Path) -> None:
    """Write the artifact in ``folder`` to ``place``."""

    def put(item: tuple[str, Mapping[str, Any]]) -> None:
        name, facts = item
        objects.put(f"{place}/{_object(name, facts)}", folder / name)

    at_once(put, _listed(folder).items())
    objects.put(f"{place}/{PROVENANCE}", folder / PROVENANCE)


def _listed(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    return json.loads((folder / PROVENANCE).read_text())["files"]


def _object(name: str, facts: Mapping[str, Any]) -> str:
    """What a file of an artifact is called there: by its content."""
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}-{facts['sha256'][:32]}{path.suffix}"))


def _inside(name: str) -> str:
    """``name`` if it leads into a folder, as that of any artifact does."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name} leads out of its artifact")
    return name
