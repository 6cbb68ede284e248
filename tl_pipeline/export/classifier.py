"""A registered model as one torch module, from pixels to calibrated probabilities."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tl_pipeline.embedding.engine import sharing
from tl_pipeline.encoders import loading
from tl_pipeline.encoders.backbones.outputs import Outputs
from tl_pipeline.encoders.concat import members_of
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.evaluation.calibration import Calibration, Temperature
from tl_pipeline.heads.neural.layers import Cosine
from tl_pipeline.heads.neural.predictor import NeuralPredictor
from tl_pipeline.heads.predictors import (
    Centroids,
    GaussianBayes,
    KernelMachine,
    Linear,
    Neighbours,
    Predictor,
    Preparation,
)
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.registry.model import Member, Model
from tl_pipeline.store.embeddings import Places

_EPSILON = float(np.finfo(np.float32).eps)


class Classifier(nn.Module):
    """Called with uint8 pixels (n, channels, crop, crop); probabilities (n, K).

    ``kind`` is the floating type that networks compute in; heads take float32.

    Raises:
        InvalidSpec: a part of ``model`` has no form as a graph, or its encoders are fed
            in different ways.
        WeightsError: the weights of one of its encoders are gone or changed.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: Model, kind: torch.dtype = torch.float32) -> None:
        super().__init__()
        how, self._kind = fed(model), kind
        channels = 1 if how.grey else len(how.mean)
        for name, values in (("mean", how.mean), ("std", how.std)):
            tensor = torch.tensor(values[:channels]).view(1, -1, 1, 1)
            self.register_buffer(name, tensor)
        # for the sake of networks they are as exact as the graph
        encoders = [as_exact(encoder) for encoder in model.encoders]
        self._keys = {
            e.key: o.key for e, o in zip(encoders, model.encoders, strict=True)
        }
        groups = sharing(encoders)
        self._embedded = [[self._keys[e.key] for e in group] for group in groups]
        self.networks = nn.ModuleList(_network(group, kind) for group in groups)
        self.heads = nn.ModuleList(_Member(one, model) for one in model.members)
        point = model.operating_point
        self._calibration = point.calibration if point else None
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See the class."""
        batch = ((pixels.float() / 255 - self.mean) / self.std).to(self._kind)
        vectors = {}
        for keys, network in zip(self._embedded, self.networks, strict=True):
            vectors |= zip(keys, network(batch), strict=True)
        said = torch.stack([head(vectors) for head in self.heads]).sum(dim=0)
        return calibrated(said, self._calibration)


class _Member(nn.Module):
    """The share of one head in the average, its classes in the order of the model's."""

    place: torch.Tensor

    def __init__(self, member: Member, model: Model) -> None:
        super().__init__()
        self._parts = [part.key for part in members_of(member.encoder)]
        self.preparation = _Prepared(member.head.preparation)
        self.predictor = _form(member.head.predictor, member.head.config.name)
        point = member.operating_point
        self._calibration = point.calibration if point else None
        share = member.times / sum(one.times for one in model.members)
        place = torch.zeros(len(member.head.classes), len(model.classes))
        for row, name in enumerate(member.head.classes):
            place[row, model.classes.index(name)] = share
        whole = torch.equal(place, torch.eye(len(model.classes)))
        self.register_buffer("place", None if whole else place)

    def forward(self, vectors: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = torch.cat([vectors[key] for key in self._parts], dim=1)
        said = self.predictor(self.preparation(rows)).float()
        said = calibrated(said, self._calibration)
        return said if self.place is None else said @ self.place


def fed(model: Model) -> Preprocess:
    """How all networks of ``model`` are fed.

    Raises:
        InvalidSpec: they take no images, or are fed in different ways.
    """
    how, *others = dict.fromkeys(encoder.preprocess for encoder in model.encoders)
    if not isinstance(how, Preprocess):
        raise InvalidSpec(
            f"{model.encoders[0].label} takes no images; models of images are exported"
        )
    if others:
        raise InvalidSpec(
            "this model averages or joins encoders that are fed in different ways, and "
            "an exported graph takes one input; export a model whose encoders share "
            "side, crop, interpolation and normalisation: "
            + ", ".join(encoder.label for encoder in model.encoders)
        )
    return how


def as_exact(encoder: Encoder) -> Encoder:
    """``encoder`` computed in float32, whatever its embeddings in the store are."""
    return encoder.model_copy(update={"precision": "fp32"})


def calibrated(said: torch.Tensor, how: Calibration | None) -> torch.Tensor:
    """See ``calibration.Temperature.apply``."""
    if not isinstance(how, Temperature):
        return said
    return torch.softmax(said.clamp(_EPSILON, 1 - _EPSILON).log() * how.factor, dim=1)


def _network(group: list[Encoder], kind: torch.dtype) -> nn.Module:
    extractor = loading.load_together(group)
    body = extractor.body
    if isinstance(body, Outputs):
        traced = body.traced()
        if traced is None:
            raise InvalidSpec(
                f"{group[0].label} has no graph that can be exported; networks of "
                "torchvision, timm's convolutional ones and fine-tuned ones have"
            )
        body = extractor.body = traced
    body.to(kind)
    return extractor


class _Prepared(nn.Module):
    """See ``Preparation``."""

    mean: torch.Tensor | None
    scale: torch.Tensor | None
    axes: torch.Tensor | None

    def __init__(self, of: Preparation) -> None:
        super().__init__()
        self._l2 = of.l2
        for name in ("mean", "scale", "axes"):
            self.register_buffer(name, _tensor(getattr(of, name)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = _unit(x) if self._l2 else x
        x = x if self.mean is None else x - self.mean
        x = x if self.scale is None else x / self.scale
        return x if self.axes is None else x @ self.axes.T


class _Placed(nn.Module):
    """See ``Places``."""

    def __init__(self, of: Places) -> None:
        super().__init__()
        self._of = of

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._of.channels_first:
            return x.unflatten(1, (-1, self._of.count)).transpose(1, 2)
        return x.unflatten(1, (self._of.count, -1))


class _Form(nn.Module):
    """``compute`` of rows and of tensors, which are this module's buffers."""

    def __init__(self, compute: Callable[..., torch.Tensor], **tensors: Any) -> None:
        super().__init__()
        self._compute, self._names = compute, list(tensors)
        for name, values in tensors.items():
            self.register_buffer(name, values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._compute(x, *(getattr(self, name) for name in self._names))


def _linear(of: Linear) -> nn.Module:
    def compute(x: torch.Tensor, *t: torch.Tensor) -> torch.Tensor:
        coef, intercept, mean, scale = t
        scores = ((x - mean) / scale) @ coef.T + intercept
        return _softmax(scores, of.inverse_temperature)

    names = ("coef", "intercept", "mean", "scale")
    return _Form(compute, **{name: _tensor(getattr(of, name)) for name in names})


def _centroids(of: Centroids) -> nn.Module:
    def compute(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
        return _softmax(_unit(x) @ centroids.T, of.inverse_temperature)

    return _Form(compute, centroids=_tensor(of.centroids))


def _neighbours(of: Neighbours) -> nn.Module:
    def compute(x: torch.Tensor, *t: torch.Tensor) -> torch.Tensor:
        rows, owners, shares = t
        close, nearest = (_unit(x) @ rows.T).topk(min(of.k, len(rows)), dim=1)
        votes = ((close - close[:, :1]) / of.temperature).exp()
        sums = (votes[:, :, None] * owners[nearest]).sum(dim=1)
        sums = sums + votes[:, -1:] * shares
        return sums / sums.sum(dim=1, keepdim=True)

    owners = functional.one_hot(torch.from_numpy(of.targets).long(), of.classes)
    shares = owners.float().mean(dim=0)
    return _Form(compute, rows=_tensor(of.rows), owners=owners.float(), shares=shares)


def _gaussian(of: GaussianBayes) -> nn.Module:
    def compute(x: torch.Tensor, *t: torch.Tensor) -> torch.Tensor:
        means, variances, first = t
        distances = (x.double()[:, None] - means) ** 2 / variances
        return torch.softmax(first - distances.sum(dim=2) / 2, dim=1)

    means, variances = (torch.from_numpy(v).double() for v in (of.means, of.variances))
    first = torch.from_numpy(of.priors).log() - variances.log().sum(dim=1) / 2
    return _Form(compute, means=means, variances=variances, first=first)


def _kernel(of: KernelMachine) -> nn.Module:
    classes = len(of.counts)
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    ends = np.cumsum([0, *of.counts])
    dual = np.zeros((len(of.vectors), len(pairs)))
    first, second = np.zeros((2, len(pairs), classes))
    for at, (i, j) in enumerate(pairs):
        for own, other in ((i, j - 1), (j, i)):
            rows = slice(ends[own], ends[own + 1])
            dual[rows, at] = of.dual[other, rows]
        first[at, i] = second[at, j] = 1

    def compute(x: torch.Tensor, *t: torch.Tensor) -> torch.Tensor:
        vectors, dual, free, first, second = t
        x = x.double()
        square = (x**2).sum(dim=1, keepdim=True) + (vectors**2).sum(dim=1)
        kernel = (-of.gamma * (square - 2 * x @ vectors.T).clamp(min=0)).exp()
        scores = kernel @ dual + free
        if classes == 2:
            return _softmax(scores, of.inverse_temperature)
        won = (scores >= 0).double()
        votes = won @ first + (1 - won) @ second
        sums = scores @ (first - second)
        votes = votes + sums / (3 * (sums.abs() + 1))
        return _softmax(votes, of.inverse_temperature)

    arrays = (of.vectors, dual, of.intercept, first, second)
    named = zip(("vectors", "dual", "free", "first", "second"), arrays, strict=True)
    return _Form(compute, **{name: torch.from_numpy(v).double() for name, v in named})


def _neural(of: NeuralPredictor) -> nn.Module:
    layers: list[nn.Module] = []
    for layer in of.layers.modules():
        if isinstance(layer, Cosine):
            directions = functional.normalize(layer.weight, dim=1)
            weight = (directions * layer.log_sharpness.exp()).detach()
            layers.append(_Form(lambda x, w: _unit(x) @ w.T, weight=weight))
        elif isinstance(layer, nn.Linear):  # ours chooses threads, which no graph knows
            plain = nn.Linear(layer.in_features, layer.out_features)
            plain.load_state_dict(layer.state_dict())
            layers.append(plain)
        elif not isinstance(layer, nn.Sequential):
            layers.append(layer)
    before = [] if of.places is None else [_Placed(of.places)]
    before += [_Prepared(Preparation(mean=of.mean, scale=of.scale))]
    return nn.Sequential(*before, *layers, nn.Softmax(dim=1))


# A head of another kind is a control, which is never registered.
_FORMS: dict[type, Callable[[Any], nn.Module]] = {
    Linear: _linear,
    Centroids: _centroids,
    Neighbours: _neighbours,
    GaussianBayes: _gaussian,
    KernelMachine: _kernel,
    NeuralPredictor: _neural,
}


def _form(predictor: Predictor, name: str) -> nn.Module:
    if type(predictor) not in _FORMS:
        raise InvalidSpec(
            f"heads of the kind {name!r} cannot be exported; those can that end in "
            + ", ".join(sorted(kind.__name__ for kind in _FORMS))
        )
    return _FORMS[type(predictor)](predictor)


def _softmax(scores: torch.Tensor, factor: float) -> torch.Tensor:
    if scores.shape[1] == 1:  # of two classes, positive for the second
        scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
    return torch.softmax(scores * factor, dim=1)


def _unit(x: torch.Tensor) -> torch.Tensor:
    lengths = x.norm(dim=1, keepdim=True)
    return x / torch.where(lengths > 0, lengths, torch.ones_like(lengths))


def _tensor(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(np.asarray(array, np.float32))
