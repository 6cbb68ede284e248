"""What is in an archive and where, without unpacking it."""

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.entry import printable
from tl_pipeline.sources.layout import is_junk
from tl_pipeline.storage import Place, Storage

_LARGEST = 1 << 30  # bytes of one member
_FRESH = 10.0  # seconds that the stamp of an archive behind a URL is believed


@dataclass(frozen=True, slots=True)
class Member:
    """One file or folder of an archive; ``refusal`` says why it is never read.

    ``name`` may occur twice in shards, ``key`` does not: a second ``a.jpg`` has
    ``a.jpg#2``.
    ``packing`` is what else the reader of its archive needs.
    """

    key: str
    name: str
    size: int
    offset: int
    refusal: str
    folder: bool
    packing: tuple[int, ...] = ()

    @property
    def folders(self) -> list[str]:
        """The folders that hold it, outermost first; a folder holds itself."""
        path = _parts(self.name)
        return path if self.folder else path[:-1]


class Index(ABC):
    """The members of one archive by their key, in the archive's order.

    Names with a part that ``is_junk`` are left out. With ``replace`` the last member of
    a name counts, as it does where an archive is unpacked. ``notes`` are sentences for
    the user.
    """

    def __init__(self, path: Place, storage: Storage, *, replace: bool) -> None:
        self.path, self.storage, self._replace = path, storage, replace
        self.stamp = storage.stamp(path, seconds=_FRESH)
        self.members: dict[str, Member] = {}
        self.notes: list[str] = []
        self.copies: Counter[str] = Counter()

    @abstractmethod
    def load(self, member: Member) -> bytes:
        """The bytes of a member.

        Raises:
            OSError: they are damaged, encrypted, or in no supported form.
        """

    def version(self, member: Member) -> str | None:
        """Changes whenever the bytes of ``member`` may have changed."""
        whole = self.stamp.version
        return None if whole is None else f"{whole}:{member.offset}"

    def read(self, key: str) -> bytes:
        """The bytes of a member that may be read.

        Raises:
            PermissionError: it is a link, a device, or its path leaves the archive.
            OSError: it is not there, over 1 GiB, or see ``load``.
        """
        uri, member = printable(f"{self.path}#{key}"), self.members.get(key)
        if member is None:
            raise FileNotFoundError(f"{uri}: no such member")
        if member.refusal:
            raise PermissionError(f"{uri}: {member.refusal}")
        if member.size > _LARGEST:
            raise OSError(f"{uri}: {member.size} bytes, the most is {_LARGEST}")
        try:
            return self.load(member)
        except OSError as error:
            raise OSError(f"{uri}: {error}") from None

    def add(self, raw: str, *place: int, refusal: str, folder: bool) -> None:
        """Put a member in: its name, size and offset, and what else ``load`` needs."""
        name = printable(raw)
        path, stray = _parts(name), name.startswith("/") or ".." in name.split("/")
        if not path or (any(map(is_junk, path)) and not stray):
            return
        key = name
        while key in self.members and not folder:
            self.copies[name] += 1
            if self._replace:
                del self.members[key]  # the last one takes the last place, too
            else:
                key = f"{name}#{self.copies[name] + 1}"
        size, offset, *packing = place
        refusal = "its path leads out of the archive" if stray else refusal
        self.members[key] = Member(
            key, name, size, offset, refusal, folder, tuple(packing)
        )


class Indexes:
    """The index of each archive: made once, and again when the archive changed.

    While reading, one behind a URL is looked at every ten seconds only.
    """

    def __init__(
        self, make: Callable[[Place, Storage], Index], storage: Storage
    ) -> None:
        self._make, self._storage = make, storage
        self._made: dict[Place, Index] = {}
        self._lock = threading.Lock()

    def of(self, path: Place, *, fresh: bool = False) -> Index:
        """The index of the archive as it is now.

        Raises:
            DatasetError: it is missing, truncated, or of another format.
        """
        try:
            now = self._storage.stamp(path, seconds=0 if fresh else _FRESH)
            made = self._made.get(path)
            if made is not None and made.stamp == now:
                return made
            with self._lock:
                made = self._made.get(path)
                if made is None or made.stamp != now:
                    made = self._make(path, self._storage)
                    self._made[path] = made
                return made
        # Parsers of damaged archives raise what they please.
        except Exception as error:  # noqa: BLE001
            fault = (str(error) or type(error).__name__).removeprefix(f"{path}: ")
            raise DatasetError(printable(f"{path} cannot be read: {fault}")) from None


def _parts(name: str) -> list[str]:
    """The folders and the base name of a member."""
    return [part for part in name.split("/") if part not in ("", ".")]
