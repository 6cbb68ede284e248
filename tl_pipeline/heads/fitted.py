"""A fitted head: it knows its encoder, its labels, and how to be saved safely.

A head is a folder: ``head.json`` says what it is, ``head.skops`` or
``head.safetensors`` holds what was learned. Nothing in it can run code: skops files are
loaded against an allow-list of our own, whose types hold numbers and other such types.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.errors import (
    DamagedArtifact,
    EncoderMismatch,
    InvalidSpec,
    TransferLearningError,
    UnsafeModelFile,
)
from tl_pipeline.store.embeddings import Embeddings

# Types beyond skops's own defaults that a head may hold. Those that can be written as
# tensors are among them for pipelines, in which they come after steps of preparation.
ALLOWED_TYPES: tuple[str, ...] = (
    "tl_pipeline.heads.classical.NaiveBayes",
    "tl_pipeline.heads.cosine.CentroidHead",
    "tl_pipeline.heads.cosine.NeighbourHead",
    "tl_pipeline.heads.discriminant.DiscriminantHead",
    "tl_pipeline.heads.linear.logistic.LinearClassifier",
    "tl_pipeline.heads.margins.MarginHead",
    "tl_pipeline.heads.neural.classifiers.NeuralHead",
    "tl_pipeline.heads.preparation.Components",
    "tl_pipeline.heads.ridge.RidgeHead",
    "tl_pipeline.heads.support_vectors.LinearSVMHead",
)


@dataclass(frozen=True)
class FittedHead:
    """A classifier fitted on the embeddings of one encoder.

    ``classes`` are the label names in the order of the columns of ``predict_proba``.
    """

    config: HeadConfig
    seed: int
    encoder_key: str
    classes: list[str]
    estimator: Any

    def predict_proba(self, embeddings: Embeddings) -> np.ndarray:
        """Class probabilities: float32 of shape (n_images, n_classes).

        Raises:
            EncoderMismatch: these are embeddings of another encoder.
        """
        if embeddings.encoder_key != self.encoder_key:
            raise EncoderMismatch(
                f"this head was trained on embeddings of encoder {self.encoder_key}, "
                f"not of {embeddings.encoder_key}; embed the images with its encoder"
            )
        if not embeddings.image_ids:
            return np.empty((0, len(self.classes)), np.float32)
        return self.estimator.predict_proba(embeddings.vectors).astype(np.float32)


def fit(
    config: HeadConfig,
    seed: int,
    embeddings: Embeddings,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> FittedHead:
    """Fit ``config`` on ``embeddings``, whose rows have ``labels`` of shape (n,).

    ``weights`` of shape (n,), above 0, tell how many copies of it each row counts for;
    rows of one of ``groups`` (n,) are nearly the same, for heads that take them.

    Raises:
        InvalidSpec: there are weights, and this head cannot take them.
    """
    estimator = heads.build(config, seed)
    given = fit_arguments(config.name, estimator, weights, groups)
    estimator.fit(embeddings.vectors, labels, **given)
    return fitted_head(config, seed, embeddings.encoder_key, estimator)


def fitted_head(
    config: HeadConfig, seed: int, encoder_key: str, estimator: Any
) -> FittedHead:
    """The head whose fitted ``estimator`` this is."""
    classes = [str(name) for name in estimator.classes_]
    return FittedHead(config, seed, encoder_key, classes, estimator)


def fit_arguments(
    name: str,
    estimator: Any,
    weights: np.ndarray | None,
    groups: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """What ``fit`` takes beyond rows and labels, for every step that takes it.

    Raises:
        InvalidSpec: there are weights, and the head ``name`` cannot take them.
    """
    from sklearn.utils.validation import has_fit_parameter  # noqa: PLC0415 - as below

    steps = getattr(estimator, "steps", [("", estimator)])
    given = {"sample_weight": weights, "groups": groups}
    found = {
        (step, argument): value
        for argument, value in given.items()
        for step, part in steps
        if value is not None and has_fit_parameter(part, argument)
    }
    if weights is not None and (steps[-1][0], "sample_weight") not in found:
        raise InvalidSpec(
            f"head {name!r} cannot take the weights that this dataset gives its "
            "images; leave it out, or take the weights out of the dataset"
        )
    return {
        f"{step}__{argument}".removeprefix("__"): value
        for (step, argument), value in found.items()
    }


def save(head: FittedHead, folder: Path) -> None:
    """Write ``head`` into ``folder``."""
    kind = _kind(head.estimator)
    about = {
        "config": head.config.model_dump(mode="json"),
        "seed": head.seed,
        "encoder_key": head.encoder_key,
        "classes": head.classes,
        "file": f"head.{kind}",
        **_convergence(head.estimator),
    }
    if kind == "skops":
        import skops.io  # noqa: PLC0415 - three seconds that reading a plan has not got

        skops.io.dump(head.estimator, folder / "head.skops")
    else:
        from safetensors.numpy import save_file  # noqa: PLC0415

        save_file(head.estimator.tensors(), folder / "head.safetensors")
    (folder / "head.json").write_text(json.dumps(about, indent=1, ensure_ascii=False))


def load(folder: Path) -> FittedHead:
    """Read the head in ``folder``.

    Raises:
        UnsafeModelFile: the file holds a type that is not allowed, or is of another
            kind than its head writes.
        DamagedArtifact: a file is missing or not whole.
    """
    try:
        about = json.loads((folder / "head.json").read_text())
        config = HeadConfig.model_validate(about["config"])
        unfitted = heads.build(config, about["seed"])
        kind = _kind(unfitted)
        if about["file"] != f"head.{kind}":
            raise UnsafeModelFile(  # noqa: TRY301 - passed on just below
                f"{folder}: a {config.name} head is kept in head.{kind}, "
                f"not in {about['file']}"
            )
        estimator = _estimator(folder / about["file"], unfitted, about["classes"])
    except TransferLearningError:
        raise
    # zipfile, skops, safetensors and torch raise errors of many kinds for damaged
    # files; all mean the same here.
    except Exception as error:  # noqa: BLE001
        raise DamagedArtifact(f"{folder}: no whole head ({error}); run again") from None
    return FittedHead(
        config, about["seed"], about["encoder_key"], about["classes"], estimator
    )


def _convergence(estimator: Any) -> dict[str, Any]:
    """How near to its optimum a head of our own solvers ended, for people."""
    model = getattr(estimator, "steps", [("", estimator)])[-1][1]
    if not hasattr(model, "converged_"):
        return {}
    return {
        "converged": bool(model.converged_),
        "relative_gap": float(model.gap_),
        "iterations": int(model.n_iter_[0]),
    }


def _kind(estimator: Any) -> str:
    """How it is kept, fitted or not: a pipeline has no tensors of its own."""
    return "safetensors" if hasattr(estimator, "tensors") else "skops"


def _estimator(file: Path, unfitted: Any, classes: list[str]) -> Any:
    if file.suffix == ".safetensors":
        from safetensors.numpy import load_file  # noqa: PLC0415

        return unfitted.from_tensors(load_file(file), classes)
    import skops.io  # noqa: PLC0415

    unknown = set(skops.io.get_untrusted_types(file=file)) - set(ALLOWED_TYPES)
    if unknown:
        raise UnsafeModelFile(
            f"{file} holds types that no head writes: {', '.join(sorted(unknown))}. "
            "It is not loaded; register the model again from a trusted run"
        )
    return skops.io.load(file, trusted=list(ALLOWED_TYPES))
