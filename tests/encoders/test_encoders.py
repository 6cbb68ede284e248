"""From a wish to the identity of an embedding, and to the network that computes it."""

import argparse
import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as to_safetensors
from torchvision.models import SqueezeNet1_0_Weights, get_model

from tests.exhaustive import more
from tests.imports import resolved_elsewhere
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.encoders import backbones, loading, resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.encoders.lenet import LeNet5
from tl_pipeline.errors import InvalidSpec, UnknownName, WeightsError
from tl_pipeline.inputs.pixels import pixels
from tl_pipeline.store.artifacts import Store

State = dict[str, torch.Tensor]


def seeded(name: str, seed: int = 0, **options) -> torch.nn.Module:
    """The network ``name`` drawn from ``seed``, as torchvision builds it."""
    torch.manual_seed(seed)
    network = LeNet5(**options) if name == "lenet5" else get_model(name, **options)
    return network.eval()


def to_pth(state: object) -> bytes:
    """What ``torch.save`` writes."""
    data = io.BytesIO()
    torch.save(state, data)
    return data.getvalue()


@pytest.fixture(scope="module")
def lenet_state() -> State:
    """The weights of a LeNet-5, 250 kB."""
    return seeded("lenet5").state_dict()


Resolve = Callable[..., Encoder]


@pytest.fixture
def resolved(store: Store, tmp_path: Path) -> Resolve:
    """``resolved(data)``: the encoder whose weights file holds ``data``."""

    def resolve(
        data: bytes, backbone: str = "lenet5", name: str = "weights.pth", **more
    ) -> Encoder:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        spec = EncoderSpec(backbone=backbone, weights=str(file), **more)
        return resolution.resolve(spec, store)

    return resolve


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder where torchvision would look for weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@torch.inference_mode()
def embeddings(encoder: Encoder) -> torch.Tensor:
    """What ``encoder`` makes of four fixed inputs."""
    how = encoder.preprocess
    shape = (4, 1 if how.grey else 3, how.crop, how.crop)
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return loading.load(encoder)(batch)


# The key


def test_the_same_wish_has_the_same_key(store: Store):
    spec = EncoderSpec(backbone="lenet5")
    first, again = (resolution.resolve(spec, store) for _ in range(2))
    assert first == again
    assert first.key == again.key


def test_what_is_left_out_takes_the_defaults(store: Store):
    spelled = EncoderSpec(backbone="lenet5", layer="c5", weights="LETTERS")
    short = EncoderSpec(backbone="lenet5")
    assert resolution.resolve(short, store) == resolution.resolve(spelled, store)


def test_where_and_how_the_weights_file_is_called_is_no_part_of_the_key(
    resolved: Resolve, lenet_state: State
):
    data = to_pth(lenet_state)
    names = ["weights.pth", "other.pt", "deeper/weights.pth"]
    found = [resolved(data, name=name) for name in names]
    assert len({encoder.key for encoder in found}) == 1
    assert len({encoder.weights.file for encoder in found}) == 3


def test_named_weights_and_a_copy_of_their_file_have_the_same_key(
    store: Store, resolved: Resolve
):
    named = resolution.resolve(EncoderSpec(backbone="lenet5"), store)
    assert named.weights.file is not None
    copy = resolved(named.weights.file.read_bytes(), name="copy.safetensors")
    assert copy.key == named.key
    assert copy.label != named.label


def test_one_bit_of_one_weight_changes_the_key(resolved: Resolve, lenet_state: State):
    changed = {name: tensor.clone() for name, tensor in lenet_state.items()}
    changed["c3.bias"].view(torch.int32)[0] ^= 1
    assert (
        resolved(to_safetensors(lenet_state)).key
        != resolved(to_safetensors(changed)).key
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("lenet5:layer=c5", "lenet5:layer=f6"),
        ("lenet5", "lenet5:weights=random:0"),
        ("lenet5:weights=random:0", "lenet5:weights=random:1"),
        ("lenet5:weights=random:0", "squeezenet1_0:weights=random:0"),
        ("alexnet:layer=fc6,weights=random:0", "alexnet:layer=fc7,weights=random:0"),
        ("resnet18:weights=random:0", "resnet50:weights=random:0"),
    ],
)
def test_backbone_layer_weights_and_seed_change_the_key(
    store: Store, one: str, other: str
):
    keys = {resolution.resolve(EncoderSpec.parse(s), store).key for s in (one, other)}
    assert len(keys) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"resize": 33},
        {"crop": 31},
        {"interpolation": "bicubic"},
        {"grey": False},
        {"mean": (0.4,)},
        {"std": (0.4,)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_field_of_the_preprocessing_changes_the_key(store: Store, change: dict):
    encoder = resolution.resolve(EncoderSpec(backbone="lenet5"), store)
    other = encoder.preprocess.model_copy(update=change)
    assert other != encoder.preprocess
    assert encoder.model_copy(update={"preprocess": other}).key != encoder.key


def test_the_same_network_as_a_control_shares_its_embeddings(store: Store):
    spec = EncoderSpec(backbone="lenet5", weights="random:0")
    keys = [resolution.resolve(spec, store, control=c).key for c in (False, True)]
    assert keys[0] == keys[1]


def test_the_untrained_twin_differs_in_its_weights_alone(store: Store):
    spec = EncoderSpec(backbone="lenet5", layer="f6")
    trained, twin = (
        resolution.resolve(s, store)
        for s in (spec, resolution.random_init_baseline(spec, 3))
    )
    assert twin.weights.seed == 3
    assert twin.key != trained.key
    assert twin == trained.model_copy(update={"weights": twin.weights})


# What resolve refuses


@pytest.mark.parametrize(
    "text",
    [
        "random:x",
        "random:",
        "random",
        "random:-1",
        "random:1.5",
        "random:²",
        f"random:{2**64}",
    ],
)
def test_a_seed_must_be_a_whole_number(store: Store, text: str):
    with pytest.raises(InvalidSpec, match="random:SEED"):
        resolution.resolve(EncoderSpec(backbone="lenet5", weights=text), store)


@pytest.mark.parametrize(
    "spec",
    [
        EncoderSpec(backbone="lenet6"),
        EncoderSpec(backbone="lenet5", layer="c6"),
        EncoderSpec(backbone="lenet5", weights="IMAGENET1K_V1"),
        EncoderSpec(backbone="resnet18", weights="IMAGENET1K_V9"),
    ],
    ids=EncoderSpec.short,
)
def test_unknown_names_are_refused(store: Store, spec: EncoderSpec):
    with pytest.raises(UnknownName):
        resolution.resolve(spec, store)


def test_missing_named_weights_say_what_to_put_where(store: Store, no_weights: Path):
    with pytest.raises(WeightsError) as fault:
        resolution.resolve(EncoderSpec(backbone="squeezenet1_0"), store)
    place = str(no_weights / "squeezenet1_0-b66bff10.pth")
    for told in ("IMAGENET1K_V1", place, "5 MB", "https://", "weights=FILE"):
        assert told in str(fault.value)


def test_a_wrong_file_under_torchvisions_name_is_refused(
    store: Store, no_weights: Path
):
    data = to_pth(seeded("squeezenet1_0").state_dict())
    (no_weights / "squeezenet1_0-b66bff10.pth").write_bytes(data)
    with pytest.raises(WeightsError) as fault:
        resolution.resolve(EncoderSpec(backbone="squeezenet1_0"), store)
    assert hashlib.sha256(data).hexdigest()[:8] in str(fault.value)
    assert "b66bff10" in str(fault.value)


PLANTED = {
    "truncated": lambda data: data[:-1000],
    "another network": lambda _: to_pth(seeded("resnet18").state_dict()),
    "a page of HTML": lambda _: b"<html>404 Not Found</html>",
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("download", [False, True])
def test_what_is_not_the_published_file_is_refused_and_left_alone(
    store: Store,
    no_weights: Path,
    plant: Callable[[bytes], bytes],
    download: bool,
):
    """Also when missing weights may be downloaded: the file is not missing."""
    file = no_weights / "squeezenet1_1-b8a52dc0.pth"
    data = plant(to_pth(seeded("squeezenet1_1").state_dict()))
    file.write_bytes(data)
    spec = EncoderSpec(backbone="squeezenet1_1")
    if download:
        resolution.fetch(spec, store)
    with pytest.raises(
        WeightsError, match=r"not the published IMAGENET1K_V1.*b8a52dc0"
    ):
        resolution.resolve(spec, store)
    assert file.read_bytes() == data


def test_the_same_seed_for_other_weights_has_another_label(store: Store):
    texts = ["random:0", "random:0:IMAGENET1K_V2", "random:0:DEFAULT"]
    found = [
        resolution.resolve(EncoderSpec(backbone="resnet50", weights=text), store)
        for text in texts
    ]
    assert [encoder.weights.name for encoder in found] == [
        "random:0",
        "random:0:IMAGENET1K_V2",
        "random:0:IMAGENET1K_V2",
    ]
    assert found[1] == found[2]
    assert found[0].key != found[1].key


@pytest.mark.parametrize(
    ("backbone", "member"),
    [("resnet50", "IMAGENET1K_V2"), ("fasterrcnn_resnet50_fpn", "COCO_V1")],
)
@pytest.mark.usefixtures("no_weights")
def test_default_is_resolved_to_the_member_it_names(
    store: Store, backbone: str, member: str
):
    """So that the label and the key do not move with torchvision's choice."""
    spec = EncoderSpec(backbone=backbone, weights="DEFAULT")
    with pytest.raises(WeightsError, match=f"weights {member} are not on disk"):
        resolution.resolve(spec, store)


def test_a_missing_weights_file_is_refused(store: Store, tmp_path: Path):
    gone = tmp_path / "gone.pth"
    with pytest.raises(WeightsError, match=r"gone\.pth does not exist"):
        resolution.resolve(EncoderSpec(backbone="lenet5", weights=str(gone)), store)


@pytest.mark.parametrize("name", ["random.pth", "random-init.safetensors"])
def test_a_weights_file_may_be_called_random(
    store: Store,
    tmp_path: Path,
    lenet_state: State,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(to_pth(lenet_state))
    found = resolution.resolve(EncoderSpec(backbone="lenet5", weights=name), store)
    assert found.weights.file == tmp_path / name
    assert found.weights.seed is None


@pytest.mark.parametrize(
    "given",
    [{}, {"XDG_CACHE_HOME": "/x"}, {"XDG_CACHE_HOME": "/x", "TORCH_HOME": "~/t"}],
)
def test_weights_are_looked_for_where_torch_keeps_them(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert backbones.checkpoint_folder() == Path(torch.hub.get_dir()) / "checkpoints"


# What load makes of a file


@pytest.mark.parametrize(
    ("backbone", "by_hand"),
    [
        ("squeezenet1_0", lambda net: lambda x: net.features(x).mean(dim=(2, 3))),
        *more(
            ("mobilenet_v3_small", lambda n: lambda x: n.features(x).mean(dim=(2, 3)))
        ),
    ],
)
def test_a_pth_and_a_safetensors_file_embed_as_the_model_does(
    resolved: Resolve, backbone: str, by_hand: Callable
):
    model = seeded(backbone)
    state = model.state_dict()
    pth = resolved(to_pth(state), backbone, "weights.pth")
    safe = resolved(to_safetensors(state), backbone, "weights.safetensors")
    found = embeddings(pth)
    assert torch.equal(found, embeddings(safe))
    batch = torch.randn((4, 3, 224, 224), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(found, by_hand(model)(batch))


@pytest.mark.parametrize("classes", [7, *more(2)])
@pytest.mark.parametrize("backbone", ["lenet5", "squeezenet1_0", "resnet18"])
def test_weights_fine_tuned_to_other_classes_load(
    resolved: Resolve, backbone: str, classes: int
):
    name = "n_classes" if backbone == "lenet5" else "num_classes"
    model = seeded(backbone, **{name: classes})
    encoder = resolved(to_pth(model.state_dict()), backbone)
    assert torch.isfinite(embeddings(encoder)).all()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_give_float32_embeddings(
    resolved: Resolve, lenet_state: State, kind: torch.dtype
):
    stored = {name: tensor.to(kind) for name, tensor in lenet_state.items()}
    found = embeddings(resolved(to_pth(stored)))
    assert found.dtype == torch.float32
    whole = embeddings(resolved(to_pth(lenet_state), name="whole.pth"))
    torch.testing.assert_close(found, whole, rtol=0.05, atol=0.02)


def _renamed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


WRAPPED = {
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "best": 0.9},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "lr": 0.1}},
    "arguments": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
    "numpy": lambda state: {"state_dict": state, "best": np.float64(0.5)},
}
PREFIXED = {
    "parallel": ("module.", lambda state: _renamed(state, "module.")),
    "both": ("module.", lambda state: {"state_dict": _renamed(state, "module.")}),
    "compiled": ("_orig_mod.", lambda state: _renamed(state, "_orig_mod.")),
    "compiled-parallel": (
        "module._orig_mod.",
        lambda state: _renamed(state, "module._orig_mod."),
    ),
    "lightning": ("model.", lambda state: {"state_dict": _renamed(state, "model.")}),
    "net": ("net.", lambda state: _renamed(state, "net.")),
    "backbone": ("backbone.", lambda state: _renamed(state, "backbone.")),
    "averaged": (
        "module.",
        lambda state: {"n_averaged": torch.tensor(3), **_renamed(state, "module.")},
    ),
    "contrastive": (
        "module.encoder_q.",
        lambda state: {
            **_renamed({n: t + 1 for n, t in state.items()}, "module.encoder_k."),
            **_renamed(state, "module.encoder_q."),
            "module.queue": torch.ones(2),
        },
    ),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_checkpoint_whose_weights_are_plain_to_see_is_unwrapped(
    resolved: Resolve, lenet_state: State, wrap: Callable[[State], object]
):
    found = embeddings(resolved(to_pth(wrap(lenet_state))))
    plain = embeddings(resolved(to_pth(lenet_state), name="plain.pth"))
    assert torch.equal(found, plain)


@pytest.mark.parametrize(("prefix", "wrap"), PREFIXED.values(), ids=PREFIXED)
def test_a_usual_prefix_is_left_out_and_said(
    resolved: Resolve,
    lenet_state: State,
    prefix: str,
    wrap: Callable[[State], object],
):
    said = rf"weights\.pth: the names of its weights begin with '{prefix}', which is"
    with pytest.warns(UserWarning, match=said):
        found = embeddings(resolved(to_pth(wrap(lenet_state))))
    plain = embeddings(resolved(to_pth(lenet_state), name="plain.pth"))
    assert torch.equal(found, plain)


HEADLESS = {
    "none": lambda trunk: trunk,
    "sequential": lambda trunk: {**trunk, "output.1.weight": torch.ones(2, 84)},
    "projector": lambda trunk: {**trunk, "projector.0.weight": torch.ones(4, 84)},
}


@pytest.mark.parametrize("change", HEADLESS.values(), ids=HEADLESS)
def test_a_file_without_the_classifier_is_enough_for_layers_before_it(
    resolved: Resolve, lenet_state: State, change: Callable[[State], State]
):
    trunk = {n: t for n, t in lenet_state.items() if not n.startswith("output.")}
    data = to_pth(change(trunk))
    plain = embeddings(resolved(to_pth(lenet_state), name="plain.pth", layer="f6"))
    assert torch.equal(embeddings(resolved(data, layer="f6")), plain)
    with pytest.raises(WeightsError, match=r"2 missing \(output\.weight, output\.bias"):
        loading.load(resolved(data, layer="output"))


OTHERS = {
    b"": "is empty",
    b"<!DOCTYPE html><html>404</html>": "is a web page that was saved",
    b"version https://git-lfs.github.com/spec/v1\n": "Git LFS pointer.*git lfs pull",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\x1f\x8b\x08\x00": "is compressed; unpack",
    b"any text": "is damaged, or holds no weights of torch",
}


@pytest.mark.parametrize(("data", "told"), OTHERS.items())
def test_a_file_of_another_kind_is_named(resolved: Resolve, data: bytes, told: str):
    with pytest.raises(WeightsError, match=rf"weights\.pth: .*{told}") as fault:
        loading.load(resolved(data))
    assert "weights_only" not in str(fault.value)
    assert "\x1b" not in str(fault.value)


def test_a_whole_model_is_refused_and_the_way_out_is_said(resolved: Resolve):
    with pytest.raises(WeightsError, match=r"object of torch\.nn\.\S*Linear") as fault:
        loading.load(resolved(to_pth(torch.nn.Linear(2, 2))))
    assert "torch.save(model.state_dict(), FILE)" in str(fault.value)
    assert "weights_only" not in str(fault.value)
    assert "\x1b" not in str(fault.value)


def test_a_file_in_the_working_directory_is_a_file(
    lenet_state: State, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("weights.ckpt", "plain.pth.tar", "own"):
        Path(name).write_bytes(to_pth(lenet_state))
        spec = EncoderSpec(backbone="lenet5", weights=name)
        assert resolution.resolve(spec, store).weights.file == tmp_path / name


def test_an_ambiguous_checkpoint_names_its_state_dicts(
    resolved: Resolve, lenet_state: State
):
    encoder = resolved(to_pth({"model": lenet_state, "model_ema": lenet_state}))
    with pytest.raises(WeightsError, match=r"\['model', 'model_ema'\].*torch\.save"):
        loading.load(encoder)


def test_weights_that_are_not_finite_are_refused_where_they_are_used(
    resolved: Resolve, lenet_state: State
):
    """As in VGG16's IMAGENET1K_FEATURES, whose classifier holds no numbers."""
    state = {name: tensor.clone() for name, tensor in lenet_state.items()}
    state["f6.weight"][3, 5] = torch.nan
    assert torch.isfinite(embeddings(resolved(to_pth(state)))).all()
    with pytest.raises(WeightsError, match=r"f6\.weight holds values .* not finite"):
        loading.load(resolved(to_pth(state), layer="f6"))


BAD_FILES = {
    "empty": lambda _: b"",
    "text": lambda _: b"version https://git-lfs.github.com/spec/v1\n",
    "truncated": lambda state: to_pth(state)[:-5000],
    "half": lambda state: to_pth(state)[:100_000],
    "not-tensors": lambda _: to_pth({"a": 1, "b": "two"}),
    "two-states": lambda state: to_pth({"model": state, "model_ema": state}),
    "two-wrappers": lambda state: to_pth({"model": state, "state_dict": state}),
    "unknown-wrapper": lambda state: to_pth({"epoch": 3, "network": state}),
    "wrapped-twice": lambda state: to_pth({"model": {"state_dict": state}}),
    "half-parallel": lambda state: to_pth(
        {f"module.{n}" if n.startswith("c1") else n: t for n, t in state.items()}
    ),
    "list": lambda state: to_pth(list(state.values())),
    "no-tensors": lambda _: to_pth({}),
    "numbered": lambda state: to_pth(dict(enumerate(state.values()))),
    "renamed": lambda state: to_pth({f"own.{n}": t for n, t in state.items()}),
    "of-another-trunk": lambda state: to_pth({**state, "c1.more": torch.ones(1)}),
}


@pytest.mark.parametrize("bad", BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_without_the_weights_is_refused_by_name(
    resolved: Resolve, lenet_state: State, bad: Callable[[State], bytes]
):
    encoder = resolved(bad(lenet_state))
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        loading.load(encoder)


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_a_truncated_safetensors_file_is_refused(
    resolved: Resolve, lenet_state: State, kept: int
):
    encoder = resolved(to_safetensors(lenet_state)[:kept], name="w.safetensors")
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        loading.load(encoder)


def test_weights_of_another_network_are_told_by_names_and_shapes(
    resolved: Resolve, lenet_state: State
):
    encoder = resolved(to_pth(lenet_state), "squeezenet1_0")
    with pytest.raises(WeightsError) as fault:
        loading.load(encoder)
    for told in ("squeezenet1_0", "missing", "features.0.weight", "unknown", "c1.wei"):
        assert told in str(fault.value)


def test_weights_of_another_shape_are_told(resolved: Resolve, lenet_state: State):
    other = {**lenet_state, "f6.weight": torch.zeros(84, 121)}
    with pytest.raises(WeightsError, match=r"f6\.weight \(84, 121\) instead of"):
        loading.load(resolved(to_pth(other)))


class Attack:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("write", [pickle.dumps, to_pth], ids=["pickle", "torch.save"])
def test_code_in_a_weights_file_does_not_run(
    resolved: Resolve, tmp_path: Path, write: Callable[[object], bytes]
):
    marker = tmp_path / "ran"
    encoder = resolved(write({"f6.weight": Attack(marker)}))
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        loading.load(encoder)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Attack(marker)))
    assert marker.exists()  # so the attack is a real one


def test_a_file_changed_after_it_was_resolved_is_refused(
    resolved: Resolve, lenet_state: State
):
    encoder = resolved(to_pth(lenet_state))
    assert encoder.weights.file is not None
    encoder.weights.file.write_bytes(to_pth(seeded("lenet5", 1).state_dict()))
    with pytest.raises(WeightsError, match="changed"):
        loading.load(encoder)


def test_a_file_deleted_after_it_was_resolved_is_refused(
    resolved: Resolve, lenet_state: State
):
    encoder = resolved(to_pth(lenet_state))
    assert encoder.weights.file is not None
    encoder.weights.file.unlink()
    with pytest.raises(WeightsError, match="no longer"):
        loading.load(encoder)


# What is remembered


def test_a_file_replaced_with_the_same_size_and_time_is_noticed(
    resolved: Resolve, store: Store, lenet_state: State
):
    first = resolved(to_safetensors(lenet_state), name="weights.safetensors")
    file = first.weights.file
    assert file is not None
    spec = EncoderSpec(backbone="lenet5", weights=str(file))
    assert resolution.resolve(spec, store) == first
    before = file.stat()
    data = to_safetensors(seeded("lenet5", 1).state_dict())
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # until the clock ticks
        file.write_bytes(data)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert resolution.resolve(spec, store).key != first.key


def test_a_remembered_hash_is_believed_only_when_trusted(
    resolved: Resolve, store: Store, lenet_state: State
):
    true = resolved(to_pth(lenet_state))
    memo = store.root / "memo" / "encoders.json"
    memo.write_text(memo.read_text().replace(true.weights.sha256, "0" * 64))
    spec = EncoderSpec(backbone="lenet5", weights=str(true.weights.file))
    assert resolution.resolve(spec, store).weights.sha256 == "0" * 64
    assert resolution.resolve(spec, store, trust=False) == true


@pytest.mark.parametrize("left", [b"", b'{"half": ', b"\xff\xfe\x00", b"[]"])
def test_a_damaged_memo_is_forgotten(
    resolved: Resolve, store: Store, lenet_state: State, left: bytes
):
    true = resolved(to_pth(lenet_state))
    memo = store.root / "memo" / "encoders.json"
    memo.write_bytes(left)
    assert resolved(to_pth(lenet_state)) == true
    assert str(true.weights.file) in json.loads(memo.read_text())


def test_resolving_writes_nothing_where_there_is_no_store(tmp_path: Path):
    absent = Store.open(tmp_path / "absent")
    resolution.resolve(EncoderSpec(backbone="lenet5"), absent)
    resolution.resolve(EncoderSpec(backbone="resnet18", weights="random:0"), absent)
    assert not absent.root.exists()


@pytest.mark.parametrize("layer", ["avgpool", "layer3.1.add"])
def test_resolving_a_second_time_imports_no_torch(
    store: Store, tmp_path: Path, layer: str
):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"not read, only hashed")
    spec = EncoderSpec(backbone="resnet18", weights=str(file), layer=layer)
    here = resolution.resolve(spec, store).key
    key, imported = resolved_elsewhere(spec, store)
    assert key == here
    assert "torch" not in imported


# With real weights


def test_real_weights_embed_photos_as_torchvision_does(shared: Path, store: Store):
    file = shared / "weights" / "squeezenet1_0-imagenet-deepcompression.pth"
    spec = EncoderSpec(backbone="squeezenet1_0", weights=str(file))
    encoder = resolution.resolve(spec, store)
    assert encoder.weights.sha256.startswith("914c6c20bee00c3219ad210cbcf68cad")
    ants = sorted((shared / "data" / "hymenoptera" / "train" / "ants").glob("*.jpg"))
    how = encoder.preprocess
    ours = torch.from_numpy(np.stack([pixels(p.read_bytes(), how) for p in ants[:4]]))
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (how.mean, how.std))

    network = get_model("squeezenet1_0").eval()
    network.load_state_dict(torch.load(file, weights_only=True))
    transform = SqueezeNet1_0_Weights.IMAGENET1K_V1.transforms()
    photos = torch.stack([transform(Image.open(p).convert("RGB")) for p in ants[:4]])
    with torch.inference_mode():
        found = loading.load(encoder)((ours.to(torch.float32) / 255 - mean) / std)
        expected = network.features(photos).mean(dim=(2, 3))
    assert found.shape == (4, 512)
    # Two in a thousand pixels are rounded the other way than by PIL.
    alike = torch.nn.functional.cosine_similarity(found, expected)
    assert alike.min() > 0.9999
