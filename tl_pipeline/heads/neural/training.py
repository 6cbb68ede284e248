"""The training of neural heads on rows that lie in memory.

No loader stands between: a batch is gathered into one buffer by its row numbers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tl_pipeline.errors import InvalidSpec
from tl_pipeline.heads.linear.design_matrix import BLOCK
from tl_pipeline.heads.linear.temperature import fit_inverse_temperature
from tl_pipeline.heads.neural.layers import Network

MOMENTUM = 0.9  # of sgd


@dataclass(frozen=True)
class Course:
    """How a network is trained; the parameters of ``neural.NeuralHead`` say more."""

    optimiser: str
    learning_rate: float
    weight_decay: float
    schedule: str
    max_epochs: int
    patience: int
    refined: bool
    batch_size: int
    dropout: float
    label_smoothing: float
    mixup: float
    seed: int

    def rate(self, epoch: int) -> float:
        """The learning rate of ``epoch``, counted from 0.

        ``cosine`` falls to 0 as half a period (Loshchilov & Hutter 2017, without
        restarts); ``step`` falls to a tenth at half of ``max_epochs`` and at three
        quarters (He et al. 2016).
        """
        done = epoch / self.max_epochs
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** ((done >= 0.5) + (done >= 0.75))
        return self.learning_rate


@dataclass(frozen=True)
class Examples:
    """Standardised ``rows`` (n, ...), class numbers ``targets`` (n,), ``factors``.

    ``factors`` (n,) multiply the losses of their rows. They have mean 1 over all rows,
    not over those of a batch: a batch of light rows makes a small step.
    """

    rows: torch.Tensor
    targets: torch.Tensor
    factors: torch.Tensor | None

    def loss(self, logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the rows ``chosen``, whose ``logits`` these are."""
        targets = self.targets[chosen]
        if self.factors is None:
            return functional.cross_entropy(logits, targets)
        losses = functional.cross_entropy(logits, targets, reduction="none")
        return (losses * self.factors[chosen]).mean()

    def soft_targets(
        self, chosen: torch.Tensor, classes: int, smoothing: float
    ) -> torch.Tensor:
        """Smoothed one-hot rows (n, classes) times their factors.

        (1 - smoothing) of the true class, and smoothing shared by all (Szegedy et al.
        2016, section 7).
        """
        soft = functional.one_hot(self.targets[chosen], classes) * (1 - smoothing)
        soft = soft + smoothing / classes
        return soft if self.factors is None else soft * self.factors[chosen][:, None]


def mixed(table: torch.Tensor, partners: torch.Tensor, share: float) -> torch.Tensor:
    """Each row of ``table`` with its partner: share x itself + (1 - share) x that.

    With rows and soft targets mixed alike it is mixup (Zhang et al. 2018, section 2),
    here on embeddings.
    """
    return share * table + (1 - share) * table[partners]


def train(
    layers: Network,
    course: Course,
    examples: Examples,
    kept: torch.Tensor,
    held: torch.Tensor,
    chance: torch.Generator,
) -> int:
    """Train on the rows ``kept``, and leave the weights of the best epoch on ``held``.

    Where ``held`` is empty they are those of the last epoch. Returns the epochs done.

    Raises:
        InvalidSpec: the weights have become infinite.
    """
    trainer = _Trainer(layers, course, examples, chance)
    best, best_loss, best_epoch, epochs = _copy(layers), math.inf, 0, 0
    for epoch in range(course.max_epochs):
        trainer.epoch(kept, epoch)
        epochs = epoch + 1
        if not len(held):
            continue
        loss = trainer.held_out_loss(held)
        if loss < best_loss:
            best, best_loss, best_epoch = _copy(layers), loss, epoch
        elif epoch - best_epoch >= course.patience:
            break
    finite = all(bool(p.isfinite().all()) for p in layers.parameters())
    if not (math.isfinite(best_loss) if len(held) else finite):
        raise InvalidSpec(
            f"training diverged at learning_rate {course.learning_rate:g} with "
            f"{course.optimiser}; take a smaller one"
        )
    if len(held):
        layers.load_state_dict(best)
    return epochs


class _Trainer:
    """One network, its optimiser, and the buffer that batches are gathered into."""

    def __init__(
        self,
        layers: Network,
        course: Course,
        examples: Examples,
        chance: torch.Generator,
    ) -> None:
        self._layers, self._course, self._examples = layers, course, examples
        self._chance, self._noise = chance, chance
        self._device = examples.rows.device
        if self._device.type != "cpu":
            self._noise = torch.Generator(self._device).manual_seed(course.seed)
        self._normed = any(isinstance(m, nn.BatchNorm1d) for m in layers.modules())
        self._shares = np.random.default_rng(course.seed)
        self._optimiser = _optimiser(layers, course)
        size = min(course.batch_size + 1, len(examples.rows))
        self._buffer = examples.rows.new_empty((size, *examples.rows.shape[1:]))

    def epoch(self, kept: torch.Tensor, number: int) -> None:
        """One pass over the rows ``kept`` in random order."""
        for group in self._optimiser.param_groups:
            group["lr"] = self._course.rate(number)
        self._layers.train()
        order = kept[torch.randperm(len(kept), generator=self._chance)]
        order, size = order.to(self._device), self._course.batch_size
        for chosen in _batches(order, size, joined=self._normed):
            self._optimiser.zero_grad()
            self._loss(chosen).backward()
            self._optimiser.step()

    def held_out_loss(self, held: torch.Tensor) -> float:
        """Mean cross-entropy of the rows ``held``, unmixed and not smoothed.

        If ``refined``, after the temperature that suits them best.
        """
        self._layers.eval()
        total, parts = 0.0, []
        with torch.inference_mode():
            for chosen in held.to(self._device).split(BLOCK):
                logits = self._layers(self._examples.rows[chosen])
                parts.append(logits)
                total += self._examples.loss(logits, chosen).item() * len(chosen)
            if not self._course.refined or not math.isfinite(total):
                return total / len(held)
            logits, examples = torch.cat(parts), self._examples
            weights = torch.ones(len(held))
            if examples.factors is not None:
                weights = examples.factors[held].cpu()
            factor = fit_inverse_temperature(
                logits.double().cpu().numpy(),
                examples.targets[held].cpu().numpy(),
                weights.double().numpy(),
            )
            return examples.loss(factor * logits, held.to(self._device)).item()

    def _loss(self, chosen: torch.Tensor) -> torch.Tensor:
        course, examples = self._course, self._examples
        rows = self._buffer[: len(chosen)]
        torch.index_select(examples.rows, 0, chosen, out=rows)
        share, partners = 1.0, None
        if course.mixup:
            share = self._shares.beta(course.mixup, course.mixup)
            partners = torch.randperm(len(chosen), generator=self._chance)
            partners = partners.to(self._device)
            rows = mixed(rows, partners, share)
        logits = self._layers.logits(rows, course.dropout, self._noise)
        if partners is None and not course.label_smoothing:
            return examples.loss(logits, chosen)
        soft = examples.soft_targets(chosen, logits.shape[1], course.label_smoothing)
        if partners is not None:
            soft = mixed(soft, partners, share)
        return -(soft * logits.log_softmax(dim=1)).sum(dim=1).mean()


def _batches(order: torch.Tensor, size: int, *, joined: bool) -> Iterator[torch.Tensor]:
    """Parts of ``size``; ``joined``: a last single row goes with the part before.

    A batch norm cannot standardise a single row.
    """
    rows = len(order) - (joined and len(order) % size == 1)
    for first in range(0, rows, size):
        yield order[first:] if first + size >= rows else order[first : first + size]


def _optimiser(layers: Network, course: Course) -> torch.optim.Optimizer:
    """Fused: one pass over the weights a step. A single number is not decayed."""
    weights = list(layers.parameters())
    decay = course.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if w.ndim], "weight_decay": decay},
        {"params": [w for w in weights if not w.ndim], "weight_decay": 0.0},
    ]
    rate = course.learning_rate
    if course.optimiser == "sgd":
        return torch.optim.SGD(groups, rate, momentum=MOMENTUM, fused=True)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[course.optimiser](groups, rate, fused=True)


def _copy(layers: Network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in layers.state_dict().items()}
