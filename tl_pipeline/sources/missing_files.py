"""Why a path in a table may lead nowhere: what lies below its root instead."""

import os
import re
import threading
from collections import defaultdict
from pathlib import Path, PurePath

from tl_pipeline.sources.layout import is_junk

_MOST = 200_000  # files that are looked at
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")


class MissingFiles:
    """Knows the names of the files below each root, from the first question on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Path, dict[str, list[Path]]] = {}

    def hint(self, path: Path, root: Path) -> str:
        """What is likely wrong with ``path``: the end of a message, or ""."""
        inside = path.is_relative_to(root)
        asked = path.relative_to(root) if inside else Path(*path.parts[1:])
        if _DRIVE.match(str(asked)):
            return ", but a path of Windows: write paths that start at 'root'"
        with self._lock:
            if root not in self._known:
                self._known[root] = _names_below(root)
            known = self._known[root]
        found = known.get(_folded(asked.name)) or known.get(f"{_folded(asked.stem)}.*")
        if not found:
            return ""
        nearest = max(found, key=lambda file: _common(file, asked))
        if not inside:
            return f"; there is {root / nearest}: write paths that start at {root}"
        return f"; {_difference(asked, nearest, root)}"


def _difference(asked: Path, found: Path, root: Path) -> str:
    if _folded(found) == _folded(asked):
        by = "case" if str(found).lower() == str(asked).lower() else "spaces"
        return f"there is {str(found)!r}, which differs in {by} only"
    if found.parts[-len(asked.parts) :] == asked.parts:
        return f"{root / Path(*found.parts[: -len(asked.parts)])} holds it: set 'root'"
    if root / found == root.parent / asked:
        return f"{root.parent} holds it: set 'root'"
    return f"there is {str(found)!r}"


def _names_below(root: Path) -> dict[str, list[Path]]:
    """Files by their folded names, and by those without their endings."""
    found: dict[str, list[Path]] = defaultdict(list)
    files = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_junk(name))
        for name in sorted(names):
            path = Path(folder, name).relative_to(root)
            found[_folded(name)].append(path)
            found[f"{_folded(path.stem)}.*"].append(path)
        files += len(names)
        if files > _MOST:
            break
    return found


def _common(file: Path, asked: Path) -> int:
    """How many names, from the last on, two paths share."""
    pairs = zip(reversed(file.parts), reversed(asked.parts), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(file.parts))


def _folded(path: PurePath | str) -> str:
    """``path`` in lower case, without spaces around its names."""
    return "/".join(part.strip() for part in str(path).lower().split("/"))
