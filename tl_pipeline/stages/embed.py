"""Embed: the manifest's images x one encoder -> vectors, each computed once.

Reads the manifest and, for what is missing, the images. Adds part files to
``embeddings/encoder=<key>/``, which all datasets share. The fingerprint of its output
is (encoder key, set of image ids) and not the bits of the floats.
"""

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tl_pipeline import tables
from tl_pipeline.artifacts import Artifact, digest, write_atomically
from tl_pipeline.embeddings import RETRIED, EmbeddingFolder
from tl_pipeline.encoders import Encoder
from tl_pipeline.planning import Context, Outcome, Step, field_changes
from tl_pipeline.progress import Track, track
from tl_pipeline.sources import open_source
from tl_pipeline.tables import MANIFEST

if TYPE_CHECKING:
    from tl_pipeline.engine import Embedded

# A pace is taken once the network is warm, over images enough to outweigh those that
# were decoded meanwhile.
_TIMED = 128


class Speed(NamedTuple):
    """How fast an encoder embeds on this machine, and the floats of an embedding."""

    images_per_second: float
    width: int


class Filled(NamedTuple):
    """What ``fill`` did; ``speed`` is None where it told nothing new."""

    images: int
    refused: int
    speed: Speed | None


def plan(context: Context, manifest: Artifact, encoder: Encoder) -> Outcome[Artifact]:
    """Count the images of ``manifest`` that have no embedding under ``encoder``."""
    started = time.perf_counter()
    folder = EmbeddingFolder(context.store, encoder.key)
    images = images_of(context, manifest)
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
    fingerprint = digest([encoder.key, ids])
    return Outcome(Artifact("embeddings", encoder.key, fingerprint), step)


def run(context: Context, manifest: Artifact, encoder: Encoder) -> Outcome[Artifact]:
    """Embed what is missing, shard by shard; refuse what cannot be decoded.

    Raises:
        WeightsError: the network cannot be loaded.
    """
    started, planned = time.perf_counter(), plan(context, manifest, encoder)
    if planned.step.cached:
        return planned
    done = fill(context, encoder, images_of(context, manifest))
    refused = f"; {done.refused:,} refused" if done.refused else ""
    # planned anew: what was refused is known only now
    return plan(context, manifest, encoder).ran(
        time.perf_counter() - started,
        reason=planned.step.reason + refused,
        units=done.images,
    )


def fill(
    context: Context, encoder: Encoder, images: Sequence[tuple[str, str]]
) -> Filled:
    """Embed those of ``images`` that are missing, as the only writer of the encoder.

    ``images`` are pairs of (image_id, uri) of ``context.dataset``.

    Raises:
        WeightsError: the network cannot be loaded.
    """
    # torch is imported only when there is something to embed
    from tl_pipeline import engine  # noqa: PLC0415

    folder = EmbeddingFolder(context.store, encoder.key)
    context.store.create()
    folder.describe(encoder.model_dump_json(indent=1))
    with folder.writing():
        # another run may have embedded them while we waited
        missing = unsettled(folder, images)
        with track(f"embed {encoder.label}", len(missing)) as progress:
            pace = _Pace(progress)
            done = engine.embed(
                encoder,
                missing,
                open_source(context.dataset).read,
                folder,
                context.part_rows,
                pace,
            )
        speed = _measured(done, pace, known_speed(folder))
        if speed:
            _remember_speed(folder, speed)
    return Filled(done.images, done.refused, speed)


def _measured(done: "Embedded", pace: "_Pace", known: Speed | None) -> Speed | None:
    """The speed of the warm network; of all there was, if nothing better is known."""
    if not done.images:
        return None
    if pace.images >= _TIMED:
        return Speed(pace.images / pace.seconds, done.width)
    return None if known else Speed(done.images / done.seconds, done.width)


class _Pace(Track):
    """Takes the time from the end of the first batch to the end of the last."""

    def __init__(self, progress: Track) -> None:
        self._progress = progress
        self._first: float | None = None
        self.images, self.seconds = 0, 0.0

    def advance(self, done: int = 1) -> None:
        """Report ``done`` more images as finished."""
        now = time.perf_counter()
        if self._first is None:
            self._first = now
        else:
            self.images, self.seconds = self.images + done, now - self._first
        self._progress.advance(done)


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
