"""precision=auto: what the store holds, then the hardware, then a probe."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models

from tests.exhaustive import more
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.embedding import devices, forward, precision
from tl_pipeline.encoders import resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder


@pytest.fixture
def network(store: Store) -> Encoder:
    """A network worth a choice."""
    store.create()
    spec = EncoderSpec(backbone="mobilenet_v3_small", weights="random:0")
    return resolution.resolve(spec, store)


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch):
    """A machine that has bfloat16, whatever this one has."""
    monkeypatch.setattr(devices, "has_bfloat16", lambda _: True)


@pytest.mark.usefixtures("hardware")
def test_bfloat16_is_taken_where_it_is_as_good(store: Store, network: Encoder):
    chosen = precision.choose(network, store)
    assert chosen.precision == "bf16"
    assert chosen.key != network.key
    assert "(bf16)" in chosen.label


def test_without_the_hardware_it_is_float32(
    store: Store, network: Encoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(devices, "has_bfloat16", lambda _: False)
    assert precision.choose(network, store) == network


@pytest.mark.usefixtures("hardware")
def test_a_network_that_rounding_changes_stays_in_float32(
    store: Store, network: Encoder, monkeypatch: pytest.MonkeyPatch
):
    class Sensitive(forward.Forward):
        def __call__(self, batch, clock=None):
            found = super().__call__(batch, clock)
            coarse = self.encoders[0].precision == "bf16"
            noise = np.random.default_rng(0).normal(size=found[0].shape)
            return [found[0] + coarse * 0.1 * found[0].std() * noise]

    monkeypatch.setattr(forward, "Forward", Sensitive)
    assert precision.choose(network, store).precision == "fp32"


@pytest.mark.usefixtures("hardware")
def test_the_probe_is_made_once(
    store: Store, network: Encoder, monkeypatch: pytest.MonkeyPatch
):
    first = precision.choose(network, store)
    monkeypatch.setattr(precision, "_probe", lambda *_: pytest.fail("probed again"))
    assert precision.choose(network, store) == first


@pytest.mark.parametrize("held", ["fp32", "bf16"])
def test_what_the_store_holds_decides(
    store: Store, network: Encoder, held: str, monkeypatch: pytest.MonkeyPatch
):
    """Another machine, or a lost memo, embeds nothing anew."""
    monkeypatch.setattr(precision, "_probe", lambda *_: pytest.fail("probed"))
    one = network.model_copy(update={"precision": held})
    EmbeddingFolder(store, one.key).add(["0" * 32], np.zeros((1, 512), np.float32))
    assert precision.choose(network, store) == one


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize("good", [True, False])
def test_grids_take_the_precision_of_the_mean_of_their_map(
    store: Store, good: bool, monkeypatch: pytest.MonkeyPatch
):
    """Else pools of one layer would need a forward pass each."""
    store.create()
    probed = []

    def probe(encoder: Encoder, _: Encoder) -> dict[str, bool]:
        probed.append(encoder.pooling)
        return {"good": good}

    monkeypatch.setattr(precision, "_probe", probe)
    wish = "squeezenet1_1:weights=random:0,pool={}"
    texts = [wish.format(pool) for pool in ("grid3", "gap", "avg+max", "grid2")]
    found = [
        precision.choose(resolution.resolve(EncoderSpec.parse(text), store), store)
        for text in texts
    ]
    assert probed == ["mean"]
    assert {encoder.precision for encoder in found} == {"bf16" if good else "fp32"}
    assert [encoder.pooling for encoder in found] == [
        "grid3",
        "mean",
        "avg+max",
        "grid2",
    ]
    held = found[1].model_copy(update={"precision": "fp32"})
    EmbeddingFolder(store, held.key).add(["0" * 32], np.zeros((1, 512), np.float32))
    exact = found[0].model_copy(update={"precision": "fp32"})
    assert precision.choose(exact, store) == exact


@pytest.mark.usefixtures("hardware")
def test_a_small_network_stays_in_float32(store: Store):
    lenet = resolution.resolve(EncoderSpec(backbone="lenet5"), store)
    assert precision.choose(lenet, store) == lenet


def test_a_network_that_brings_its_precision_takes_no_other(store: Store):
    spec = EncoderSpec.parse("features:precision=bf16")
    with pytest.raises(InvalidSpec, match="precision"):
        resolution.resolve(spec, store)


def test_the_probe_looks_at_64_different_photographs():
    how = Preprocess(resize=64, crop=56, mean=(0.5,) * 3, std=(0.5,) * 3)
    batch = precision.probe_images(how)
    assert batch.shape == (64, 3, 56, 56)
    assert len({image.tobytes() for image in batch}) == 64
    assert np.array_equal(batch, precision.probe_images(how))


@pytest.mark.usefixtures("hardware")
def test_drift_is_judged_as_heads_see_embeddings(
    store: Store, network: Encoder, monkeypatch: pytest.MonkeyPatch
):
    """Far from zero all vectors point one way, whatever rounding does to them."""
    found = []

    class Far(forward.Forward):
        def __call__(self, batch, _=None):
            chance = np.random.default_rng(0)
            values = 1000 + chance.normal(size=(len(batch), 8))
            if self.encoders[0].precision == "bf16":
                values += chance.normal(size=values.shape)
            found.append(values)
            return [values]

    monkeypatch.setattr(forward, "Forward", Far)
    assert precision.choose(network, store).precision == "fp32"
    left, right = found
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    assert ((left * right).sum(axis=1) / lengths).min() > 0.99999


def test_kept_variance_is_in_units_of_each_column():
    """A difference of half a deviation loses a quarter, in a column that varies."""
    exact = np.array([[1, 10, 5], [3, 30, 5]], np.float32)
    other = exact + np.array([[0.5, 0, 9], [0, 0, 9]], np.float32)
    np.testing.assert_allclose(precision.kept_variance(exact, other), [0.875, 1])
    shifted = exact + np.array([1, 10, 0], np.float32)
    np.testing.assert_allclose(precision.kept_variance(exact, shifted), [0, 0])
    np.testing.assert_allclose(precision.kept_variance(exact[:1], other[:1]), [1])


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize(("bias", "chosen"), [(0, "bf16"), (500, "fp32")])
def test_a_network_that_suffers_is_told_from_one_that_does_not(
    store: Store, tmp_path: Path, bias: float, chosen: str
):
    """At 500, bfloat16 has steps of 2; what tells the images apart is 0.1."""
    store.create()
    torch.manual_seed(0)
    network = models.squeezenet1_1()
    for half in ("expand1x1", "expand3x3"):
        network.get_submodule(f"features.12.{half}").bias.data += bias
    file = tmp_path / "squeezenet.pth"
    torch.save(network.state_dict(), file)
    spec = EncoderSpec.parse(f"squeezenet1_1:side=96,weights={file}")
    encoder = resolution.resolve(spec, store)
    assert precision.choose(encoder, store).precision == chosen
    how = encoder.preprocess
    assert isinstance(how, Preprocess)
    batch = precision.probe_images(how)
    (exact,), (coarse,) = (
        forward.Forward([encoder.model_copy(update={"precision": one})])(batch)
        for one in ("fp32", "bf16")
    )
    kept = precision.kept_variance(exact, coarse)
    assert kept.mean() > 0.99 if chosen == "bf16" else kept.mean() < 0.9
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(coarse, axis=1)
    # As they come, they are alike whatever rounding does.
    assert ((exact * coarse).sum(axis=1) / lengths).min() > 0.999


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("squeezenet1_0", "squeezenet1_0-imagenet-deepcompression.pth"),
        *more(("timm:tf_efficientnet_lite0", "tf_efficientnet_lite0-imagenet.pth")),
    ],
)
def test_real_networks_whose_scores_do_not_move_take_bfloat16(
    store: Store, shared: Path, name: str, file: str
):
    store.create()
    spec = EncoderSpec.parse(f"{name}:weights={shared / 'weights' / file}")
    encoder = resolution.resolve(spec, store)
    assert precision.choose(encoder, store).precision == "bf16"


def test_int8_is_refused_with_the_choices():
    with pytest.raises(InvalidSpec, match=r"precision.* 'auto', 'fp32' or 'bf16'"):
        EncoderSpec.parse("squeezenet1_1:precision=int8")


def test_a_model_of_an_older_version_in_int8_is_refused(
    network: Encoder,
):
    old = network.model_copy(update={"precision": "int8"})
    with pytest.raises(InvalidSpec, match=r"int8 is not computed.* fp32, bf16"):
        forward.Forward([old])
