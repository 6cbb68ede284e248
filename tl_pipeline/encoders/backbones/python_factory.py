"""Your own network, ``python:package.module:factory``. Naming it runs your code.

``factory()`` returns a ``torch.nn.Module``, or it and a mapping of fields of
``Preprocess`` that differ from ImageNet's usual ones (``sealed_input.IMAGENET``). The
module is put into evaluation mode; called with (n, channels, side, side) it returns one
tensor or a dict of tensors. They are its layers, and so are its submodules by their
names (``encoder.layer3``). It is known by its name, by the bytes
of its state dict, and by those of the file that defines the factory: change one, and
the embeddings are others. Modules that this file imports are not looked into.

The module is imported as usual, and is also looked for in the working directory.
"""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tl_pipeline.encoders.backbones.backbone import Backbone, Layer, NamedWeights
from tl_pipeline.encoders.backbones.self_contained import IMAGENET
from tl_pipeline.errors import InvalidSpec, WeightsError
from tl_pipeline.inputs.images import Preprocess

if TYPE_CHECKING:
    import torch

    from tl_pipeline.encoders.backbones.outputs import Outputs

PACKAGE: str = "torch"
NO_BASELINE: str = "a factory does not tell how to draw its weights anew"
_PREFIX, _OWN = "python:", "own"


def find(name: str) -> Backbone | None:
    """``python:MODULE:FACTORY``, not imported yet."""
    if not name.startswith(_PREFIX):
        return None
    return Backbone(name, {}, weights=_OWN, origin="python")


def named_weights(backbone: Backbone, name: str) -> NamedWeights:
    """What the factory makes: its hash, its input, and its outputs for that.

    Raises:
        InvalidSpec: there is no such factory, it fails, or returns something else.
    """
    from tl_pipeline.encoders.backbones.own_outputs import FactoryOutputs

    network, preprocess, source = _made(backbone)
    outputs = FactoryOutputs(backbone.name, network, preprocess)
    return NamedWeights(
        name=name,
        file=source,
        url="",
        megabytes=0.0,
        sha256_prefix="",
        preprocess=preprocess,
        layers={output: Layer(output) for output in outputs.names},
        sha256=_digest(network, source),
    )


def opened(
    backbone: Backbone,
    data: bytes,  # noqa: ARG001 - it lies in no file
    origin: str,
    sha256: str,
) -> "Outputs":
    """The network, made anew.

    Raises:
        InvalidSpec: see ``named_weights``.
        WeightsError: it is no longer the network that ``sha256`` tells.
    """
    from tl_pipeline.encoders.backbones.own_outputs import FactoryOutputs

    network, preprocess, source = _made(backbone)
    if _digest(network, source) != sha256:
        raise WeightsError(
            f"{origin}: the factory or the weights it gives are not those of before. A "
            "factory must give the same network each time: load its weights from a "
            "file, or seed torch. If you changed it on purpose, run again"
        )
    return FactoryOutputs(backbone.name, network, preprocess)


def _made(backbone: Backbone) -> "tuple[torch.nn.Module, Preprocess, Path]":
    """What the factory returns, and the file that defines it."""
    import torch

    factory, source = _factory(backbone)
    try:
        with torch.random.fork_rng(devices=[]):
            made = factory()
    except Exception as fault:
        raise _wrong(backbone, f"failed: {type(fault).__name__}: {fault}") from fault
    network, fed = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not isinstance(network, torch.nn.Module) or not isinstance(fed, Mapping):
        told = type(made).__name__
        raise _wrong(
            backbone,
            f"returned {told}, not a torch.nn.Module or (module, fields of Preprocess)",
        )
    return network, _preprocess(backbone, fed), source


def _factory(backbone: Backbone) -> tuple[Any, Path]:
    name, _, attribute = backbone.name.removeprefix(_PREFIX).partition(":")
    if not name or not attribute.isidentifier():
        raise InvalidSpec(f"{backbone.name}: write python:package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(name)
    except Exception as fault:
        told = f"{type(fault).__name__}: {fault}"
        raise InvalidSpec(f"{backbone.name}: cannot import {name} ({told})") from fault
    factory = getattr(module, attribute, None)
    if not callable(factory):
        known = [n for n, value in vars(module).items() if inspect.isfunction(value)]
        raise InvalidSpec(
            f"{backbone.name}: {name} has no function {attribute!r}. It has: "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    source = inspect.getsourcefile(inspect.unwrap(factory)) or module.__file__
    if source is None:
        raise InvalidSpec(f"{backbone.name}: {name} has no source file to know it by")
    return factory, Path(source)


def _preprocess(backbone: Backbone, fields: Mapping[str, Any]) -> Preprocess:
    try:
        how = Preprocess.model_validate(IMAGENET.model_dump() | dict(fields))
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(map(str, first["loc"]))
        known = ", ".join(Preprocess.model_fields)
        raise _wrong(
            backbone, f"returned the field {where}: {first['msg']}. Known: {known}"
        ) from None
    channels = 1 if how.grey else 3
    if {len(how.mean), len(how.std)} != {channels}:
        raise _wrong(
            backbone,
            f"returned mean of {len(how.mean)} and std of {len(how.std)} values for "
            f"{channels} channels: give three each, or one each with grey=True",
        )
    return how


def _wrong(backbone: Backbone, said: str) -> InvalidSpec:
    return InvalidSpec(f"the factory {backbone.name} {said}")


def _digest(network: "torch.nn.Module", source: Path) -> str:
    """sha256 over the state dict, in the order of names, and the factory's source."""
    import torch

    found = hashlib.sha256(source.read_bytes())
    for name, values in sorted(network.state_dict().items()):
        if not torch.is_tensor(values):
            raise InvalidSpec(f"the state dict of {source} holds no tensor as {name!r}")
        found.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        flat = values.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
