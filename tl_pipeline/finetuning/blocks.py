"""Of what blocks a network consists, read off its own structure. Imports torch.

A block is what papers call one: a residual block, a Fire module, a transformer layer, a
convolution of VGG. Containers that only put modules in a row are opened; a
normalisation between two blocks belongs to the one before it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from tl_pipeline.encoders.backbones.outputs import Outputs

_ROWS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# What a module of its own kind calls the row of its blocks: an encoder, a stage.
_NAMES = ("layers", "blocks")
_NORMS = (
    nn.BatchNorm2d,
    nn.LayerNorm,
    nn.GroupNorm,
)


def blocks(network: nn.Module) -> list[tuple[str, ...]]:
    """The modules of each block by name, the nearest to the input first."""
    trunk: Any = network.network if isinstance(network, Outputs) else network
    found: list[tuple[str, ...]] = []
    for name, module in _parts(trunk, "", top=True):
        if found and _only_norm(module):
            found[-1] = (*found[-1], name)
        else:
            found.append((name,))
    return found


def of_parameters(
    found: Sequence[tuple[str, ...]], names: Sequence[str]
) -> list[list[str]]:
    """The parameters ``names`` by block, the nearest to the head first.

    Blocks without any of them are left out. What is in no block (the positions of a
    transformer) goes with the first.
    """
    of = {module: at for at, block in enumerate(found) for module in block}
    members: dict[int, list[str]] = {}
    for name in names:
        members.setdefault(_block(name, of), []).append(name)
    return [members[at] for at in sorted(members, reverse=True)]


def _block(name: str, of: Mapping[str, int]) -> int:
    while name:
        name = name.rpartition(".")[0]
        if name in of:
            return of[name]
    return 0


def _parts(
    module: nn.Module, prefix: str, *, top: bool
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        place = f"{prefix}.{name}" if prefix else name
        if next(child.parameters(), None) is None:
            continue
        if _is_row(child, top=top) or _has_rows(child):
            yield from _parts(child, place, top=False)
        else:
            yield place, child


def _is_row(module: nn.Module, *, top: bool) -> bool:
    """Whether it only puts modules in a row; below the top, of which some are more."""
    if type(module) not in _ROWS:
        return False
    return top or any(next(child.children(), None) for child in module.children())


def _has_rows(module: nn.Module) -> bool:
    """Whether it is an encoder or a stage, which holds a row of blocks."""
    return any(
        name in _NAMES and _is_row(child, top=False)
        for name, child in module.named_children()
    )


def _only_norm(module: nn.Module) -> bool:
    leaves = [m for m in module.modules() if next(m.children(), None) is None]
    return all(
        isinstance(m, _NORMS) for m in leaves if next(m.parameters(), None) is not None
    )
