"""Write a registered model as a folder, once that is found to say what the model says.

The folder has ``model.onnx`` or ``model.pt2``, ``labels.json``, ``preprocessing.json``,
``predict.py`` and ``card.json``, the card.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tl_pipeline import heads
from tl_pipeline.data.splits import TRAIN, VALIDATION
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.export import checking, graphs
from tl_pipeline.export.checking import Agreement, Images, Told
from tl_pipeline.export.classifier import Classifier, fed
from tl_pipeline.export.graphs import FILES, Format, Precision
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.registry.model import Model
from tl_pipeline.store.artifacts import Store

MOST = 500  # validation images that are compared
_LEARNED = 128  # images that show the ranges of activations
_LIBRARIES = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy", "pillow")


@dataclass(frozen=True)
class Export:
    """What is exported: ``max_loss`` is the accuracy that fp16 or int8 may cost.

    ``name`` tells for people which model it is.
    """

    model: Model
    name: str
    kind: Format
    precision: Precision
    max_loss: float


@dataclass(frozen=True)
class Exported:
    """A folder that was written, and what is known of it."""

    folder: Path
    megabytes: float
    model: Told
    exact: Agreement
    found: Agreement


def export(
    wanted: Export, store: Store, output: Path, catalog_file: Path | None = None
) -> Exported:
    """Write the model into the folder ``output``, which must not be there.

    It is compared with the model on at most ``MOST`` validation images of the last run
    on its dataset; nothing is left where it differs.

    Raises:
        InvalidSpec: there is no such export of the model, or it says something else.
        DamagedArtifact, CatalogError, UnknownName: see ``checking.images``.
        WeightsError: see ``Classifier``.
    """
    graphs.check(wanted.kind, wanted.precision)
    if output.exists():
        raise InvalidSpec(f"{output} is there already; give another --output")
    model = wanted.model
    exact = Classifier(model)
    given = checking.images(store, model, VALIDATION, MOST, catalog_file)
    said = checking.told(model, given)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as place:
        folder, scratch = Path(place) / "folder", Path(place) / "scratch"
        folder.mkdir()
        file = folder / FILES[wanted.kind]
        _write_texts(model, folder)
        graphs.write(exact, given.pixels, wanted.kind, file)
        first = checking.compare(folder, scratch, model, given, said)
        checking.check_exact(first)
        found = first
        if wanted.precision != "fp32":
            _reduce(wanted, store, file, given, catalog_file)
            found = checking.compare(folder, scratch, model, given, said)
            _check_loss(found, wanted)
        done = Exported(output, file.stat().st_size / 1e6, said, first, found)
        _write_json(folder / "card.json", _card(wanted, done, file))
        folder.rename(output)
    return done


def preprocessing(how: Preprocess) -> dict[str, Any]:
    """All that makes of a file's bytes what the network takes, as ``predict.py`` reads.

    Normalisation is in the network; it is told for people.
    """
    channels = 1 if how.grey else len(how.mean)
    return {
        "decoded": "8-bit RGB, upright by EXIF, transparency on white, first frame",
        "grey": how.grey,
        "resize": how.resize,
        "squash": how.squash,
        "pad": how.pad,
        "interpolation": how.interpolation,
        "antialias": how.antialias,
        "crop": how.crop,
        "input": {
            "name": "pixels",
            "type": "uint8",
            "shape": ["images", channels, how.crop, how.crop],
            "channels": "grey" if how.grey else "RGB",
        },
        "in_the_network": "(pixels / 255 - mean) / std",
        "mean": how.mean,
        "std": how.std,
    }


def _write_texts(model: Model, folder: Path) -> None:
    _write_json(folder / "labels.json", model.classes)
    _write_json(folder / "preprocessing.json", preprocessing(fed(model)))
    shutil.copyfile(Path(__file__).with_name("predict.py"), folder / "predict.py")


def _reduce(
    wanted: Export, store: Store, file: Path, given: Images, catalog_file: Path | None
) -> None:
    """Write the network anew in ``file``, in fewer bits."""
    if wanted.precision == "fp16":
        half = Classifier(wanted.model, torch.float16)
        graphs.write(half, given.pixels, wanted.kind, file)
        return
    learned = checking.images(store, wanted.model, TRAIN, _LEARNED, catalog_file)
    graphs.quantise(file, learned.pixels)


def _check_loss(found: Agreement, wanted: Export) -> None:
    if not found.loss.value <= wanted.max_loss:
        raise InvalidSpec(
            f"nothing is exported: {wanted.precision} is right in "
            f"{found.accuracy.value:.1%} of {found.images} validation images, which is "
            f"{100 * found.loss.value:.1f} points less than float32, where "
            f"{100 * wanted.max_loss:g} are allowed; give --precision fp32, or "
            "--max-loss if that is good enough"
        )


def _card(wanted: Export, done: Exported, file: Path) -> dict[str, Any]:
    model = wanted.model
    point = model.operating_point
    return {
        "model": wanted.name,
        "key": model.folder.name,
        "encoders": [encoder.label for encoder in model.encoders],
        "heads": [heads.label(member.head.config) for member in model.members],
        "format": wanted.kind,
        "precision": wanted.precision,
        "opset": _opset(file) if wanted.kind == "onnx" else None,
        "versions": dict(_versions()),
        "megabytes": done.megabytes,
        "operating_point": point.model_dump(mode="json") if point else None,
        "compared_on": f"{done.found.images} validation images, of which a model that "
        "was refitted has learned: the accuracies are for comparison",
        "tl_predict": {
            "accuracy": done.model.accuracy.model_dump(),
            "milliseconds": done.model.milliseconds,
            "megabytes": done.model.megabytes,
        },
        "fp32": asdict(done.exact) | _scores(done.exact),
        wanted.precision: asdict(done.found) | _scores(done.found),
    }


def _scores(found: Agreement) -> dict[str, Any]:
    return {"accuracy": found.accuracy.model_dump(), "loss": found.loss.model_dump()}


def _opset(file: Path) -> int:
    import onnx  # noqa: PLC0415

    return onnx.load(file).opset_import[0].version


def _versions() -> Iterable[tuple[str, str]]:
    for name in _LIBRARIES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _write_json(file: Path, told: Any) -> None:
    file.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")
