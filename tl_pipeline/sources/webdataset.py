"""Tar shards in WebDataset's convention: consecutive files of one key are a sample."""

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from tl_pipeline.config.datasets import WebDatasetSpec
from tl_pipeline.config.locations import is_url
from tl_pipeline.errors import DatasetError
from tl_pipeline.sources.archive_index import Index, Indexes, Member
from tl_pipeline.sources.entry import (
    Entry,
    Source,
    printable,
    raise_if_refused,
    refused,
    state_of,
)
from tl_pipeline.sources.tar_index import TarIndex
from tl_pipeline.storage import Place, Storage

_LONGEST_LABEL = 1 << 20  # bytes of the file that holds it
Sample = dict[str, Member]  # by endings
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


class WebDataset(Source):
    """Every sample of the shards is an input; no split is declared.

    A sample's key is the path up to the first dot of the base name, as in WebDataset
    itself; but where names have more dots (``v2.0_1.jpg``, ``v2.0_1.cls``) and so hold
    several labels under that key, each label's own name without its ending is a key. A
    sample's image is the member with the first of the ``image`` endings that there is,
    its ending being all that follows the key: ``x.depth.png`` is not the image of
    ``x``. Images left out for another are counted in ``notes``. A sample without one
    is listed by its key, for it to be refused. A link, a device or a path that leads
    out of the shard is listed alone and without a label. Names of shards such as
    ``train-000.tar`` mean nothing: make them two entries, or let the splits be drawn.

    A uri is ``<shard>#<member>``, its version the shard's size and time and the offset.
    Labels are read when listing. Each compressed shard keeps a temporary file open.
    """

    def __init__(self, spec: WebDatasetSpec) -> None:
        self._spec = spec
        self._images = [ending.lstrip(".").lower() for ending in spec.image]
        usual = WebDatasetSpec.model_fields["image"].default
        self._suffixes = {e.rpartition(".")[2] for e in (*usual, *self._images)}
        ending, _, self._field = spec.label.partition(":")
        self._label_ending = ending.lstrip(".").lower()
        # resolve() would follow a link such as latest, and every uri would change.
        local = not is_url(spec.path)
        self._pattern = Path(os.path.abspath(spec.path)) if local else spec.path  # noqa: PTH100
        self._shards: dict[str, Place] = {}
        self._storage = Storage(spec.storage, spec.path)
        self._indexes = Indexes(TarIndex, self._storage)
        self._notes: list[str] = []

    def __reduce__(self) -> tuple[type["WebDataset"], tuple[WebDatasetSpec]]:
        return WebDataset, (self._spec,)

    def entries(self) -> Iterator[Entry]:
        """One entry per sample, shard by shard.

        Raises:
            DatasetError: a shard is missing or damaged, or all are empty.
        """
        self._shards = self._find()
        samples, left_out, again = Counter[str](), Counter[str](), 0
        for shard, path in self._shards.items():
            index = self._indexes.of(path, fresh=True)
            again += index.copies.total()
            members = index.members.values()
            for key, sample in _samples(members, self._label_ending, self._images):
                image = self._image(sample)
                left_out.update(self._others(sample, image))
                label, modified_ns = self._label(sample, index), index.stamp.modified_ns
                samples[key if image is None else ""] += 1
                if image is None:
                    uri = self._refused(f"{shard}#{key}", samples[key], sample)
                    yield Entry(uri, label, None, modified_ns=modified_ns)
                    continue
                uri, version = f"{shard}#{image.key}", index.version(image)
                yield Entry(uri, label, version, modified_ns=modified_ns)
        if not samples:
            raise DatasetError(f"{self._pattern} holds no samples")
        self._notes = list(_notes(left_out, again))

    def state(self) -> str | None:
        """See ``Source``: of the shards that are there."""
        try:
            shards = self._find().items()
        except DatasetError:  # the listing says so
            return None
        return state_of((name, self._storage.stamp(path)) for name, path in shards)

    def read(self, uri: str) -> bytes:
        """The bytes of the member ``uri``.

        Raises:
            OSError: see ``Index.read``, or the shard itself cannot be read any more.
        """
        raise_if_refused(uri)
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

    def notes(self) -> list[str]:
        """Which images were left out for others, and which names came again."""
        return self._notes

    def _find(self) -> dict[str, Place]:
        if isinstance(self._pattern, Path):
            return _shards(self._pattern)
        try:
            names = map(self._storage.matches, _unbraced(self._pattern))
            return {printable(name): name for found in names for name in found}
        except OSError as error:
            raise DatasetError(f"{error}; check 'path'") from None

    def _refused(self, name: str, number: int, sample: Sample) -> str:
        """The uri of the sample ``name``, the ``number``th so called, without image."""
        best = next(filter(self._seems_image, sample), next(iter(sample)))
        again = f" ({number})" if number > 1 else ""
        return refused(
            f"{name}{again}",
            f"the sample has {', '.join(sample)}, none of which 'image' lists; name "
            f"the ending of its image in the dataset entry: 'image: [{best}]'",
        )

    def _image(self, sample: Sample) -> Member | None:
        """The member that is the image; one that cannot be read is its own."""
        endings = [ending for ending in ("", *self._images) if ending in sample]
        return sample[endings[0]] if endings else None

    def _others(self, sample: Sample, image: Member | None) -> set[str]:
        """The endings of images in ``sample`` that are not its ``image``."""
        found = {ending for ending in sample if self._seems_image(ending)}
        return {e for e in found if image is not None and sample[e] is not image}

    def _seems_image(self, ending: str) -> bool:
        return ending.rpartition(".")[2] in self._suffixes

    def _label(self, sample: Sample, index: Index) -> str | None:
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


def _notes(left_out: Counter[str], again: int) -> Iterator[str]:
    if left_out:
        counts = ", ".join(f"{n:,} {ending}" for ending, n in sorted(left_out.items()))
        yield (
            "samples have more images than the one that is taken; left out are "
            f"{counts} ('image' decides)"
        )
    if again:
        yield f"{again:,} members have a name that came before: samples of their own"


def _samples(
    members: Iterable[Member], label: str, images: Iterable[str]
) -> Iterator[tuple[str, Sample]]:
    """The key of each sample, and its members by their endings."""
    for _, together in groupby(members, key=lambda m: bool(m.refusal) or _first_key(m)):
        several = [member for member in together if not member.folder]
        if several and several[0].refusal:
            yield from ((member.key, {"": member}) for member in several)
            continue
        keys = _keys({member.name for member in several}, label, images)
        for key, same in groupby(several, key=lambda m: _key_of(m.name, keys)):
            sample: Sample = {}
            for member in same:
                ending = member.name[len(key) + 1 :].lower()
                # One that comes again begins a sample too: no image is dropped.
                if ending in sample:
                    yield key, sample
                    sample = {}
                sample[ending] = member
            yield key, sample


def _first_key(member: Member) -> str:
    folder, slash, base = member.name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _keys(names: set[str], label: str, images: Iterable[str]) -> set[str]:
    """What names with the ending ``label`` begin with, where an image does, too."""
    lower = {name.lower() for name in names}
    labelled = (n[: -len(label) - 1] for n in names if n.lower().endswith(f".{label}"))
    return {k for k in labelled if any(f"{k.lower()}.{i}" in lower for i in images)}


def _key_of(name: str, keys: set[str]) -> str:
    """The longest of ``keys`` before a dot of ``name``, else all before the first."""
    folder, slash, base = name.rpartition("/")
    parts = base.split(".")
    for end in range(len(parts) - 1, 1, -1):
        key = f"{folder}{slash}{'.'.join(parts[:end])}"
        if key in keys:
            return key
    return f"{folder}{slash}{parts[0]}"


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
