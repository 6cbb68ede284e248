"""The training of a ``Classifier``: steps, schedule, average, checkpoints, a curve.

On a processor the images of a batch are shared out among threads, each of which goes
forward and back with one core, and the gradients are added up: threads that meet once a
step wait less than those that meet at every operation. Processes of one group of
``torch.distributed`` share out a batch in the same way. Imports torch.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.nn import functional

from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.embedding.devices import devices, has_bfloat16
from tl_pipeline.embedding.process import cores
from tl_pipeline.embedding.workers import pool, threads_of_batches, use_threads
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.finetuning.augment import Draws, applied, by_policy, drawn
from tl_pipeline.finetuning.network import Classifier
from tl_pipeline.store.files import publish

MOMENTUM = 0.9  # of sgd
# The learning rate where none is given, and the steps from which on it is taken whole.
_RATE, _ENOUGH = 1e-3, 500
# Fewer images a thread leave its core idle between operations.
_LEAST = 8
_SCORED = 256  # images at a time
_UNCHANGED = Draws(None, None)
# Shares of the trained weights in WiSE-FT; 1 are they alone.
_MIXES = tuple(round(0.1 * n, 1) for n in range(11))
# Inverse temperatures at which a mix is judged.
_FACTORS = np.geomspace(0.1, 10, 41).tolist()


@dataclass(frozen=True)
class Images:
    """What a network is given for n images, with their class numbers ``targets`` (n,).

    ``values`` are pixels, uint8 (m, channels, side, side), or what frozen blocks give
    for them; image i has the row ``rows[i]`` of them. ``weights`` (n,) multiply the
    losses of their images and have mean 1.
    """

    values: torch.Tensor
    targets: np.ndarray
    rows: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, some: np.ndarray) -> torch.Tensor:
        """The values of the images of these numbers."""
        kind = self.values.dtype  # numpy gathers rows faster, and has no bfloat16
        held = self.values.view(torch.int16) if kind == torch.bfloat16 else self.values
        return torch.from_numpy(held.numpy()[self.rows[some]]).view(kind)

    def part(self, wanted: np.ndarray) -> "Images":
        """Those that are ``wanted``, bool (n,); values stay where they lie."""
        weights = None if self.weights is None else self.weights[wanted]
        rows, targets = self.rows[wanted], self.targets[wanted]
        return Images(self.values, targets, rows, weights)


@dataclass(frozen=True)
class Point:
    """One epoch of the learning curve; ``loss`` is the mean cross-entropy in nats.

    ``split`` says of which images; on those that are learned from both are as the
    network was while it learned from them, augmented.
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


def precision(how: FinetuneSpec) -> torch.dtype:
    """What the forward pass is computed in; weights are float32."""
    if how.precision == "auto":
        fast = has_bfloat16(devices()[0])
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if how.precision == "bf16" else torch.float32


def autocast(device: torch.device, kind: torch.dtype) -> torch.autocast:
    """In the block, products on ``device`` are computed in ``kind``."""
    return torch.autocast(device.type, torch.bfloat16, kind == torch.bfloat16)


@contextmanager
def sharing(
    device: torch.device, *, whole: bool = False
) -> Iterator[tuple[Executor, int]]:
    """Threads that compute shares of a batch, and how many: one for ``whole`` ones."""
    counts = [1] if device.type != "cpu" else threads_of_batches(cores())
    if whole:
        counts = [sum(counts)]
    with pool("learn", len(counts), partial(use_threads, counts[-1])) as threads:
        yield threads, len(counts)


def train(
    network: Classifier,
    how: FinetuneSpec,
    images: Images,
    watched: dict[str, Images],
    *,
    mirror: bool,
    seed: int,
    checkpoint: Path,
    done: Callable[[int], None] = lambda number: None,  # noqa: ARG005
    told: Callable[[Sequence[Point]], None] = lambda curve: None,  # noqa: ARG005
    held: Images | None = None,
) -> Trained:
    """Train ``network`` on ``images``; ``watched`` are scored after each epoch.

    Nothing is chosen by those. After each epoch all that goes on is kept in
    ``checkpoint``; where that file is there, training goes on from it, and ends with
    the weights that it would have had. Draws depend on ``seed`` and the epoch alone.
    ``held`` choose the mix of ``wise``. ``done`` is told of images learned from,
    ``told`` the curve up to each epoch that ends.

    In a process group each process is called with the same and ends with the same
    weights; each computes its share of every batch, and the first writes
    ``checkpoint``, which all read.

    Raises:
        InvalidSpec: the loss is not finite any more; or there are several processes,
            and images of a batch must go through together.
    """
    found = devices()
    device = found[_group()[0] % len(found)]
    network.to(device)
    before = _copy(network) if how.wise else None
    with ExitStack() as pools:
        trainer = _Trainer(network, how, images, device, seed, pools, mirror=mirror)
        curve = trainer.resume(checkpoint)
        if curve:
            done(len(images) * trainer.epochs)
        while trainer.epochs < how.epochs:
            curve += trainer.epoch(done)
            curve += [trainer.point(n, some) for n, some in watched.items()]
            trainer.keep(checkpoint, curve)
            told(curve)
        trainer.finish()
        mix = None
        if before is not None and held is not None:
            mix = trainer.mixed(before, held)
    seconds = sum(point.seconds for point in curve if point.split == "train")
    return Trained(curve, how.epochs * len(images) / max(seconds, 1e-9), mix)


class _Trainer:
    """A network with its optimiser, in the middle of a training."""

    def __init__(
        self,
        network: Classifier,
        how: FinetuneSpec,
        images: Images,
        device: torch.device,
        seed: int,
        pools: ExitStack,
        *,
        mirror: bool,
    ) -> None:
        self._network, self._how, self._images = network, how, images
        self._device, self._seed, self._mirror = device, seed, mirror
        self._kind = precision(how)
        self._process, self._processes = _group()
        self.epochs = 0
        self._parameters = [p for group in network.learning for p in group]
        self.rate = rate(how, self._steps * how.epochs)
        self._optimiser = _optimiser(network, how, device, self.rate)
        self._rates = [group["lr"] for group in self._optimiser.param_groups]
        self._average = _copy(network) if how.ema else None
        network.train()
        if self._processes > 1 and network.in_one_piece:
            raise InvalidSpec(
                "dropout and learned statistics of batch normalisation need all images "
                "of a batch in one process; train with one, or norm=frozen,dropout=0"
            )
        shared = sharing(device, whole=network.in_one_piece)
        self._pool, self._shares = pools.enter_context(shared)
        self._averaged_steps = 0

    @property
    def _steps(self) -> int:
        """Steps of the optimiser in an epoch."""
        return -(
            -len(self._batches(torch.arange(len(self._images)))) // self._how.accumulate
        )

    def epoch(self, done: Callable[[int], None]) -> list[Point]:
        """One pass over all images."""
        started, how = time.perf_counter(), self._how
        # Of seed and epoch alone: what is broken off goes on with the same draws.
        chance = torch.Generator().manual_seed(self._seed * 100_003 + self.epochs)
        order = torch.randperm(len(self._images), generator=chance)
        batches = self._batches(order)
        loss, right = 0.0, 0.0
        self._network.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed * 100_003 + self.epochs)
            for number, first in enumerate(range(0, len(batches), how.accumulate)):
                some = batches[first : first + how.accumulate]
                self._set_rate(self.epochs * self._steps + number)
                total = sum(map(len, some))
                for p in self._parameters:
                    p.grad = None
                for chosen in some:
                    found = self._gradients(chosen, total, chance)
                    loss, right = loss + found[0], right + found[1]
                    done(len(chosen))
                self._add_up([p.grad for p in self._parameters if p.grad is not None])
                self._optimiser.step()
                self._add_to_average()
        self.epochs += 1
        sums = torch.tensor([loss, right], dtype=torch.float64, device=self._device)
        self._add_up([sums])
        loss, right = (sums / len(self._images)).tolist()
        if not math.isfinite(loss):
            raise InvalidSpec(
                f"training diverged in epoch {self.epochs} at learning_rate "
                f"{self.rate:g} with {how.optimiser}; take a smaller one, or a "
                "longer warmup"
            )
        rate = self._optimiser.param_groups[0]["lr"]
        seconds = time.perf_counter() - started
        return [Point(self.epochs, "train", loss, right, rate, seconds)]

    def point(self, split: str, images: Images) -> Point:
        """How the network, or its average, does on ``images`` after this epoch."""
        started = time.perf_counter()
        with self._averaged():
            loss, accuracy = self.score(images)
        rate = self._optimiser.param_groups[0]["lr"]
        seconds = time.perf_counter() - started
        return Point(self.epochs, split, loss, accuracy, rate, seconds)

    def score(self, images: Images) -> tuple[float, float]:
        """Mean cross-entropy and accuracy on ``images``, as they are."""
        logits, targets = self.logits(images), torch.from_numpy(images.targets)
        loss = functional.cross_entropy(logits, targets).item()
        return loss, (logits.argmax(dim=1) == targets).float().mean().item()

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
        beside = file.with_name(f".{file.name}")
        torch.save(
            {
                "epochs": self.epochs,
                "network": self._network.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "average": self._average,
                "averaged_steps": self._averaged_steps,
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
        self._average = found["average"]
        self._averaged_steps = found["averaged_steps"]
        return [Point(**point) for point in found["curve"]]

    def finish(self) -> None:
        """Leave in the network what is to be kept."""
        if self._average is not None:
            self._network.restore(self._average)
        self._network.eval()

    def mixed(self, before: dict[str, torch.Tensor], held: Images) -> float:
        """Mix the weights with those ``before``; the share of the trained ones.

        The share with which ``held`` lose least, by log loss at the temperature that
        suits the share: a network that learned long is surer than it is right, which
        calibration mends later, and must not count against it here.
        """
        after = _copy(self._network)
        targets = torch.from_numpy(held.targets)
        losses = {}
        for share in _MIXES:
            self._network.restore(_mix(before, after, share))
            losses[share] = calibrated_loss(self.logits(held), targets)
        best = min(losses, key=losses.__getitem__)
        self._network.restore(_mix(before, after, best))
        self._network.eval()
        return best

    def _batches(self, order: torch.Tensor) -> list[torch.Tensor]:
        """``order`` in batches; a last image alone goes with those before it."""
        batches = list(order.split(self._how.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def _set_rate(self, step: int) -> None:
        """The learning rate of a step, counted from 0 over all epochs."""
        total = self._steps * self._how.epochs
        warm = round(self._how.warmup * total)
        if step < warm:
            factor = (step + 1) / warm
        else:
            factor = (1 + math.cos(math.pi * (step - warm) / max(1, total - warm))) / 2
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def _gradients(
        self, chosen: torch.Tensor, total: int, chance: torch.Generator
    ) -> tuple[float, float]:
        """Add the gradients of this process's share of a batch.

        ``total`` images are in the step. The sum of its losses, and how many of it were
        right.
        """
        rows = chosen.numpy()
        number = max(1, min(self._shares, len(rows) // _LEAST))
        values = self._augmented(rows, number, chance)
        soft = self._soft_targets(rows).to(self._device)
        values, soft = self._mixed_images(values, soft, chance)
        own = slice(self._process, None, self._processes)
        values, soft, rows = values[own], soft[own], rows[own]
        number = max(1, min(self._shares, len(rows) // _LEAST))
        share = partial(self._share, total=total)
        found = list(self._pool.map(share, values.chunk(number), soft.chunk(number)))
        for gradients, _, _ in found:
            for p, gradient in zip(self._parameters, gradients, strict=True):
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)
        guesses = torch.cat([guess for _, _, guess in found]).numpy()
        right = int((guesses == self._images.targets[rows]).sum())
        return sum(loss for _, loss, _ in found), right

    def _add_up(self, own: Sequence[torch.Tensor]) -> None:
        """Replace values of this process by their sums over all processes."""
        if self._processes == 1:
            return
        flat = torch.cat([values.reshape(-1) for values in own])
        distributed.all_reduce(flat)
        parts = flat.split([values.numel() for values in own])
        for values, part in zip(own, parts, strict=True):
            values.copy_(part.view(values.shape))

    def _augmented(
        self, rows: np.ndarray, number: int, chance: torch.Generator
    ) -> torch.Tensor:
        """What the network is given for ``rows``, changed, in ``number`` parts."""
        how = self._how.augment
        values = by_policy(self._images.take(rows), how, chance)
        draws = drawn(len(rows), how, mirror=self._mirror, chance=chance)
        shares = self._moved(values).chunk(number)
        parts = self._pool.map(applied, shares, draws.chunk(number))
        return torch.cat(list(parts))

    def _share(
        self, values: torch.Tensor, soft: torch.Tensor, total: int
    ) -> tuple[Sequence[torch.Tensor], float, torch.Tensor]:
        """Gradients, sum of losses and guesses of a part of a batch."""
        with torch.enable_grad():
            with autocast(self._device, self._kind):
                logits = self._network(values)
            loss = -(soft * logits.float().log_softmax(dim=1)).sum()
            gradients = torch.autograd.grad(loss / total, self._parameters)
        return gradients, loss.item(), logits.detach().argmax(dim=1).cpu()

    def _soft_targets(self, rows: np.ndarray) -> torch.Tensor:
        """Smoothed one-hot rows (n, K) times the weights of the images."""
        how, targets = self._how, torch.from_numpy(self._images.targets[rows])
        classes = self._network.head.out_features
        soft = functional.one_hot(targets, classes) * (1 - how.label_smoothing)
        soft = soft + how.label_smoothing / classes
        if self._images.weights is None:
            return soft
        weights = torch.from_numpy(self._images.weights[rows]).float()
        return soft * weights[:, None]

    def _mixed_images(
        self, values: torch.Tensor, soft: torch.Tensor, chance: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each image with a partner: mixup, or cutmix, or either by the toss of a coin.

        Sources: Zhang et al. 2018, "mixup"; Yun et al. 2019, "CutMix".
        """
        how = self._how
        alphas = [("mix", how.mixup), ("cut", how.cutmix)]
        able = [(name, alpha) for name, alpha in alphas if alpha]
        if not able:
            return values, soft
        at = int(torch.randint(len(able), (1,), generator=chance))
        name, alpha = able[at]
        seed = int(torch.randint(0, 2**31, (1,), generator=chance))
        share = float(np.random.default_rng(seed).beta(alpha, alpha))
        partners = torch.randperm(len(values), generator=chance).to(values.device)
        if name == "cut":
            values, share = _with_patches(values, partners, share, chance)
        else:
            values = share * values + (1 - share) * values[partners]
        return values, share * soft + (1 - share) * soft[partners]

    def _add_to_average(self) -> None:
        if self._average is None:
            return
        self._averaged_steps += 1  # while it is young it follows faster
        young = (1 + self._averaged_steps) / (10 + self._averaged_steps)
        decay = min(self._how.ema, young)
        with torch.no_grad():
            for name, values in self._network.state_dict().items():
                if values.is_floating_point():
                    self._average[name].lerp_(values, 1 - decay)
                else:
                    self._average[name].copy_(values)

    def _averaged(self) -> "_Swapped":
        return _Swapped(self._network, self._average)

    def _moved(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._device, non_blocking=True)


def calibrated_loss(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The least mean cross-entropy of ``logits`` (n, K) at any of ``_FACTORS``."""
    return min(
        functional.cross_entropy(factor * logits, targets).item() for factor in _FACTORS
    )


class _Swapped:
    """For a while the network has other weights."""

    def __init__(
        self, network: Classifier, other: dict[str, torch.Tensor] | None
    ) -> None:
        self._network, self._other = network, other
        self._own: dict[str, torch.Tensor] = {}

    def __enter__(self) -> None:
        if self._other is not None:
            self._own = _copy(self._network)
            self._network.restore(self._other)

    def __exit__(self, *_: object) -> None:
        if self._other is not None:
            self._network.restore(self._own)


def _group() -> tuple[int, int]:
    """The number of this process among those that train together, and of all."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


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


def rate(how: FinetuneSpec, steps: int) -> float:
    """The learning rate at its height of a training of so many ``steps``.

    A step of AdamW is about as long as the rate whatever the gradient is, and it takes
    hundreds of them to find back to what a network knew: at 0.001, 24 steps on 183
    photos left SqueezeNet near chance, 500 on traffic signs did it good.
    """
    return how.learning_rate or _RATE * min(1.0, steps / _ENOUGH)


def _optimiser(
    network: Classifier, how: FinetuneSpec, device: torch.device, highest: float
) -> torch.optim.Optimizer:
    """Each block at its own rate; norms and biases are not decayed."""
    groups = []
    for depth, block in enumerate(network.learning):
        rate = highest * how.decay**depth
        for decayed in (True, False):
            some = [p for p in block if (p.ndim > 1) == decayed]
            if some:
                decay = how.weight_decay if decayed else 0.0
                groups.append({"params": some, "lr": rate, "weight_decay": decay})
    if how.optimiser == "sgd":
        return torch.optim.SGD(groups, highest, momentum=MOMENTUM, fused=True)
    return torch.optim.AdamW(groups, highest, fused=device.type in {"cpu", "cuda"})


def _copy(network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: values.detach().clone() for name, values in network.state_dict().items()
    }


def _mix(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    return {
        name: before[name].lerp(values, share) if values.is_floating_point() else values
        for name, values in after.items()
    }
