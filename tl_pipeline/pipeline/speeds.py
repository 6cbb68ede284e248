"""How fast encoders embed and are fine-tuned on this machine, by what was measured."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.checks import read_json
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.files import write_atomically

# An image costs a step so many times what its embedding does. Forward and back of all
# blocks are 3; what is augmented and shared out among threads comes on top. Ten
# fine-tunings of SqueezeNet took 3.5 to 4.5.
STEP = 4.0
# Of what a fine-tuning was asked for, what its speed depends on.
_SAME = ("blocks", "augment", "precision", "batch_size", "norm")


class Speed(NamedTuple):
    """How fast an encoder embeds alone on this machine, and the floats it gives."""

    images_per_second: float
    width: int


class TrainingSpeed(NamedTuple):
    """Images a second in training, and in words where the number comes from."""

    images_per_second: float
    basis: str


def known_speed(folder: EmbeddingFolder) -> Speed | None:
    """What was last measured with this encoder, on whatever dataset."""
    try:
        known = json.loads((folder.about / "speed.json").read_text())
        return Speed(known["images_per_second"], known["width"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None


def remember_speed(folder: EmbeddingFolder, speed: Speed) -> None:
    """Keep it for plans."""
    known = {
        "images_per_second": round(speed.images_per_second, 2),
        "width": speed.width,
    }
    write_atomically(folder.about / "speed.json", json.dumps(known))


def of_training(
    store: Store, encoder: Encoder, how: FinetuneSpec
) -> TrainingSpeed | None:
    """The speed of the last fine-tuning like this one, else by that of embedding.

    None where this machine never embedded with ``encoder``.
    """
    found = sorted(_measured(store, encoder.key, how))
    if found:
        speed = found[-1][1]
        return TrainingSpeed(speed, f"at {speed:,.0f}/s as an earlier one")
    known = known_speed(EmbeddingFolder(store, encoder.key))
    if known is None:
        return None
    speed = known.images_per_second / STEP
    more = "" if how.blocks == "all" else " or more"
    basis = f"about {speed:,.0f}/s{more} ({STEP:g} times the time of embedding)"
    return TrainingSpeed(speed, basis)


def _measured(
    store: Store, encoder: str, how: FinetuneSpec
) -> Iterator[tuple[float, float]]:
    """When each fine-tuning like this one was done, and its images a second."""
    wanted = how.model_dump(include=set(_SAME))
    for file in (store.root / "finetuned").glob("[!.]*/provenance.json"):
        known = read_json(file) or {}
        same = {name: known.get("params", {}).get(name) for name in _SAME} == wanted
        if same and known["inputs"]["encoder"] == encoder:
            told = read_json(file.with_name("finetuned.json"))
            if told:
                yield file.stat().st_mtime, told["images_per_second"]
