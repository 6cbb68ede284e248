"""In which precision an encoder computes, and what that does to its embeddings.

bfloat16 keeps 8 bits of a number. On processors and GPUs with hardware for it networks
run several times as fast, and embeddings hardly change; how little is measured here
before ``precision=auto`` relies on it. int8 is faster still and changes more: it is
never chosen, and what it changes is measured and said.
"""

import platform
import warnings
from typing import Any

import numpy as np

from tl_pipeline.encoders.backbones import PROVIDERS, find_backbone
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.inputs.calibration_images import photographs
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.cache import Remembered
from tl_pipeline.store.embeddings import EmbeddingFolder

# Embeddings in bfloat16 must point where those in float32 do: the cosine of the two, on
# average and for the worst image of the probe.
MEAN, WORST = 0.999, 0.99
# Less than this, and int8 embeddings are other embeddings.
POOR = 0.99
_NEIGHBOURS = 5
# By encoder key; a first run measures before there is a store to remember it.
_measured: dict[str, dict[str, Any]] = {}
# Networks of fewer bytes take no longer than the work around them.
_SMALL = 1 << 20


def choose(encoder: Encoder, store: Store) -> Encoder:
    """``encoder`` in float32, or in bfloat16 where that is faster and as good.

    What ``store`` holds already decides: nothing is embedded anew because another
    machine runs it. Then the hardware, and a probe of 64 crops of photographs.

    Raises:
        WeightsError: the network cannot be loaded.
    """
    origin = find_backbone(encoder.backbone).origin
    if origin not in PROVIDERS or not isinstance(encoder.preprocess, Preprocess):
        return encoder
    half = encoder.model_copy(update={"precision": "bf16"})
    for one in (half, encoder):
        if EmbeddingFolder(store, one.key).begun():
            return one
    memo, key = Remembered(store), f"bf16 {encoder.key} on {platform.node()}"
    known = memo.get(key)
    if known is None:
        known = _probe(encoder, half)
        memo.put(key, known)
        memo.save()
    return half if known["good"] else encoder


def _probe(encoder: Encoder, half: Encoder) -> dict[str, Any]:
    """Whether ``half`` is faster and as good, and how much they are alike."""
    from tl_pipeline.embedding import devices  # noqa: PLC0415 - torch
    from tl_pipeline.embedding.forward import Forward  # noqa: PLC0415

    device = devices.devices()[0]
    if not devices.has_bfloat16(device):
        return {"good": False}
    exact = Forward([encoder], device)
    if exact.bytes < _SMALL:
        return {"good": False}
    assert isinstance(encoder.preprocess, Preprocess)  # noqa: S101 - see choose
    batch = photographs(encoder.preprocess)
    (left,), (right,) = exact(batch), Forward([half], device)(batch)
    alike = cosines(left, right)
    mean, worst = float(alike.mean()), float(alike.min())
    return {"good": mean >= MEAN and worst >= WORST, "mean": mean, "worst": worst}


def measure(encoder: Encoder, store: Store) -> None:
    """Find out what int8 does to the embeddings of ``encoder``, once for a store.

    Of 64 photographs other than those that it was calibrated with: the cosine of each
    embedding with that in float32, and how many of the five nearest neighbours stay. It
    is warned of a poor one, and used all the same, because it was asked for.

    Raises:
        InvalidSpec: the network cannot be computed in int8, or not on this machine.
        WeightsError: it cannot be loaded.
    """
    known = _known(encoder, store) or _drift(encoder)
    _measured[encoder.key] = known
    memo = Remembered(store)
    memo.put(_int8_key(encoder), known)
    memo.save()
    if known["mean"] < POOR:
        warnings.warn(
            f"{encoder.label}: int8 changes these embeddings a lot: {_said(known)}. "
            "precision=bf16 or fp32 keeps them",
            stacklevel=2,
        )


def told(encoder: Encoder, store: Store) -> str:
    """What ``measure`` found for ``encoder``, in words; "" where it was not asked."""
    known = _known(encoder, store)
    return "" if known is None else f"int8: {_said(known)}"


def _known(encoder: Encoder, store: Store) -> dict[str, Any] | None:
    return Remembered(store).get(_int8_key(encoder)) or _measured.get(encoder.key)


def _int8_key(encoder: Encoder) -> str:
    return f"int8 drift {encoder.key}"


def _drift(encoder: Encoder) -> dict[str, float]:
    from tl_pipeline.embedding import devices  # noqa: PLC0415 - torch
    from tl_pipeline.embedding.forward import Forward  # noqa: PLC0415

    assert isinstance(encoder.preprocess, Preprocess)  # noqa: S101 - see encoders
    batch = photographs(encoder.preprocess)
    device = devices.devices()[0]
    (right,) = Forward([encoder], device)(batch)
    exact = encoder.model_copy(update={"precision": "fp32"})
    (left,) = Forward([exact], device)(batch)
    alike = cosines(left, right)
    return {
        "mean": float(alike.mean()),
        "worst": float(alike.min()),
        "neighbours": kept_neighbours(left, right),
    }


def _said(known: dict[str, Any]) -> str:
    return (
        f"cosine with fp32 {known['mean']:.4f} on average and {known['worst']:.4f} at "
        f"worst, {100 * known['neighbours']:.0f} % of the {_NEIGHBOURS} nearest "
        "neighbours the same, over 64 photographs"
    )


def kept_neighbours(left: np.ndarray, right: np.ndarray) -> float:
    """The share of the five nearest rows (n, width) by cosine that both have."""
    one, other = (_nearest(rows) for rows in (left, right))
    kept = [len(set(a) & set(b)) for a, b in zip(one, other, strict=True)]
    return float(np.mean(kept)) / _NEIGHBOURS


def _nearest(rows: np.ndarray) -> list[list[int]]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.maximum(lengths, 1e-12)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -np.inf)
    return np.argsort(-alike, axis=1, kind="stable")[:, :_NEIGHBOURS].tolist()


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The cosine of each row (n, width) with its counterpart: (n,); 1 of two zeros."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = np.einsum("nd,nd->n", left, right)
    alike = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return np.where((left == right).all(axis=1), 1, alike)
