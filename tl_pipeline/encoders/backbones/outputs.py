"""Networks that name their outputs themselves. Imports torch."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call

from tl_pipeline.encoders.backbones.backbone import PrefixTokens
from tl_pipeline.errors import WeightsError

Tensors = Mapping[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]

IMAGES = 3  # of a trial on the meta device, to tell whether a layer keeps them apart


class Outputs(nn.Module):
    """Called with a normalised batch, it returns its outputs by name, ``names``.

    Shapes are read off on the ``meta`` device, or by a real batch where ``on_meta`` is
    false. A subclass that fails for an input raises RuntimeError, whatever is inside.
    """

    names: tuple[str, ...] = ()
    on_meta = False

    def forward(self, batch: torch.Tensor) -> Tensors:
        """(n, channels, side, side) to the outputs of n images."""
        raise NotImplementedError

    def layer_names(self) -> list[str]:
        """What can be asked for, its own outputs first."""
        return list(self.names)

    def only(self, layers: Iterable[str]) -> None:
        """Compute no more than ``layers`` needs from now on, where that is less."""

    def prefix(
        self,
        layer: str,  # noqa: ARG002 - for those that know
        shape: Sequence[int],  # noqa: ARG002
    ) -> PrefixTokens:
        """The tokens before those of the image in ``layer``, of ``shape`` an image."""
        return PrefixTokens()

    def traced(self) -> fx.GraphModule | None:
        """The same as a graph of modules of torch, where that can be had."""
        return None


class HookTracer(fx.Tracer):
    """Calls the hooks of modules that it does not look into, which give outputs."""

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """See ``fx.Tracer``; hooks see what leaves give, too."""
        found = super().call_module(m, forward, args, kwargs)
        if self.is_leaf_module(m, self.path_of_module(m)):
            for hook in m._forward_hooks.values():  # noqa: SLF001
                hook(m, args, found)
        return found


def outputs_on_meta(
    network: nn.Module, image: Sequence[int], method: str = "forward"
) -> Mapping[str, Any]:
    """What ``network`` gives for ``IMAGES`` images, without values.

    ``image`` is (channels, height, width), ``method`` what is called.
    """
    quiet = _Quiet(network, method)
    # A module that lies in several places is listed, and put back, once.
    hollow = {
        f"{place}.{name}" if place else name: tensor.to("meta")
        for place, module in quiet.named_modules()
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        )
    }
    batch = torch.empty((IMAGES, *image), device="meta")
    with torch.no_grad():
        return functional_call(quiet, hollow, (batch,), tie_weights=False)


class _Quiet(nn.Module):
    """Calls a traced graph without torch.fx printing each fault to stderr."""

    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network, self._method = network, method

    def forward(self, batch: torch.Tensor) -> Mapping[str, Any]:
        return getattr(self.network, self._method)(batch)


class ModuleOutputs(Outputs):
    """A network whose submodules are layers, too, by their names within it.

    A submodule is a layer if it is called once for a batch. A subclass gives ``names``
    and ``results``; before ``only``, a batch gives the former alone.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network
        self._call = threading.local()
        self._wanted: tuple[str, ...] = self.names
        self._hooks: list[Any] = []

    def results(self, batch: torch.Tensor) -> Tensors:
        """The outputs that ``names`` tells, or those of them that are wanted."""
        raise NotImplementedError

    def sources(self, layer: str) -> Sequence[str]:
        """The submodules whose outputs make ``layer``."""
        return () if layer in self.names else (layer,)

    def made(self, layer: str, found: Tensors) -> torch.Tensor:
        """``layer`` out of the outputs of its ``sources``."""
        return found[layer]

    def only(self, layers: Iterable[str]) -> None:
        """See ``Outputs``.

        Raises:
            WeightsError: it has no such layer.
        """
        self.unhook()
        self._wanted = tuple(dict.fromkeys(layers))
        sources = {name for layer in self._wanted for name in self.sources(layer)}
        modules = dict(self.network.named_modules())
        missing = sorted(sources - modules.keys())
        if missing:
            raise WeightsError(
                f"the network has no layer {missing[0]!r} any more: its package or its "
                "code changed; run again with a layer that it has"
            )
        last = len(sources) if set(self._wanted).isdisjoint(self.names) else 0
        self._hooks = [
            modules[name].register_forward_hook(partial(self._keep, name, last))
            for name in sources
        ]

    def unhook(self) -> None:
        """Leave its submodules as they were; it keeps none of their outputs then."""
        for hook in self._hooks:
            hook.remove()

    def forward(self, batch: torch.Tensor) -> Tensors:
        """See ``Outputs``."""
        found: dict[str, Any] = {}
        own: Tensors = {}
        self._call.found = found
        try:
            own = self.results(batch)
        except _AllFound:
            pass
        finally:
            self._call.found = None
        return {
            layer: own[layer] if layer in own else self.made(layer, found)
            for layer in self._wanted
        }

    def layer_names(self) -> list[str]:
        """See ``Outputs``."""
        return list(dict.fromkeys([*self.names, *self.submodules]))

    @cached_property
    def submodules(self) -> Shapes:
        """The shapes of outputs of three images, of all modules that give a tensor.

        By a run of the network for the side that it was built for.
        """
        calls: Counter[str] = Counter()
        found: Shapes = {}

        def note(name: str, *called: Any) -> None:
            calls[name] += 1
            if torch.is_tensor(called[-1]):
                found[name] = tuple(called[-1].shape)

        with self.noting(note):
            self.try_out()
        return {name: shape for name, shape in found.items() if calls[name] == 1}

    def try_out(self) -> Tensors:
        """The ``results`` of ``IMAGES`` images of no content."""
        raise NotImplementedError

    @contextmanager
    def noting(self, note: Callable[..., None]) -> Iterator[None]:
        """Call ``note`` with the name, the module, its inputs and what it gave."""
        hooks = [
            module.register_forward_hook(partial(note, name))
            for name, module in self.network.named_modules()
            if name
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, name: str, last: int, *called: Any) -> None:
        """Keep what a submodule gave; stop where nothing else is wanted."""
        values = called[-1]
        found = getattr(self._call, "found", None)
        if found is None:
            return
        if len(found | {name: None}) == last:
            found[name] = values
            raise _AllFound
        # A ReLU or sum after it may work in its place.
        found[name] = values.clone() if hasattr(values, "clone") else values


class _AllFound(BaseException):
    """All that was wanted of a batch is there: no error of the network's."""


class InBatches(Outputs):
    """An ``Outputs`` that was frozen for ``least`` to ``most`` images a call.

    Larger batches are cut, smaller ones filled up by their last image, whose further
    outputs are thrown away. ``most`` is None where there is no limit.
    """

    def __init__(self, names: Sequence[str], least: int, most: int | None) -> None:
        super().__init__()
        self.names = tuple(names)
        self._least, self._most = least, most

    def compute(self, batch: torch.Tensor) -> Sequence[Any]:
        """The outputs of a batch of a permitted length, in the order of ``names``."""
        raise NotImplementedError

    def forward(self, batch: torch.Tensor) -> Tensors:
        """See ``Outputs``."""
        parts = [self._padded(part) for part in batch.split(self._most or len(batch))]
        return {
            name: torch.cat([part[name] for part in parts]) if parts[1:] else values
            for name, values in parts[0].items()
        }

    def _padded(self, part: torch.Tensor) -> Tensors:
        missing = max(0, self._least - len(part))
        whole = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)])
        try:
            found = self.compute(whole)
        except Exception as fault:  # noqa: BLE001 - runtimes have errors of their own
            raise RuntimeError(f"{type(fault).__name__}: {fault}") from None
        # An output that is no row an image is left whole, for the cut to refuse it.
        return {
            name: values[: len(part)] if values.shape[:1] == (len(whole),) else values
            for name, values in zip(self.names, found, strict=True)
        }
