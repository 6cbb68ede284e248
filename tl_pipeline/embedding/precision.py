"""In which precision an encoder computes, and what that does to its embeddings.

bfloat16 keeps 8 bits of a number. On processors and GPUs with hardware for it networks
run several times as fast, and embeddings hardly change; how little is measured here
before ``precision=auto`` relies on it.
"""

import platform
from typing import Any

import numpy as np

from tl_pipeline.encoders.backbones import PROVIDERS, find_backbone
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.cache import Cache
from tl_pipeline.store.embeddings import EmbeddingFolder

# Embeddings in bfloat16 must point where those in float32 do, both standardised as
# heads see them: the cosine of the two, on average and for the worst probe image.
MEAN, WORST = 0.999, 0.99
_IMAGES = 64
# Networks of fewer bytes take no longer than the work around them.
_SMALL = 1 << 20
_AS_MEAN = ("avg+max", "grid2", "grid3")


def choose(encoder: Encoder, store: Store) -> Encoder:
    """``encoder`` in float32, or in bfloat16 where that is faster and as good.

    What ``store`` holds already decides: nothing is embedded anew because another
    machine runs it. Then the hardware, and a probe of 64 crops of photographs. Grids
    and maxima take what the mean of the same map takes: one forward pass gives all.

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
    if encoder.pooling in _AS_MEAN:
        mean = choose(encoder.model_copy(update={"pooling": "mean"}), store)
        return half if mean.precision == "bf16" else encoder
    memo = Cache(store)
    key = f"bf16 standardised {encoder.key} on {platform.node()}"
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
    batch = probe_images(encoder.preprocess)
    (left,), (right,) = exact(batch), Forward([half], device)(batch)
    alike = cosines(*standardised(left, right))
    mean, worst = float(alike.mean()), float(alike.min())
    return {"good": mean >= MEAN and worst >= WORST, "mean": mean, "worst": worst}


def probe_images(how: Preprocess) -> np.ndarray:
    """Crops of scikit-learn's two photographs: uint8 (64, channels, crop, crop).

    They are the same everywhere and every time.
    """
    import torch  # noqa: PLC0415
    from sklearn.datasets import load_sample_images  # noqa: PLC0415

    from tl_pipeline.inputs import pixels  # noqa: PLC0415 - torch

    chance, rows = np.random.default_rng(0), []
    photos = load_sample_images().images
    for at in range(_IMAGES):
        photo = photos[at % len(photos)]
        side = int(chance.integers(160, min(photo.shape[:2]) + 1))
        top, left = (int(chance.integers(0, n - side + 1)) for n in photo.shape[:2])
        crop = np.array(photo[top : top + side, left : left + side])
        rows.append(pixels.preprocess(torch.from_numpy(crop).permute(2, 0, 1), how))
    return pixels.stack(rows)


def standardised(exact: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both (n, width) with each column of ``exact`` at mean 0 and deviation 1.

    Heads see embeddings so. As they come they are alike anyway: after a ReLU all point
    into one corner. Columns that are constant in ``exact`` are left out.
    """
    deviation = exact.std(axis=0)
    kept = deviation > 1e-6 * np.abs(exact).max()
    mean, scale = exact[:, kept].mean(axis=0), deviation[kept]
    return (exact[:, kept] - mean) / scale, (other[:, kept] - mean) / scale


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The cosine of each row (n, width) with its counterpart: (n,); 1 of two zeros."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = np.einsum("nd,nd->n", left, right)
    alike = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return np.where((left == right).all(axis=1), 1, alike)
