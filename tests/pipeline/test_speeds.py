"""What a plan says of the time of fine-tuning, and a run after each epoch."""

import json
import os
from typing import Any

import pytest

from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.finetuning.training import Point
from tl_pipeline.pipeline import speeds, work
from tl_pipeline.pipeline.speeds import TrainingSpeed
from tl_pipeline.pipeline.stages.finetune import epoch_line
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

ALL = FinetuneSpec()


@pytest.fixture
def encoder(store: Store) -> Any:
    (found,) = work.resolve([EncoderSpec.parse("lenet5")], store)
    return found


def embedded(store: Store, key: str, speed: float) -> None:
    about = EmbeddingFolder(store, key).about
    about.mkdir(parents=True, exist_ok=True)
    told = {"images_per_second": speed, "width": 120}
    (about / "speed.json").write_text(json.dumps(told))


def tuned(store: Store, key: str, how: FinetuneSpec, speed: float, at: int) -> None:
    folder = store.root / "finetuned" / f"{at:032x}"
    folder.mkdir(parents=True)
    document = {"params": how.model_dump(), "inputs": {"encoder": key}}
    (folder / "provenance.json").write_text(json.dumps(document))
    (folder / "finetuned.json").write_text(json.dumps({"images_per_second": speed}))
    os.utime(folder / "provenance.json", (at, at))


def test_nothing_is_said_where_nothing_was_measured(store: Store, encoder: Any):
    assert speeds.of_training(store, encoder, ALL) is None


def test_a_step_takes_four_times_an_embedding(store: Store, encoder: Any):
    """All blocks; of fewer it is what a step takes at most."""
    embedded(store, encoder.key, 620.0)
    basis = "(4 times the time of embedding)"
    found = speeds.of_training(store, encoder, ALL)
    assert found == TrainingSpeed(155.0, f"about 155/s {basis}")
    few = speeds.of_training(store, encoder, FinetuneSpec(blocks=1))
    assert few == TrainingSpeed(155.0, f"about 155/s or more {basis}")


def test_the_last_fine_tuning_of_the_same_blocks_tells_more(store: Store, encoder: Any):
    """Not one of another network, of other blocks or on other images at a time."""
    embedded(store, encoder.key, 620.0)
    tuned(store, encoder.key, ALL, 190.0, at=2_000)
    tuned(store, encoder.key, FinetuneSpec(epochs=3, learning_rate=0.1), 178.7, 3_000)
    tuned(store, encoder.key, FinetuneSpec(blocks=1), 900.0, at=4_000)
    tuned(store, encoder.key, FinetuneSpec(batch_size=8), 20.0, at=5_000)
    tuned(store, "f" * 32, ALL, 5.0, at=6_000)
    found = speeds.of_training(store, encoder, ALL)
    assert found == TrainingSpeed(178.7, "at 179/s as an earlier one")


def test_an_epoch_tells_how_it_went_and_how_long_the_rest_takes():
    """Of the epochs so far 12 s each: 10 of training, 2 of validation."""
    curve = [
        Point(epoch, split, loss / epoch, accuracy, 0.001, seconds)
        for epoch in (1, 2)
        for split, loss, accuracy, seconds in (
            ("train", 0.824, 0.91, 10.0),
            ("validation", 1.0, 0.885, 2.0),
        )
    ]
    assert epoch_line(curve, 8) == (
        "epoch 2 of 8: train loss 0.412, right in 91.0 %; validation loss 0.500, right "
        "in 88.5 %; 12 s an epoch, 1 min 12 s left"
    )
    assert epoch_line(curve, 2).endswith("88.5 %; 12 s an epoch")
