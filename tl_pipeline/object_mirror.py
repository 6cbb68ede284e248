"""A store in an object store, and the local folder tree that is kept in step with it.

Everything works on local files. What a command needs is fetched into the mirror, what
it makes is sent as soon as it is finished. Nearly all of a store is immutable and named
by a key or by its content, so that two machines never mean different things by one
name:

- A file of an artifact is the object ``<kind>/<key>/<name>-<sha256><ending>``, and
  ``provenance.json``, which lists them, is written last. Objects of two builders of one
  key lie side by side, and a reader sees all files of one of them.
- Part files, run records and reports are single objects of their local names.
- ``append`` writes what only one writer may (see ``registry``).

What is finished here and not yet sent is noted in ``.unsent/`` until it is; the mirror
may be deleted whenever that is empty.
"""

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from tl_pipeline.errors import StoreError
from tl_pipeline.mirror import Mirror
from tl_pipeline.storage.objects import Objects
from tl_pipeline.storage.stamps import UNKNOWN, Stamp

MARKER, PROVENANCE, UNSENT = "store.json", "provenance.json", ".unsent"
_THREADS = 16  # requests at a time
_STALE_S = 86_400  # after which a note about what never came is dropped
_TRIES = 2  # what arrives damaged is fetched once more
_UNUSABLE = (FileNotFoundError, LookupError, AttributeError, TypeError, ValueError)
# Made from the rest, or about one machine: not in the object store.
_OF_HERE = {"speed.json"}
_Item = TypeVar("_Item")


class ObjectMirror(Mirror):
    """Keeps the folder ``root`` in step with the store at ``url``.

    A folder of the store is looked up once by each object of this class, so that a
    command sees it as of one time.
    """

    def __init__(self, url: str) -> None:
        self._objects = Objects(url)
        super().__init__(self._objects.url)
        self.root = cache() / _name(self._objects.url)
        self._keys: dict[str, set[str]] = {}
        self._listings: dict[Path, dict[str, Stamp]] = {}
        self._again: set[Path] = set()  # fetched a second time

    def open(self, file: Path) -> IO[bytes]:  # noqa: D102 - see Mirror
        if file.exists():
            return file.open("rb")
        stamp = self.listing(file.parent).get(file.name, UNKNOWN)
        return self._objects.open(self._place(file), stamp)

    def begin(self) -> None:
        """See that the folder mirrors the store that is at the URL now.

        The mirror of one that is gone is renamed, never deleted.

        Raises:
            StoreError: there is something else at the URL.
        """
        marker = self.root / MARKER
        here = marker.read_bytes() if marker.exists() else None
        try:
            there = self._objects.read(MARKER)
        except FileNotFoundError:
            there = None
            if self._objects.exists():
                raise StoreError(
                    f"{self.url} holds objects but is not a store; name another"
                ) from None
        if here == there:
            return
        if here is not None:
            aside = f"{self.root.name}.before-{uuid.uuid4().hex[:8]}"
            self.root.rename(self.root.with_name(aside))
        if there is not None:
            _write(marker, there)

    def claim(self, marker: str) -> str:  # noqa: D102 - see Mirror
        text = json.dumps({**json.loads(marker), "id": uuid.uuid4().hex})
        self._objects.create(MARKER, text.encode())
        return self._objects.read(MARKER).decode()

    def fetch_artifact(self, kind: str, key: str, folder: Path) -> bool:  # noqa: D102
        if kind not in self._keys:
            self._keys[kind] = self._objects.folders(kind)
        if key not in self._keys[kind]:
            return False
        place = f"{kind}/{key}"
        folder.mkdir(parents=True)

        def fetch(item: tuple[str, Mapping[str, Any]]) -> None:
            name, facts = item
            file = folder / _inside(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            self._objects.fetch(f"{place}/{_object(name, facts)}", file)
            with file.open("rb") as handle:
                found = hashlib.file_digest(handle, "sha256").hexdigest()
            if found != facts["sha256"]:
                raise ValueError(f"{place}/{name} has other bytes")

        for _ in range(_TRIES):
            # gone, damaged, or just being replaced
            with contextlib.suppress(*_UNUSABLE):
                text = self._objects.read(f"{place}/{PROVENANCE}")
                _each(fetch, json.loads(text)["files"].items())
                (folder / PROVENANCE).write_bytes(text)
                return True
        return False

    def listing(self, folder: Path) -> Mapping[str, Stamp]:  # noqa: D102 - see Mirror
        if folder not in self._listings:
            # what a process here has sent is there before its note goes
            settled = [f for f in _files(folder) if not self._note(f).exists()]
            place = self._place(folder)
            found = self._objects.listing(place)
            there = {name.removeprefix(f"{place}/"): s for name, s in found.items()}
            self._listings[folder] = there
            for path in settled:
                if str(path.relative_to(folder)) not in there:
                    path.unlink(missing_ok=True)
        return self._listings[folder]

    def sizes(self) -> Mapping[str, int]:  # noqa: D102 - see Mirror
        return {n: s.size or 0 for n, s in self._objects.listing("").items()}

    def forget(self, folder: Path) -> None:  # noqa: D102 - see Mirror
        self._listings.pop(folder, None)

    def fetch(self, files: Iterable[Path]) -> None:  # noqa: D102 - see Mirror
        _each(self._fetch, [file for file in files if not file.exists()])

    def fetch_folder(self, folder: Path) -> None:  # noqa: D102 - see Mirror
        self.fetch([folder / name for name in self.listing(folder)])

    def fetch_each(self, folder: Path, name: str) -> None:  # noqa: D102 - see Mirror
        place = self._place(folder)
        if place not in self._keys:
            self._keys[place] = self._objects.folders(place)
        _each(self._fetch_if_there, [folder / k / name for k in self._keys[place]])

    def fetch_again(self, file: Path) -> bool:  # noqa: D102 - see Mirror
        if file in self._again or self._note(file).exists():
            return False
        self._again.add(file)
        try:
            self._fetch(file)
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def sending(self, *files: Path) -> Iterator[None]:  # noqa: D102 - see Mirror
        for file in files:
            _write(self._note(file), self._place(file).encode())
        try:
            yield
        finally:
            for file in files:
                if not file.exists():
                    self._note(file).unlink(missing_ok=True)
        for file in files:
            self._send(file)

    def settle(self) -> None:  # noqa: D102 - see Mirror
        for note in sorted((self.root / UNSENT).glob("[!.]*")):
            with contextlib.suppress(FileNotFoundError):  # another process sent it
                file = self.root / note.read_text()
                if file.exists():
                    self._send(file)
                elif time.time() - note.stat().st_mtime > _STALE_S:
                    note.unlink()

    def remove_folder(self, folder: Path) -> None:  # noqa: D102 - see Mirror
        _each(self._objects.remove, self._objects.listing(self._place(folder)))
        super().remove_folder(folder)

    @contextlib.contextmanager
    def changing(self, folder: Path) -> Iterator[None]:  # noqa: D102 - see Mirror
        before = set(_files(folder))
        yield
        after = set(_files(folder))
        for file in after - before:
            self._send(file)
        for file in before - after:
            self._objects.remove(self._place(file))
        self.forget(folder)

    def append(self, file: Path, document: Any) -> bool:  # noqa: D102 - see Mirror
        text = json.dumps(document, indent=1).encode()
        won = self._objects.create(self._place(file), text)
        if won:
            _write(file, text)
        for folder in filter(file.is_relative_to, list(self._listings)):
            self.forget(folder)
        return won

    def _fetch_if_there(self, file: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fetch([file])

    def _fetch(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        try:
            self._objects.fetch(self._place(file), beside)
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)

    def _send(self, path: Path) -> None:
        place = self._place(path)
        if path.is_dir():

            def put(item: tuple[str, Mapping[str, Any]]) -> None:
                name, facts = item
                self._objects.put(f"{place}/{_object(name, facts)}", path / name)

            files = json.loads((path / PROVENANCE).read_text())["files"]
            _each(put, files.items())
            self._objects.put(f"{place}/{PROVENANCE}", path / PROVENANCE)
            if path.parent.name in self._keys:
                self._keys[path.parent.name].add(path.name)
        else:
            self._objects.put(place, path)
            for folder, listing in list(self._listings.items()):
                if path.is_relative_to(folder):
                    name = str(path.relative_to(folder))
                    listing[name] = Stamp(path.stat().st_size)
        self._note(path).unlink(missing_ok=True)

    def _note(self, file: Path) -> Path:
        name = hashlib.sha256(self._place(file).encode()).hexdigest()[:32]
        return self.root / UNSENT / name

    def _place(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def cache() -> Path:
    """The folder of all mirrors: $TL_CACHE, else the usual one of the user."""
    usual = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    found = os.environ.get("TL_CACHE") or Path(usual) / "tl-pipeline"
    return Path(found).expanduser().resolve()


def _name(url: str) -> str:
    """That of the mirror: one for each URL and server."""
    servers = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "STORAGE_EMULATOR_HOST")
    said = "\n".join([url, *(os.environ.get(name, "") for name in servers)])
    last = url.rpartition("/")[2]
    return f"{last}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


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


def _files(folder: Path) -> Iterator[Path]:
    """Those below ``folder`` that have objects of the same names."""
    for file in folder.rglob("[!.]*"):
        if file.is_file() and file.name not in _OF_HERE:
            yield file


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    beside.write_bytes(data)
    beside.replace(file)


def _each(work: Callable[[_Item], object], items: Iterable[_Item]) -> None:
    """``work`` for each item, some at a time; the first error is raised."""
    items = list(items)
    if len(items) == 1:
        work(items[0])
    elif items:
        with ThreadPoolExecutor(min(_THREADS, len(items))) as threads:
            for _ in threads.map(work, items):
                pass
