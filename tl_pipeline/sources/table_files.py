"""The files of a table, each with the root of the paths in its rows."""

from collections.abc import Callable
from pathlib import Path, PurePath
from typing import TypeVar

from tl_pipeline.config.datasets import TableSpec
from tl_pipeline.config.locations import folder_of, name_of, on_web
from tl_pipeline.errors import DatasetError
from tl_pipeline.storage import Place, Storage
from tl_pipeline.storage.stamps import UNKNOWN, Stamp

# Those of text files with what parts their cells, if the entry does not tell.
SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
PARQUET = ".parquet"
_ENDINGS = (*SEPARATORS, PARQUET)
_Answer = TypeVar("_Answer")
_FRESH = 10.0  # seconds that the stamp of a table behind a URL is believed


class TableFiles:
    """The files that ``path`` of an entry means; ``storage`` reads them."""

    def __init__(self, spec: TableSpec) -> None:
        self.storage = Storage(spec.storage, spec.path, spec.root)
        self._spec = spec
        self._found: dict[Place, Place] = {}

    def look(self) -> dict[Place, Place]:
        """Each file that is there now, with its root.

        Raises:
            DatasetError: there is none, or one of another kind, or a remote folder
                cannot be listed.
        """
        path, root = self._spec.path, self._spec.root
        local = isinstance(path, Path)
        found = _matches(path) if local else _remote(path, self.storage.matches)
        names = [name_of(file) for file in found]
        if not found or not {*map(ending, found)} <= {*_ENDINGS}:
            raise DatasetError(
                f"{path} must name files that end in {', '.join(_ENDINGS)}; found: "
                f"{', '.join(names[:9]) or 'nothing'}. Correct 'path'; "
                "for several files use wildcards, such as folder/*.parquet"
            )
        if isinstance(root, Path):
            root = root.resolve()
        elif root and not on_web(root):
            _remote(root, self.storage.find_folder)
        self._found = {file: root or _folder(file) for file in found}
        return self._found

    def known(self) -> dict[Place, Place]:
        """What ``look`` found last."""
        return self._found or self.look()

    def stamp(self, file: Place) -> Stamp:
        """What a look at ``file`` tells; UNKNOWN where there is nothing to look at."""
        try:
            return self.storage.stamp(file, seconds=_FRESH)
        except (OSError, ValueError):
            return UNKNOWN


def ending(place: Place) -> str:
    """``.csv`` and the like, in lower case."""
    return PurePath(name_of(place)).suffix.lower()


def _matches(path: Path) -> list[Path]:
    """The files that a local path means, by itself or as a pattern."""
    path = path.absolute()
    pattern = str(path.relative_to(path.anchor))
    found = [path] if path.exists() else sorted(Path(path.anchor).glob(pattern))
    files = [f for f in found if f.is_file() and not f.name.startswith(".")]
    # Only folders are resolved: the target of a link may have another ending.
    return [file.parent.resolve() / file.name for file in files]


def _folder(place: Place) -> Place:
    return place.parent if isinstance(place, Path) else folder_of(place)


def _remote(place: str, look: Callable[[str], _Answer]) -> _Answer:
    try:
        return look(place)
    except OSError as error:
        raise DatasetError(f"{error}; check 'path' and 'root'") from None
