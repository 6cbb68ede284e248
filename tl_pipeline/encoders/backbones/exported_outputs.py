"""An exported program as the outputs of a batch. Imports torch."""

from typing import Any

import torch
from torch.utils import _pytree as trees

from tl_pipeline.encoders.backbones.outputs import InBatches
from tl_pipeline.errors import InvalidSpec

Shape = tuple[int | None, ...]


class ExportedOutputs(InBatches):
    """The outputs of a ``torch.export`` ``program``, computed on ``device``.

    The program is moved there as a whole, since it may have devices written into its
    steps; batches come and go to wherever they are.
    """

    def __init__(self, program: Any, origin: str, device: str) -> None:
        shape, (least, most) = input_of(program, origin)
        super().__init__(names_of(program, origin), least, shape[0] or most)
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        # Not a submodule: an exported module refuses to be put into eval mode. What its
        # guards would check was checked above.
        self._run = [program.module(check_guards=False)]
        self._device = device

    @torch.no_grad()
    def compute(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """See ``InBatches``."""
        found = self._run[0](batch.to(self._device))
        return [
            values.to(batch.device, torch.float32)
            for values in trees.tree_leaves(found)
        ]


def input_of(program: Any, origin: str) -> tuple[Shape, tuple[int, int | None]]:
    """The shape of the one input, None where it is free, and the range of the first.

    Raises:
        InvalidSpec: there are other inputs.
    """
    wanted = set(program.graph_signature.user_inputs)
    inputs = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in wanted
    ]
    tensors = [one for one in inputs if isinstance(one, torch.Tensor)]
    if [(t.dtype, t.ndim) for t in tensors] != [(torch.float32, 4)] or inputs[1:]:
        told = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in tensors) or "no tensor"
        raise InvalidSpec(
            f"{origin}: its input must be one float32 (images, channels, side, side), "
            f"but it is {told}"
        )
    axes = tensors[0].shape
    shape = tuple(axis if isinstance(axis, int) else None for axis in axes)
    if shape[0] is not None:
        return shape, (shape[0], shape[0])
    symbol: Any = axes[0]
    allowed = program.range_constraints.get(symbol.node.expr)
    least, most = (allowed.lower, allowed.upper) if allowed else (None, None)
    return shape, (max(1, _whole(least) or 1), _whole(most))


def _whole(bound: Any) -> int | None:
    """A bound of sympy as a number, None if it is infinite."""
    return int(bound) if getattr(bound, "is_Integer", False) else None


def names_of(program: Any, origin: str) -> list[str]:
    """``output``, or the keys of the dict, or numbers, as the network returns them.

    Raises:
        InvalidSpec: it returns something else.
    """
    spec = program.call_spec.out_spec
    count = len(program.graph_signature.user_outputs)
    if spec.is_leaf() and count == 1:
        return ["output"]
    if spec.type is dict and spec.num_children == count:
        return [str(name) for name in spec.context]
    if spec.type in {tuple, list} and spec.num_children == count:
        return [f"output{number}" for number in range(count)]
    raise InvalidSpec(
        f"{origin}: returns {spec}, not a tensor, a list or a dict of them"
    )
