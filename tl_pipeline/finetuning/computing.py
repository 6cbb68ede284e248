"""In what type and threads the batches of a training are computed. Imports torch."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial

import torch

from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.embedding.devices import devices, has_bfloat16
from tl_pipeline.embedding.process import cores
from tl_pipeline.embedding.workers import pool, threads_of_batches, use_threads


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
