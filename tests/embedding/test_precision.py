"""precision=auto: what the store holds, then the hardware, then a probe."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.embedding import devices, forward, precision, quantising
from tl_pipeline.encoders import resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.inputs.calibration_images import photographs
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.pipeline import work
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder


@pytest.fixture
def squeezenet(store: Store) -> Encoder:
    """A network worth a choice."""
    store.create()
    spec = EncoderSpec(backbone="squeezenet1_1", weights="random:0")
    return resolution.resolve(spec, store)


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch):
    """A machine that has bfloat16, whatever this one has."""
    monkeypatch.setattr(devices, "has_bfloat16", lambda _: True)


@pytest.mark.usefixtures("hardware")
def test_bfloat16_is_taken_where_it_is_as_good(store: Store, squeezenet: Encoder):
    chosen = precision.choose(squeezenet, store)
    assert chosen.precision == "bf16"
    assert chosen.key != squeezenet.key
    assert "(bf16)" in chosen.label


def test_without_the_hardware_it_is_float32(
    store: Store, squeezenet: Encoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(devices, "has_bfloat16", lambda _: False)
    assert precision.choose(squeezenet, store) == squeezenet


@pytest.mark.usefixtures("hardware")
def test_a_network_that_rounding_changes_stays_in_float32(
    store: Store, squeezenet: Encoder, monkeypatch: pytest.MonkeyPatch
):
    class Sensitive(forward.Forward):
        def __call__(self, batch, clock=None):
            found = super().__call__(batch, clock)
            coarse = self.encoders[0].precision == "bf16"
            noise = np.random.default_rng(0).normal(size=found[0].shape)
            return [found[0] + coarse * 0.1 * found[0].std() * noise]

    monkeypatch.setattr(forward, "Forward", Sensitive)
    assert precision.choose(squeezenet, store).precision == "fp32"


@pytest.mark.usefixtures("hardware")
def test_the_probe_is_made_once(
    store: Store, squeezenet: Encoder, monkeypatch: pytest.MonkeyPatch
):
    first = precision.choose(squeezenet, store)
    monkeypatch.setattr(precision, "_probe", lambda *_: pytest.fail("probed again"))
    assert precision.choose(squeezenet, store) == first


@pytest.mark.parametrize("held", ["fp32", "bf16"])
def test_what_the_store_holds_decides(
    store: Store, squeezenet: Encoder, held: str, monkeypatch: pytest.MonkeyPatch
):
    """Another machine, or a lost memo, embeds nothing anew."""
    monkeypatch.setattr(precision, "_probe", lambda *_: pytest.fail("probed"))
    one = squeezenet.model_copy(update={"precision": held})
    EmbeddingFolder(store, one.key).add(["0" * 32], np.zeros((1, 512), np.float32))
    assert precision.choose(squeezenet, store) == one


@pytest.mark.usefixtures("hardware")
def test_a_small_network_stays_in_float32(store: Store):
    lenet = resolution.resolve(EncoderSpec(backbone="lenet5"), store)
    assert precision.choose(lenet, store) == lenet


@pytest.mark.parametrize("asked", ["bf16", "int8"])
def test_a_network_that_brings_its_precision_takes_no_other(store: Store, asked: str):
    spec = EncoderSpec.parse(f"features:precision={asked}")
    with pytest.raises(InvalidSpec, match="precision"):
        resolution.resolve(spec, store)


def test_the_probe_looks_at_64_different_photographs():
    how = Preprocess(resize=64, crop=56, mean=(0.5,) * 3, std=(0.5,) * 3)
    batch = photographs(how)
    assert batch.shape == (64, 3, 56, 56)
    assert len({image.tobytes() for image in batch}) == 64
    assert np.array_equal(batch, photographs(how))
    assert not np.array_equal(batch, photographs(how, draw=1))


def test_cosines_of_equal_opposite_and_empty_rows():
    left = np.array([[1, 0], [1, 0], [0, 0], [0, 0], [3, 4]], np.float32)
    right = np.array([[2, 0], [-1, 0], [0, 0], [1, 0], [4, 3]], np.float32)
    np.testing.assert_allclose(precision.cosines(left, right), [1, -1, 1, 0, 0.96])


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch):
    """A process that measured nothing yet."""
    monkeypatch.setattr(precision, "_measured", {})


INT8 = EncoderSpec(backbone="squeezenet1_1", weights="random:0", precision="int8")
has_int8 = pytest.mark.skipif(
    not quantising.can_quantise(), reason="no int8 of oneDNN on this processor"
)


@has_int8
def test_int8_is_another_encoder_whose_drift_is_measured_once_and_told(
    store: Store, squeezenet: Encoder, monkeypatch: pytest.MonkeyPatch
):
    assert precision.told(squeezenet, store) == ""
    (encoder,) = work.resolve([INT8], store)
    assert encoder.key != squeezenet.key
    assert "(int8)" in encoder.label
    said = precision.told(encoder, store)
    told = r"int8: cosine with fp32 (0\.9|1\.0)\d+ on average .* 5 nearest neighbours"
    assert re.match(told, said)
    monkeypatch.setattr(precision, "_drift", lambda *_: pytest.fail("measured again"))
    assert work.resolve([INT8], store) == [encoder]


def test_a_poor_int8_is_used_and_warned_of(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    store.create()
    poor = {"mean": 0.7, "worst": 0.2, "neighbours": 0.4}
    monkeypatch.setattr(precision, "_drift", lambda *_: poor)
    with pytest.warns(UserWarning, match=r"cosine with fp32 0\.7000 .* 40 %"):
        (encoder,) = work.resolve([INT8], store)
    assert encoder.precision == "int8"


def test_the_drift_is_told_of_a_first_run_too_which_has_no_store_when_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fine = {"mean": 0.999, "worst": 0.99, "neighbours": 0.9}
    monkeypatch.setattr(precision, "_drift", lambda *_: fine)
    later = Store.open(tmp_path / "later")
    (encoder,) = work.resolve([INT8], later)
    assert not later.root.exists()
    later.create()
    assert "0.9990 on average" in precision.told(encoder, later)


@has_int8
def test_two_layers_of_one_network_share_a_pass_in_int8(store: Store):
    specs = [
        INT8.model_copy(update={"layer": layer})
        for layer in ("features.4.cat", "features.12.cat")
    ]
    found = [resolution.resolve(spec, store) for spec in specs]
    batch = photographs(found[0].preprocess)[:3]
    together = forward.Forward(found)(batch)
    for encoder, vectors in zip(found, together, strict=True):
        exact = encoder.model_copy(update={"precision": "fp32"})
        (expected,) = forward.Forward([exact])(batch)
        assert precision.cosines(vectors, expected).min() > 0.98


def test_int8_is_never_chosen(store: Store, squeezenet: Encoder):
    one = squeezenet.model_copy(update={"precision": "int8"})
    EmbeddingFolder(store, one.key).add(["0" * 32], np.zeros((1, 512), np.float32))
    assert precision.choose(squeezenet, store).precision != "int8"


@has_int8
def test_a_network_without_layers_for_int8_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quantising, "quantise", lambda *_: 0)
    with pytest.raises(InvalidSpec, match="no convolution or linear layer"):
        forward.Forward([resolution.resolve(INT8, store)])


def test_int8_without_oneDNN_is_refused(  # noqa: N802
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quantising, "can_quantise", lambda: False)
    with pytest.raises(InvalidSpec, match="int8 needs oneDNN"):
        forward.Forward([resolution.resolve(INT8, store)])


def test_int8_on_a_gpu_is_refused(store: Store):
    elsewhere = torch.device("meta")  # as a GPU, it is not the processor
    with pytest.raises(InvalidSpec, match="int8 is for processors"):
        forward.Forward([resolution.resolve(INT8, store)], elsewhere)


def test_neighbours_that_are_kept():
    rows = np.random.default_rng(0).normal(size=(20, 8))
    assert precision.kept_neighbours(rows, 3 * rows) == 1
    other = np.random.default_rng(1).normal(size=(20, 8))
    assert precision.kept_neighbours(rows, other) < 0.6
