"""The networks of timm, ``timm:NAME`` or ``timm:NAME.TAG``, with timm's own weights.

A tag (``lvd142m``, ``openai``) is what torchvision calls a member: it names weights and
how they are fed. Weights are looked for where ``huggingface_hub`` keeps them, and are
in timm's names of parameters; checkpoints of other projects, which timm renames while
it loads them, are refused with the list of names that do not fit.

Layers: ``pre_logits`` is what timm's classifier sees, the output of
``create_model(NAME, num_classes=0)``; ``features`` the map or tokens before the head;
any submodule that gives one tensor by its name (``blocks.8``, ``stages.2``); ``lastK``
the last K blocks of a transformer (see ``timm_outputs``).
"""

import inspect
import os
import sys
import warnings
from collections.abc import Mapping
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_pipeline.encoders.backbones.backbone import (
    Backbone,
    Layer,
    NamedWeights,
    Published,
)
from tl_pipeline.errors import InvalidSpec, UnknownName
from tl_pipeline.inputs.images import Preprocess

if TYPE_CHECKING:
    import torch

PACKAGE: str = "timm"
ROWS: Mapping[str, Backbone] = {}

_PREFIX, _DEFAULT = "timm:", "DEFAULT"
_LAYERS = {
    "pre_logits": Layer("pre_logits"),
    "features": Layer("features", "mean"),
    "penultimate": Layer("pre_logits"),
}
_HUB = "https://huggingface.co"
_FILE = "model.safetensors"
_FILTER = "checkpoint_filter_fn"
# Networks whose filter timm calls with options that depend on the name.
_FILTERED_OTHERWISE = ("flexi", "radio", "hieradet")
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


def find(name: str) -> Backbone | None:
    """``timm:NAME.TAG``, whether or not timm has it: only timm knows.

    A tag becomes the default weights, so that both spellings mean one network.
    """
    if not name.startswith(_PREFIX):
        return None
    bare, _, tag = name.partition(".")
    return Backbone(bare, _LAYERS, weights=tag or _DEFAULT, origin="timm")


def named_weights(backbone: Backbone, name: str) -> NamedWeights:
    """The weights that timm tags ``name``, fed as timm feeds them.

    Raises:
        UnknownName: timm has no such network, or no such weights of it.
        InvalidSpec: its input cannot be expressed here.
    """
    known = _tags(backbone)
    tag = next(iter(known)) if name == _DEFAULT else name
    if tag not in known:
        raise UnknownName(f"{backbone.name} weights", name, known)
    url = _url(known[tag])
    return NamedWeights(
        name=tag,
        file=place(url),
        url=url,
        megabytes=_parameters(backbone) * 4 / 1e6,
        sha256_prefix="",
        preprocess=_recorded(backbone, tag, known[tag]),
    )


def published(backbone: Backbone) -> list[Published]:
    """Every tag of ``backbone``; timm tells no scores."""
    parameters = _parameters(backbone)
    return [
        Published(
            name=tag,
            file=place(_url(about)),
            megabytes=parameters * 4 / 1e6,
            parameters=parameters,
            score=None,
            measure="",
            licence=about.license or "none stated",
        )
        for tag, about in _tags(backbone).items()
    ]


def place(url: str) -> Path:
    """Where huggingface_hub keeps the file from ``url``; its own rule."""
    repository, _, file = url.removeprefix(f"{_HUB}/").partition("/resolve/main/")
    home = os.environ.get("HF_HOME", _cache_home() / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE", Path(home) / "hub")).expanduser()
    folder = hub / f"models--{repository.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text().strip()
    except FileNotFoundError:
        revision = "main"
    return folder / "snapshots" / revision / file


def fetch(named: NamedWeights) -> None:
    """Download the file of ``named`` by huggingface_hub, unless HF_HUB_OFFLINE is set.

    Raises:
        OSError: it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    repository, _, file = named.url.removeprefix(f"{_HUB}/").partition("/resolve/main/")
    try:
        hf_hub_download(repository, file)
    except Exception as fault:  # noqa: BLE001 - its errors share no class but this
        raise OSError(str(fault).strip().partition("\n")[0]) from None


def build(
    backbone: Backbone,
    side: int,
    state: "Mapping[str, torch.Tensor] | None" = None,
) -> "torch.nn.Module":
    """The network, whose parameters have timm's names, with the classes of ``state``.

    Raises:
        InvalidSpec: it has no form for inputs of ``side`` pixels.
    """
    from tl_pipeline.encoders.backbones.timm_outputs import TimmOutputs

    options = _sized(backbone, side)
    if state:
        usual = next(iter(_tags(backbone).values()))
        options["num_classes"] = _classes(usual, state)
    return TimmOutputs(_create(backbone, **options), side)


def renamed(
    backbone: Backbone, side: int, state: "Mapping[str, torch.Tensor]"
) -> "Mapping[str, torch.Tensor]":
    """``state`` renamed, and resampled for ``side``, as timm does while it loads.

    As it is where it fits already, and where timm's function makes nothing fit.
    """
    network = _on_meta(backbone, **_sized(backbone, side))
    expected = _shapes(network.state_dict())
    before = _matching(expected, state)
    if before == len(expected):
        return state
    try:
        found = _filtered(backbone, network, state)
    except Exception:  # noqa: BLE001 - of what is no such checkpoint, whatever it is
        return state
    return found if _matching(expected, found) > before else state


def _sized(backbone: Backbone, side: int) -> dict[str, Any]:
    """How timm is asked for the network for inputs of ``side`` pixels.

    Raises:
        InvalidSpec: it has no form for them that takes the usual weights.
    """
    usual = next(iter(_tags(backbone).values()))
    if not usual.fixed_input_size or side == usual.input_size[-1]:
        return {}
    # Positions are those of the weights' own size; they are resampled in each call.
    if _takes(backbone, "dynamic_img_size", True):
        return {"dynamic_img_size": True}
    # Tables of windows are resampled as weights are loaded.
    if _takes(backbone, "img_size", side) and _resampled(backbone, side):
        return {"img_size": side}
    raise InvalidSpec(
        f"{backbone.name} takes inputs of {usual.input_size[-1]} pixels only, not "
        f"{side}"
    )


def _takes(backbone: Backbone, option: str, value: Any) -> bool:
    """Whether the network can be built with that option."""
    try:
        _on_meta(backbone, **{option: value})
    except (TypeError, AssertionError, ValueError, RuntimeError):
        return False
    return True


def _resampled(backbone: Backbone, side: int) -> bool:
    """Whether timm makes the usual weights fit the network for ``side`` pixels."""
    network = _on_meta(backbone, img_size=side)
    found = _filtered(backbone, network, _hollow_state(backbone))
    return _shapes(network.state_dict()) == _shapes(found)


def _hollow_state(backbone: Backbone) -> "Mapping[str, torch.Tensor]":
    """The names and shapes of the usual weights, with zeros for values."""
    import torch

    return {
        name: torch.zeros(shape)
        for name, shape in _shapes(_on_meta(backbone).state_dict()).items()
    }


def _filtered(
    backbone: Backbone, network: Any, state: "Mapping[str, torch.Tensor]"
) -> "Mapping[str, torch.Tensor]":
    """What timm makes of ``state`` before ``network`` loads it."""
    from timm.models import model_entrypoint

    bare = backbone.name.removeprefix(_PREFIX)
    module = sys.modules[model_entrypoint(bare).__module__]
    rename = getattr(module, _FILTER, None)
    if rename is None or any(word in bare for word in _FILTERED_OTHERWISE):
        return state
    options = {"adapt_layer_scale": True}  # of DeiT III, and of none else
    known = inspect.signature(rename).parameters
    given = {name: value for name, value in options.items() if name in known}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that timm could be faster
        return rename(dict(state), network, **given)


def _shapes(state: "Mapping[str, torch.Tensor]") -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _matching(
    expected: Mapping[str, tuple[int, ...]], state: "Mapping[str, torch.Tensor]"
) -> int:
    """How many of the ``expected`` names ``state`` has in the right shape."""
    return sum(expected.get(name) == tuple(t.shape) for name, t in state.items())


def _classes(about: Any, state: "Mapping[str, torch.Tensor]") -> int:
    """How many classes ``state`` has; none if it was saved without a classifier."""
    names = about.classifier
    first = names if isinstance(names, str) or names is None else names[0]
    last = state.get(f"{first}.weight")
    return 0 if last is None else len(last)


def _tags(backbone: Backbone) -> Mapping[str, Any]:
    """What timm says of each tag of ``backbone``, the default first."""
    try:
        from timm.models import get_arch_pretrained_cfgs, is_model, list_models
    except ImportError:
        raise InvalidSpec(
            f"{backbone.name} needs the package timm: pip install 'tl-pipeline[timm]'"
        ) from None
    bare = backbone.name.removeprefix(_PREFIX)
    if not is_model(bare):
        raise UnknownName("network of timm", bare, list_models())
    found = get_arch_pretrained_cfgs(bare)
    return {name.partition(".")[2]: about for name, about in found.items()}


def _create(backbone: Backbone, **options: Any) -> "torch.nn.Module":
    from timm import create_model

    bare = backbone.name.removeprefix(_PREFIX)
    return create_model(bare, pretrained=False, **options)


def _on_meta(backbone: Backbone, **options: Any) -> "torch.nn.Module":
    """The network without memory."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return _create(backbone, **options)


def _parameters(backbone: Backbone) -> int:
    return sum(values.numel() for values in _on_meta(backbone).parameters())


def _url(about: Any) -> str:
    """The address of the weights on the hub; "" of a tag that timm has no file of."""
    if not about.hf_hub_id:
        return ""
    return f"{_HUB}/{about.hf_hub_id}/resolve/main/{about.hf_hub_filename or _FILE}"


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()


def _recorded(backbone: Backbone, tag: str, about: Any) -> Preprocess:
    """The resolved data configuration, as timm's evaluation transform reads it."""
    from timm.data.config import resolve_data_config

    config = resolve_data_config({}, pretrained_cfg=about.to_dict())
    channels, height, width = config["input_size"]
    said = f"{backbone.name} with {tag} takes "
    if channels != 3 or height != width:
        size = f"{channels} x {height} x {width}"
        raise InvalidSpec(f"{said}inputs of {size}; only square RGB is known here")
    if config["interpolation"] not in _INTERPOLATIONS:
        raise InvalidSpec(f"{said}{config['interpolation']} resizing, not known here")
    if config["crop_mode"] not in {"center", "squash"}:
        raise InvalidSpec(f"{said}crop mode {config['crop_mode']!r}, not known here")
    return Preprocess(
        resize=floor(height / config["crop_pct"]),
        crop=height,
        squash=config["crop_mode"] == "squash",
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )
