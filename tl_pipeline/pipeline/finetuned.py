"""What fine-tuning left in ``finetuned/<key>/``, for all that use it.

``finetuned.json`` tells the hash of the weights, the classes and how training went;
``head.safetensors`` is the head that was trained with the network; SEEN are the images
whose labels the network has seen.
"""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.tables import SEEN

if TYPE_CHECKING:
    from tl_pipeline.heads.fitted import FittedHead

KIND = "finetuned"
ABOUT, HEAD = "finetuned.json", "head.safetensors"
# What a head is called that was trained with its network.
OWN_HEAD = HeadConfig(name="softmax", params={"finetuned": True})


def about(store: Store, made: Artifact) -> dict[str, Any]:
    """What ``finetuned.json`` tells."""
    return json.loads((store.path(made) / ABOUT).read_text())


def own_head(store: Store, made: Artifact, encoder: str, seed: int) -> "FittedHead":
    """The head that was trained with the network of ``made``.

    ``encoder`` is the key of that network, ``seed`` that of the training.
    """
    from safetensors.numpy import load_file  # noqa: PLC0415 - a plan reads no head

    from tl_pipeline.heads.fitted import FittedHead  # noqa: PLC0415
    from tl_pipeline.heads.neural.predictor import NeuralPredictor  # noqa: PLC0415
    from tl_pipeline.heads.predictors import Preparation  # noqa: PLC0415

    classes = about(store, made)["classes"]
    tensors = {
        {"weight": "0.weight", "bias": "0.bias"}.get(name, name): values
        for name, values in load_file(store.path(made) / HEAD).items()
    }
    predictor = NeuralPredictor.of_tensors(tensors, len(classes), {})
    return FittedHead(OWN_HEAD, seed, encoder, classes, Preparation(), predictor)


def seen(store: Store, encoder: AnyEncoder) -> set[str]:
    """The ids of the images whose labels the network of ``encoder`` has seen.

    As far as this store knows; weights of it may be named by their file, like any
    others.
    """
    hashes = {member.weights.sha256 for member in concat.members_of(encoder)}
    found = set[str]()
    for file in sorted((store.root / KIND).glob(f"[!.]*/{ABOUT}")):
        if json.loads(file.read_text())["sha256"] in hashes:
            found.update(tables.read(SEEN, file.parent)["image_id"].to_pylist())
    return found


def check_unseen(store: Store, encoder: AnyEncoder, scored: Iterable[str]) -> None:
    """Refuse to score heads on images whose labels their network has seen.

    ``scored`` are the ids of the images that score heads on ``encoder``.

    Raises:
        InvalidSpec: ``encoder`` was fine-tuned on some of them.
    """
    if found := seen(store, encoder).intersection(scored):
        raise InvalidSpec(
            f"{encoder.label} was fine-tuned on {len(found):,} of the images that "
            "would score heads on it, so their scores would flatter. Fine-tune it "
            "in the run (--finetune), which keeps them apart, or choose heads by "
            "images that it has not seen (--search validation)"
        )
