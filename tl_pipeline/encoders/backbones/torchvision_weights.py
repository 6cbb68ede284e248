"""What torchvision says of its published weights, and where it keeps them."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tl_pipeline.encoders.backbones.backbone import Backbone, NamedWeights, Published
from tl_pipeline.errors import UnknownName
from tl_pipeline.inputs.images import Preprocess

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

_MEASURES = {"acc@1": "top-1", "box_map": "box mAP"}


def checkpoint_folder() -> Path:
    """Where torchvision keeps downloaded weights (``torch.hub``'s own rule)."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", str(Path(caches) / "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints"


def find_member(backbone: Backbone, name: str) -> "WeightsEnum":
    """The member of torchvision's enumeration that ``name`` means.

    An alias such as ``DEFAULT`` becomes the member that it stands for.

    Raises:
        UnknownName: the network has no weights of that name.
    """
    from torchvision.models import get_model_weights

    members = get_model_weights(backbone.name).__members__
    if name not in members:
        raise UnknownName(f"{backbone.name} weights", name, members)
    return members[name]


def named(member: "WeightsEnum", preprocess: Preprocess) -> NamedWeights:
    """``member`` with what its address promises of the file."""
    weights = member.value
    file = place(weights.url)
    return NamedWeights(
        name=member.name,
        file=file,
        url=weights.url,
        megabytes=weights.meta["_file_size"],
        sha256_prefix=file.name.rpartition("-")[2].partition(".")[0],
        preprocess=preprocess,
    )


def published(backbone: Backbone) -> list[Published]:
    """Every named member of ``backbone``, from torchvision's metadata."""
    from torchvision.models import get_model_weights

    return [_published(member) for member in get_model_weights(backbone.name)]


def place(url: str) -> Path:
    """Where the file from ``url`` lies once it is downloaded."""
    return checkpoint_folder() / url.rpartition("/")[2]


def fetch(named: NamedWeights) -> None:
    """Download the file of ``named`` by torchvision's own loader.

    Raises:
        OSError, RuntimeError: it cannot be downloaded, or is not what is promised.
    """
    from torch.hub import load_state_dict_from_url

    load_state_dict_from_url(named.url, check_hash=True, weights_only=True)


def _published(member: "WeightsEnum") -> Published:
    weights = member.value
    data, measures = next(iter(weights.meta["_metrics"].items()))
    metric = next(name for name in _MEASURES if name in measures)
    score = float(measures[metric])
    recipe = weights.meta.get("recipe", "no recipe")
    unstated = f"code BSD-3-Clause, weights: none stated (trained on {data}, {recipe})"
    return Published(
        name=member.name,
        file=place(weights.url),
        megabytes=weights.meta["_file_size"],
        parameters=weights.meta["num_params"],
        score=None if math.isnan(score) else score,
        measure=f"{_MEASURES[metric]} {data}",
        licence=weights.meta.get("license", unstated),
    )
