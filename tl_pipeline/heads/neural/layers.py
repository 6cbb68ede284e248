"""Layers of neural heads, drawn and dropped by generators of their own.

Torch's global generator is never touched: heads may be trained in several threads.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tl_pipeline.heads.threads import product

FIRST_SHARPNESS = 10.0  # of a cosine layer that learns it
FIRST_QUERIES = 0.02  # the deviation that queries are drawn with


class Linear(nn.Linear):
    """``nn.Linear`` whose products, forward and back, take the threads that pay."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """Of (n, width) the outputs (n, units)."""
        return _Product.apply(input, self.weight) + self.bias


class Cosine(nn.Module):
    """Cosines of rows and class weights, times a sharpness, as logits.

    Both are scaled to length 1 (Gidaris & Komodakis 2018, section 3.2; Wang et al.
    2017, NormFace). A sharpness that is learned is kept as its logarithm, so it stays
    above 0. A row of zeros has no direction: all its logits are 0.

    Args:
        width: of the rows.
        classes: how many.
        sharpness: a number, or None to learn it from ``FIRST_SHARPNESS`` on.
    """

    def __init__(self, width: int, classes: int, sharpness: float | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))
        first = torch.tensor(FIRST_SHARPNESS if sharpness is None else sharpness)
        if sharpness is None:
            self.log_sharpness = nn.Parameter(first.log())
        else:
            self.register_buffer("log_sharpness", first.log())

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Of ``rows`` (n, width) the logits (n, classes)."""
        rows = functional.normalize(rows, dim=1)
        directions = functional.normalize(self.weight, dim=1)
        return self.log_sharpness.exp() * _Product.apply(rows, directions)


class Attention(nn.Module):
    """Multi-query cross-attention: what learned queries take from the places of rows.

    The weight of a place is the softmax over places of its product with the query, by
    the root of the channels; there are no keys but the places. Each query has its own
    part of the values, a linear map of the weighted mean of the places, and these parts
    lie side by side. The mean is taken before the map, which is the same and cheaper:
    C x values products an image, not places x C x values.

    Args:
        channels: C, of a place.
        queries: M, how many.
        values: of all queries together, a multiple of M.
    """

    def __init__(self, channels: int, queries: int, values: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, channels))
        self.values = nn.Parameter(torch.empty(queries, channels, values // queries))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Of ``rows`` (n, places, C) the values (n, values)."""
        scores = rows @ self.queries.t() * rows.shape[2] ** -0.5
        weights = scores.softmax(dim=1).transpose(1, 2)
        means = torch.bmm(weights, rows)  # (n, M, C)
        taken = torch.bmm(means.transpose(0, 1), self.values)  # (M, n, values / M)
        return taken.transpose(0, 1).flatten(1)


class Network(nn.Sequential):
    """Hidden blocks and a last layer, so that dropout can be put between them."""

    def logits(
        self, rows: torch.Tensor, dropout: float, chance: torch.Generator
    ) -> torch.Tensor:
        """In training: ``forward`` with a share of the hidden units dropped.

        What is kept is scaled up by as much (Srivastava et al. 2014, section 10).
        """
        *blocks, last = self
        for block in blocks:
            hidden = block(rows)
            drawn = torch.rand(hidden.shape, generator=chance, device=hidden.device)
            rows = hidden * (drawn >= dropout) / (1 - dropout)
        return last(rows)


def network(
    width: int,
    hidden: Sequence[int],
    classes: int,
    *,
    batch_norm: bool = False,
    cosine: bool = False,
    sharpness: float | None = None,
) -> Network:
    """Layers without values: ReLU after each of ``hidden``, then one a class.

    ``batch_norm`` standardises what goes into each ReLU by the batch (Ioffe & Szegedy
    2015), and by the running mean and variance after training.
    """
    # nn.Linear would draw weights, which are replaced, from the global generator
    linear: Any = partial(nn.utils.skip_init, Linear)
    blocks: list[nn.Module] = []
    for units in hidden:
        norm = [nn.BatchNorm1d(units)] if batch_norm else []
        blocks.append(nn.Sequential(linear(width, units), *norm, nn.ReLU()))
        width = units
    last = Cosine(width, classes, sharpness) if cosine else linear(width, classes)
    return Network(*blocks, last)


def attentive_network(
    channels: int, queries: int, values: int, classes: int
) -> Network:
    """``Attention`` without values of its own, then one linear output a class."""
    last: Any = nn.utils.skip_init(Linear, values, classes)
    return Network(Attention(channels, queries, values), last)


def initialise(layers: nn.Module, chance: torch.Generator) -> None:
    """Draw weights and biases as ``nn.Linear`` does, but from ``chance``.

    Queries are drawn small, so that at first all places count about alike.
    """
    for layer in layers.modules():
        if isinstance(layer, Attention):
            nn.init.normal_(layer.queries, std=FIRST_QUERIES, generator=chance)
            bound = layer.values.shape[1] ** -0.5
            nn.init.uniform_(layer.values, -bound, bound, generator=chance)
        if isinstance(layer, Linear | Cosine):
            bound = layer.weight.shape[1] ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=chance)
            if isinstance(layer, Linear):
                nn.init.uniform_(layer.bias, -bound, bound, generator=chance)


class _Product(torch.autograd.Function):
    """``rows @ weight.T``, and its gradients, by ``threads.product``."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        return product(rows, weight.t())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        (gradient,) = gradients
        inner = product(gradient, weight) if ctx.needs_input_grad[0] else None
        return inner, product(gradient.t(), rows)
