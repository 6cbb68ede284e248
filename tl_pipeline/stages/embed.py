"""Embed: the manifest's images x one encoder -> vectors, each computed once.

Reads the manifest and, for what is missing, the images. Adds part files to
``embeddings/encoder=<key>/``, which all datasets share. The fingerprint of its output
is (encoder key, set of image ids) and not the bits of the floats.
"""

import json
import time
from collections.abc import Sequence

from tl_pipeline import tables
from tl_pipeline.artifacts import Artifact, digest, write_atomically
from tl_pipeline.embeddings import EmbeddingFolder
from tl_pipeline.encoders import Encoder
from tl_pipeline.planning import Context, Outcome, Step, field_changes
from tl_pipeline.progress import track
from tl_pipeline.sources import open_source
from tl_pipeline.tables import MANIFEST

# Images whose refusal said nothing about them are tried again.
_RETRIED = ("unreadable", "changed")


def plan(context: Context, manifest: Artifact, encoder: Encoder) -> Outcome[Artifact]:
    """Count the images of ``manifest`` that have no embedding under ``encoder``."""
    started = time.perf_counter()
    folder = EmbeddingFolder(context.store, encoder.key)
    images = _images(context, manifest)
    missing = _missing(folder, images)
    speed = _speed(folder)
    ids = sorted({image_id for image_id, _ in images} - folder.refused().keys())
    step = Step(
        stage="embed",
        subject=encoder.label,
        cached=not missing,
        reason=_reason(context, encoder, images, missing),
        keys={"encoder": encoder.key},
        units=len(missing),
        seconds=time.perf_counter() - started,
        estimated_seconds=len(missing) / speed[0] if speed else None,
        estimated_bytes=len(missing) * speed[1] * 4 if speed else None,
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
    # torch is imported only when there is something to embed
    from tl_pipeline import engine  # noqa: PLC0415

    folder = EmbeddingFolder(context.store, encoder.key)
    context.store.create()
    folder.describe(encoder.model_dump_json(indent=1))
    with folder.writing():
        # another run may have embedded them while we waited
        missing = _missing(folder, _images(context, manifest))
        with track(f"embed {encoder.label}", len(missing)) as progress:
            done = engine.embed(
                encoder,
                missing,
                open_source(context.dataset).read,
                folder,
                context.part_rows,
                progress,
            )
        if done.images:
            _remember_speed(folder, done.images / done.seconds, done.width)
    refused = f"; {done.refused:,} refused" if done.refused else ""
    # planned anew: what was refused is known only now
    return plan(context, manifest, encoder).ran(
        time.perf_counter() - started,
        reason=planned.step.reason + refused,
        units=done.images,
    )


def _images(context: Context, manifest: Artifact) -> list[tuple[str, str]]:
    """(image_id, uri) of every image, in the order of the ids."""
    rows = tables.read(MANIFEST, context.store.path(manifest), ["image_id", "uri"])
    return list(zip(rows["image_id"].to_pylist(), rows["uri"].to_pylist(), strict=True))


def _missing(
    folder: EmbeddingFolder, images: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    refused = folder.refused().items()
    final = {image_id for image_id, (why, _) in refused if why not in _RETRIED}
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
    return {image_id for image_id, _ in _images(context, found)} if found else set()


def _encoder_changes(context: Context, used: str, encoder: Encoder) -> str:
    file = EmbeddingFolder(context.store, used).path / "encoder.json"
    if not file.exists():
        return "another encoder"
    before = json.loads(file.read_text())
    now = encoder.model_dump(mode="json")
    for fields in (before, now):
        fields["weights"].pop("file", None)
    return ", ".join(field_changes(before, now))


def _speed(folder: EmbeddingFolder) -> tuple[float, int] | None:
    """Images a second and floats an image, as last measured with this encoder."""
    try:
        known = json.loads((folder.path / "speed.json").read_text())
        return known["images_per_second"], known["width"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None


def _remember_speed(folder: EmbeddingFolder, rate: float, width: int) -> None:
    known = {"images_per_second": round(rate, 2), "width": width}
    write_atomically(folder.path / "speed.json", json.dumps(known))
