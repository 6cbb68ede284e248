"""Embed: the manifest's images x some encoders -> vectors, each computed once.

Reads the manifest and, for what is missing, the images, once for all encoders.
Writes part files into ``embeddings/encoder=<key>/``, which all datasets share. The
fingerprint of an encoder's embeddings is (encoder key, set of image ids), not the bits
of floats.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from tl_pipeline.embedding.result import EmbedStats
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.progress import Track, track
from tl_pipeline.runs.planning import (
    Context,
    EmbeddingsOf,
    Outcome,
    Step,
    field_changes,
)
from tl_pipeline.sources import open_source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.embeddings import RETRIED, EmbeddingFolder
from tl_pipeline.store.files import write_atomically
from tl_pipeline.store.keys import digest
from tl_pipeline.store.tables import MANIFEST
from tl_pipeline.store.timings import Timings

if TYPE_CHECKING:
    from tl_pipeline.data.reading import Image
    from tl_pipeline.embedding.engine import Job


class Speed(NamedTuple):
    """How fast an encoder embeds on this machine, and the floats of an embedding."""

    images_per_second: float
    width: int


class Filled(NamedTuple):
    """What ``fill`` did for an encoder; ``speed`` is None where it told nothing new.

    ``where`` says in words if it was done elsewhere than in this process.
    """

    images: int
    refused: int
    speed: Speed | None
    timings: Timings
    where: str = ""


class Group(NamedTuple):
    """Images, in the order of their shards, that are missing under the same jobs."""

    jobs: "list[Job]"
    images: "list[Image]"


class Spread(NamedTuple):
    """What was done elsewhere, by encoder key, and where, in words."""

    done: Mapping[str, EmbedStats]
    where: str


# Lets others embed images into the store while the caller holds the writer's locks.
Spreader = Callable[[Context, Sequence[Group], Track], Spread]


def plan(
    context: Context, manifest: Artifact, encoders: Sequence[Encoder]
) -> Outcome[EmbeddingsOf]:
    """Count the images of ``manifest`` that have no embedding, encoder by encoder."""
    images = images_of(context, manifest)
    found = {encoder.key: _plan(context, images, encoder) for encoder in encoders}
    return Outcome(
        {key: artifact for key, (artifact, _) in found.items()},
        tuple(step for _, step in found.values()),
    )


def run(
    context: Context,
    manifest: Artifact,
    encoders: Sequence[Encoder],
    spread: Spreader | None = None,
) -> Outcome[EmbeddingsOf]:
    """Embed what is missing, shard by shard; refuse what cannot be decoded.

    With ``spread`` others do the work, and this process what they left.

    Raises:
        WeightsError: a network cannot be loaded.
        DeviceError: there is a GPU that torch cannot use.
    """
    started, planned = time.perf_counter(), plan(context, manifest, encoders)
    due = [
        e for e, step in zip(encoders, planned.steps, strict=True) if not step.cached
    ]
    if not due:
        return planned
    filled = fill(context, due, images_of(context, manifest), spread)
    # planned anew: what was refused is known only now
    after = plan(context, manifest, encoders)
    seconds = time.perf_counter() - started
    worked = sum(done.timings.elapsed for done in filled.values())

    def ran(before: Step) -> Step:
        done = filled.get(before.keys["encoder"])
        if done is None:
            return before
        refused = f"; {done.refused:,} refused" if done.refused else ""
        share = done.timings.elapsed / worked if worked else 1 / len(filled)
        return replace(
            before,
            reason=before.reason + done.where + refused,
            units=done.images,
            seconds=seconds * share,
            timings=done.timings,
        )

    return replace(after, steps=tuple(map(ran, planned.steps)))


def fill(
    context: Context,
    encoders: Sequence[Encoder],
    images: Sequence["Image"],
    spread: Spreader | None = None,
) -> dict[str, Filled]:
    """Embed those of ``images`` that are missing; what was done, by encoder key.

    ``images`` are pairs of (image_id, uri) of ``context.dataset``. On this machine
    there is one writer of an encoder at a time.

    Raises:
        WeightsError: a network cannot be loaded.
        DeviceError: there is a GPU that torch cannot use.
    """
    # torch is imported only when there is something to embed
    from tl_pipeline.embedding import engine  # noqa: PLC0415

    context.store.create()
    jobs = [engine.Job(e, EmbeddingFolder(context.store, e.key)) for e in encoders]
    # Neighbours in a tar, a row group or a folder are read together.
    by_place = sorted(images, key=lambda image: image[1])
    total = {encoder.key: EmbedStats() for encoder in encoders}
    with ExitStack() as locks:
        # in one order everywhere, so that no two runs wait for each other
        for job in sorted(jobs, key=lambda job: job.encoder.key):
            job.folder.describe(job.encoder.model_dump_json(indent=1))
            locks.enter_context(job.folder.writing())
        # another run may have embedded them while we waited
        wanted = alike(jobs, by_place)
        label = encoders[0].label if len(encoders) == 1 else f"{len(encoders)} encoders"
        due = sum(len(group) * len(missing) for group, missing in wanted)
        away = Spread({}, "")
        with track(f"embed {label}", due) as progress:
            if spread and wanted:
                # The workers take no locks: ours keep every other run out, and among
                # themselves no two of them write the same part.
                away = spread(context, wanted, progress)
                for job in jobs:
                    job.folder.sweep()  # after workers that were killed
                wanted = [left for group in wanted for left in alike(*group, untouched)]
            for group, missing in wanted:
                read = open_source(context.dataset).read
                made = engine.embed(group, missing, read, context.part_rows, progress)
                for job, done in zip(group, made, strict=True):
                    total[job.encoder.key] += done
        return {
            job.encoder.key: _filled(job, total[job.encoder.key], away) for job in jobs
        }


def alike(
    jobs: "Sequence[Job]",
    images: Sequence["Image"],
    choose: Callable[[EmbeddingFolder, Sequence["Image"]], list["Image"]] | None = None,
) -> list[Group]:
    """``images`` in groups of those that are missing under the same of ``jobs``.

    ``choose`` gives the missing ones of a folder, ``unsettled`` by default.
    """
    choose = choose or unsettled
    missing = [{i for i, _ in choose(job.folder, images)} for job in jobs]
    groups: dict[tuple[int, ...], list[Image]] = {}
    for image in images:
        which = tuple(at for at, ids in enumerate(missing) if image[0] in ids)
        if which:
            groups.setdefault(which, []).append(image)
    return [Group([jobs[at] for at in which], found) for which, found in groups.items()]


def _filled(job: "Job", done: EmbedStats, away: Spread) -> Filled:
    """What was done here and elsewhere; our own speed is remembered for plans."""
    known, speed = known_speed(job.folder), None
    if done.seconds_per_image:
        speed = Speed(1 / done.seconds_per_image, done.width)
    elif done.images and known is None:
        speed = Speed(done.images / done.timings.elapsed, done.width)
    if speed:
        _remember_speed(job.folder, speed)
    there = away.done.get(job.encoder.key)
    done = done + there if there else done
    where = away.where if there else ""
    return Filled(done.images, done.refused, speed, done.timings, where)


def _plan(
    context: Context, images: Sequence["Image"], encoder: Encoder
) -> tuple[Artifact, Step]:
    started = time.perf_counter()
    folder = EmbeddingFolder(context.store, encoder.key)
    missing = unsettled(folder, images)
    speed = known_speed(folder)
    ids = sorted({image_id for image_id, _ in images} - folder.refused().keys())
    step = Step(
        stage="embed",
        subject=encoder.label,
        cached=not missing,
        reason=_reason(context, encoder, images, missing),
        keys={"encoder": encoder.key},
        units=len(missing),
        seconds=time.perf_counter() - started,
        estimated_seconds=len(missing) / speed.images_per_second if speed else None,
        estimated_bytes=len(missing) * speed.width * 4 if speed else None,
    )
    return Artifact("embeddings", encoder.key, digest([encoder.key, ids])), step


def images_of(context: Context, manifest: Artifact) -> list[tuple[str, str]]:
    """(image_id, uri) of every image, in the order of the ids."""
    rows = tables.read(MANIFEST, context.store.path(manifest), ["image_id", "uri"])
    return list(zip(rows["image_id"].to_pylist(), rows["uri"].to_pylist(), strict=True))


def unsettled(
    folder: EmbeddingFolder, images: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Those of ``images`` that have no embedding and were not refused for good."""
    refused = folder.refused().items()
    final = {image_id for image_id, (why, _) in refused if why not in RETRIED}
    settled = folder.embedded() | final
    return [image for image in images if image[0] not in settled]


def untouched(
    folder: EmbeddingFolder, images: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Those of ``images`` that have no embedding and were not refused at all."""
    settled = folder.embedded() | folder.refused().keys()
    return [image for image in images if image[0] not in settled]


def _reason(
    context: Context,
    encoder: Encoder,
    images: Sequence[tuple[str, str]],
    missing: Sequence[tuple[str, str]],
) -> str:
    if not missing:
        return f"all {len(images):,} images are embedded"
    used = context.previous.get(("embed", encoder.label), {}).get("encoder")
    known = _ids_of_last_run(context)
    seen = sum(image_id in known for image_id, _ in missing)
    total = f"{len(missing):,} of {len(images):,} images"
    if used is None:
        return f"{total} are not embedded yet"
    if used != encoder.key:
        return f"{_encoder_changes(context, used, encoder)}: {total}"
    lost = f"the part files of {seen:,} images are gone or damaged" if seen else ""
    fresh = len(missing) - seen
    new = f"{fresh:,} of {len(images):,} images are new" if fresh else ""
    return "; ".join(said for said in (lost, new) if said)


def _ids_of_last_run(context: Context) -> set[str]:
    key = context.previous.get(("ingest", context.dataset.name), {}).get("manifest")
    found = context.store.find("manifests", key) if key else None
    return {image_id for image_id, _ in images_of(context, found)} if found else set()


def _encoder_changes(context: Context, used: str, encoder: Encoder) -> str:
    file = EmbeddingFolder(context.store, used).path / "encoder.json"
    with suppress(FileNotFoundError):
        context.store.mirror.fetch([file])
    if not file.exists():
        return "another encoder"
    before = json.loads(file.read_text())
    now = encoder.model_dump(mode="json")
    for fields in (before, now):
        fields["weights"].pop("file", None)
    return ", ".join(field_changes(before, now))


def known_speed(folder: EmbeddingFolder) -> Speed | None:
    """What was last measured with this encoder, on whatever dataset."""
    try:
        known = json.loads((folder.path / "speed.json").read_text())
        return Speed(known["images_per_second"], known["width"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None


def _remember_speed(folder: EmbeddingFolder, speed: Speed) -> None:
    known = {
        "images_per_second": round(speed.images_per_second, 2),
        "width": speed.width,
    }
    write_atomically(folder.path / "speed.json", json.dumps(known))
