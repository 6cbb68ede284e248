"""A network in two: its frozen blocks, and the tail that learns. Imports torch.

Between two steps of a network's graph lies a cut if one tensor is all that goes on. The
network is cut at the last one before the first step that learns.
"""

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl_pipeline.encoders.backbones.outputs import HookTracer, ModuleOutputs
from tl_pipeline.finetuning.blocks import blocks


def halves(
    body: nn.Module, image: tuple[int, ...]
) -> tuple[nn.Module, nn.Module] | None:
    """``body`` as two modules, which give the same when called one after the other.

    They share the modules and parameters of ``body``. None if it has no graph, or no
    cut before the first parameter that requires a gradient. ``image`` is the shape of
    one input.
    """
    graph = _graph(body)
    place = _cut(graph, body) if graph else None
    if graph is None or place is None:
        return None
    first, second = fx.Graph(), fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copied[node] = first.node_copy(node, copied.__getitem__)
        if node is place:
            break
    first.output(copied[place])
    head = fx.GraphModule(body, first)
    with torch.no_grad():
        found = head.eval()(torch.zeros(2, *image))
    if not torch.is_tensor(found) or found.shape[:1] != (2,):
        return None
    _copy_after(graph, place, second)
    return head, fx.GraphModule(body, second)


class _Tracer(HookTracer):
    """Stops at the blocks of a network: what they do in training stays theirs."""

    def __init__(self, body: ModuleOutputs) -> None:
        super().__init__()
        self._blocks = {name for block in blocks(body) for name in block}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """See ``fx.Tracer``."""
        name = module_qualified_name.removeprefix("network.")
        whole = name in self._blocks or isinstance(m, _BatchNorm)
        return whole or super().is_leaf_module(m, module_qualified_name)


def _graph(body: nn.Module) -> fx.Graph | None:
    if isinstance(body, fx.GraphModule):
        return body.graph
    if not isinstance(body, ModuleOutputs):
        return None
    try:
        return _Tracer(body).trace(body)
    except Exception:  # noqa: BLE001 - code that is traced fails in ways of its own
        return None


def _cut(graph: fx.Graph, body: nn.Module) -> fx.Node | None:
    """The last node before the first that learns which is all that goes on."""
    at = {node: number for number, node in enumerate(graph.nodes)}
    values = _of_inputs(graph)
    reached, found = -1, None  # how far what came before is used
    for node, number in at.items():
        if node.op == "output" or _learns(node, body):
            break
        if node not in values:
            continue
        if node.op != "placeholder" and node.users and reached <= number:
            found = node
        reached = max(reached, *(at[user] for user in node.users), number)
    return found


def _of_inputs(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values depend on the batch."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _learns(node: fx.Node, body: nn.Module) -> bool:
    if node.op == "call_module":
        parameters = body.get_submodule(str(node.target)).parameters()
        return any(p.requires_grad for p in parameters)
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(body.get_submodule(owner), name).requires_grad
    return False


def _copy_after(graph: fx.Graph, place: fx.Node, new: fx.Graph) -> None:
    """Copy what comes after ``place``, and the constants that it needs, to ``new``."""
    copied = {place: new.placeholder("activations")}

    def needed(node: fx.Node) -> fx.Node:
        if node not in copied:
            copied[node] = new.node_copy(node, needed)
        return copied[node]

    after = False
    values = _of_inputs(graph)
    for node in graph.nodes:
        if after and (node in values or node.op == "output"):
            needed(node)
        after = after or node is place
