"""What the parameters of heads mean, and which values they take."""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType

from tl_pipeline.config.short_forms import Scalar
from tl_pipeline.errors import InvalidSpec

# What is done to embeddings before a head learns; see preparation.prepared.
PREPARATION: Mapping[str, Scalar] = MappingProxyType(
    {"l2": False, "scale": "standard", "pca": 0, "whiten": False}
)

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "class_weight": ("none", "balanced"),
        "gamma": ("scale",),
        "optimiser": ("adamw", "adam", "sgd"),
        "scale": ("standard", "none"),
        "schedule": ("constant", "cosine", "step"),
        "sharpness": ("learned",),
        "shrinkage": ("auto",),
        "stop_by": ("loss", "refined"),
    }
)

LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "C": (1e-12, 1e12),
        "alpha": (1e-12, 1e12),
        "batch_size": (1, 1 << 20),
        "dropout": (0, 0.99),
        "gamma": (1e-12, 1e6),
        "hidden": (1, 65536),
        "k": (1, 10_000),
        "label_smoothing": (0, 0.99),
        "learning_rate": (1e-9, 10),
        "max_epochs": (1, 100_000),
        "mixup": (0, 100),
        "patience": (0, 100_000),
        "pca": (0, 65536),
        "queries": (1, 1024),
        "sharpness": (1e-3, 1e4),
        "shrinkage": (1e-6, 1),
        "smoothing": (1e-12, 1e3),
        "temperature": (1e-3, 100),
        "values": (1, 65536),
        "weight_decay": (0, 10),
    }
)

MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "C": "inverse strength of the penalty",
        "alpha": "strength of the penalty",
        "batch_norm": "standardise what goes into each hidden layer's ReLU, by batch",
        "batch_size": "rows per step",
        "class_weight": "balanced: every class counts the same in all",
        "dropout": "share of hidden units that are dropped in training",
        "gamma": "inverse width of the kernel; scale: 1 / (width x variance)",
        "hidden": "hidden units; of several layers as in 512x256",
        "k": "neighbours that vote",
        "label_smoothing": "share of a row's target that all classes get alike",
        "l2": "scale every embedding to length 1, first of all",
        "learning_rate": "size of a step",
        "max_epochs": "passes over the rows at most",
        "mixup": "learn from mixtures of two rows, alpha of their beta law; 0: none",
        "optimiser": "adamw, adam, or sgd with momentum 0.9",
        "patience": "epochs without a better held-out loss before it stops",
        "pca": "principal components kept: 0 all, a number at most, or a share of "
        "variance",
        "queries": "that are learned; each attends to all places",
        "scale": "standard: every feature to mean 0 and deviation 1",
        "schedule": "of the learning rate: cosine falls to 0, step to a tenth at "
        "half of max_epochs and at three quarters",
        "sharpness": "factor on the cosines before the softmax",
        "shrinkage": "of the covariance to a sphere, 0 to 1; auto: by Ledoit and Wolf",
        "smoothing": "share of the greatest variance that is added to all variances",
        "stop_by": "the held-out loss, or refined: what is left of it after the best "
        "temperature",
        "temperature": "of the votes: greater lets far neighbours count more",
        "values": "numbers taken from the places, shared out among the queries",
        "weight_decay": "penalty on the weights",
        "whiten": "scale every principal component to deviation 1",
    }
)

SHARES = frozenset({"pca"})  # whole numbers that may also be a share of a whole
_SEVERAL = re.compile(r"[0-9]+(x[0-9]+)*")
SEVERAL = frozenset({"hidden"})  # whole numbers that may also be several: 512x256


def accepted(
    head: str,
    name: str,
    sample: Scalar,
    limits: tuple[float, float] | None,
    given: Scalar,
) -> Scalar:
    """``given`` as the kind of value that ``sample`` is: 1 and 1.0 have one key.

    Raises:
        InvalidSpec: no such value is possible; with those that are.
    """
    choices = CHOICES.get(name, ())
    if isinstance(sample, bool):
        if isinstance(given, bool):
            return given
        raise InvalidSpec(f"head {head!r}: {name} must be true or false, not {given!r}")
    if isinstance(given, str) and given in choices:
        return given
    if limits is None:
        listed = " or ".join(choices)
        raise InvalidSpec(f"head {head!r}: {name} must be {listed}, not {given!r}")
    if name in SEVERAL and isinstance(given, str) and _SEVERAL.fullmatch(given):
        parts = [_number(head, name, sample, limits, int(p)) for p in given.split("x")]
        return "x".join(map(str, parts)) if parts[1:] else parts[0]
    return _number(head, name, sample, limits, given)


def _number(
    head: str,
    name: str,
    sample: Scalar,
    limits: tuple[float, float],
    given: Scalar,
) -> Scalar:
    """``given`` as a whole number or a float between ``limits``."""
    choices = CHOICES.get(name, ())
    if isinstance(given, str | bool) or not math.isfinite(given):
        other = "".join(f"{choice} or " for choice in choices)
        raise InvalidSpec(
            f"head {head!r}: {name} must be {other}a number, not {given!r}"
        )
    if name in SHARES and 0 < given < 1:
        return given
    whole = isinstance(sample, int) or name in SHARES
    if whole and not isinstance(given, int):
        share = " or a share below 1" if name in SHARES else ""
        raise InvalidSpec(
            f"head {head!r}: {name} must be a whole number{share}, not {given}"
        )
    least, most = limits
    if not least <= given <= most:
        raise InvalidSpec(
            f"head {head!r}: {name} must lie between {least:g} and {most:g}, "
            f"not {given}"
        )
    return given if whole else float(given)


def domain(name: str, sample: Scalar, limits: tuple[float, float] | None) -> str:
    """The values that a parameter takes, in words: ``1e-12 to 1e+12``."""
    if isinstance(sample, bool):
        return "true, false"
    parts = list(CHOICES.get(name, ()))
    if limits is not None:
        least, most = (str(n) if isinstance(n, int) else f"{n:g}" for n in limits)
        parts.append(f"{least} to {most}")
    if name in SHARES:
        parts.append("a share below 1")
    if name in SEVERAL:
        parts.append("several as in 512x256")
    return ", ".join(parts)
