"""Whether a folder holds the very files that its ``provenance.json`` lists."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from tl_pipeline.store.files import file_sha256
from tl_pipeline.store.keys import digest, document_of

PROVENANCE = "provenance.json"


class Checks:
    """Hashes the files of an artifact once, and again when sizes or times changed.

    What was found right is noted in the store at ``root`` (see ``cache_file``); without
    ``writes`` in memory only.
    """

    def __init__(self, root: Path, *, writes: bool) -> None:
        self._root, self._writes = root, writes
        self._known: dict[Path, str] = {}

    def whole(self, artifact: Path, *, trust: bool = True) -> dict[str, Any] | None:
        """What the provenance of ``artifact`` says if all is as it says, else None.

        Without ``trust`` every file is read.
        """
        found = read_json(artifact / PROVENANCE)
        if not found or not _describes(found, artifact.name):
            return None
        stamps = _stamps(artifact, found["files"])
        if stamps is None:
            return None
        if not (trust and self._noted(artifact) == stamps):
            for name, facts in found["files"].items():
                if file_sha256(artifact / name) != facts["sha256"]:
                    return None
            self._note(artifact, stamps)
        return found

    def remember(self, artifact: Path) -> None:
        """Note that ``artifact`` is right: its files were hashed as they were made."""
        found = read_json(artifact / PROVENANCE)
        if found and (stamps := _stamps(artifact, found["files"])):
            self._note(artifact, stamps)

    def _noted(self, artifact: Path) -> str | None:
        if artifact not in self._known:
            with suppress(OSError, ValueError):
                self._known[artifact] = cache_file(self._root, artifact).read_text()
        return self._known.get(artifact)

    def _note(self, artifact: Path, stamps: str) -> None:
        self._known[artifact] = stamps
        if self._writes:
            file = cache_file(self._root, artifact)
            with suppress(OSError):  # a store that can only be read
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(stamps)


def cache_file(root: Path, artifact: Path) -> Path:
    """Where it is noted which files of ``artifact`` were found right; disposable."""
    return root / "memo" / "artifacts" / artifact.parent.name / artifact.name


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file of JSON; None where it is absent or holds something else."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _describes(provenance: dict[str, Any], key: str) -> bool:
    """Whether it is the provenance of the artifact ``key``."""
    return "files" in provenance and digest(document_of(provenance)) == key


def _stamps(artifact: Path, files: dict[str, Any]) -> str | None:
    """Size and times of each file; None where one is not of the size that is listed."""
    found = []
    for name, facts in {**files, PROVENANCE: {}}.items():
        try:
            stat = (artifact / name).stat()
        except OSError:
            return None
        if stat.st_size != facts.get("bytes", stat.st_size):
            return None
        found.append(f"{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")
    return "\n".join(found)
