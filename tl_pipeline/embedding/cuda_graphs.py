"""A network recorded on a GPU, to be launched at once (CUDA graphs). Imports torch.

Else Python launches each of some hundred kernels a batch, and waits for the lock of the
interpreter after every one of them while other threads read and decode.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Network = Callable[[torch.Tensor], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class CudaGraph:
    """For batches of one shape, and one thread at a time.

    What a call gives is overwritten by the next one.
    """

    graph: torch.cuda.CUDAGraph
    given: torch.Tensor
    outputs: Sequence[torch.Tensor]

    def suits(self, shape: Sequence[int]) -> bool:
        """Whether a batch of ``shape`` is what was recorded."""
        return tuple(shape) == tuple(self.given.shape)

    def __call__(self, batch: torch.Tensor) -> Sequence[torch.Tensor]:
        """What the network makes of ``batch``, on the stream of the calling thread."""
        self.given.copy_(batch)
        self.graph.replay()
        return self.outputs


@torch.inference_mode()
def recorded(
    network: Network, example: torch.Tensor, tolerance: float
) -> CudaGraph | None:
    """``network`` for batches like ``example``; None where it cannot be recorded.

    To be called while no other thread uses the GPU.

    Raises:
        ValueError: replayed, it gives other values, beyond ``tolerance`` as a share of
            the largest.
    """
    given = example.clone()
    side = torch.cuda.Stream(example.device)
    with torch.cuda.device(example.device):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            network(given)  # libraries choose their ways and take their memory
            expected = [values.clone() for values in network(given)]
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=side):
                outputs = list(network(given))
        except torch.cuda.OutOfMemoryError:
            return None
        # A network that decides by values cannot be; what it then raises differs.
        except RuntimeError:
            torch.cuda.synchronize()
            return None
    found = CudaGraph(graph, given, outputs)
    for mine, theirs in zip(found(example), expected, strict=True):
        most = tolerance * float(theirs.abs().max())
        if not torch.allclose(mine, theirs, rtol=0, atol=most):
            raise ValueError("a recorded network gives other values; report it")
    return found
