"""Per-image embeddings of one encoder: a folder of immutable part files.

``embeddings/encoder=<key>/part-*.parquet`` holds one row per image, shared by every
dataset that has the image. Nothing else is written there, so that any reader of
Parquet reads the folder. The rest lies in ``encoders/<key>/``: ``encoder.json``, the
identity, and ``refused-*.parquet``, the images that could not be decoded. What is
missing is an anti-join of ids, so a lost part costs only its images. A part counts only
once all of it was read and found whole.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from tl_pipeline.errors import DamagedArtifact
from tl_pipeline.store import duplicate_rows, part_files
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.checks import read_json
from tl_pipeline.store.files import make_folder, set_aside, write_atomically
from tl_pipeline.store.part_files import IDS, PART, REFUSALS, REFUSED, DamagedPartError
from tl_pipeline.store.part_index import PartIndex, Scan

# What is no embedding; in stores of older versions it lies between the parts.
ABOUT = "encoders"
DESCRIPTION = "encoder.json"
_MADE_BY = "made_by.txt"
# Reasons that say nothing about the image, so that it is tried again.
RETRIED = ("unreadable", "changed")

# Parts are merged while we read: as often as that begins a load anew.
_TRIES = 20
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Places:
    """How rows hold ``count`` places of an image: each is (count, channels) in a row.

    Or (channels, count), where ``channels_first``.
    """

    count: int
    channels_first: bool = False

    def of(self, rows: np.ndarray) -> np.ndarray:
        """``rows`` (n, width) as (n, count, channels), without a copy.

        Raises:
            ValueError: ``width`` is no multiple of ``count``.
        """
        if self.channels_first:
            return rows.reshape(len(rows), -1, self.count).transpose(0, 2, 1)
        return rows.reshape(len(rows), self.count, -1)


@dataclass(frozen=True)
class Embeddings:
    """The vectors of some images under one encoder.

    ``vectors`` is float32 of shape (n_images, width), row i belonging to
    ``image_ids[i]``. ``places`` tells which places of an image they hold, None where a
    row is one vector.
    """

    encoder_key: str
    image_ids: list[str]
    vectors: np.ndarray
    places: Places | None = None


class EmbeddingFolder:
    """Reads and adds to the embeddings of one encoder.

    With ``trust=False`` files that were found whole before are read through again.
    """

    def __init__(self, store: Store, encoder_key: str, *, trust: bool = True) -> None:
        self._store = store
        self.encoder_key = encoder_key
        self.path = store.root / "embeddings" / f"encoder={encoder_key}"
        self.about = store.root / ABOUT / encoder_key
        place = (store, self.path)
        self._parts = PartIndex(
            *place,
            PART,
            IDS,
            part_files.check_part,
            read_away=part_files.read_ids,
            trust=trust,
        )
        self._refused = [
            PartIndex(
                store, folder, REFUSED, REFUSALS, part_files.read_refusals, trust=trust
            )
            for folder in (self.about, self.path)
        ]

    def describe(self, identity: str) -> None:
        """Write the encoder's identity (JSON), once."""
        for folder in (self.about, self.path):
            self._store.mirror.listing(folder)  # what is gone there goes here, too
        if not self.description.exists():
            make_folder(self.path)
            make_folder(self.about)
            file = self.about / DESCRIPTION
            with self._store.mirror.sending(file):
                write_atomically(file, identity)

    @property
    def description(self) -> Path:
        """The file of the encoder's identity, if there is one."""
        older = self.path / DESCRIPTION
        return older if older.exists() else self.about / DESCRIPTION

    def note_made_by(self, machine: str) -> None:
        """Keep in words what embeds now."""
        if machine != self.made_by():
            file = self.about / _MADE_BY
            with self._store.mirror.sending(file):
                write_atomically(file, machine)

    def made_by(self) -> str | None:
        """What embedded last, in words; None where an older version did not note it."""
        mirror, file = self._store.mirror, self.about / _MADE_BY
        mirror.fetch(file for name in mirror.listing(self.about) if name == file.name)
        try:
            return file.read_text()
        except FileNotFoundError:
            return None

    def begun(self) -> bool:
        """Whether any part was ever published here."""
        known = map(self.path.joinpath, self._store.mirror.listing(self.path))
        return any(file.name.startswith(f"{PART}-") for file in known) or any(
            self.path.glob(f"{PART}-*.parquet")
        )

    def embedded(self) -> set[str]:
        """Ids of all images that have an embedding here; damaged parts do not count."""
        return set(self.embedded_ids().to_pylist())

    def embedded_ids(self) -> pa.ChunkedArray:
        """Those ids as a column, some perhaps twice: there may be many millions."""
        parts = (rows["image_id"] for rows in self._parts.scan().whole.values())
        chunks = [chunk for part in parts for chunk in part.chunks]
        return pa.chunked_array(chunks, pa.string())

    def parts(self) -> Scan:
        """The ids (``image_id``) of every whole part, and what is wrong with others."""
        return self._parts.scan()

    def refused(self) -> dict[str, tuple[str, str]]:
        """Image id -> (reason, detail) of every image that could not be decoded."""
        rows = self.refusals().items()
        return {i: (row["reason"], row["detail"]) for i, row in rows}

    def refusals(self) -> dict[str, dict[str, Any]]:
        """Image id -> ``image_id, reason, detail, first_seen``.

        ``first_seen`` is when the image was first refused for that reason, None where
        an older version did not note it. Of several refusals of an image the last one
        counts, and none if it was embedded later.
        """
        rows: list[dict[str, Any]] = []
        for table in self.refusal_files().whole.values():
            rows += table.to_pylist()
        rows.sort(key=lambda row: (row["first_seen"] is not None, row["first_seen"]))
        # All ids are read only where a second try may have gone well.
        again = any(row["reason"] in RETRIED for row in rows)
        embedded = self.embedded() if again else set()
        return {r["image_id"]: r for r in rows if r["image_id"] not in embedded}

    def refusal_files(self) -> Scan:
        """The rows of every whole table of refused images, and what is wrong."""
        scans = [index.scan() for index in self._refused]
        return Scan(
            {file: rows for scan in scans for file, rows in scan.whole.items()},
            {file: why for scan in scans for file, why in scan.damaged.items()},
        )

    def add(self, image_ids: list[str], vectors: np.ndarray) -> None:
        """Publish one part: ``vectors`` (len(image_ids), width) of float32 or 16."""
        file = part_files.named(self.path, PART, image_ids)
        with self._store.mirror.sending(file):
            part_files.write_part(self.path, image_ids, vectors)

    def refuse(self, rows: list[tuple[str, str, str]]) -> None:
        """Publish (image_id, reason, detail) of images that could not be decoded."""
        known, now = self.refusals(), datetime.now(UTC)
        records: list[dict[str, Any]] = []
        for image_id, reason, detail in rows:
            before = known.get(image_id, {})
            seen = before["first_seen"] if before.get("reason") == reason else now
            values = (image_id, reason, detail, seen)
            records.append(dict(zip(REFUSALS.names, values, strict=True)))
        table = pa.Table.from_pylist(records, schema=REFUSALS)
        ids = table["image_id"].to_pylist()
        file = part_files.named(self.about, REFUSED, ids)
        with self._store.mirror.sending(file):
            part_files.write_refusals(self.about, table)

    def gather(self, most: int | None = None) -> None:
        """Bring the parts to this machine, for those who read files themselves.

        ``most`` is how many of them are enough.

        Raises:
            DamagedArtifact: parts vanish faster than they come.
        """

        def fetch() -> None:
            self._store.mirror.fetch(list(self.parts().whole)[:most])

        self._while_merged(fetch)

    def load(self, wanted: Iterable[str]) -> Embeddings:
        """The embeddings of ``wanted`` that are here, sorted by id.

        All pages that are read are checked, whatever was found before.

        Raises:
            DamagedArtifact: a part cannot be read; it has been set aside, and the next
                run computes its images again.
        """
        ids = set(wanted)
        return self._while_merged(lambda: self._load(ids))

    def blocks(self, part: Path) -> Iterator[np.ndarray]:
        """The vectors (n, width) of a part in the order of its rows, some at a time.

        All pages that are read are checked, whatever was found before.

        Raises:
            DamagedArtifact: see ``load``.
            FileNotFoundError: it was merged with others meanwhile.
        """
        for _, vectors in self._blocks(part):
            yield vectors

    def _while_merged(self, read: Callable[[], _Read]) -> _Read:
        """What ``read`` gives, again where a part was merged after it was listed."""
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):
                return read()
            self._store.mirror.forget(self.path)
        raise DamagedArtifact(f"{self.path}: parts vanish while they are read")

    def _load(self, wanted: set[str]) -> Embeddings:
        parts = duplicate_rows.largest_first(self._parts.scan().whole)
        found = {file: wanted.intersection(_ids(rows)) for file, rows in parts.items()}
        ids = sorted(set().union(*found.values()))
        place = {image_id: row for row, image_id in enumerate(ids)}
        vectors = np.empty((0, 0), np.float32)
        files = [file for file, some in found.items() if some]
        self._store.mirror.fetch(files)
        for file in files:
            if place.keys().isdisjoint(found[file]):
                continue
            for some, values in self._blocks(file):
                if not len(vectors):
                    vectors = np.empty((len(ids), values.shape[1]), np.float32)
                # Of an image in two parts the first one counts.
                rows_of = [place.pop(image_id, -1) for image_id in some]
                at = np.array(rows_of)
                vectors[at[at >= 0]] = values[at >= 0]
        if place:
            raise DamagedArtifact(
                f"{self.path}: {len(place)} embeddings are not where they were listed"
            )
        return Embeddings(self.encoder_key, ids, vectors)

    def _blocks(self, file: Path) -> Iterator[tuple[list[str], np.ndarray]]:
        for again in (False, True):
            try:
                for ids, values in part_files.blocks(file):
                    yield ids.to_pylist(), values
            except DamagedPartError as error:
                if not again and self._store.mirror.fetch_again(file):
                    continue  # rows that were read stay as they are
                (aside,) = self._set_aside({file: str(error)})
                raise DamagedArtifact(
                    f"{file}: {error}. It was set aside as {aside.name}; run again to "
                    "compute its images anew"
                ) from None
            return

    def _set_aside(self, damaged: Mapping[Path, str]) -> list[Path]:
        self._store.mirror.fetch(damaged)
        with (
            self._store.mirror.changing(self.path),
            self._store.mirror.changing(self.about),
        ):
            return [set_aside(file, why) for file, why in damaged.items()]

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer on this machine, and put in order what a killed one left.

        Unfinished files are deleted, damaged ones set aside, and rows that stand in
        two parts (see ``duplicate_rows``) taken out of one.
        """
        waits_for = f"another process that writes embeddings of {self._name()} to end"
        with self._store.lock(f"encoder-{self.encoder_key}", waits_for):
            self.sweep()
            for scan in (self.parts, self.refusal_files):
                if damaged := scan().damaged:
                    self._set_aside(damaged)
            if twice := duplicate_rows.find(self._parts.scan().whole):
                self._store.mirror.fetch(twice)
                with self._store.mirror.changing(self.path):
                    duplicate_rows.remove(twice)
            yield

    def sweep(self) -> None:
        """Delete what writers who died left unfinished; only while none writes.

        In an object store, also look again at what other machines wrote.
        """
        for folder in (self.path, self.about):
            self._store.mirror.forget(folder)
            for left in folder.glob(".writing-*"):
                left.unlink(missing_ok=True)
        if self._store.mirror.url is None:
            self._move_what_is_no_part()

    def _move_what_is_no_part(self) -> None:
        """Put what an older version wrote between the parts where it belongs."""
        for file in (*self.path.glob(f"{REFUSED}-*"), self.path / DESCRIPTION):
            if file.exists():
                make_folder(self.about)
                file.rename(self.about / file.name)
        (self.path / "speed.json").unlink(missing_ok=True)

    def _name(self) -> str:
        """The name of the encoder for people, as far as it is known here."""
        about = read_json(self.description) or {}
        names = [str(about[name]) for name in ("backbone", "layer") if name in about]
        return "/".join(names) or self.encoder_key


def described(store: Store) -> dict[str, Path]:
    """Encoder key -> the file of its identity, of all encoders of ``store``."""
    found: dict[str, Path] = {}
    for folder in (store.root / ABOUT, store.root / "embeddings"):
        store.mirror.fetch_each(folder, DESCRIPTION)
        for file in folder.glob(f"[!.]*/{DESCRIPTION}"):
            found[file.parent.name.removeprefix("encoder=")] = file
    return dict(sorted(found.items()))


def _ids(rows: pa.Table) -> list[str]:
    return rows["image_id"].to_pylist()
