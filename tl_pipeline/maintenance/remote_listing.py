"""What lies in a store in an object store, and in its mirror on this machine.

An object store knows no folder and no folder's time. A folder is all objects of one
place, as young as the one that was written last; a run that uses embeddings writes one
for that (``Mirror.mark_used``). Artifacts need none: a run sends again at its end what
of them it used and is gone by then (``Store.keep``).
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tl_pipeline.maintenance.listing import ARTIFACTS, EMBEDDINGS, Holdings
from tl_pipeline.storage.objects import at_once
from tl_pipeline.store.artifacts import PROVENANCE, Store

_FOLDERS = (*ARTIFACTS, EMBEDDINGS, ".building")
_Item = TypeVar("_Item")


class ObjectHoldings(Holdings):
    """Those of ``store`` when it is made, by one listing of all objects.

    ``now`` is the time by the clock of the object store, where it is known.
    """

    def __init__(
        self, store: Store, grace_days: float, now: float | None = None
    ) -> None:
        super().__init__(store, grace_days)
        self._now = time.time() if now is None else now
        self._held = store.mirror.held()
        self._places: dict[Path, list[str]] = {}
        for name in self._held:
            first, *rest = name.split("/")
            whole = first in _FOLDERS and rest
            place = f"{first}/{rest[0]}" if whole else name
            self._places.setdefault(store.root / place, []).append(name)

    def folders(self, kind: str) -> list[Path]:  # noqa: D102 - see Holdings
        there = self._in(self._store.root / kind)
        return sorted({*there, *super().folders(kind)})

    def reports(self) -> list[Path]:  # noqa: D102 - see Holdings
        folder = self._store.root / "reports"
        there = (path for path in self._places if path.is_relative_to(folder))
        return sorted({*there, *super().reports()})

    def leftovers(self) -> Iterator[tuple[str, Path]]:  # noqa: D102 - see Holdings
        there = {("unfinished", p) for p in self._in(self._store.root / ".building")}
        yield from sorted({*there, *super().leftovers()})

    def size(self, path: Path) -> int:  # noqa: D102 - see Holdings
        names = self._places.get(path)
        if names is None:  # in the mirror only
            return super().size(path)
        return sum(self._held[name].bytes for name in names)

    def young(self, path: Path) -> bool:  # noqa: D102 - see Holdings
        names = self._places.get(path)
        if names is None:
            return super().young(path)
        last = max(self._held[name].written for name in names)
        return self._now - last < self._grace_s

    def remove(self, path: Path) -> None:
        """Delete its objects, and its copy here unless a run here uses that.

        What tells of others goes first, so that no artifact is ever half there. Of
        embeddings it goes last: each part stands for itself, and is computed anew.
        """
        names = self._places.get(path, [])
        self._store.mirror.remove(sorted(names, key=_order))
        with suppress(FileNotFoundError):  # not in the mirror
            if path.is_file() or not super().young(path):
                super().remove(path)

    def remove_each(  # noqa: D102 - see Holdings
        self, remove: Callable[[_Item], object], waste: Iterable[_Item]
    ) -> None:
        at_once(remove, waste)

    def _in(self, folder: Path) -> list[Path]:
        return [path for path in self._places if path.parent == folder]


def _order(name: str) -> int:
    """Which of the objects of one place goes before which."""
    if name.endswith(f"/{PROVENANCE}"):
        return 0
    of_embeddings = name.startswith(f"{EMBEDDINGS}/")
    return 2 if of_embeddings and not name.endswith(".parquet") else 1
