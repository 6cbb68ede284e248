"""What a store does so that its local folder is in step with where it really lies.

A store in a local folder is where it is: nothing happens. ``object_mirror`` is for one
in an object store.
"""

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from tl_pipeline.storage.stamps import ObjectInfo, Stamp


class Mirror:
    """The seam; as it stands, that of a local store.

    All methods of others raise ``StoreError`` where the object store does not answer.
    """

    @property
    def url(self) -> str | None:
        """Where the store really is, if not in a local folder."""
        return None

    @property
    def root(self) -> Path | None:
        """The folder on this machine of a store that is at a URL."""
        return None

    def claim(self, marker: str) -> str:
        """Make the store, or accept that another has; the text of its marker."""
        return marker

    def fetch_artifact(self, kind: str, key: str, folder: Path) -> bool:  # noqa: ARG002
        """Fill the new ``folder`` with an artifact; False if there is no whole one."""
        return False

    def listing(self, folder: Path) -> Mapping[str, Stamp]:  # noqa: ARG002
        """Name -> stamp of the objects in ``folder``, as they were first looked up.

        What was here and is gone there goes here, too.
        """
        return {}

    def objects(self) -> Mapping[str, ObjectInfo]:
        """Name -> size and time of every object of the store."""
        return {}

    def forget(self, folder: Path) -> None:
        """Look ``folder`` up anew when it is asked for next."""

    def fetch(self, files: Iterable[Path]) -> None:
        """Bring those of ``files`` that are not here.

        Raises:
            FileNotFoundError: one is not there either, any more.
        """

    def fetch_folder(self, folder: Path) -> None:
        """Bring all files below ``folder`` that are there."""

    def fetch_each(self, folder: Path, name: str) -> None:
        """Bring the file of that ``name`` of each folder in ``folder``."""

    def fetch_again(self, file: Path) -> bool:  # noqa: ARG002
        """Replace what does not read back by what is there; whether there was any."""
        return False

    def open(self, file: Path) -> IO[bytes]:
        """A file that may be elsewhere, for reading some of it.

        Raises:
            FileNotFoundError: it is gone.
        """
        return file.open("rb")

    @contextlib.contextmanager
    def sending(self, *files: Path) -> Iterator[None]:  # noqa: ARG002
        """Send what the block publishes, files or folders of artifacts.

        What fails to be sent, or a kill leaves unsent, is sent by ``settle``.
        """
        yield

    def settle(self) -> None:
        """Send what earlier runs finished and could not send."""

    def restore(self, artifact: Path) -> None:
        """Send an artifact that is here again if it is not there any more."""

    def look_anew(self) -> None:
        """Forget what is there; it is looked up when it is asked for next."""

    def remove_folder(self, folder: Path) -> None:
        """Delete ``folder``, here and there."""
        shutil.rmtree(folder, ignore_errors=True)

    def remove(self, names: Iterable[str]) -> None:
        """Delete those objects, one after the other."""

    @contextlib.contextmanager
    def changing(self, folder: Path) -> Iterator[None]:  # noqa: ARG002
        """Do there what the block does to the files of ``folder``.

        New files are there before any goes: a kill leaves rows twice, never none.
        """
        yield

    def append(self, file: Path, data: bytes) -> bool:
        """Write ``file``, which no one may have written; False if somebody has."""
        raise NotImplementedError
