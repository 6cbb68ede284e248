"""What a network is to say of the images of a batch, and the loss. Imports torch.

Targets are float32 (n, 1, K): smoothed labels times the weights of the images. With a
teacher they are (n, 2, K): the second row has what it says at ``TEMPERATURE``, and the
loss is that of Hinton et al. 2015, "Distilling the Knowledge in a Neural Network",
section 2. A teacher is asked about each image once, as it is: all augmented views of
an image share what it says of that.
"""

import math

import numpy as np
import torch
from torch.nn import functional

from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.finetuning.images import Images

# Probabilities of teacher and student are softened by it, p^(1/T), where they meet.
TEMPERATURE = 2.0
# The share of the teacher in the loss; the labels have the rest.
SHARE = 0.5
_LEAST = 1e-30  # of a probability, so that it has a logarithm


def of_images(
    images: Images, rows: np.ndarray, classes: int, smoothing: float
) -> torch.Tensor:
    """The targets of the images ``rows`` (n,): float32 (n, 1 or 2, K)."""
    labels = torch.from_numpy(images.targets[rows])
    soft = functional.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    found = soft[:, None].float()
    if images.teacher is not None:
        teacher = torch.from_numpy(images.teacher[rows]).clamp_min(_LEAST)
        softened = (teacher.log() / TEMPERATURE).softmax(dim=1)
        found = torch.stack(
            # gradients of softened outputs are 1/T^2 as large
            [(1 - SHARE) * soft, SHARE * TEMPERATURE**2 * softened],
            dim=1,
        )
    if images.weights is None:
        return found
    weights = torch.from_numpy(images.weights[rows]).float()
    return found * weights[:, None, None]


def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The sum of the losses of images: of ``logits`` (n, K) by their ``targets``."""
    total = -(targets[:, 0] * logits.log_softmax(dim=1)).sum()
    if targets.shape[1] == 1:
        return total
    softened = (logits / TEMPERATURE).log_softmax(dim=1)
    return total - (targets[:, 1] * softened).sum()


def mixed(
    values: torch.Tensor,
    targets: torch.Tensor,
    how: FinetuneSpec,
    chance: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each image with a partner: mixup, or cutmix, or either by the toss of a coin.

    Sources: Zhang et al. 2018, "mixup"; Yun et al. 2019, "CutMix".
    """
    alphas = [("mix", how.mixup), ("cut", how.cutmix)]
    able = [(name, alpha) for name, alpha in alphas if alpha]
    if not able:
        return values, targets
    at = int(torch.randint(len(able), (1,), generator=chance))
    name, alpha = able[at]
    seed = int(torch.randint(0, 2**31, (1,), generator=chance))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    partners = torch.randperm(len(values), generator=chance).to(values.device)
    if name == "cut":
        values, share = _with_patches(values, partners, share, chance)
    else:
        values = share * values + (1 - share) * values[partners]
    return values, share * targets + (1 - share) * targets[partners]


def _with_patches(
    values: torch.Tensor, partners: torch.Tensor, share: float, chance: torch.Generator
) -> tuple[torch.Tensor, float]:
    """A rectangle of each image from its partner; the share that is left of it."""
    height, width = values.shape[2:]
    cut = math.sqrt(1 - share)
    y, x = (int(torch.randint(n, (1,), generator=chance)) for n in (height, width))
    top, bottom = (int(min(max(y + s * cut * height / 2, 0), height)) for s in (-1, 1))
    left, right = (int(min(max(x + s * cut * width / 2, 0), width)) for s in (-1, 1))
    values = values.clone()
    values[:, :, top:bottom, left:right] = values[partners, :, top:bottom, left:right]
    return values, 1 - (bottom - top) * (right - left) / (height * width)
