"""What the last scan gave, for a source that can tell that nothing has changed since.

A folder of images must be listed to know. Files with many inputs each (arrays,
archives, shards) need not: their sizes and times stand for every row.
"""

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.sources import Source
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.checks import read_json
from tl_pipeline.store.files import write_atomically
from tl_pipeline.store.keys import digest

# What decides which inputs are refused.
_READERS = ("tl-pipeline", "pillow", "pyarrow", "numpy")


class Scanned(NamedTuple):
    """The manifest that a scan gave, and its notes."""

    manifest: Artifact
    notes: tuple[str, ...]


class LastScan:
    """Remembers one scan for each dataset. Disposable: losing it costs a scan."""

    def __init__(
        self, store: Store, source: Source, dataset: DatasetSpec, *, labelled: bool
    ) -> None:
        """Look at ``source`` now: what is scanned afterwards is at least as new."""
        self._store = store
        self._file = store.root / "memo" / f"{dataset.name}.scan.json"
        self._state = _state(source, dataset, labelled)

    def find(self) -> Scanned | None:
        """What the scan gave if nothing has changed since; None to scan again."""
        known = read_json(self._file) if self._state else None
        if known is None or known.get("state") != self._state:
            return None
        made = self._store.find("manifests", known["manifest"])
        return Scanned(made, tuple(known["notes"])) if made else None

    def remember(self, manifest: str, notes: Sequence[str]) -> None:
        """Remember the key of the manifest that a scan since then gave."""
        if self._state is None or self._store.planning:
            return
        found = {"state": self._state, "manifest": manifest, "notes": list(notes)}
        self._file.parent.mkdir(exist_ok=True)
        write_atomically(self._file, json.dumps(found, indent=1))


def _state(source: Source, dataset: DatasetSpec, labelled: bool) -> str | None:
    """Stands for all that a scan depends on; None where only a listing can tell."""
    state = source.state()
    if state is None:
        return None
    entry = dataset.offline()
    try:
        corrected = entry.relabel.read_bytes() if entry.relabel else b""
    except OSError:  # the scan says what is wrong with it
        return None
    return digest(
        {
            "source": state,
            "entry": entry.model_dump(mode="json"),
            "relabel": hashlib.sha256(corrected).hexdigest(),
            "labelled": labelled,
            "versions": [metadata.version(name) for name in _READERS],
        }
    )
