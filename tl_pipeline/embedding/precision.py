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

# What of the variance of standardised embeddings, as heads see them, must be left where
# rounding is taken for noise: over all probe images, and for each of them. Five folds
# do not tell a noise of a tenth of the variance from none (EfficientNet-Lite0, 1,000
# images of CIFAR-10: 70.3 and 70.4 %; 243 photos of insects: 94.2 and 94.7 %).
KEPT, WORST = 0.95, 0.5
_IMAGES = 64
# Networks of fewer bytes take no longer than the work around them.
_SMALL = 1 << 20
_AS_MEAN = ("avg+max", "grid2", "grid3", "tokens")


def choose(encoder: Encoder, store: Store) -> Encoder:
    """``encoder`` in float32, or in bfloat16 where that is faster and as good.

    What ``store`` holds already decides: nothing is embedded anew because another
    machine runs it. Then the hardware, and a probe of 64 crops of photographs. Grids,
    maxima and all places take what the mean of the same map takes, and what is kept in
    float16 what is not: one forward pass gives all.

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
    plain = {"store": None, "tokens": None}
    if encoder.pooling in _AS_MEAN:
        plain |= {"pooling": "mean"}
    usual = encoder.model_copy(update=plain)
    if usual != encoder:
        return half if choose(usual, store).precision == "bf16" else encoder
    memo = Cache(store)
    key = f"bf16 variance {encoder.key} on {platform.node()}"
    known = memo.get(key)
    if known is None:
        known = _probe(encoder, half)
        memo.put(key, known)
        memo.save()
    return half if known["good"] else encoder


def _probe(encoder: Encoder, half: Encoder) -> dict[str, Any]:
    """Whether ``half`` is faster and as good, and how much of the exact it keeps."""
    from tl_pipeline.embedding import devices  # noqa: PLC0415 - torch
    from tl_pipeline.embedding.forward import Forward  # noqa: PLC0415
    from tl_pipeline.encoders import loading  # noqa: PLC0415

    device = devices.devices()[0]
    # a file may hold halves of what is computed with
    few = 2 * loading.weight_bytes(encoder) < _SMALL
    if few or not devices.has_bfloat16(device):
        return {"good": False}
    exact = Forward([encoder], device)
    if exact.bytes < _SMALL:
        return {"good": False}
    assert isinstance(encoder.preprocess, Preprocess)  # noqa: S101 - see choose
    batch = probe_images(encoder.preprocess)
    (left,), (right,) = exact(batch), Forward([half], device)(batch)
    kept = kept_variance(left, right)
    mean, worst = float(kept.mean()), float(kept.min())
    return {"good": mean >= KEPT and worst >= WORST, "mean": mean, "worst": worst}


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


def kept_variance(exact: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What ``other`` (n, width) keeps of the variance of ``exact``, by image: (n,).

    1 less the squared difference of the two, both with each column of ``exact`` at mean
    0 and deviation 1, as a share of the squared length that images have on average.
    Raw embeddings are alike anyway: after a ReLU all point into one corner. Columns
    that are constant in ``exact`` are left out; of constant images all is kept.
    """
    deviation = exact.std(axis=0)
    told = deviation > 1e-6 * np.abs(exact).max()
    if not told.any():
        return np.ones(len(exact))
    lost = (other[:, told] - exact[:, told]) / deviation[told]
    return 1 - (lost**2).sum(axis=1) / told.sum()
