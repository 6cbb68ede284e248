"""Whether an exported folder says what the model says, from the bytes of files."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tl_pipeline.config import catalog
from tl_pipeline.data.reading import checked
from tl_pipeline.embedding.devices import CPU
from tl_pipeline.embedding.engine import sharing
from tl_pipeline.embedding.forward import BATCH, Forward
from tl_pipeline.errors import DamagedArtifact, InvalidSpec, MachineError
from tl_pipeline.evaluation import intervals
from tl_pipeline.export.classifier import as_exact, fed
from tl_pipeline.inputs import modalities
from tl_pipeline.inputs.images import RefusedImage
from tl_pipeline.pipeline.manifest import Manifest, Rows
from tl_pipeline.registry import prediction
from tl_pipeline.registry.model import Model
from tl_pipeline.runs import records
from tl_pipeline.score import Score
from tl_pipeline.sources import open_source
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Store

# How far probabilities of float32 may be from the model's.
OF_PIXELS, OF_FILES = 1e-4, 1e-3
_ALONE = 32  # images of which each is timed, as in ``measure``


class Images(NamedTuple):
    """Files with their labels (n,), what each belongs to (n,), and their pixels.

    ``pixels`` are as the pipeline prepares them: uint8 (n, channels, crop, crop).
    """

    files: list[bytes]
    labels: np.ndarray
    units: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class Told:
    """What the model itself says of images: probabilities (n, K), computed in float32.

    ``accuracy`` and ``milliseconds`` an image are of ``tl predict``, ``megabytes`` of
    the weights and heads that it loads.
    """

    probabilities: np.ndarray
    accuracy: Score
    milliseconds: float
    megabytes: float


@dataclass(frozen=True)
class Agreement:
    """What an exported folder came to beside the model, on the same images.

    The largest differences in probability are from the pipeline's pixels, and from the
    bytes of files. ``loss`` is the accuracy of the model in float32 less the folder's.
    ``unread`` images cannot be read by its script, for the reason ``why``.
    """

    of_pixels: float
    of_files: float
    accuracy: Score
    loss: Score
    milliseconds: float
    images: int
    unread: int
    why: str


def images(
    store: Store, model: Model, split: str, most: int, catalog_file: Path | None
) -> Images:
    """At most ``most`` images of ``split`` in the last run on the model's dataset.

    Their ids are hashes of contents: the first ones are drawn at random.

    Raises:
        DamagedArtifact: no run or no image of it is there any more.
        CatalogError, UnknownName: the catalogue does not tell where images are.
    """
    record = records.latest(store, model.dataset)
    made = store.find("manifests", record.manifest) if record else None
    if record is None or made is None:
        raise DamagedArtifact(
            f"the store has no run on {model.dataset}, so there are no images to check "
            "the export by; run again"
        )
    read = open_source(catalog.find(record.spec.dataset, catalog_file)).read
    table = Manifest(store, made, model.dataset).table
    rows = Rows(table.filter(np.array(table["split"].to_pylist()) == split)[:most])
    uris = dict(tables.values(table.select(["image_id", "uri"]), "image_id", "uri"))
    how = fed(model)
    image = modalities.of(how)
    found, kept, why = [], [], ""
    for at, one in enumerate(rows.ids):
        try:
            data = checked((one, uris[one]), read)
            found.append((data, image.prepare(image.decode(data, how), how)))
            kept.append(at)
        except RefusedImage as fault:
            why = f"{uris[one]}: {fault}"
    if not found:
        raise DamagedArtifact(
            f"{model.dataset}: no image of {split} can be read to check the export by "
            f"({why}); --catalog must name the catalogue of the run"
        )
    files, pixels = zip(*found, strict=True)
    return Images(list(files), rows.labels[kept], rows.groups[kept], np.stack(pixels))


def told(model: Model, given: Images) -> Told:
    """What ``model`` says of ``given``."""
    vectors: dict[str, np.ndarray] = {}
    size = 0
    for group in sharing(model.encoders):
        network = Forward([as_exact(encoder) for encoder in group], CPU)
        size += network.bytes
        step = BATCH[CPU.type]
        parts = [
            given.pixels[at : at + step] for at in range(0, len(given.pixels), step)
        ]
        blocks = zip(*(network(part) for part in parts), strict=True)
        for encoder, found in zip(group, blocks, strict=True):
            vectors[encoder.key] = np.concatenate(found)
    names = [str(number) for number in range(len(given.files))]
    said = prediction.probabilities(model, vectors, names)
    if model.operating_point:
        said = model.operating_point.calibration.apply(said)
    predictor = prediction.Predictor(model)
    labels = [found.label for found in predictor.predict(given.files)]
    seconds = []
    for data in given.files[-_ALONE:]:
        started = time.perf_counter()
        predictor.predict([data])
        seconds.append(time.perf_counter() - started)
    heads = sum(file.stat().st_size for file in model.folder.rglob("*.safetensors"))
    return Told(
        said,
        intervals.share(np.array(labels) == given.labels, given.units),
        1000 * float(np.median(seconds)),
        (size + heads) / 1e6,
    )


def compare(
    folder: Path, scratch: Path, model: Model, given: Images, said: Told
) -> Agreement:
    """What ``folder`` says of ``given``, in a process without this package.

    Raises:
        MachineError: that process fails.
        InvalidSpec: the script of the folder can read none of the images.
    """
    scratch.mkdir(exist_ok=True)
    for number, data in enumerate(given.files):
        (scratch / str(number)).write_bytes(data)
    np.save(scratch / "pixels.npy", given.pixels)
    script = Path(__file__).with_name("measure.py")
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-I", "-B", script, folder, scratch],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise MachineError(f"the exported network does not run: {''.join(last)}")
    with np.load(scratch / "found.npz") as found:
        assert found["alone"]  # noqa: S101 - it imports nothing of this package
        as_pixels, as_files = found["as_pixels"], found["as_files"]
        milliseconds, why = float(found["milliseconds"]), str(found["why"])
    there = np.isfinite(as_files).all(axis=1)
    if not there.any():
        raise InvalidSpec(
            f"{folder.name}/predict.py can read none of the validation images: {why}. "
            "Such files need this package (tl predict)"
        )
    classes, labels = np.array(model.classes), given.labels[there]
    units = given.units[there]
    mine = classes[as_files[there].argmax(axis=1)] == labels
    theirs = classes[said.probabilities[there].argmax(axis=1)] == labels
    return Agreement(
        _largest(as_pixels, said.probabilities),
        _largest(as_files[there], said.probabilities[there]),
        intervals.share(mine, units),
        intervals.paired_difference(theirs, mine, units, seed=0),
        milliseconds,
        int(there.sum()),
        int((~there).sum()),
        why,
    )


def check_exact(found: Agreement) -> None:
    """Refuse a folder of float32 that does not say what the model says.

    Raises:
        InvalidSpec: it does not; whether its network or its pixels differ is said.
    """
    if not found.of_pixels <= OF_PIXELS:
        raise InvalidSpec(
            f"nothing is exported: from the same pixels, probabilities of the exported "
            f"network differ from the model's by up to {found.of_pixels:.2g}, where "
            f"{OF_PIXELS:g} is allowed. The network or its head is sensitive to "
            "rounding, or torch has written another one; choose a model of another head"
        )
    if not found.of_files <= OF_FILES:
        raise InvalidSpec(
            f"nothing is exported: from the bytes of files, probabilities differ from "
            f"the model's by up to {found.of_files:.2g}, where {OF_FILES:g} is "
            f"allowed; from the same pixels they agree to {found.of_pixels:.2g}, so "
            "the files become other pixels: decoding, orientation, resize, crop or "
            "colour differ"
        )


def _largest(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())
