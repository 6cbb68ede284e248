"""The networks of embed.py: random weights, the same file for everybody.

Weights are drawn from a seed; running means and variances of batch normalisation are
taken over photos, so that activations are of a trained network's size. Imports torch
only inside, so that importing it is part of the start-up that is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    import torch

_CALIBRATION = 128  # photos


@dataclass(frozen=True)
class Network:
    """``name`` in torchvision; ``layer`` is our name of what ``embedder`` gives.

    ``keeps`` is the part of the classifier that is kept: what a user replaces.
    ``share`` of the photos is measured: large networks need fewer. img2vec_pytorch
    knows some networks only, and its ``vgg16`` is another one (``vgg16_bn``).
    """

    name: str
    layer: str
    classifier: str
    keeps: int = 0
    share: float = 1.0
    img2vec: bool = False


NETWORKS = {
    network.name: network
    for network in (
        Network("resnet18", "avgpool", "fc", img2vec=True),
        Network("resnet50", "avgpool", "fc", share=0.5, img2vec=True),
        Network("mobilenet_v3_small", "avgpool", "classifier"),
        Network("vgg16", "fc6", "classifier", keeps=2, share=0.2),
    )
}


def embedder(network: Network, weights: Path) -> "torch.nn.Module":
    """What a user's script builds: (n, 3, 224, 224) -> (n, width), in eval mode."""
    import torch  # noqa: PLC0415
    from torchvision.models import get_model  # noqa: PLC0415

    module = get_model(network.name)
    module.load_state_dict(torch.load(weights, weights_only=True))
    classifier = getattr(module, network.classifier)
    kept = classifier[: network.keeps] if network.keeps else torch.nn.Identity()
    setattr(module, network.classifier, kept)
    return module.eval()


def preset(network: Network) -> Any:
    """The transform of PIL images that belongs to the usual weights of a network."""
    from torchvision.models import get_model_weights  # noqa: PLC0415

    return get_model_weights(network.name)["IMAGENET1K_V1"].transforms()


def weights_file(folder: Path, network: Network, photos: Sequence[Path]) -> Path:
    """The file of weights of ``network``, made from seed 0 if missing.

    It also lies in ``folder/torch`` under the names that torchvision would download
    it by, for libraries that load their weights themselves (with TORCH_HOME there).
    """
    import torch  # noqa: PLC0415
    from torchvision.models import get_model, get_model_weights  # noqa: PLC0415

    file = folder / f"{network.name}.pth"
    if not file.exists():
        torch.manual_seed(0)
        module = get_model(network.name)
        _calibrate(module, preset(network), photos[:_CALIBRATION])
        beside = file.with_suffix(".part")
        torch.save(module.state_dict(), beside)
        beside.rename(file)
    cache = folder / "torch/hub/checkpoints"
    cache.mkdir(parents=True, exist_ok=True)
    for member in get_model_weights(network.name):
        downloaded = cache / member.url.rpartition("/")[2]
        if not downloaded.exists():
            downloaded.hardlink_to(file)
    return file


def _calibrate(
    module: "torch.nn.Module", transform: Any, photos: Sequence[Path]
) -> None:
    """Set the running moments of batch normalisation to those over ``photos``."""
    import torch  # noqa: PLC0415

    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    if not norms:
        return
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
        norm.train()
    with torch.inference_mode():
        for start in range(0, len(photos), 32):
            images = [Image.open(file) for file in photos[start : start + 32]]
            module(torch.stack([transform(image) for image in images]))
