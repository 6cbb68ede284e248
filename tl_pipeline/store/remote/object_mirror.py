"""A store in an object store, and the local folder tree that is kept in step with it.

Everything works on local files. What a command needs is fetched into the mirror, what
it makes is sent as soon as it is finished. Nearly all of a store is immutable and named
by a key or by its content, so that two machines never mean different things by one
name:

- Files of an artifact are objects named by their content (``artifact_objects``).
- Part files, run records and reports are single objects of their local names.
- ``append`` writes what only one writer may (see ``registry``).

What is finished here and not yet sent is noted in ``.unsent/`` until it is; the mirror
may be deleted whenever that is empty.
"""

import contextlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from tl_pipeline.errors import StoreError
from tl_pipeline.storage.objects import Objects, at_once
from tl_pipeline.storage.stamps import UNKNOWN, ObjectInfo, Stamp
from tl_pipeline.store.files import publish
from tl_pipeline.store.remote import artifact_objects, mirror_folder
from tl_pipeline.store.remote.mirror import Mirror
from tl_pipeline.store.remote.mirror_folder import Unsent

MARKER = "store.json"


class ObjectMirror(Mirror):
    """Keeps the folder ``root`` in step with the store at ``url``.

    A folder of the store is looked up once by each object of this class, so that a
    command sees it as of one time.
    """

    def __init__(self, url: str) -> None:
        self._objects = Objects(url)
        self._root = mirror_folder.of(self.url)
        self._unsent = Unsent(self._root)
        self._folders: dict[str, set[str]] = {}
        self._listings: dict[Path, dict[str, Stamp]] = {}
        self._again: set[Path] = set()  # fetched a second time

    @property
    def url(self) -> str:  # noqa: D102 - see Mirror
        return self._objects.url

    @property
    def root(self) -> Path:  # noqa: D102 - see Mirror
        return self._root

    def __reduce__(self) -> tuple[type["ObjectMirror"], tuple[str]]:
        """It travels as its URL, since connections and folders are of one machine."""
        return ObjectMirror, (self.url,)

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
            mirror_folder.write(marker, there)

    def claim(self, marker: str) -> str:  # noqa: D102 - see Mirror
        text = json.dumps({**json.loads(marker), "id": uuid.uuid4().hex})
        self._objects.create(MARKER, text.encode())
        return self._objects.read(MARKER).decode()

    def fetch_artifact(self, kind: str, key: str, folder: Path) -> bool:  # noqa: D102
        if key not in self._folders_in(kind):
            return False
        return artifact_objects.fetch(self._objects, f"{kind}/{key}", folder)

    def listing(self, folder: Path) -> Mapping[str, Stamp]:  # noqa: D102 - see Mirror
        if folder not in self._listings:
            # what a process here has sent is there before its note goes
            settled = [f for f in mirror_folder.files(folder) if f not in self._unsent]
            place = self._place(folder)
            found = self._objects.listing(place)
            there = {name.removeprefix(f"{place}/"): s for name, s in found.items()}
            self._listings[folder] = there
            for path in settled:
                if str(path.relative_to(folder)) not in there:
                    path.unlink(missing_ok=True)
        return self._listings[folder]

    def objects(self) -> Mapping[str, ObjectInfo]:  # noqa: D102 - see Mirror
        return self._objects.infos()

    def forget(self, folder: Path) -> None:  # noqa: D102 - see Mirror
        self._listings.pop(folder, None)

    def fetch(self, files: Iterable[Path]) -> None:  # noqa: D102 - see Mirror
        at_once(self._fetch, [file for file in files if not file.exists()])

    def fetch_folder(self, folder: Path) -> None:  # noqa: D102 - see Mirror
        wanted = [folder / name for name in self.listing(folder)]
        at_once(self._fetch_if_there, wanted)
        if not all(file.exists() for file in wanted):  # removed since it was listed
            self.forget(folder)

    def fetch_each(self, folder: Path, name: str) -> None:  # noqa: D102 - see Mirror
        there = self._folders_in(self._place(folder))
        at_once(self._fetch_if_there, [folder / key / name for key in there])
        for file in folder.glob(f"[!.]*/{name}"):
            if file.parent.name not in there:
                self.listing(file.parent)

    def fetch_again(self, file: Path) -> bool:  # noqa: D102 - see Mirror
        if file in self._again or file in self._unsent:
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
            self._unsent.add(file)
        try:
            yield
        finally:
            for file in files:
                if not file.exists():
                    self._unsent.drop(file)
        for file in files:
            self._send(file)

    def settle(self) -> None:  # noqa: D102 - see Mirror
        for path in self._unsent.found():
            with contextlib.suppress(FileNotFoundError):  # another process sent it
                self._send(path)

    def restore(self, artifact: Path) -> None:  # noqa: D102 - see Mirror
        if artifact.name not in self._folders_in(artifact.parent.name):
            self._unsent.add(artifact)
            self._send(artifact)

    def look_anew(self) -> None:  # noqa: D102 - see Mirror
        self._folders.clear()
        self._listings.clear()

    def remove_folder(self, folder: Path) -> None:  # noqa: D102 - see Mirror
        at_once(self._objects.remove, self._objects.listing(self._place(folder)))
        super().remove_folder(folder)

    def remove(self, names: Iterable[str]) -> None:  # noqa: D102 - see Mirror
        for name in names:
            self._objects.remove(name)
            self._forget_above(self.root / name)

    @contextlib.contextmanager
    def changing(self, folder: Path) -> Iterator[None]:  # noqa: D102 - see Mirror
        before = set(mirror_folder.files(folder))
        yield
        after = set(mirror_folder.files(folder))
        for file in after - before:
            self._send(file)
        for file in before - after:
            self._objects.remove(self._place(file))
        self.forget(folder)

    def append(self, file: Path, data: bytes) -> bool:  # noqa: D102 - see Mirror
        won = self._objects.create(self._place(file), data)
        if won:
            mirror_folder.write(file, data)
        self._forget_above(file)
        return won

    def _forget_above(self, file: Path) -> None:
        for folder in filter(file.is_relative_to, list(self._listings)):
            self.forget(folder)

    def _fetch_if_there(self, file: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fetch([file])

    def _fetch(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        try:
            self._objects.fetch(self._place(file), beside)
            publish(beside, file)
        finally:
            beside.unlink(missing_ok=True)

    def _send(self, path: Path) -> None:
        place = self._place(path)
        if path.is_dir():
            artifact_objects.send(self._objects, place, path)
            if path.parent.name in self._folders:
                self._folders[path.parent.name].add(path.name)
        else:
            self._objects.put(place, path)
            for folder, listing in list(self._listings.items()):
                if path.is_relative_to(folder):
                    name = str(path.relative_to(folder))
                    listing[name] = Stamp(path.stat().st_size)
        self._unsent.drop(path)

    def _folders_in(self, place: str) -> set[str]:
        if place not in self._folders:
            self._folders[place] = self._objects.folders(place)
        return self._folders[place]

    def _place(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()
