"""The store: finished, immutable folders named by what they depend on.

A folder is built beside the others, described by ``provenance.json``, and published by
one rename: it is either whole or absent. The store is the cache and the truth.
"""

import json
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tl_pipeline.config.locations import is_url
from tl_pipeline.errors import DamagedArtifact, StoreError
from tl_pipeline.store import locks
from tl_pipeline.store.checks import PROVENANCE, Checks, read_json
from tl_pipeline.store.files import (
    file_sha256,
    make_folder,
    publish,
    set_aside,
    write_atomically,
)
from tl_pipeline.store.in_use import InUse
from tl_pipeline.store.keys import KeyDocument, digest
from tl_pipeline.store.remote.mirror import Mirror

FORMAT = 1
LIBRARIES = (
    "tl-pipeline",
    "numpy",
    "pillow",
    "pyarrow",
    "scikit-learn",
    "torch",
    "torchvision",
)


@dataclass(frozen=True)
class Artifact:
    """A reference to one finished folder: small enough to travel between tasks.

    ``fingerprint`` stands for the content: two artifacts of one kind with the same
    fingerprint are interchangeable for whatever is computed from them.
    """

    kind: str
    key: str
    fingerprint: str


class Store:
    """The root folder of all artifacts.

    Of a store in an object store it is the local mirror; ``mirror`` fetches and sends.
    """

    def __init__(
        self, root: Path, *, scratch: Path | None = None, mirror: Mirror | None = None
    ) -> None:
        self.root = root
        self._scratch = scratch
        self.mirror = mirror or Mirror()
        self._checks = Checks(root, writes=scratch is None)
        self._in_use: InUse | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process, perhaps on a machine with a mirror of its own."""
        self.__dict__.update(state)
        self.root = self.mirror.root or self.root

    @property
    def uri(self) -> str:
        """What ``open`` takes: the folder, or the URL."""
        return self.mirror.url or str(self.root)

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> "Store":
        """Open the store at ``uri``; nothing is written to it yet.

        ``uri`` is a local folder, or a URL of an object store such as s3://BUCKET/NAME.

        Raises:
            StoreError: it is neither, or written by another format.
        """
        text = os.fspath(uri)
        if is_url(text):
            from tl_pipeline.store.remote.object_mirror import ObjectMirror  # noqa: PLC0415

            mirror = ObjectMirror(text)
            mirror.begin()
            return cls._checked(mirror.root, mirror)
        return cls._checked(Path(text).expanduser().resolve(), Mirror())

    @classmethod
    def _checked(cls, root: Path, mirror: Mirror) -> "Store":
        if root.exists() and not root.is_dir():
            raise StoreError(f"{root} is a file; a store is a folder")
        marker = root / "store.json"
        if marker.exists():
            about = read_json(marker) or {}
            found = about.get("format")
            if found != FORMAT:
                raise StoreError(
                    f"{mirror.url or root} has store format {found}, this version "
                    f"reads {FORMAT}: use the version that wrote it, or another --store"
                )
            if mirror.url is None and about and "id" in about:
                raise StoreError(
                    f"{root} is the mirror of a store in an object store; open that "
                    "by its URL"
                )
        elif root.is_dir() and any(p for p in root.iterdir() if p.name[0] != "."):
            raise StoreError(f"{root} holds files but is not a store; name another")
        return cls(root, mirror=mirror)

    def create(self) -> None:
        """Make the folder and mark it as a store; a second time does nothing."""
        marker = self.root / "store.json"
        if marker.exists():
            return
        try:
            make_folder(self.root)
            write_atomically(marker, self.mirror.claim(json.dumps({"format": FORMAT})))
        except OSError as error:
            raise StoreError(
                f"cannot write to the store {self.root}: {error}"
            ) from None

    def check_writable(self) -> None:
        """Make the store, and see that files can be written to it.

        Raises:
            StoreError: they cannot.
        """
        self.create()
        try:
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise StoreError(
                f"cannot write to the store {self.root} ({error.strerror}): name "
                "another --store, or copy it to where you may write"
            ) from None

    @contextmanager
    def overlay(self) -> Iterator["Store"]:
        """A view of this store whose new artifacts vanish when the block ends.

        Planning performs cheap stages for real in it and leaves no trace. An overlay is
        its own.
        """
        if self.planning:
            yield self
            return
        with tempfile.TemporaryDirectory(prefix="tl-plan-") as folder:
            yield Store(self.root, scratch=Path(folder), mirror=self.mirror)

    @property
    def planning(self) -> bool:
        """Whether this is an overlay: nothing may be written to the root."""
        return self._scratch is not None

    def path(self, artifact: Artifact) -> Path:
        """The folder of ``artifact``."""
        place = Path(artifact.kind, artifact.key)
        # An overlay builds what the root has not, or has only damaged.
        if self._scratch and (self._scratch / place).exists():
            return self._scratch / place
        return self.root / place

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artifact of that key if it is there *and whole*, else None."""
        found = self._look(kind, key)
        if found and self._in_use:
            if self._in_use.add([key]):  # until then it may have been collected
                found = self._look(kind, key)
            self.mirror.restore(self.root / kind / key)
        return found

    def _look(self, kind: str, key: str) -> Artifact | None:
        found = self._look_here(kind, key)
        if found is None and self._fetch(kind, key):
            found = self._look_here(kind, key)
        return found

    def _look_here(self, kind: str, key: str) -> Artifact | None:
        roots = [self.root] + ([self._scratch] if self._scratch else [])
        for root in roots:
            if provenance := self._checks.whole(root / kind / key):
                return Artifact(kind, key, provenance["fingerprint"])
        return None

    def is_whole(self, folder: Path) -> bool:
        """Whether an artifact's files are right; all of them are read."""
        return self._checks.whole(folder, trust=False) is not None

    @contextmanager
    def in_use(self, keys: Iterable[str]) -> Iterator[None]:
        """Keep ``keys``, and all that is found in the block, from being collected.

        To be entered before it is looked which of them are there. ``keys`` may be those
        of artifacts and of encoders.

        Raises:
            StoreError: the store cannot be written to.
        """
        self.create()
        self.mirror.look_anew()
        self._in_use = InUse(self.root, self.mirror)
        try:
            self._in_use.add(keys)
            yield
        finally:
            used, self._in_use = self._in_use, None
            used.end()

    def _fetch(self, kind: str, key: str) -> bool:
        """Bring an artifact into the mirror; False where there is none."""
        if self.mirror.url is None:
            return False
        building = self.root / ".building" / uuid.uuid4().hex
        try:
            if not self.mirror.fetch_artifact(kind, key, building):
                return False
            self._publish(building, self.root / kind / key)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return True

    def build(
        self,
        kind: str,
        document: KeyDocument,
        write: Callable[[Path], str | None],
        extra: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Make the artifact of ``document``: temporary folder, then one rename.

        ``write`` fills the folder and may return the fingerprint of what it wrote;
        by default that is a hash over the files. ``extra`` goes into the provenance.
        Of two builders of one key the first to finish wins, the other takes its result.
        """
        key, started = digest(document), time.time()
        home = self._scratch or self.root
        if home is self.root:
            self.create()
        building = home / ".building" / uuid.uuid4().hex
        building.mkdir(parents=True)
        try:
            fingerprint = write(building)
            files = {
                str(p.relative_to(building)): _file_facts(p)
                for p in sorted(building.rglob("*"))
                if p.is_file()
            }
            provenance = {
                **document,
                "key": key,
                "fingerprint": fingerprint or digest(files),
                "files": files,
                "libraries": library_versions(),
                "host": platform.node(),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.time() - started, 3),
                **(extra or {}),
            }
            (building / PROVENANCE).write_text(json.dumps(provenance, indent=1))
            target = home / kind / key
            sent = () if self._scratch else (target,)
            with self.mirror.sending(*sent):
                self._publish(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        if self._in_use:
            self._in_use.made(key)
        made = self._look(kind, key)
        if made is None:
            raise DamagedArtifact(f"{home / kind / key} is not whole after its build")
        return made

    def provenance(self, artifact: Artifact) -> dict[str, Any]:
        """What ``provenance.json`` of ``artifact`` says.

        Raises:
            DamagedArtifact: there is none.
        """
        found = read_json(self.path(artifact) / PROVENANCE)
        if found is None:
            raise DamagedArtifact(
                f"{self.path(artifact)} has no {PROVENANCE}; run again"
            )
        return found

    def _publish(self, building: Path, target: Path) -> None:
        if self._scratch and target.is_relative_to(self._scratch):
            target.parent.mkdir(parents=True, exist_ok=True)
            building.rename(target)
            self._checks.remember(target)
            return
        make_folder(target.parent)
        with self.lock("publish"):
            if self._checks.whole(target):
                return
            if target.exists():
                set_aside(target, f"a file is missing or not as {PROVENANCE} lists it")
            publish(building, target)
            self._checks.remember(target)

    def lock(self, name: str, waits_for: str = "") -> AbstractContextManager[None]:
        """Hold the lock ``name`` of this store; the kernel frees it if we die.

        Where that takes a wait, ``waits_for`` says in words for what, in one line.
        """
        return locks.held(self._locks, name, waits_for)

    def lock_if_free(self, name: str) -> AbstractContextManager[bool]:
        """Hold the lock ``name`` unless another does; says whether we hold it."""
        return locks.held_if_free(self._locks, name)

    @property
    def _locks(self) -> Path:
        return self.root / ".locks"


@cache
def library_versions() -> dict[str, str]:
    """The installed versions of the libraries that results may depend on."""
    return {name: metadata.version(name) for name in LIBRARIES}


def _file_facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
