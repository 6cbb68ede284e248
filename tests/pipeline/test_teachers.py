"""Who teaches: found by name, and never by the labels that score the student."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import InvalidSpec, UnknownName
from tl_pipeline.pipeline import choices, fits, teachers, work
from tl_pipeline.pipeline.manifest import Rows
from tl_pipeline.pipeline.teachers import ModelTeacher, Teacher
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.keys import key_document
from tl_pipeline.store.tables import SEARCH, SEEN

A, B, C = (letter * 32 for letter in "abc")


@pytest.fixture
def encoder(store: Store) -> Encoder:
    (found,) = work.resolve([EncoderSpec.parse("lenet5")], store)
    assert isinstance(found, Encoder)
    return found


@pytest.fixture
def embedded(encoder: Encoder) -> dict[str, Artifact]:
    return {encoder.key: Artifact("embeddings", encoder.key, "")}


def model(encoder: Encoder, **changes: Any) -> ModelTeacher:
    """A model that learned from image A."""
    found = {
        "label": "model:photos@3",
        "encoder": encoder,
        "head": Artifact("heads", "1" * 32, ""),
        "classes": ("x", "y"),
        "learned": frozenset([A]),
        "judged": encoder,
        "made": Artifact("searches", "2" * 32, ""),
    }
    return ModelTeacher(**{**found, **changes})


def test_a_model_teaches_as_it_is_where_it_learned_from_none_that_score(
    store: Store, encoder: Encoder, embedded: dict[str, Artifact]
):
    """Else its head is made again of what the student learns from."""
    found = teachers.of_model(store, model(encoder), embedded, [B])
    assert found.made == (model(encoder).head,)
    again = teachers.of_model(store, model(encoder), embedded, [A, B])
    assert again.made == (model(encoder).made,)
    assert found.key != again.key


def test_a_model_whose_making_is_lost_is_refused(
    store: Store, encoder: Encoder, embedded: dict[str, Artifact]
):
    lost = model(encoder, made=None)
    assert teachers.of_model(store, lost, embedded, [B]).made == (lost.head,)
    with pytest.raises(InvalidSpec, match=r"model:photos@3: it learned .* not in this"):
        teachers.of_model(store, lost, embedded, [A])


def test_a_network_that_saw_labels_that_score_is_refused(
    store: Store, encoder: Encoder, embedded: dict[str, Artifact]
):
    """No head on it could be made again; the message says how many, and the cure."""
    folder = store.root / "finetuned" / C
    folder.mkdir(parents=True)
    about = {"sha256": encoder.weights.sha256}
    (folder / "finetuned.json").write_text(json.dumps(about))
    tables.write(SEEN, pa.table({"image_id": [A, B]}), folder)
    assert teachers.of_model(store, model(encoder), embedded, [C]).made
    with pytest.raises(InvalidSpec, match=r"fine-tuned on 1 of them. Fine-tune the te"):
        teachers.of_model(store, model(encoder), embedded, [A])


@pytest.mark.parametrize(
    ("text", "expected"), [("lenet5", 1), ("lenet5:layer=f6", 0), ("resnet18", 2)]
)
def test_a_backbone_is_found_by_what_is_typed_or_by_its_network(
    store: Store, text: str, expected: int
):
    typed = ["lenet5:layer=f6", "lenet5", "resnet18:weights=random:0,side=64"]
    specs = [EncoderSpec.parse(one) for one in typed]
    assert teachers.find_backbone(text, specs, store) == expected


def test_a_backbone_that_is_none_or_several(store: Store):
    typed = ["lenet5:layer=f6", "lenet5:layer=s4"]
    specs = [EncoderSpec.parse(one) for one in typed]
    with pytest.raises(UnknownName, match=r"'resnet18'.* Known: lenet5:layer=f6, lene"):
        teachers.find_backbone("resnet18", specs, store)
    with pytest.raises(InvalidSpec, match=r"several backbones of this run are lenet5"):
        teachers.find_backbone("lenet5", specs, store)


def search(store: Store, config: HeadConfig, accuracy: float, loss: float) -> Artifact:
    """A search that chose ``config``."""

    def write(folder: Any) -> str:
        row = {
            "search": "s",
            "encoder": "lenet5/c5",
            "family": config.name,
            "head": config.name,
            "round": 0,
            "images": 4,
            "folds": 2,
            "accuracy": accuracy,
            "log_loss": loss,
            "chosen": True,
            "trial": "t",
        }
        tables.write(SEARCH, tables.from_rows(SEARCH, [row]), folder)
        choices.write(folder, config, ["x", "y"], "0" * 32)
        return "s"

    document = key_document("train", 1, {"loss": loss, "accuracy": accuracy}, {})
    return store.build("searches", document, write)


def test_the_best_head_is_fitted_on_what_the_student_learns_from(store: Store):
    """From these rows alone. Of an image without an embedding it says the label."""
    ids = [f"{number:032x}" for number in range(9)]
    chance = np.random.default_rng(0)
    labels = ["x", "y"] * 4 + ["y"]
    vectors = chance.normal(0, 1, (8, 5)).astype("f4")
    vectors[1::2] += 3
    EmbeddingFolder(store, "e" * 32).add(ids[:8], vectors)
    embeddings = Artifact("embeddings", "e" * 32, "")
    strong = HeadConfig(name="logistic", params={"C": 1.0})
    weak = HeadConfig(name="logistic", params={"C": 1e-6})
    made = (search(store, weak, 0.8, 0.1), search(store, strong, 0.9, 0.5))
    rows = Rows(pa.table({"image_id": ids, "label": labels}))
    teacher = Teacher("lenet5/c5", embeddings, made)
    said = teacher.probabilities(store, rows, ["x", "y"], 0)
    assert said.dtype == np.float32
    assert said.sum(axis=1) == pytest.approx(np.ones(9), abs=1e-6)
    assert (said.argmax(axis=1) == np.array([0, 1] * 4 + [1])).all()
    assert said[8].tolist() == [0, 1]
    assert said[:8].max() < 1
    (fitted,) = fits.make(store, embeddings, rows, [strong], 0)
    assert [one.name for one in (store.root / "heads").iterdir()] == [fitted.key]
