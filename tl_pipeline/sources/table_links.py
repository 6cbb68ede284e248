"""What the rows of a table name: paths and URLs, and which of them may be read."""

from collections.abc import Sequence
from pathlib import Path

from tl_pipeline.config.datasets import TableSpec
from tl_pipeline.config.locations import below, covers, is_url, redacted
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.missing_files import MissingFiles
from tl_pipeline.sources.table_files import TableFiles
from tl_pipeline.storage import Place, Storage
from tl_pipeline.storage.stamps import Stamp

# pathlib raises ValueError for a NUL and RuntimeError for links in a circle.
ODD_PATHS = (ValueError, RuntimeError, LookupError)


class Links:
    """Files that lie below the root of a table of ``files``, or are allowed.

    ``storage`` reads them: a redirect must not lead elsewhere.
    """

    def __init__(self, spec: TableSpec, files: TableFiles) -> None:
        self._allowed, self._files = spec.allowed_urls, files
        homes = (spec.path, spec.root)
        self.storage = Storage(spec.storage, *homes, allowed=self._allows)
        self._missing = MissingFiles()

    def locate(self, cell: str, root: Place) -> tuple[str, Place | None]:
        """The uri of what ``cell`` names, and where it is, if it may be read at all."""
        if is_url(cell):
            uri = redacted(cell)
            return uri, (cell if uri == cell and self._allows(cell) else None)
        if isinstance(root, str):
            url = below(root, cell.replace("\\", "/"))
            return url or cell, url
        full = _absolute(cell, root)
        return (cell, None) if full is None else (str(full), full)

    def stamps(
        self, places: Sequence[Place | None], listings: dict[str, dict[str, Stamp]]
    ) -> list[Stamp]:
        """See ``Storage.stamps``.

        Raises:
            DatasetError: a folder cannot be listed.
        """
        try:
            return self.storage.stamps(places, listings)
        except OSError as error:
            raise DatasetError(f"{error}; check 'root'") from None

    def read(self, place: Place) -> bytes:
        """The bytes of a file.

        Raises:
            PermissionError: it may not be read.
            OSError: there is no such file, or it cannot be read.
        """
        roots = set(self._files.known().values())
        if isinstance(place, Path):
            return self._read(place, {r for r in roots if isinstance(r, Path)})
        if redacted(place) != place or place.endswith("?..."):
            raise PermissionError(
                f"{place}: the row's URL holds credentials, which this table would "
                "spread; name them under 'storage.credentials'"
            )
        if not self._allows(place):
            raise PermissionError(
                f"{place} leaves its root {', '.join(sorted(map(str, roots)))}; if "
                "that is meant, put what it begins with into 'allowed_urls'"
            )
        return self.storage.read(place)

    def _read(self, path: Path, roots: set[Path]) -> bytes:
        target = path.resolve()
        inside = path.is_absolute() and any(map(target.is_relative_to, roots))
        if target.is_file() and inside:  # a pipe is none: reading it would hang
            return target.read_bytes()
        gone = path.is_absolute() and not target.exists()
        if inside or (roots and gone):
            hints = filter(None, (self._missing.hint(path, root) for root in roots))
            raise FileNotFoundError(f"{path}: no such file{next(hints, '')}")
        raise PermissionError(
            f"{path} leaves its root {', '.join(sorted(map(str, roots)))}; if that is "
            "meant, set 'root' to a folder above both ('root: /' allows all)"
        )

    def _allows(self, url: str) -> bool:
        roots = filter(is_url, self._files.known().values())
        return any(covers(place, url) for place in (*roots, *self._allowed))


def _absolute(path: str, root: Path) -> Path | None:
    """The file of a row; None if it leaves the root.

    Where there is no file with backslashes in its name, they part folders.
    """
    full = root / path
    try:
        if "\\" in path and not full.exists():
            path = path.replace("\\", "/")
            full = root / path
        if ".." in full.parts or (path[0] == "/" and not full.is_relative_to(root)):
            full = full.resolve()
            return full if full.is_relative_to(root) else None
    except ODD_PATHS:
        return None
    return full
