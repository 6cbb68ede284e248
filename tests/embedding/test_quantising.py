"""Networks in 8-bit integers: near the exact ones, for every kind of connection."""

import numpy as np
import pytest
import torch
from torch import fx, nn

from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.embedding import int8_ops, precision, quantising
from tl_pipeline.embedding.forward import Forward
from tl_pipeline.encoders import resolution
from tl_pipeline.inputs.calibration_images import photographs
from tl_pipeline.store.artifacts import Store

pytestmark = pytest.mark.skipif(
    not quantising.can_quantise(), reason="no int8 of oneDNN on this processor"
)


class Branches(nn.Module):
    """Convolutions with all that integers may meet on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.ceil = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.one = nn.Conv2d(16, 12, 1)
        self.other = nn.Conv2d(16, 12, 1, bias=False)
        self.last = nn.Conv2d(12, 12, 3, padding=1)
        self.hard = nn.Hardswish()
        self.flat = nn.Linear(12, 20)
        self.end = nn.Linear(20, 6)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        values = self.pool(torch.relu(self.stem(batch)))
        joined = torch.cat([torch.relu(self.left(values)), self.right(values)], 1)
        joined = self.ceil(joined)
        values = torch.relu(self.one(joined) + self.other(joined))
        again = self.hard(self.last(values) + values)
        pooled = (again * torch.sigmoid(values)).mean(dim=(2, 3))
        return self.end(torch.relu(self.flat(pooled)))


def made(seed: int = 0) -> tuple[fx.GraphModule, list[torch.Tensor]]:
    """The network and three batches."""
    torch.manual_seed(seed)
    graph = fx.symbolic_trace(Branches().eval().requires_grad_(requires_grad=False))
    layout = torch.channels_last
    return graph, [torch.randn(8, 3, 50, 50).to(memory_format=layout) for _ in range(3)]


@torch.inference_mode()
def test_integers_give_nearly_the_same():
    graph, batches = made()
    expected = graph(batches[0])
    assert quantising.quantise(graph, batches) == 8
    found = graph(batches[0])
    assert found.dtype == torch.float32
    error = (found - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.05


@torch.inference_mode()
def test_integers_stay_integers_from_layer_to_layer():
    """Only the input is encoded, and what the sigmoid and the product left."""
    graph, batches = made()
    quantising.quantise(graph, batches)
    kinds = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert kinds.count(int8_ops.pool) == 2
    assert kinds.count(int8_ops.encode) == 2  # the batch, and the mean
    assert kinds.count(int8_ops.decode) == 1  # for the sigmoid


@torch.inference_mode()
def test_a_batch_of_another_size_is_computed_too():
    graph, batches = made()
    quantising.quantise(graph, batches)
    whole = graph(batches[0])
    parts = torch.cat([graph(part) for part in batches[0].split(3)])
    torch.testing.assert_close(parts, whole)


@torch.inference_mode()
def test_the_same_network_is_quantised_the_same_again():
    one, batches = made()
    other, _ = made()
    quantising.quantise(one, batches)
    quantising.quantise(other, batches)
    assert torch.equal(one(batches[1]), other(batches[1]))


@torch.inference_mode()
def test_what_is_needed_afterwards_is_not_overwritten_by_a_sum():
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            first = torch.relu(self.one(batch))
            second = torch.relu(self.two(first) + first)
            return self.three(second) + first

    torch.manual_seed(0)
    graph = fx.symbolic_trace(Kept().eval().requires_grad_(requires_grad=False))
    batch = torch.randn(4, 4, 9, 9).to(memory_format=torch.channels_last)
    expected = graph(batch)
    quantising.quantise(graph, [batch])
    error = (graph(batch) - expected).abs().mean() / expected.abs().mean()
    assert error < 0.03  # overwritten, it would be 0.5


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "ceil"),
    [
        (12, 3, 2, 1, False),
        (13, 3, 2, 0, True),
        (12, 2, 2, 0, False),
        (9, 3, 1, 1, True),
    ],
)
def test_the_pooling_of_integers_is_that_of_floats(
    size: int, kernel: int, stride: int, padding: int, ceil: bool
):
    codes = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2, 3, size, size), dtype=np.uint8)
    )
    layer = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    expected = layer(codes.float())
    pairs = [(value, value) for value in (kernel, stride, padding)]
    found = int8_ops.pool(codes, *pairs, tuple(expected.shape[2:]))
    assert torch.equal(found.float(), expected)


def test_codes_hold_zero_exactly():
    for low, high in [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)]:
        step, zero = quantising._codes([(low, high)])
        values = torch.tensor([0.0, max(high, 0.0), min(low, 0.0)])
        found = int8_ops.decode(int8_ops.encode(values, step, zero), step, zero)
        assert found[0] == 0
        assert (found - values).abs().max() <= step


@pytest.mark.parametrize(
    "text",
    [
        "lenet5",
        "resnet18",
        "squeezenet1_1",
        "mobilenet_v3_small",
        "swin_t:crop=96,resize=96",
    ],
)
def test_families_of_networks_stay_near_their_floats(text: str, store: Store):
    spec = EncoderSpec.parse(text).model_copy(update={"weights": "random:0"})
    exact = resolution.resolve(spec, store)
    coarse = exact.model_copy(update={"precision": "int8"})
    batch = photographs(exact.preprocess)[:4]
    (expected,), (found,) = Forward([exact])(batch), Forward([coarse])(batch)
    assert precision.cosines(found, expected).min() > 0.99
    assert not np.array_equal(found, expected)
