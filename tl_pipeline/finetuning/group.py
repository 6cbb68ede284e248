"""The processes that train together, a group of ``torch.distributed``; imports torch.

One that is in no group is a group of one.
"""

from collections.abc import Sequence

import torch
from torch import distributed


def place() -> tuple[int, int]:
    """The number of this process in its group, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def add_up(own: Sequence[torch.Tensor]) -> None:
    """Replace values of this process by their sums over all processes."""
    if place()[1] == 1:
        return
    flat = torch.cat([values.reshape(-1) for values in own])
    distributed.all_reduce(flat)
    parts = flat.split([values.numel() for values in own])
    for values, part in zip(own, parts, strict=True):
        values.copy_(part.view(values.shape))
