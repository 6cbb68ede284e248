"""What lies in a store: its folders, how large they are, when they were last used.

Here it is told of a local store, in ``object_holdings`` of one in an object store.
"""

import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.files import why

ARTIFACTS = ("manifests", "heads", "trials", "searches", "evaluations", "models")
EMBEDDINGS = "embeddings"
_DAY = 86_400
# What ``write_atomically`` and the memos write beside their target.
_BESIDE = re.compile(r".+\.[0-9a-f]{32}")
_Item = TypeVar("_Item")


class Holdings:
    """Those of ``store`` as they are now.

    Runs mark what they use (a folder's time) and record it only when they end. So what
    was made or used within ``grace_days`` is young: a run under way may need it.
    """

    def __init__(self, store: Store, grace_days: float) -> None:
        self._store = store
        self._grace_s = grace_days * _DAY
        self._trash = store.root / ".trash"

    def folders(self, kind: str) -> list[Path]:
        """The folders of all artifacts of ``kind``, or of all encoders' embeddings."""
        pattern = "encoder=*/" if kind == EMBEDDINGS else "[!.]*/"
        return sorted((self._store.root / kind).glob(pattern))

    def reports(self) -> list[Path]:
        """The pages of all runs, and the latest one of each dataset."""
        return sorted((self._store.root / "reports").glob("*/[!.]*.html"))

    def leftovers(self) -> Iterator[tuple[str, Path]]:
        """(kind, path) of everything damaged or unfinished, however young."""
        yield from leftovers(self._store)

    def size(self, path: Path) -> int:
        """Bytes of a file or folder."""
        return size(path)

    def young(self, path: Path) -> bool:
        """Whether it was made, changed or used within the time of grace.

        Raises:
            FileNotFoundError: it is gone.
        """
        return time.time() - _last_used(path) < self._grace_s

    def remove(self, path: Path) -> None:
        """Take ``path`` away by one rename, so that no folder is ever half there.

        Raises:
            FileNotFoundError: it is gone.
        """
        self._trash.mkdir(exist_ok=True)
        path.rename(self._trash / uuid.uuid4().hex)

    def remove_each(
        self, remove: Callable[[_Item], object], waste: Iterable[_Item]
    ) -> None:
        """``remove`` every piece of ``waste``."""
        for item in waste:
            remove(item)

    def empty_trash(self) -> bool:
        """Delete what was taken away, also by a killed call; whether there was any."""
        found = self._trash.exists()
        shutil.rmtree(self._trash, ignore_errors=True)
        return found


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def leftovers(store: Store) -> Iterator[tuple[str, Path]]:
    """(kind, path) of everything damaged or unfinished on this machine."""
    root = store.root
    places = [root, root / "memo", root / "memo" / "parts", root / "registry"]
    for kind in (*ARTIFACTS, EMBEDDINGS, "runs", "reports"):
        places += [root / kind, *(root / kind).glob("[!.]*/")]
    yield from (("unfinished", path) for path in (root / ".building").glob("*"))
    for place in places:
        for path in sorted(place.glob("*")) if place.is_dir() else ():
            if path.name.startswith(".damaged-"):
                yield "damaged", path
            elif path.name.startswith(".writing-") or _BESIDE.fullmatch(path.name):
                yield "unfinished", path


def why_left(kind: str, path: Path) -> str:
    """What to say of a leftover."""
    if kind == "damaged":
        return f"set aside: {why(path) or 'not whole'}"
    return "a killed process left it"


def _last_used(path: Path) -> float:
    """When ``path`` was last made, changed or used, in seconds since 1970."""
    stat = path.stat()
    if path.name.startswith("."):  # a rename is seen in this time only
        return max(stat.st_mtime, stat.st_ctime)
    below = path.rglob("*") if path.parent.name == ".building" else path.glob("*")
    return max(stat.st_mtime, *(entry.stat().st_mtime for entry in below), 0.0)
