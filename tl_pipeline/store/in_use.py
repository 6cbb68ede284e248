"""What runs under way use: files in ``in_use/``, whose keys ``tl store gc`` keeps.

A run writes the first before it looks at any artifact, another for each artifact that
it comes upon besides, and deletes them when it ends. Those of a run that died count
until they are older than the retention of the collection.
"""

import json
import platform
import uuid
from collections.abc import Iterable
from pathlib import Path

from tl_pipeline.errors import StoreError
from tl_pipeline.store import locks
from tl_pipeline.store.remote.mirror import Mirror

FOLDER = "in_use"
# Who collects holds it while looking at what is used and removing what is not.
LOCK = "gc"


class InUse:
    """The keys that one run uses, in files of the store at ``root``."""

    def __init__(self, root: Path, mirror: Mirror) -> None:
        self._root, self._mirror, self._id = root, mirror, uuid.uuid4().hex
        self._keys: set[str] = set()
        self._files: list[Path] = []

    def add(self, keys: Iterable[str]) -> bool:
        """Name ``keys``, too; whether any of them is new.

        On this machine no collection is under way that did not see them.

        Raises:
            StoreError: the store cannot be written to.
        """
        new = set(keys) - self._keys
        if new:
            with locks.held(self._root / ".locks", LOCK, "tl store gc to end"):
                self._write(new)
        return bool(new)

    def made(self, key: str) -> None:
        """Note that this run made ``key``, which is too young to be collected."""
        self._keys.add(key)

    def end(self) -> None:
        """Delete the files."""
        for file in self._files:
            self._mirror.remove([file.relative_to(self._root).as_posix()])
            file.unlink(missing_ok=True)

    def _write(self, keys: set[str]) -> None:
        name = f"{self._id}-{len(self._files)}.json"
        file = self._root / FOLDER / name
        about = {"host": platform.node(), "keys": sorted(keys)}
        try:
            file.parent.mkdir(exist_ok=True)
            with self._mirror.sending(file):
                beside = file.with_name(f".{name}.{self._id}")
                beside.write_text(json.dumps(about))
                beside.replace(file)
        except OSError as error:
            raise StoreError(
                f"cannot write to the store {self._root}: {error}"
            ) from None
        self._files.append(file)
        self._keys |= keys
