"""Training in a process for each GPU, which add up their gradients. Imports torch.

All processes learn from the same batches as one would; see ``training.train``.
"""

import os
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessException,
    ProcessExitedException,
    start_processes,
)

from tl_pipeline.embedding.devices import devices
from tl_pipeline.embedding.process import cores
from tl_pipeline.errors import MachineError, TransferLearningError
from tl_pipeline.finetuning import training
from tl_pipeline.finetuning.images import Images
from tl_pipeline.finetuning.network import Classifier
from tl_pipeline.finetuning.training import Options, Point, Trained
from tl_pipeline.progress import notice

_POLL = 0.1  # seconds between looks at the processes
_TRAINED, _FAULT = "trained.pt", "fault.pickle"
Done = Callable[[int], None]
Report = Callable[[Sequence[Point]], None]


@dataclass(frozen=True)
class Inputs:
    """What a network learns from, for this process and for others.

    ``network`` and ``values`` are pickled: they give another process the network
    before it learns, and the ``values`` of ``images`` and of ``validation``.
    """

    network: Callable[[], Classifier]
    values: Callable[[], torch.Tensor]
    images: Images
    validation: Images | None


def train(
    network: Classifier,
    inputs: Inputs,
    options: Options,
    done: Done,
    report: Report,
    number: int | None = None,
) -> Trained:
    """As ``training.train``, in ``number`` processes: by default one for each GPU.

    Where there is one it is this process. A network whose images of a batch must go
    through together learns in one.

    Raises:
        InvalidSpec: see ``training.train``.
        MachineError: a process was ended from outside.
    """
    number = number or len(devices())
    network.train()
    if number > 1 and network.in_one_piece:
        notice(
            "dropout and learned statistics of batch normalisation need all images of "
            f"a batch in one process, so that one GPU of {number} is used; all are "
            "with norm=frozen,dropout=0"
        )
        number = 1
    if number == 1:
        images, validation = inputs.images, inputs.validation
        return training.train(network, options, images, validation, done, report)
    with tempfile.TemporaryDirectory() as place:
        receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
        job = _job(inputs, options, Path(place), number)
        context = start_processes(
            _learn, (job, sender), number, join=False, start_method="spawn"
        )
        assert context is not None  # noqa: S101 - it is not joined
        sender.close()  # so that the other end tells when the first process dies
        _follow(context, receiver, job, {"done": done, "report": report})
        found = torch.load(job.folder / _TRAINED, map_location="cpu", weights_only=True)
    network.restore(found["network"])
    network.eval()
    curve = [Point(**point) for point in found["curve"]]
    return Trained(curve, found["images_per_second"], found["mix"])


@dataclass(frozen=True)
class _Job:
    """What each process is sent; images without their values. ``folder`` is shared."""

    inputs: Inputs
    options: Options
    folder: Path
    number: int


def _job(inputs: Inputs, options: Options, folder: Path, number: int) -> _Job:
    nothing = torch.empty(0)
    return _Job(
        replace(
            inputs,
            images=replace(inputs.images, values=nothing),
            validation=_with(inputs.validation, nothing),
        ),
        replace(options, held=_with(options.held, nothing)),
        folder,
        number,
    )


def _with(images: Images | None, values: torch.Tensor) -> Images | None:
    return replace(images, values=values) if images else None


def _learn(process: int, job: _Job, sender: Connection) -> None:
    """What each process does; the first one tells how it goes, and what came of it."""
    if process:
        sender.close()
    os.environ["TL_CORES"] = str(max(1, cores() // job.number))
    device = devices()[process % len(devices())]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{job.folder / 'meeting'}",
        rank=process,
        world_size=job.number,
    )
    try:
        _train(job, None if process else sender)
    except TransferLearningError as fault:
        (job.folder / f"{process}-{_FAULT}").write_bytes(pickle.dumps(fault))
        raise
    distributed.destroy_process_group()


def _train(job: _Job, sender: Connection | None) -> None:
    inputs, options = job.inputs, job.options
    network, values = inputs.network(), inputs.values()
    found = training.train(
        network,
        replace(options, held=_with(options.held, values)),
        replace(inputs.images, values=values),
        _with(inputs.validation, values),
        partial(_tell, sender, "done"),
        partial(_tell, sender, "report"),
    )
    if sender:
        state = {name: values.cpu() for name, values in network.state_dict().items()}
        about = {"network": state, "curve": [vars(one) for one in found.curve]}
        about |= {"images_per_second": found.images_per_second, "mix": found.mix}
        torch.save(about, job.folder / _TRAINED)


def _tell(sender: Connection | None, name: str, value: Any) -> None:
    if sender:
        sender.send((name, value))


def _follow(
    context: ProcessContext,
    receiver: Connection,
    job: _Job,
    listeners: Mapping[str, Callable[[Any], None]],
) -> None:
    """Hand on what the first process tells until all have ended.

    If one dies the others are ended: they would wait for it.

    Raises:
        TransferLearningError: what ended one on purpose.
        MachineError: one was ended from outside.
    """
    try:
        ended = False
        while not ended:
            ended = context.join(_POLL)
            with suppress(EOFError):  # there is nobody to tell anything more
                while receiver.poll():
                    name, value = receiver.recv()
                    listeners[name](value)
    except ProcessException as error:
        for file in sorted(job.folder.glob(f"*-{_FAULT}")):
            raise pickle.loads(file.read_bytes()) from None  # noqa: S301 - our own
        if isinstance(error, ProcessExitedException):
            raise MachineError(
                f"process {error.error_index + 1} of {job.number} that train together "
                f"was ended by {error.signal_name or f'exit code {error.exit_code}'}, "
                "as it is where memory is full. Run again: training goes on after its "
                "last epoch"
            ) from None
        raise
    finally:
        for process in context.processes:
            if process.is_alive():
                process.terminate()
                process.join()
