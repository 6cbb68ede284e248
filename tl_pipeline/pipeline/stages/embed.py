"""Embed: the manifest's images x some encoders -> vectors, each computed once.

Reads the manifest and, for what is missing, the images, once for all encoders.
Writes part files into ``embeddings/encoder=<key>/``, which all datasets share. The
fingerprint of an encoder's embeddings is (encoder key, set of image ids), not the bits
of floats.
"""

# pyarrow.compute is filled when it is imported.
# pyright: reportAttributeAccessIssue=false

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.data import refusals
from tl_pipeline.embedding import process
from tl_pipeline.embedding.result import EmbedStats
from tl_pipeline.encoders import resolution
from tl_pipeline.encoders.concat import EncoderEmbeddings
from tl_pipeline.encoders.encoder import Encoder, shares_network
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.speeds import Speed, known_speed, remember_speed
from tl_pipeline.progress import Track, track
from tl_pipeline.runs.planning import Outcome, Step, Workspace, field_changes
from tl_pipeline.sources import open_source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import RETRIED, EmbeddingFolder, described
from tl_pipeline.store.tables import DUPLICATES, MANIFEST, QUARANTINE
from tl_pipeline.store.timings import Timings

if TYPE_CHECKING:
    from tl_pipeline.data.reading import ImageRef
    from tl_pipeline.embedding.engine import Job

_SHARE = 4  # of the memory of a machine may be rows with every place
# The embeddings of each encoder, by its key.
EmbeddingsOf = Mapping[str, Artifact]


class EmbedResult(NamedTuple):
    """What ``fill`` did for an encoder; ``speed`` is None where it told nothing new.

    ``where`` says in words if it was done elsewhere than in this process, ``rounding``
    what float16 took of an embedding at most, as a share of its length.
    """

    images: int
    refused: int
    speed: Speed | None
    timings: Timings
    where: str = ""
    rounding: float = 0.0

    @property
    def told(self) -> str:
        """What there is to say of it, after the reason."""
        kept = f"; float16 changes an embedding by {100 * self.rounding:.2g} % at most"
        refused = f"; {self.refused:,} refused" if self.refused else ""
        return self.where + (kept if self.rounding else "") + refused


class Group(NamedTuple):
    """Images, in the order of their shards, that are missing under the same jobs."""

    jobs: "list[Job]"
    images: "list[ImageRef]"


class RemoteResult(NamedTuple):
    """What was done elsewhere, by encoder key, and where, in words."""

    done: Mapping[str, EmbedStats]
    where: str


# Embeds images into the store elsewhere, while the caller holds the writer's locks.
Executor = Callable[[Store, DatasetSpec, int, Sequence[Group], Track], RemoteResult]


@dataclass(frozen=True)
class Embed:
    """The images of ``manifest`` under each of ``encoders``, in parts of ``part_rows``.

    With an ``executor`` others do the work, and this process what they left.

    Raises:
        WeightsError: a network cannot be loaded.
        DeviceError: there is a GPU that torch cannot use.
        TooManyRefused, DatasetError: see ``refusals``; what was embedded is kept.
    """

    at: Workspace
    dataset: DatasetSpec
    manifest: Manifest
    encoders: tuple[Encoder, ...]
    part_rows: int = 512
    executor: Executor | None = None

    @property
    def title(self) -> str:
        return f"embed {_named(self.encoders)}"

    def plan(self) -> Outcome[EmbeddingsOf]:
        """Count the images that have no embedding, encoder by encoder."""
        self._check()
        return self._look()

    def _look(self) -> Outcome[EmbeddingsOf]:
        found = {encoder.key: self._look_at(encoder) for encoder in self.encoders}
        due = [e for e in self.encoders if not found[e.key][1].cached]

        def shared(encoder: Encoder) -> Step:
            step = found[encoder.key][1]
            if step.cached or step.estimated_seconds is None:
                return step
            number = sum(shares_network(encoder, other) for other in due)
            return replace(step, estimated_seconds=step.estimated_seconds / number)

        return Outcome(
            {key: artifact for key, (artifact, _) in found.items()},
            tuple(map(shared, self.encoders)),
        )

    def run(self) -> Outcome[EmbeddingsOf]:
        """Embed what is missing, shard by shard; refuse what cannot be decoded."""
        started, planned = time.perf_counter(), self._look()
        steps = zip(self.encoders, planned.steps, strict=True)
        due = [encoder for encoder, step in steps if not step.cached]
        if not due:
            self._check()
            return planned
        filled = fill(
            self.at.store,
            self.dataset,
            due,
            pairs(self.manifest.images),
            self.part_rows,
            self.executor,
        )
        # looked at anew: what was refused is known only now
        after = self.plan()
        seconds = time.perf_counter() - started
        worked = sum(done.timings.elapsed for done in filled.values())

        def ran(before: Step) -> Step:
            done = filled.get(before.keys["encoder"])
            if done is None:
                return before
            share = done.timings.elapsed / worked if worked else 1 / len(filled)
            return replace(
                before,
                reason=before.reason + done.told,
                units=done.images,
                seconds=seconds * share,
                timings=done.timings,
            )

        return replace(after, steps=tuple(map(ran, planned.steps)))

    def _look_at(self, encoder: Encoder) -> tuple[Artifact, Step]:
        started = time.perf_counter()
        folder = EmbeddingFolder(self.at.store, encoder.key)
        ids = self.manifest.table["image_id"]
        missing = ids.filter(pc.invert(pc.is_in(ids, settled(folder))))
        speed, refused = known_speed(folder), folder.refused()
        embedded = ids.filter(pc.invert(_in(ids, refused))) if refused else ids
        count = len(missing)
        width = speed.width if speed else None
        if count and width is None:
            width = resolution.width(encoder, self.at.store)
        if encoder.tokens and width:
            _check_size(encoder, width, len(embedded))
        step = Step(
            stage="embed",
            subject=encoder.label,
            cached=not count,
            reason=self._reason(encoder, missing),
            keys={"encoder": encoder.key},
            units=count,
            seconds=time.perf_counter() - started,
            estimated_seconds=count / speed.images_per_second if speed else None,
            estimated_bytes=count * width * encoder.value_bytes if width else None,
            width=width,
        )
        fingerprint = _fingerprint(encoder, embedded)
        found = EncoderEmbeddings(
            "embeddings", encoder.key, fingerprint, encoder.places
        )
        return found, step

    def _check(self) -> None:
        """See that enough is left without what any of the encoders refused."""
        folder = self.at.store.path(self.manifest.artifact)
        names = ["uri", "reason", "detail"]
        quarantine = tables.read(QUARANTINE, folder, names)
        usable, refused = self.manifest.table, []
        for encoder in self.encoders:
            found = EmbeddingFolder(self.at.store, encoder.key).refused()
            here = _in(usable["image_id"], found.keys())
            refused += [
                dict(zip(names, (uri, *found[image_id]), strict=True))
                for image_id, uri in pairs(usable.filter(here))
            ]
            usable = usable.filter(pc.invert(here))
        copies = tables.count(DUPLICATES, folder)
        total = self.manifest.table.num_rows + quarantine.num_rows + copies
        undecoded = pa.Table.from_pylist(refused, schema=quarantine.schema)
        refusals.check(
            self.dataset,
            total,
            pa.concat_tables([undecoded, quarantine]),
            usable["label"],
        )
        refusals.check_expected(self.dataset, usable["label"])

    def _reason(self, encoder: Encoder, missing: pa.ChunkedArray) -> str:
        images = self.manifest.table.num_rows
        if not len(missing):
            return f"all {images:,} images are embedded"
        used = self.at.previous.get(("embed", encoder.label), {}).get("encoder")
        total = f"{len(missing):,} of {images:,} images"
        if used is None:
            return f"{total} are not embedded yet"
        if used != encoder.key:
            return f"{_encoder_changes(self.at.store, used, encoder)}: {total}"
        seen = pc.sum(_in(missing, self._ids_of_last_run())).as_py() or 0
        lost = f"the part files of {seen:,} images are gone or damaged" if seen else ""
        fresh = len(missing) - seen
        new = f"{fresh:,} of {images:,} images are new" if fresh else ""
        return "; ".join(said for said in (lost, new) if said)

    def _ids_of_last_run(self) -> Sequence[str]:
        key = self.at.manifest_before(self.dataset.name)
        found = self.at.store.find("manifests", key) if key else None
        if found is None:
            return []
        rows = tables.read(MANIFEST, self.at.store.path(found), ["image_id"])
        return rows["image_id"].to_pylist()


def fill(
    store: Store,
    dataset: DatasetSpec,
    encoders: Sequence[Encoder],
    images: Sequence["ImageRef"],
    part_rows: int = 512,
    executor: Executor | None = None,
) -> dict[str, EmbedResult]:
    """Embed those of ``images`` that are missing; what was done, by encoder key.

    ``images`` are pairs of (image_id, uri) of ``dataset``. On this machine there is one
    writer of an encoder at a time.

    Raises:
        StoreError: a network gives other embeddings than are stored.
        WeightsError: a network cannot be loaded.
        DeviceError: there is a GPU that torch cannot use.
    """
    # torch is imported only when there is something to embed
    from tl_pipeline.embedding import engine  # noqa: PLC0415

    store.create()
    jobs = [engine.Job(e, EmbeddingFolder(store, e.key)) for e in encoders]
    # Neighbours in a tar, a row group or a folder are read together.
    by_place = sorted(images, key=lambda image: image[1])
    total = {encoder.key: EmbedStats() for encoder in encoders}
    with ExitStack() as locks:
        # in one order everywhere, so that no two runs wait for each other
        for job in sorted(jobs, key=lambda job: job.encoder.key):
            job.folder.describe(job.encoder.model_dump_json(indent=1))
            locks.enter_context(job.folder.writing())
        # another run may have embedded them while we waited
        groups = group_by_missing(jobs, by_place)
        due = sum(len(group.jobs) * len(group.images) for group in groups)
        remote = RemoteResult({}, "")
        with track(f"embed {_named(encoders)}", due) as progress:
            if executor and groups:
                # The workers take no locks: ours keep every other run out, and among
                # themselves no two of them write the same part.
                remote = executor(store, dataset, part_rows, groups, progress)
                for job in jobs:
                    job.folder.sweep()  # after workers that were killed
                groups = [
                    left
                    for group in groups
                    for left in group_by_missing(*group, not_attempted)
                ]
            for group, missing in groups:
                read = open_source(dataset).read
                made = engine.embed(
                    group, missing, read, part_rows, progress, known=by_place
                )
                for job, done in zip(group, made, strict=True):
                    total[job.encoder.key] += done
        return {
            job.encoder.key: _result(
                job,
                total[job.encoder.key],
                remote,
                sum(shares_network(job.encoder, other.encoder) for other in jobs),
            )
            for job in jobs
        }


def group_by_missing(
    jobs: "Sequence[Job]",
    images: Sequence["ImageRef"],
    choose: Callable[[EmbeddingFolder, Sequence["ImageRef"]], list["ImageRef"]]
    | None = None,
) -> list[Group]:
    """``images`` in groups of those that are missing under the same of ``jobs``.

    ``choose`` gives the missing ones of a folder, ``pending`` by default.
    """
    choose = choose or pending
    missing = [{i for i, _ in choose(job.folder, images)} for job in jobs]
    groups: dict[tuple[int, ...], list[ImageRef]] = {}
    for image in images:
        which = tuple(at for at, ids in enumerate(missing) if image[0] in ids)
        if which:
            groups.setdefault(which, []).append(image)
    return [Group([jobs[at] for at in which], found) for which, found in groups.items()]


def _result(
    job: "Job", done: EmbedStats, remote: RemoteResult, sharing: int
) -> EmbedResult:
    """What was done here and elsewhere; our own speed is remembered for plans.

    So many encoders, itself among them, were ``sharing`` its network.
    """
    known, speed = known_speed(job.folder), None
    if done.seconds_per_image:
        speed = Speed(1 / done.seconds_per_image, done.width)
    elif done.images and known is None:
        speed = Speed(done.images / (done.timings.elapsed * sharing), done.width)
    if speed:
        remember_speed(job.folder, speed)
    there = remote.done.get(job.encoder.key)
    done = done + there if there else done
    where = remote.where if there else ""
    return EmbedResult(
        done.images, done.refused, speed, done.timings, where, done.rounding
    )


def pairs(images: pa.Table) -> list[tuple[str, str]]:
    """(image_id, uri) of every one of ``images``."""
    return list(tables.values(images, "image_id", "uri"))


def settled(folder: EmbeddingFolder) -> pa.ChunkedArray:
    """Ids of the images that have an embedding, or were refused for good."""
    refused = [i for i, (why, _) in folder.refused().items() if why not in RETRIED]
    chunks = folder.embedded_ids().chunks
    return pa.chunked_array([*chunks, pa.array(refused, pa.string())])


def pending(folder: EmbeddingFolder, images: Sequence["ImageRef"]) -> list["ImageRef"]:
    """Those of ``images`` that have no embedding and were not refused for good."""
    done = set(settled(folder).to_pylist())
    return [image for image in images if image[0] not in done]


def not_attempted(
    folder: EmbeddingFolder, images: Sequence["ImageRef"]
) -> list["ImageRef"]:
    """Those of ``images`` that have no embedding and were not refused at all."""
    done = folder.embedded() | folder.refused().keys()
    return [image for image in images if image[0] not in done]


def _named(encoders: Sequence[Encoder]) -> str:
    return encoders[0].label if len(encoders) == 1 else f"{len(encoders)} encoders"


def _in(ids: pa.ChunkedArray, some: Collection[str]) -> pa.ChunkedArray:
    """Whether each of ``ids`` is one of ``some``."""
    return pc.is_in(ids, pa.array(some, pa.string(), size=len(some)))


def _fingerprint(encoder: Encoder, ids: pa.ChunkedArray) -> str:
    """Of the embeddings of ``ids``, which are sorted: of (encoder key, ids)."""
    return tables.named_fingerprint(encoder.key, ids)


def _encoder_changes(store: Store, used: str, encoder: Encoder) -> str:
    file = described(store).get(used)
    if file is None:
        return "another encoder"
    before = json.loads(file.read_text())
    now = encoder.model_dump(mode="json")
    for fields in (before, now):
        fields["weights"].pop("file", None)
    return ", ".join(field_changes(before, now))


def _check_size(encoder: Encoder, width: int, images: int) -> None:
    """Refuse tokens of more bytes than heads can hold in memory on this machine.

    Heads see float32, and learn from copies of their rows.

    Raises:
        InvalidSpec: they are more; says how many, and how to have fewer.
    """
    needed, most = 4 * width * images, process.memory() // _SHARE
    if needed > most:
        raise InvalidSpec(
            f"{encoder.label}: pool=tokens keeps {encoder.tokens:,} places of "
            f"{width // (encoder.tokens or 1):,} values, {4 * width / 1e6:.2f} MB an "
            f"image and {needed / 1e9:.1f} GB for {images:,} images; heads have room "
            f"for {most / 1e9:.1f} GB here, a quarter of the memory. Take a smaller "
            "side, or pool=grid2 or pool=grid3"
        )
