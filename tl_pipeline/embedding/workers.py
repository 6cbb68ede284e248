"""The threads that drive networks, and which of them drives which. Imports torch."""

import threading
from collections.abc import Sequence
from queue import SimpleQueue

import torch

from tl_pipeline.embedding.devices import cores
from tl_pipeline.embedding.forward import Forward

OF_A_GPU = 2
_MOST = 4  # of a processor; each holds the activations of a batch. More cores share


class NetworkThreads:
    """Gives each thread that drives a device the networks that lie there.

    Without a GPU each core drives a batch of its own: a batch that is shared out among
    cores has them wait for each other after every layer, most of all where some decode.
    A GPU has two drivers, so that it computes one batch while the next one is moved.

    Attributes:
        number: how many threads there are to be.
        decode: whether they had better decode what they drive. Each has a core of its
            own then, and other threads that decode would only get in its way.
    """

    def __init__(self, networks: Sequence[Sequence[Forward]]) -> None:
        self._free: SimpleQueue[Sequence[Forward]] = SimpleQueue()
        self._thread = threading.local()
        each = min(cores(), _MOST)
        self._threads = cores() // each
        self.number = 0
        for forwards in networks:
            cuda = forwards[0].device.type == "cuda"
            for _ in range(OF_A_GPU if cuda else each):
                self._free.put(forwards)
                self.number += 1
        self.decode = networks[0][0].device.type == "cpu" and self._threads == 1

    def enlist(self) -> None:
        """Called once by each thread."""
        self._thread.networks = self._free.get()
        device = self._thread.networks[0].device
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.cuda.set_stream(torch.cuda.Stream(device))
        else:
            torch.set_num_threads(self._threads)

    def mine(self) -> Sequence[Forward]:
        """The networks of the calling thread."""
        return self._thread.networks
