"""The training of a ``Classifier``: epochs, steps, checkpoints, a curve.

On a processor the images of a batch are shared out among threads, each of which goes
forward and back with one core, and the gradients are added up: threads that meet once a
step wait less than those that meet at every operation. Processes of one group of
``torch.distributed`` share out a batch in the same way. Imports torch.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.data.splits import TRAIN, VALIDATION
from tl_pipeline.embedding.devices import devices
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.finetuning import averaging, group, optimising, targets
from tl_pipeline.finetuning.augment import Draws, applied, by_policy, drawn
from tl_pipeline.finetuning.computing import autocast, precision, sharing
from tl_pipeline.finetuning.images import Images
from tl_pipeline.finetuning.network import Classifier
from tl_pipeline.store.files import publish

# Fewer images a thread leave its core idle between operations.
_LEAST = 8
_SCORED = 256  # images at a time
_UNCHANGED = Draws(None, None)


@dataclass(frozen=True)
class Point:
    """One epoch of the learning curve; ``loss`` is the mean cross-entropy in nats.

    ``split`` says of which images; on those that are learned from both are as the
    network was while it learned from them, augmented, and ``loss`` is what it made
    small: see ``targets``.
    """

    epoch: int
    split: str
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """What a training gives beside the network: its curve and its speed.

    ``mix`` is the share of the trained weights that WiSE-FT chose, None without it.
    """

    curve: list[Point]
    images_per_second: float
    mix: float | None


@dataclass(frozen=True)
class Options:
    """How ``train`` goes about ``how``.

    Draws depend on ``seed`` and the epoch alone; ``mirror`` tells whether images are
    mirrored. After each epoch all that goes on is kept in ``checkpoint``. ``held``
    choose the mix of ``wise``.
    """

    how: FinetuneSpec
    mirror: bool
    seed: int
    checkpoint: Path
    held: Images | None = None


def train(
    network: Classifier,
    options: Options,
    images: Images,
    validation: Images | None,
    done: Callable[[int], None] = lambda number: None,  # noqa: ARG005
    report: Callable[[Sequence[Point]], None] = lambda curve: None,  # noqa: ARG005
) -> Trained:
    """Train ``network`` on ``images``; ``validation`` is scored after each epoch.

    Nothing is chosen by it. Where the checkpoint is there, training goes on from it,
    and ends with the weights that it would have had. ``done`` is told of images learned
    from, ``report`` the curve up to each epoch that ends.

    In a process group each process is called with the same and ends with the same
    weights; each computes its share of every batch, and the first writes the
    checkpoint, which all read.

    Raises:
        InvalidSpec: the loss is not finite any more.
    """
    how, held, found = options.how, options.held, devices()
    device = found[group.place()[0] % len(found)]
    network.to(device)
    before = averaging.copy(network) if how.wise else None
    with ExitStack() as pools:
        trainer = _Trainer(network, options, images, device, pools)
        curve = trainer.resume(options.checkpoint)
        if curve:
            done(len(images) * trainer.epochs)
        while trainer.epochs < how.epochs:
            curve.append(trainer.epoch(done))
            if validation:
                curve.append(trainer.point(validation))
            trainer.keep(options.checkpoint, curve)
            report(curve)
        trainer.finish()
        mix = None
        if before is not None and held is not None:
            logits = partial(trainer.logits, held)
            mix = averaging.mix(network, before, logits, held.targets)
    network.eval()
    seconds = sum(point.seconds for point in curve if point.split == TRAIN)
    return Trained(curve, how.epochs * len(images) / max(seconds, 1e-9), mix)


class _Trainer:
    """A network with its optimiser, in the middle of a training."""

    def __init__(
        self,
        network: Classifier,
        options: Options,
        images: Images,
        device: torch.device,
        pools: ExitStack,
    ) -> None:
        self._network, self._options, self._images = network, options, images
        self._device, self._how = device, options.how
        self._kind = precision(self._how)
        self._process, self._processes = group.place()
        self.epochs = 0
        self._parameters = [p for some in network.learning for p in some]
        self._total = self._steps * self._how.epochs
        self.rate = optimising.rate(self._how, self._total)
        self._optimiser = optimising.optimiser(network, self._how, device, self.rate)
        self._rates = [one["lr"] for one in self._optimiser.param_groups]
        ema = self._how.ema
        self._average = averaging.Average(network, ema) if ema else None
        network.train()
        shared = sharing(device, whole=network.in_one_piece)
        self._pool, self._shares = pools.enter_context(shared)

    @property
    def _steps(self) -> int:
        """Steps of the optimiser in an epoch."""
        batches = self._batches(torch.arange(len(self._images)))
        return -(-len(batches) // self._how.accumulate)

    def epoch(self, done: Callable[[int], None]) -> Point:
        """One pass over all images.

        Raises:
            InvalidSpec: the loss is not finite any more.
        """
        started = time.perf_counter()
        # Of seed and epoch alone: what is broken off goes on with the same draws.
        seed = self._options.seed * 100_003 + self.epochs
        chance = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self._images), generator=chance)
        batches, size = self._batches(order), self._how.accumulate
        loss, right = 0.0, 0
        self._network.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for number, first in enumerate(range(0, len(batches), size)):
                self._set_rate(self.epochs * self._steps + number)
                found = self._step(batches[first : first + size], chance, done)
                loss, right = loss + found[0], right + found[1]
        self.epochs += 1
        sums = torch.tensor([loss, right], dtype=torch.float64, device=self._device)
        group.add_up([sums])
        loss, accuracy = (sums / len(self._images)).tolist()
        if not math.isfinite(loss):
            raise InvalidSpec(
                f"training diverged in epoch {self.epochs} at learning_rate "
                f"{self.rate:g} with {self._how.optimiser}; take a smaller one, or a "
                "longer warmup"
            )
        return self._point(TRAIN, loss, accuracy, started)

    def point(self, images: Images) -> Point:
        """How the network, or its average, does on validation after this epoch."""
        started = time.perf_counter()
        with self._average.used() if self._average else nullcontext():
            logits, truth = self.logits(images), torch.from_numpy(images.targets)
        loss = functional.cross_entropy(logits, truth).item()
        right = (logits.argmax(dim=1) == truth).float().mean().item()
        return self._point(VALIDATION, loss, right, started)

    def logits(self, images: Images) -> torch.Tensor:
        """What the network says of ``images``, as they are: float32 (n, K)."""
        self._network.eval()
        numbers = np.arange(len(images))
        parts = [
            numbers[first : first + _SCORED] for first in range(0, len(images), _SCORED)
        ]

        def one(part: np.ndarray) -> torch.Tensor:
            values = applied(self._moved(images.take(part)), _UNCHANGED)
            with torch.inference_mode(), autocast(self._device, self._kind):
                return self._network(values).float().cpu()

        logits = torch.cat(list(self._pool.map(one, parts)))
        self._network.train()
        return logits

    def keep(self, file: Path, curve: Sequence[Point]) -> None:
        """Put all that goes on into ``file``, which is there whole or as before."""
        if self._process:
            return
        beside, average = file.with_name(f".{file.name}"), self._average
        torch.save(
            {
                "epochs": self.epochs,
                "network": self._network.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "average": average.weights if average else None,
                "averaged_steps": average.steps if average else 0,
                "curve": [asdict(point) for point in curve],
            },
            beside,
        )
        publish(beside, file)

    def resume(self, file: Path) -> list[Point]:
        """Go on from ``file`` if it is there; the curve up to then."""
        if not file.exists():
            return []
        found = torch.load(file, map_location=self._device, weights_only=True)
        self.epochs = found["epochs"]
        self._network.restore(found["network"])
        self._optimiser.load_state_dict(found["optimiser"])
        if self._average:
            self._average.weights = found["average"]
            self._average.steps = found["averaged_steps"]
        return [Point(**point) for point in found["curve"]]

    def finish(self) -> None:
        """Leave in the network what is to be kept."""
        if self._average:
            self._network.restore(self._average.weights)

    def _point(self, split: str, loss: float, accuracy: float, started: float) -> Point:
        rate = self._optimiser.param_groups[0]["lr"]
        seconds = time.perf_counter() - started
        return Point(self.epochs, split, loss, accuracy, rate, seconds)

    def _batches(self, order: torch.Tensor) -> list[torch.Tensor]:
        """``order`` in batches; a last image alone goes with those before it."""
        batches = list(order.split(self._how.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def _set_rate(self, step: int) -> None:
        """The learning rate of a step, counted from 0 over all epochs."""
        factor = optimising.factor(step, self._total, self._how.warmup)
        for one, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            one["lr"] = rate * factor

    def _step(
        self,
        batches: Sequence[torch.Tensor],
        chance: torch.Generator,
        done: Callable[[int], None],
    ) -> tuple[float, int]:
        """A step of the optimiser by ``batches``; see ``_gradients``."""
        loss, right, total = 0.0, 0, sum(map(len, batches))
        for p in self._parameters:
            p.grad = torch.zeros_like(p)
        for chosen in batches:
            found = self._gradients(chosen.numpy(), total, chance)
            loss, right = loss + found[0], right + found[1]
            done(len(chosen))
        group.add_up([p.grad for p in self._parameters if p.grad is not None])
        self._optimiser.step()
        if self._average:
            self._average.add()
        return loss, right

    def _gradients(
        self, rows: np.ndarray, total: int, chance: torch.Generator
    ) -> tuple[float, int]:
        """Add the gradients of this process's share of a batch.

        ``total`` images are in the step. The sum of its losses, and how many of it were
        right.
        """
        values, soft, rows = self._batch(rows, chance)
        if not len(rows):  # there are more processes than images
            return 0.0, 0
        number = max(1, min(self._shares, len(rows) // _LEAST))
        share = partial(self._share, total=total)
        found = list(self._pool.map(share, values.chunk(number), soft.chunk(number)))
        for gradients, _, _ in found:
            for p, gradient in zip(self._parameters, gradients, strict=True):
                assert p.grad is not None  # noqa: S101 - of ``_step``
                p.grad.add_(gradient)
        guesses = torch.cat([guess for _, _, guess in found]).numpy()
        right = int((guesses == self._images.targets[rows]).sum())
        return sum(loss for _, loss, _ in found), right

    def _batch(
        self, rows: np.ndarray, chance: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """What the network is given, its targets, and the images that they are of.

        All processes draw for the whole batch ``rows``; each takes its share of it.
        """
        how, classes = self._how, self._network.head.out_features
        own = slice(self._process, None, self._processes)
        values = by_policy(self._images.take(rows), how.augment, chance)
        mirror = self._options.mirror
        draws = drawn(len(rows), how.augment, mirror=mirror, chance=chance)
        soft = targets.of_images(self._images, rows, classes, how.label_smoothing)
        if how.mixup or how.cutmix:  # partners are in other shares
            values = self._changed(values, draws)
            values, soft = targets.mixed(values, soft.to(self._device), how, chance)
            return values[own], soft[own], rows[own]
        values = self._changed(values[own], draws.part(own))
        return values, soft[own].to(self._device), rows[own]

    def _changed(self, values: torch.Tensor, draws: Draws) -> torch.Tensor:
        """What the network is given for ``values``: moved to it, and changed."""
        if not len(values):
            return values
        number = max(1, min(self._shares, len(values) // _LEAST))
        shares = self._moved(values).chunk(number)
        return torch.cat(list(self._pool.map(applied, shares, draws.chunk(number))))

    def _share(
        self, values: torch.Tensor, soft: torch.Tensor, total: int
    ) -> tuple[Sequence[torch.Tensor], float, torch.Tensor]:
        """Gradients, sum of losses and guesses of a part of a batch."""
        with torch.enable_grad():
            with autocast(self._device, self._kind):
                logits = self._network(values)
            loss = targets.loss(logits.float(), soft)
            gradients = torch.autograd.grad(loss / total, self._parameters)
        return gradients, loss.item(), logits.detach().argmax(dim=1).cpu()

    def _moved(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._device, non_blocking=True)
