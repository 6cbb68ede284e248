"""A network of timm as a graph of torch's own modules. Imports torch and timm.

Blocks of timm are traced through, down to modules that have a name in torch: what
follows (folding, packed weights) then treats them as torchvision's.
"""

from typing import Any

import torch
from timm import layers
from torch import fx, nn

from tl_pipeline.encoders.backbones.outputs import HookTracer, ModuleOutputs

_TIMM: Any = layers  # which does not say what it exports


def traced(outputs: ModuleOutputs) -> fx.GraphModule | None:
    """``outputs`` as a graph; None where code depends on values, which none can be of.

    It is for inputs of the side that the network was built for. Modules of the network
    are replaced by such as compute the same.
    """
    _use_modules_of_torch(outputs)
    tracer = _Tracer(autowrap_functions=tuple(_TIMM.get_notrace_functions()))
    try:
        graph = tracer.trace(outputs)
    except Exception:  # noqa: BLE001 - code that is traced fails in ways of its own
        return None
    outputs.unhook()
    for node in list(graph.nodes):
        if node.target is torch._assert:  # noqa: SLF001 - it is public to tracers
            graph.erase_node(node)
    found = fx.GraphModule(tracer.root, graph).eval()
    found.graph.eliminate_dead_code()
    found.recompile()
    return found


class _Tracer(HookTracer):
    """Stops at modules of torch and at those that timm says cannot be traced."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """See ``fx.Tracer``."""
        untraced = isinstance(m, tuple(_TIMM.get_notrace_modules()))
        return untraced or super().is_leaf_module(m, module_qualified_name)


def _use_modules_of_torch(outputs: ModuleOutputs) -> None:
    """Take normalisation and activation apart, and padding and convolution."""
    sides = _input_sides(outputs)
    modules: list[tuple[str, Any]] = list(outputs.network.named_modules())
    for name, module in modules:
        new: nn.Module | None = None
        if type(module) is _TIMM.BatchNormAct2d and module.running_mean is not None:
            new = nn.Sequential(_normalisation(module), module.drop, module.act)
        elif type(module) is _TIMM.Conv2dSame and name in sides:
            new = _padded(module, sides[name])
        if new is not None:
            new._forward_hooks = module._forward_hooks  # noqa: SLF001
            outputs.network.set_submodule(name, new.eval())


def _input_sides(outputs: ModuleOutputs) -> dict[str, tuple[int, int]]:
    """Height and width of the inputs of the convolutions that pad by them."""
    found: dict[str, tuple[int, int]] = {}
    repeated: set[str] = set()

    def note(name: str, module: nn.Module, given: Any, _: Any) -> None:
        if type(module) is _TIMM.Conv2dSame:
            size = tuple(given[0].shape[2:])
            if found.setdefault(name, size) != size:
                repeated.add(name)

    with outputs.noting(note):
        outputs.try_out()
    return {name: size for name, size in found.items() if name not in repeated}


def _normalisation(module: Any) -> nn.BatchNorm2d:
    """Batch normalisation alone, with the same values."""
    new = nn.BatchNorm2d(
        module.num_features, module.eps, affine=module.affine, device="meta"
    )
    new._parameters, new._buffers = module._parameters, module._buffers  # noqa: SLF001
    return new


def _padded(module: Any, size: tuple[int, int]) -> nn.Module:
    """The convolution for maps of that height and width, its padding apart."""
    hollow = torch.empty(1, 1, *size, device="meta")
    kernel, stride = module.kernel_size, module.stride
    grown = _TIMM.pad_same(hollow, kernel, stride, module.dilation).shape[2:]
    more = [now - before for now, before in zip(grown, size, strict=True)]
    new = nn.Conv2d(
        module.in_channels,
        module.out_channels,
        kernel,
        stride,
        dilation=module.dilation,
        groups=module.groups,
        bias=module.bias is not None,
        device="meta",
    )
    new.weight, new.bias = module.weight, module.bias
    if not any(length % 2 for length in more):
        new.padding = (more[0] // 2, more[1] // 2)
        return new
    top, left = (length // 2 for length in more)
    pads = (left, more[1] - left, top, more[0] - top)
    return nn.Sequential(nn.ZeroPad2d(pads), new)
