"""The forward pass: a batch of inputs through one frozen network. Imports torch."""

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import fx

from tl_pipeline.embedding import onednn_fusion
from tl_pipeline.embedding.cuda_graphs import CudaGraph, recorded
from tl_pipeline.embedding.devices import CPU, exact_float32
from tl_pipeline.embedding.process import keep_freed_memory
from tl_pipeline.encoders import loading
from tl_pipeline.encoders.backbones.outputs import Outputs
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.encoders.feature_extractor import FeatureExtractor
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.store.timings import Clock

# Images a batch. More leave the cache of a processor and are slower; ResNet-50 on a
# GPU gains 3 % from twice as many, which take twice the memory all along the way.
BATCH = {"cpu": 32, "cuda": 128}
# Batches without a complaint after which one that was too large is tried again.
_FORGIVEN = 16
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# How far packed weights may change embeddings, as a share of the largest value: by the
# rounding of the sums that they are computed in.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
_NOT_FINITE = "{} gave values that are not finite"

Vectors = list[np.ndarray]


class Forward:
    """A batch of n inputs -> float32 embeddings (n, width), one of each encoder.

    Of images a batch is uint8 pixels (n, channels, crop, crop), an array or a tensor on
    the device, else what a ``Batch`` of ``modalities`` gives. The encoders differ in
    layer and pooling alone. ``bytes`` is what the weights take.

    Raises:
        WeightsError: the network cannot be loaded.
        InvalidSpec: its precision is none that is computed here.
        ValueError: it gave values that are not finite.
    """

    def __init__(self, together: Sequence[Encoder], device: torch.device = CPU) -> None:
        encoder = together[0]
        self.encoders, self.device = tuple(together), device
        keep_freed_memory()
        how = encoder.preprocess
        self._normalise: _Normalise | None = None
        if isinstance(how, Preprocess):
            self._normalise = _Normalise(how, device, _dtype(encoder))
            extractor = _folded(together, self._normalise)
            self.bytes = _bytes(extractor)
            if not _pack(extractor, self._normalise, how, encoder.label):
                extractor = _folded(together, self._normalise)
            self._network: Callable[[Any], Sequence[torch.Tensor]] = extractor
        else:
            module = loading.load(encoder).to(device)
            self.bytes = _bytes(module)
            self._network = lambda batch: (module(batch),)
        self._fitting = _HalvedWhenOutOfMemory(device)
        self._recorded: SimpleQueue[CudaGraph] = SimpleQueue()
        self._thread = threading.local()

    def __call__(self, batch: Any, clock: Clock | None = None) -> Vectors:
        """Embed one batch; ``clock`` counts ``transfer`` and ``forward``."""
        timed = partial(self._compute, clock=clock or Clock())
        with exact_float32(self.device):
            found = self._fitting(timed, batch)
        for encoder, vectors in zip(self.encoders, found, strict=True):
            if not np.isfinite(vectors).all():
                raise ValueError(_NOT_FINITE.format(encoder.label))
        return found

    def record(self, batch: int, threads: int) -> None:
        """Let so many threads compute each batch of ``batch`` images in one launch.

        Only a GPU does, and only networks of images whose graph is known; others go on
        as before.
        """
        how, normalise = self.encoders[0].preprocess, self._normalise
        body = getattr(self._network, "body", None)
        if self.device.type != "cuda" or not isinstance(body, fx.GraphModule):
            return
        assert normalise is not None  # noqa: S101 - a network of images
        assert isinstance(how, Preprocess)  # noqa: S101
        example = normalise.moved(_noise(how, batch))
        network = lambda pixels: self._network(normalise(pixels))  # noqa: E731
        with exact_float32(self.device):
            for _ in range(threads):
                found = recorded(network, example, _TOLERANCE[normalise.kind])
                if found is None:
                    return
                self._recorded.put(found)

    def _graph(self, batch: Any) -> CudaGraph | None:
        """What was recorded for the calling thread, if it is for such a batch."""
        if not hasattr(self._thread, "recorded"):
            empty = self._recorded.empty()
            self._thread.recorded = None if empty else self._recorded.get()
        found = self._thread.recorded
        return found if found and found.suits(batch.shape) else None

    @torch.inference_mode()
    def _compute(self, batch: Any, clock: Clock) -> Vectors:
        started = time.perf_counter()
        graph, normalise = self._graph(batch), self._normalise
        if graph is not None and normalise is not None:
            values, network = normalise.moved(batch), graph
        else:
            values = batch if normalise is None else normalise(batch)
            network = self._network
        ready = time.perf_counter()
        vectors = [found.float().cpu().numpy() for found in network(values)]
        ended = time.perf_counter()
        for encoder in self.encoders:
            clock.add("transfer", (ready - started) / len(vectors), encoder.key)
            clock.add("forward", (ended - ready) / len(vectors), encoder.key)
        return vectors


class _Normalise:
    """uint8 pixels to what a network of images takes, on its device."""

    def __init__(
        self, how: Preprocess, device: torch.device, kind: torch.dtype
    ) -> None:
        self.device, self.kind = device, kind
        # For whole rows of pixels at a time: on three channels alone vectors are idle.
        self._mean = torch.tensor(how.mean, device=device).repeat(how.crop)
        self._std = torch.tensor(how.std, device=device).repeat(how.crop)

    def __call__(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        if self.device != CPU:
            return self._on_gpu(self.moved(batch))
        images, channels, height, width = batch.shape
        # The memory of pixels has the channels last, as convolutions like it best.
        rows = np.asarray(batch).transpose(0, 2, 3, 1)
        rows = rows.reshape(images, height, width * channels)
        values = self._rows(torch.from_numpy(rows))
        return values.view(images, height, width, channels).permute(0, 3, 1, 2)

    def moved(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Pixels on the GPU."""
        if isinstance(batch, torch.Tensor):
            return batch
        pinned = torch.from_numpy(batch).pin_memory()
        return pinned.to(self.device, non_blocking=True)

    def _on_gpu(self, batch: torch.Tensor) -> torch.Tensor:
        """Pixels that are on the device already."""
        values = batch.to(torch.float32)
        channels = values.shape[1]
        mean, std = (of[:channels, None, None] for of in (self._mean, self._std))
        values = values.div_(255).sub_(mean).div_(std)
        return values.to(self.kind, memory_format=torch.channels_last)

    def _rows(self, rows: torch.Tensor) -> torch.Tensor:
        values = torch.empty(rows.shape, dtype=self.kind)
        # One image fits into the cache of a processor, where a batch does not.
        for image, normalised in zip(rows, values, strict=True):
            normalised.copy_(self._scaled(image))
        return values

    def _scaled(self, rows: torch.Tensor) -> torch.Tensor:
        # The order of torchvision's preset: to [0, 1], then normalise.
        values = rows.to(torch.float32)
        return values.div_(255).sub_(self._mean).div_(self._std)


class _HalvedWhenOutOfMemory:
    """Halves batches that do not fit into the memory of a GPU, and grows them back."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._most: int | None = None
        self._good = 0

    def __call__(self, compute: Callable[[Any], Vectors], batch: Any) -> Vectors:
        if self._most is not None and len(batch) > self._most:
            return self._halves(compute, batch)
        try:
            found = compute(batch)
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                raise
        else:
            self._grow()
            return found
        # Outside of the handler, whose traceback would keep the tensors alive.
        if self._cuda:
            torch.cuda.empty_cache()
        self._most, self._good = len(batch) // 2, 0
        return self._halves(compute, batch)

    def _halves(self, compute: Callable[[Any], Vectors], batch: Any) -> Vectors:
        half = (len(batch) + 1) // 2
        parts = [self(compute, batch[:half]), self(compute, batch[half:])]
        return [np.concatenate(vectors) for vectors in zip(*parts, strict=True)]

    def _grow(self) -> None:
        self._good += 1
        if self._most is not None and self._good >= _FORGIVEN:
            self._most, self._good = 2 * self._most, 0


def _dtype(encoder: Encoder) -> torch.dtype:
    if encoder.precision not in _DTYPES:  # of a model that an older version made
        raise InvalidSpec(
            f"{encoder.label}: precision={encoder.precision} is not computed any more; "
            f"run again with one of {', '.join(_DTYPES)}"
        )
    return _DTYPES[encoder.precision]


def _pack(
    extractor: FeatureExtractor, normalise: "_Normalise", how: Preprocess, label: str
) -> bool:
    """Pack the weights of ``extractor`` where oneDNN computes it.

    False where it then gives other values, which a warning says. It is spoiled then.
    """
    graph, kind = extractor.body, normalise.kind
    packable = normalise.device == CPU and onednn_fusion.can_pack(kind)
    if not isinstance(graph, fx.GraphModule) or not packable:
        return True
    few = normalise(_noise(how, 2))
    # oneDNN makes zeros of what is no number, so it is looked for before.
    expected = _trial(extractor, few)
    if not expected.isfinite().all():
        raise ValueError(_NOT_FINITE.format(label))
    onednn_fusion.pack(graph, (BATCH["cpu"], *few.shape[1:]), kind)
    change = (_trial(extractor, few) - expected).abs().max()
    if change <= _TOLERANCE[kind] * expected.abs().max():
        return True
    share = float(change / expected.abs().max())
    warnings.warn(
        f"{label}: packed weights change its values by {100 * share:.2g} % of the "
        "largest: it amplifies rounding, or oneDNN is wrong on this processor. It is "
        "computed with weights that are not packed, which takes longer",
        stacklevel=3,
    )
    return False


def _folded(together: Sequence[Encoder], normalise: "_Normalise") -> FeatureExtractor:
    """The network with batch normalisation folded into convolutions."""
    extractor = loading.load_together(together)
    body = extractor.body
    if isinstance(body, Outputs):
        extractor.body = body.traced() or body
    elif isinstance(body, fx.GraphModule):
        extractor.body = onednn_fusion.inline(body)
    if isinstance(extractor.body, fx.GraphModule):
        onednn_fusion.fold(extractor.body)
    extractor.to(normalise.device, normalise.kind)
    return extractor.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@torch.inference_mode()
def _trial(extractor: FeatureExtractor, batch: torch.Tensor) -> torch.Tensor:
    """The embeddings of ``batch`` under all layers, side by side."""
    return torch.cat([values.flatten() for values in extractor(batch)])


def _noise(how: Preprocess, images: int) -> np.ndarray:
    """Random pixels as they come: uint8 (images, channels, crop, crop)."""
    channels = 1 if how.grey else len(how.mean)
    shape = (images, how.crop, how.crop, channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return pixels.transpose(0, 3, 1, 2)


def _bytes(module: torch.nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
