"""Crops of the two photographs that scikit-learn brings: the same images everywhere."""

import numpy as np

from tl_pipeline.inputs.images import Preprocess

IMAGES = 64


def photographs(how: Preprocess, draw: int = 0) -> np.ndarray:
    """Crops as ``how`` has them, uint8 of shape (64, channels, crop, crop).

    Each ``draw`` has its own, the same ones every time.
    """
    import torch  # noqa: PLC0415
    from sklearn.datasets import load_sample_images  # noqa: PLC0415

    from tl_pipeline.inputs import pixels  # noqa: PLC0415 - torch

    chance, rows = np.random.default_rng(draw), []
    photos = load_sample_images().images
    for at in range(IMAGES):
        photo = photos[at % len(photos)]
        side = int(chance.integers(160, min(photo.shape[:2]) + 1))
        top, left = (int(chance.integers(0, n - side + 1)) for n in photo.shape[:2])
        crop = np.array(photo[top : top + side, left : left + side])
        rows.append(pixels.preprocess(torch.from_numpy(crop).permute(2, 0, 1), how))
    return pixels.stack(rows)
