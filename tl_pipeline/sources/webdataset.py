"""Tar shards in WebDataset's convention: consecutive files of one stem are a sample."""

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tl_pipeline.config.datasets import WebDatasetSpec
from tl_pipeline.config.locations import is_url
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.entry import Entry
from tl_pipeline.sources.tar_members import (
    Index,
    Indexes,
    Member,
    TarMembers,
    printable,
)
from tl_pipeline.storage import Place, Storage

_LONGEST_LABEL = 1 << 20  # bytes of the file that holds it
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


class WebDataset:
    """Every sample of the shards is an input; no split is declared.

    A stem is the path up to the first dot of the base name. A sample's image is the
    member with the first of the ``image`` endings that there is. A sample without one
    is listed by its first member, for it to be refused. A link, a device or a path that
    leads out of the shard is listed alone and without a label. Names of shards such as
    ``train-000.tar`` mean nothing: make them two entries, or let the splits be drawn.

    A uri is ``<shard>#<member>``, its version the shard's size and time and the offset.
    Labels are read when listing. Each compressed shard keeps a temporary file open.
    """

    def __init__(self, spec: WebDatasetSpec) -> None:
        self._spec = spec
        self._images = [ending.lstrip(".").lower() for ending in spec.image]
        ending, _, self._field = spec.label.partition(":")
        self._label_ending = ending.lstrip(".").lower()
        # resolve() would follow a link such as latest, and every uri would change.
        local = not is_url(spec.path)
        self._pattern = Path(os.path.abspath(spec.path)) if local else spec.path  # noqa: PTH100
        self._shards: dict[str, Place] = {}
        self._storage = Storage(spec.storage, spec.path)
        self._indexes = Indexes(TarMembers, self._storage)

    def __reduce__(self) -> tuple[type["WebDataset"], tuple[WebDatasetSpec]]:
        return WebDataset, (self._spec,)

    def entries(self) -> Iterator[Entry]:
        """One entry per sample, shard by shard.

        Raises:
            DatasetError: a shard is missing or damaged, or all are empty.
        """
        self._shards = self._find()
        found = False
        for shard, path in self._shards.items():
            index = self._indexes.of(path, fresh=True)
            for sample in _samples(index.members.values()):
                found = True
                image = self._image(sample)
                uri, label = f"{shard}#{image.key}", self._label(sample, index)
                version, modified_ns = index.version(image), index.stamp.modified_ns
                yield Entry(uri, label, version, modified_ns=modified_ns)
        if not found:
            raise DatasetError(f"{self._pattern} holds no samples")

    def read(self, uri: str) -> bytes:
        """The bytes of the member ``uri``.

        Raises:
            OSError: see ``Index.read``, or the shard itself cannot be read any more.
        """
        try:
            if not self._shards:
                self._shards = self._find()
            # Shards and members may both have a # in their names.
            for mark in (i for i, letter in enumerate(uri) if letter == "#"):
                if path := self._shards.get(uri[:mark]):
                    return self._indexes.of(path).read(uri[mark + 1 :])
        except DatasetError as error:
            if self._storage.lost:
                raise
            raise OSError(f"{uri}: {error}") from None
        raise FileNotFoundError(f"{uri}: not of these shards")

    def _find(self) -> dict[str, Place]:
        if isinstance(self._pattern, Path):
            return _shards(self._pattern)
        try:
            names = map(self._storage.matches, _unbraced(self._pattern))
            return {printable(name): name for found in names for name in found}
        except OSError as error:
            raise DatasetError(f"{error}; check 'path'") from None

    def _image(self, sample: dict[str, Member]) -> Member:
        endings = [ending for ending in self._images if ending in sample]
        return sample[endings[0]] if endings else next(iter(sample.values()))

    def _label(self, sample: dict[str, Member], index: Index) -> str | None:
        member = sample.get(self._label_ending)
        if member is None or member.refusal or member.size > _LONGEST_LABEL:
            return None
        try:
            text = index.read(member.key).decode("utf-8-sig")
            label = _field(text, self._field) if self._field else text
        except OSError as error:
            raise DatasetError(f"a label cannot be read: {error}") from None
        except (ValueError, RecursionError):  # no UTF-8, no JSON
            return None
        return printable(label).strip() or None


def _samples(members: Iterable[Member]) -> Iterator[dict[str, Member]]:
    """The members of each sample by their endings."""
    stem, sample = ("", ""), dict[str, Member]()
    for member in members:
        if member.refusal:
            yield {"": member}
        if member.refusal or member.folder:
            continue
        folder, _, base = member.name.rpartition("/")
        name, _, ending = base.partition(".")
        # An ending that comes again begins a sample too: no image is dropped.
        if (folder, name) != stem or ending.lower() in sample:
            if sample:
                yield sample
            stem, sample = (folder, name), {}
        sample[ending.lower()] = member
    if sample:
        yield sample


def _field(text: str, field: str) -> str:
    """A string, a number or a truth value of a JSON document as text, else ""."""
    value = json.loads(text, parse_constant=lambda _: None)
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, int | float) else ""


def _shards(pattern: Path) -> dict[str, Place]:
    """The files that ``pattern`` means, in its order, by what uris call them.

    Raises:
        DatasetError: one of them is missing.
    """
    # What exists under its plain name is no pattern, be it called "photos[1]".
    root = next(p for p in (pattern, *pattern.parents) if os.path.lexists(p))
    shards: dict[str, Place] = {}
    for name in _unbraced(str(pattern.relative_to(root))):
        found = [root / name]
        if glob.has_magic(name):
            matches = glob.glob(name, root_dir=root, recursive=True)  # noqa: PTH207
            found = [root / match for match in sorted(matches)]
        if not found or not all(os.path.lexists(path) for path in found):
            raise DatasetError(f"{root / name} is missing; check 'path'")
        shards.update((printable(str(path)), path) for path in found)
    return shards


def _unbraced(pattern: str) -> Iterator[str]:
    """``{008..011}`` and ``{train,test}`` written out, as a shell does."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return iter([pattern])
    first, last, names = braces.groups()
    choices = names.split(",") if names else _numbers(first, last)
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return (before + choice + rest for choice in choices for rest in _unbraced(after))


def _numbers(first: str, last: str) -> Iterator[str]:
    padded = any(len(n) > 1 and n.startswith("0") for n in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    return (f"{n:0{width}d}" for n in range(int(first), int(last) + step, step))
