"""A disposable cache in the store: named weights, graph nodes, hashes of files."""

import json
from pathlib import Path
from typing import Any

from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.files import file_sha256, write_atomically


class Cache:
    """What was found out once, so that resolving again needs neither torch nor time.

    With ``trust=False`` remembered hashes of files are not believed.
    """

    def __init__(self, store: Store, *, trust: bool = True) -> None:
        self._file = store.root / "memo" / "encoders.json"
        self._writable = (store.root / "store.json").exists() and not store.planning
        self._trust = trust
        try:
            self._known = json.loads(self._file.read_text())
        except (FileNotFoundError, ValueError):  # bytes that are no JSON, or no text
            self._known = {}
        if not isinstance(self._known, dict):
            self._known = {}
        self._before = dict(self._known)

    def get(self, key: str) -> dict[str, Any] | None:
        """What is known under ``key``."""
        value = self._known.get(key)
        return dict(value) if value is not None else None

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Remember ``value`` under ``key`` when this is saved."""
        self._known[key] = value

    def sha256(self, file: Path) -> str:
        """The hash of ``file``, read again if its size or times changed."""
        stat = file.stat()
        version = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
        known = self._known.get(str(file))
        if known and known["version"] == version and self._trust:
            return known["sha256"]
        sha256 = file_sha256(file)
        self.put(str(file), {"version": version, "sha256": sha256})
        return sha256

    def save(self) -> None:
        """Write what is new, if there is a store to write to."""
        if self._writable and self._known != self._before:
            self._file.parent.mkdir(exist_ok=True)
            write_atomically(self._file, json.dumps(self._known, indent=1))
