"""A fitted head: it knows its encoder, its labels, and how to be kept safely.

A head is a folder: ``head.json`` says what it is, ``head.safetensors`` holds what was
learned, all of it numbers. Neither can run code, and reading them needs no
scikit-learn. Version 0.1 kept some heads in ``head.skops``: ``skops_files`` reads them.
"""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.errors import (
    DamagedArtifact,
    EncoderMismatch,
    StoreError,
    TransferLearningError,
    UnsafeModelFile,
)
from tl_pipeline.heads.predictors import Predictor, Preparation
from tl_pipeline.heads.table import HEADS, OLDER_NAMES
from tl_pipeline.store.embeddings import Embeddings

FILE = "head.safetensors"
SKOPS_FILE = "head.skops"
_PREPARATION = "preparation."
# Of tensors in files of version 0.1.
_OLDER_TENSORS = {"sharpness": "inverse_temperature"}


@dataclass(frozen=True)
class FittedHead:
    """A classifier fitted on the embeddings of one encoder.

    ``classes`` are the label names in the order of the columns of ``predict_proba``.
    ``convergence`` tells how near to its optimum a solver of our own ended, for people.
    """

    config: HeadConfig
    seed: int
    encoder_key: str
    classes: list[str]
    preparation: Preparation
    predictor: Predictor
    convergence: Mapping[str, Any] = field(default_factory=dict)

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
        rows = self.preparation.apply(embeddings.vectors)
        return self.predictor.predict_proba(rows).astype(np.float32)


def save(head: FittedHead, folder: Path) -> None:
    """Write ``head`` into ``folder``."""
    from safetensors.numpy import save as packed  # noqa: PLC0415 - no plan needs it

    tensors = dict(head.predictor.tensors())
    for name, array in head.preparation.tensors().items():
        tensors[f"{_PREPARATION}{name}"] = array
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    # not its own writer, whose errors hide that of a full disk
    (folder / FILE).write_bytes(packed(contiguous))
    about = {
        "config": head.config.model_dump(mode="json"),
        "seed": head.seed,
        "encoder_key": head.encoder_key,
        "classes": head.classes,
        "file": FILE,
        **head.convergence,
    }
    (folder / "head.json").write_text(json.dumps(about, indent=1, ensure_ascii=False))


def load(folder: Path) -> FittedHead:
    """Read the head in ``folder``.

    Raises:
        UnsafeModelFile: the file holds a type that is not allowed, or is none that a
            head is kept in.
        StoreError: it is a head of a kind that this version does not have.
        DamagedArtifact: a file is missing or not whole.
    """
    try:
        about = json.loads((folder / "head.json").read_text())
        config = HeadConfig.model_validate(about["config"])
        config = _renamed(config, folder)
        preparation, predictor = _learned(folder, about["file"], config, about)
    except TransferLearningError:
        raise
    # zipfile, skops, safetensors and torch raise errors of many kinds for damaged
    # files; all mean the same here.
    except Exception as error:  # noqa: BLE001
        raise DamagedArtifact(f"{folder}: no whole head ({error}); run again") from None
    classes, key = about["classes"], about["encoder_key"]
    return FittedHead(config, about["seed"], key, classes, preparation, predictor)


def _renamed(config: HeadConfig, folder: Path) -> HeadConfig:
    """``config`` by the name that its head has today."""
    name = OLDER_NAMES.get(config.name, config.name)
    if name not in HEADS:
        raise StoreError(
            f"{folder}: this version has no heads of the kind {config.name!r}; use the "
            f"version that wrote it, or train another: {', '.join(HEADS)}"
        )
    return HeadConfig(name=name, params=config.params)


def _learned(
    folder: Path, file: str, config: HeadConfig, about: Mapping[str, Any]
) -> tuple[Preparation, Predictor]:
    if file == SKOPS_FILE:
        # scikit-learn and skops are imported for files of version 0.1 only
        from tl_pipeline.heads import fitting, skops_files  # noqa: PLC0415

        return skops_files.read(folder / SKOPS_FILE, fitting.in_numbers)
    if file != FILE:
        raise UnsafeModelFile(f"{folder}: a head is kept in {FILE}, not in {file}")
    from safetensors.numpy import load_file  # noqa: PLC0415

    found = load_file(folder / FILE)
    tensors, before = {}, {}
    for name, array in found.items():
        if name.startswith(_PREPARATION):
            before[name.removeprefix(_PREPARATION)] = array
        else:
            tensors[_OLDER_TENSORS.get(name, name)] = array
    row = HEADS[config.name]
    parameters = {**row.options, **config.params}
    preparation = Preparation(l2=bool(parameters.get("l2")), **before)
    module, _, name = row.predictor.partition(":")
    kind = getattr(importlib.import_module(f"tl_pipeline.heads.{module}"), name)
    return preparation, kind.of_tensors(tensors, len(about["classes"]), parameters)
