"""Everything this package raises on purpose.

The command line prints ``TypeName: message`` and exits with ``exit_code``; the message
names the fault, the choices and the cure::

    TransferLearningError            exit code 2: the request cannot be carried out
    ├── CatalogError                 faults in data_catalog.yaml, each with file:line
    ├── UnknownName                  a dataset, backbone or head that is not listed
    ├── InvalidSpec                  a parameter out of its range
    ├── DatasetError                 a dataset that cannot be learned from
    │   └── TooManyRefused           exit code 3: more inputs refused than allowed
    ├── WeightsError                 weights missing, damaged, or of another network
    ├── DeviceError                  a GPU that torch cannot use
    ├── WorkerLost                   workers of a cluster that die again and again
    ├── EncoderMismatch              embeddings of another encoder given to a head
    ├── DamagedArtifact              a file of the store that cannot be read
    ├── UnsafeModelFile              a model file holding what must not be loaded
    ├── StoreError                   a store that cannot be used
    ├── MachineError                 a full disk, files that may not be written
    └── ServerError                  a Prefect server that does not answer
"""

import difflib
from collections.abc import Iterable


class TransferLearningError(Exception):
    """The request cannot be carried out; the message says why and what to do."""

    exit_code = 2


class CatalogError(TransferLearningError):
    """Faults in a data catalogue, all of them at once, each as ``file:line: fault``."""


class InvalidSpec(TransferLearningError):
    """A parameter that is unknown or out of its range."""


class DatasetError(TransferLearningError):
    """A dataset that cannot be learned from: empty, one class, an empty split."""


class TooManyRefused(DatasetError):
    """More inputs were refused than ``max_quarantined`` allows."""

    exit_code = 3


class WeightsError(TransferLearningError):
    """Weights that are missing, damaged, or belong to another network."""


class DeviceError(TransferLearningError):
    """A GPU that is there and that torch cannot use."""


class WorkerLost(TransferLearningError):
    """Workers of a cluster that die again and again on the same partition."""


class EncoderMismatch(TransferLearningError):
    """A head was given embeddings of an encoder that it was not trained on."""


class DamagedArtifact(TransferLearningError):
    """A file of the store that cannot be read back; it has been set aside."""


class UnsafeModelFile(TransferLearningError):
    """A model file that holds types outside the allow-list."""


class StoreError(TransferLearningError):
    """A store that cannot be used: wrong format, not writable, not local."""


class MachineError(TransferLearningError):
    """A fault of the machine: a full disk, a file system that is read-only."""


class ServerError(TransferLearningError):
    """A Prefect server that does not answer, or a temporary one that does not start."""


class UnknownName(TransferLearningError):
    """A name that is not in a closed list.

    The message offers the nearest name and lists all of them.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        choices = sorted(known)
        near = difflib.get_close_matches(name, choices, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        listing = ", ".join(choices) or "none"
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {listing}")
