"""Networks that bring their weights: your own code, ONNX files, exported files."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from tests.conftest import REPOSITORY
from tests.exhaustive import more
from tests.likely_weights import noise
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.encoders import loading, resolution
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import InvalidSpec, UnknownName, WeightsError
from tl_pipeline.pipeline import wiring
from tl_pipeline.registry import index
from tl_pipeline.registry.prediction import predict
from tl_pipeline.store.artifacts import Store

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 32
SMALL = f"resize={SIDE},crop={SIDE}"


class Net(nn.Module):
    """A vector and a map out of images; batch norm and dropout tell training."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.c = nn.Conv2d(channels, 8, 3, stride=2)
        self.b = nn.BatchNorm2d(8)
        self.d = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.d(self.b(self.c(images)).relu())
        return {"vector": found.mean((2, 3)), "map": found}


def seeded(channels: int = 3, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    network = Net(channels)
    network.b.running_mean.uniform_(-0.1, 0.1)
    return network.eval()


def to_onnx(file: Path, network: nn.Module, batch: int | None = None, **how: Any):
    """Write ``network`` as a user would; ``batch`` fixes the number of images."""
    channels = 1 if how.pop("grey", False) else 3
    axes = ({0: torch.export.Dim("images")},) if batch is None else None
    torch.onnx.export(
        network,
        (torch.zeros(batch or 2, channels, SIDE, SIDE),),
        file,
        input_names=["image"],
        output_names=["vector", "map"],
        dynamic_shapes=axes,
        verbose=False,
        **{"external_data": False, "dynamo": True, **how},
    )
    return file


def to_pt2(file: Path, network: nn.Module, batch: int | None = None) -> Path:
    axes = ({0: torch.export.Dim("images")},) if batch is None else None
    given = (torch.zeros(batch or 2, 3, SIDE, SIDE),)
    torch.export.save(torch.export.export(network, given, dynamic_shapes=axes), file)
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one network in every form."""
    folder = tmp_path_factory.mktemp("files")
    for name, batch in (("net", None), ("three", 3)):
        to_onnx(folder / f"{name}.onnx", seeded(), batch)
        to_pt2(folder / f"{name}.pt2", seeded(), batch)
    return folder


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """``code(text)`` writes the user's module ``own_nets``, to be imported anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> Path:
        sys.modules.pop("own_nets", None)
        file = tmp_path / "own_nets.py"
        file.write_text(NETS + textwrap.dedent(text))
        return file

    return write


NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.b = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.d = nn.Dropout(0.5)
    def forward(self, images):
        return self.d(self.b(self.c(images)).relu()).mean((2, 3))

def make(seed=0):
    torch.manual_seed(seed)
    return Net()
"""


def resolved(store: Store, text: str, **more: Any) -> Encoder:
    return resolution.resolve(EncoderSpec.parse(text), store, **more)


@torch.inference_mode()
def embedded(encoder: Encoder, batch: torch.Tensor) -> torch.Tensor:
    return loading.load(encoder)(batch)


# What all kinds share


@pytest.mark.parametrize("name", ["net", "three"])
@pytest.mark.parametrize(
    ("kind", "ending", "vector", "spatial"),
    [("onnx", "onnx", "vector", "map"), ("export", "pt2", "vector", "map")],
)
@pytest.mark.parametrize("images", [1, 3, *more(2, 5)])
def test_a_file_embeds_as_its_module_does(
    store: Store,
    files: Path,
    name: str,
    kind: str,
    ending: str,
    vector: str,
    spatial: str,
    images: int,
):
    """Whatever number of images it was made for: cut or filled up."""
    batch = noise(images, 3, SIDE)
    expected = seeded()(batch)
    text = f"{kind}:{files / name}.{ending}"
    first = resolved(store, text)
    assert first.layer == vector
    found = embedded(first, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected["vector"], rtol=1e-4, atol=1e-4)
    pooled = embedded(resolved(store, f"{text}:layer={spatial},pool=gap"), batch)
    torch.testing.assert_close(pooled, found, rtol=1e-4, atol=1e-4)
    again = embedded(resolved(store, text), batch)
    assert torch.equal(found, again)


KINDS = ["onnx", "export"]
ENDINGS = {"onnx": "onnx", "export": "pt2"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_is_the_file_and_not_its_place(
    store: Store, files: Path, tmp_path: Path, kind: str
):
    file = files / f"net.{ENDINGS[kind]}"
    copy = tmp_path / f"copy.{ENDINGS[kind]}"
    shutil.copyfile(file, copy)
    first, second = (resolved(store, f"{kind}:{f}") for f in (file, copy))
    assert first.key == second.key
    assert first.weights.file == file
    other = resolved(store, f"{kind}:{files / 'three'}.{ENDINGS[kind]}")
    assert other.key != first.key
    assert first.preprocess.crop == SIDE
    assert first.preprocess.resize == 36
    assert first.preprocess.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_of_a_file_is_remembered(
    store: Store, files: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    text = f"{kind}:{files / 'net'}.{ENDINGS[kind]}"
    first = resolved(store, text)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(torch.export, "load", None)
    assert resolved(store, text) == first


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"layer": "head"}, UnknownName, "Known: map, vector"),
        ({"layer": "map"}, InvalidSpec, r"no pool at all does not fit .*pool=flatten"),
        ({"pool": "cls"}, InvalidSpec, "pool=cls does not fit"),
        ({"crop": 40, "resize": 40}, InvalidSpec, "takes no inputs of 40x40"),
        ({"weights": "random:0"}, InvalidSpec, "brings its own weights"),
    ],
    ids=["layer", "map", "cls", "size", "weights"],
)
def test_what_does_not_fit_a_file_is_told(
    store: Store, files: Path, kind: str, change: dict, error: type, told: str
):
    spec = EncoderSpec.parse(f"{kind}:{files / 'net'}.{ENDINGS[kind]}")
    with pytest.raises(error, match=told):
        loading.load(resolution.resolve(spec.model_copy(update=change), store))


@pytest.mark.parametrize("kind", KINDS)
def test_a_spatial_output_can_be_flattened(store: Store, files: Path, kind: str):
    text = f"{kind}:{files / 'net'}.{ENDINGS[kind]}:layer=map,pool=flatten"
    batch = noise(2, 3, SIDE)
    found = embedded(resolved(store, text), batch)
    expected = seeded()(batch)["map"].flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04 no more"])
def test_what_is_no_network_is_refused(
    store: Store, tmp_path: Path, kind: str, data: bytes
):
    file = tmp_path / f"bad.{ENDINGS[kind]}"
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=rf"bad\.{ENDINGS[kind]}"):
        resolved(store, f"{kind}:{file}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused(
    store: Store, files: Path, tmp_path: Path, kind: str
):
    file = tmp_path / f"half.{ENDINGS[kind]}"
    whole = (files / f"net.{ENDINGS[kind]}").read_bytes()
    file.write_bytes(whole[: len(whole) * 9 // 10])
    with pytest.raises(WeightsError, match="half"):
        resolved(store, f"{kind}:{file}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_gone_or_changed_is_told(
    store: Store, files: Path, tmp_path: Path, kind: str
):
    file = tmp_path / f"net.{ENDINGS[kind]}"
    with pytest.raises(WeightsError, match="does not exist"):
        resolved(store, f"{kind}:{file}")
    shutil.copyfile(files / file.name, file)
    encoder = resolved(store, f"{kind}:{file}")
    shutil.copyfile(files / f"three.{ENDINGS[kind]}", file)
    with pytest.raises(WeightsError, match=r"no longer what|changed"):
        loading.load(encoder)
    file.unlink()
    with pytest.raises(WeightsError, match="no longer"):
        loading.load(encoder)


# ONNX


def test_weights_beside_an_onnx_file_are_refused(store: Store, tmp_path: Path):
    """Its hash would not tell when they change; the cure that is told works."""
    file = to_onnx(tmp_path / "two.onnx", seeded(), external_data=True)
    assert (tmp_path / "two.onnx.data").exists()
    with pytest.raises(WeightsError, match=r"onnx\.save\(onnx\.load\('two\.onnx'\)"):
        resolved(store, f"onnx:{file}")
    onnx.save(onnx.load(file), tmp_path / "whole.onnx")
    (tmp_path / "two.onnx.data").unlink()
    batch = noise(2, 3, SIDE)
    found = embedded(resolved(store, f"onnx:{tmp_path / 'whole.onnx'}"), batch)
    torch.testing.assert_close(found, seeded()(batch)["vector"], rtol=1e-4, atol=1e-4)


def test_a_grey_network_gets_grey_values_in_0_to_1(store: Store, tmp_path: Path):
    file = to_onnx(tmp_path / "grey.onnx", seeded(channels=1), grey=True)
    how = resolved(store, f"onnx:{file}").preprocess
    assert (how.grey, how.mean, how.std) == (True, (0.0,), (1.0,))
    assert resolved(store, f"onnx:{file}:mean=0.5").preprocess.mean == (0.5,)


def graph(
    file: Path, shape: list[int | str], kind: int = onnx.TensorProto.FLOAT
) -> Path:
    """An ONNX file that passes its input on."""
    tensors = [onnx.helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    made = onnx.helper.make_graph([node], "g", tensors[:1], tensors[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(made, opset_imports=opset, ir_version=8), file)
    return file


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (["n", 224, 224, 3], "the channels first"),
        (["n", 3, 224, 192], "the channels first"),
        (["n", 4, 224, 224], "one or three channels"),
        (["n", 10], "must be one float32"),
    ],
)
def test_an_input_that_is_no_square_image_is_refused(
    store: Store, tmp_path: Path, shape: list, told: str
):
    with pytest.raises(InvalidSpec, match=told):
        resolved(store, f"onnx:{graph(tmp_path / 'odd.onnx', shape)}")


def test_a_free_size_is_taken_as_224(store: Store, tmp_path: Path):
    how = resolved(
        store, f"onnx:{graph(tmp_path / 'free.onnx', ['n', 3, 'h', 'w'])}"
    ).preprocess
    assert (how.resize, how.crop) == (256, 224)


def test_operators_of_other_libraries_are_not_loaded(store: Store, tmp_path: Path):
    file = graph(tmp_path / "custom.onnx", ["n", 3, 32, 32])
    model = onnx.load(file)
    model.graph.node[0].domain, model.graph.node[0].op_type = "mine", "Run"
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    onnx.save(model, file)
    with pytest.raises(WeightsError, match=r"custom\.onnx"):
        resolved(store, f"onnx:{file}")


# Your own code


def test_a_factory_gives_a_module_in_eval_mode(store: Store, code: Callable):
    code("")
    encoder = resolved(store, f"python:own_nets:make:{SMALL}")
    cut = loading.load_together([encoder])
    assert not any(part.training for part in cut.modules())
    assert not any(p.requires_grad for p in cut.parameters())
    batch = noise(4, 3, SIDE)
    first = embedded(encoder, batch)
    assert first.shape == (4, 8)
    alone = torch.cat([embedded(encoder, image[None]) for image in batch])
    torch.testing.assert_close(first, alone, rtol=1e-5, atol=1e-5)
    import own_nets

    with torch.inference_mode():
        torch.testing.assert_close(first, own_nets.make().eval()(batch))


def test_nobodys_random_draws_move(store: Store, code: Callable):
    code("")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loading.load(resolved(store, f"python:own_nets:make:{SMALL}"))
    assert torch.equal(torch.rand(3), expected)


def test_weights_and_source_of_a_factory_are_its_identity(store: Store, code: Callable):
    text = f"python:own_nets:make:{SMALL}"
    keys = []
    for change in ("", "# a comment", "def make(): return Net().requires_grad_(False)"):
        code(change)
        keys.append(resolved(store, text).key)
    assert len(set(keys)) == 3
    code("")
    assert resolved(store, text).key == keys[0]
    file = Path("w.pth")
    reads = """
        def make():
            net = Net()
            net.load_state_dict(torch.load("w.pth"))
            return net
    """
    found = []
    for seed in (0, 1):
        code("")
        import own_nets

        torch.save(own_nets.make(seed).state_dict(), file)
        del own_nets
        code(reads)
        found.append(resolved(store, text).key)
    assert found[0] != found[1]


def test_a_factory_that_changes_its_mind_is_told(store: Store, code: Callable):
    code("def make(): return Net()")
    torch.manual_seed(0)
    encoder = resolved(store, f"python:own_nets:make:{SMALL}")
    torch.manual_seed(1)
    with pytest.raises(WeightsError, match="must give the same network each time"):
        loading.load(encoder)


def test_a_factory_may_say_how_it_is_fed(store: Store, code: Callable):
    code(
        "def fed(): return make(), dict(resize=40, crop=32, interpolation='bicubic')\n"
        "def odd(): return make(), dict(size=40)\n"
    )
    how = resolved(store, "python:own_nets:fed").preprocess
    assert (how.resize, how.crop, how.interpolation) == (40, 32, "bicubic")
    assert how.mean == (0.485, 0.456, 0.406)
    assert resolved(store, "python:own_nets:fed:resize=50").preprocess.resize == 50
    usual = resolved(store, "python:own_nets:make").preprocess
    assert (usual.resize, usual.crop) == (256, 224)
    with pytest.raises(InvalidSpec, match=r"field size: .* Known: resize"):
        resolved(store, "python:own_nets:odd")


@pytest.mark.parametrize(
    "fields",
    ["mean=(0.5,), std=(0.5,)", "mean=(0.5,)", "grey=True", "std=(1.0,) * 4"],
)
def test_a_factory_gives_a_mean_for_each_channel(
    store: Store, code: Callable, fields: str
):
    code(f"def fed(): return make(), dict({fields})")
    with pytest.raises(InvalidSpec, match="three each, or one each with grey=True"):
        resolved(store, "python:own_nets:fed")


def test_outputs_of_a_module_are_its_layers(store: Store, code: Callable):
    code(
        """
        class Two(Net):
            def forward(self, images):
                found = self.c(images)
                return {"map": found, "vector": found.mean((2, 3))}

        def two():
            torch.manual_seed(0)
            return Two()
        """
    )
    text = f"python:own_nets:two:{SMALL}"
    batch = noise(2, 3, SIDE)
    vector = embedded(resolved(store, f"{text},layer=vector"), batch)
    pooled = embedded(resolved(store, f"{text},layer=map,pool=gap"), batch)
    torch.testing.assert_close(vector, pooled)
    with pytest.raises(InvalidSpec, match=r"Fits: pool=gap, pool=avg\+max, pool=grid2"):
        loading.load(resolved(store, text))
    with pytest.raises(UnknownName, match="Known: map, vector"):
        resolved(store, f"{text},layer=head")


def test_submodules_are_layers_as_well(store: Store, code: Callable):
    code(
        """
        class Nested(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(True))
                self.twice = nn.Dropout(0.5)
            def forward(self, images):
                found = self.twice(self.encoder(images))
                return self.twice(found.mean((2, 3)))

        def nested():
            torch.manual_seed(0)
            return Nested()
        """
    )
    text = f"python:own_nets:nested:{SMALL}"
    encoders = [
        resolved(store, f"{text}{layer}")
        for layer in ("", ",layer=encoder", ",layer=node:encoder.0,pool=avg+max")
    ]
    assert [encoder.pooling for encoder in encoders] == ["none", "mean", "avg+max"]
    batch = noise(2, 3, SIDE)
    with torch.inference_mode():
        output, mean, convolved = loading.load_together(encoders)(batch)
        import own_nets

        maps = own_nets.nested().encoder[0](batch)
    torch.testing.assert_close(mean, output)
    both = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)
    torch.testing.assert_close(convolved, both)  # before the ReLU in its place
    with pytest.raises(UnknownName, match=r"Known: encoder, encoder\.0, .*output"):
        resolved(store, f"{text},layer=encoder.3")
    with pytest.raises(UnknownName, match="Known: output"):  # which of the two calls
        resolved(store, f"{text},layer=twice")


def test_a_submodule_is_looked_at_again_where_the_code_changed(
    store: Store, code: Callable
):
    text = f"python:own_nets:make:{SMALL},layer=c"
    code("")
    assert resolved(store, text).pooling == "mean"
    code(
        """
        class Flat(Net):
            def __init__(self):
                super().__init__()
                self.c = nn.Sequential(nn.Flatten(), nn.LazyLinear(8))
                self.c(torch.zeros(1, 3, 32, 32))
            def forward(self, images):
                return self.c(images)

        def make(): return Flat(), dict(resize=32, crop=32)
        """
    )
    assert resolved(store, text).pooling == "none"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("python:own_nets", "write python:package.module:factory"),
        ("python:no_such_module:make", "cannot import no_such_module"),
        (
            "python:own_nets:nosuch",
            "no function 'nosuch'.* It has: fails, make, number",
        ),
        ("python:own_nets:fails", "failed: ValueError: not today"),
        ("python:own_nets:number", "returned int, not a torch.nn.Module"),
        ("python:own_nets:make:weights=random:0", "brings its own weights"),
        ("python:own_nets:make:crop=8,resize=8,mean=0.5", "mean must have 3 values"),
    ],
)
def test_a_wrong_factory_is_one_clear_error(
    store: Store, code: Callable, text: str, told: str
):
    code("def fails(): raise ValueError('not today')\ndef number(): return 3")
    with pytest.raises(InvalidSpec, match=told) as fault:
        resolved(store, text)
    assert fault.value.exit_code == 2


def test_a_module_that_fails_for_its_input_is_told(store: Store, code: Callable):
    code(
        """
        class Bad(Net):
            def forward(self, images):
                return [images]

        def bad():
            return Bad()
        """
    )
    with pytest.raises(InvalidSpec, match="fails for one image of 3 x 224 x 224"):
        resolved(store, "python:own_nets:bad")


# Through the pipeline


@pytest.mark.exhaustive  # twins: test_controls.py
@pytest.mark.parametrize("kind", ["python", *more("onnx", "export")])
def test_a_run_says_that_there_is_no_twin_and_its_model_predicts_again(
    store: Store, files: Path, folder: Path, code: Callable, kind: str
):
    code("def small(): return make(), dict(resize=32, crop=32)")
    places = {"python": "own_nets:small"}
    if kind in ENDINGS:
        places[kind] = f"net.{ENDINGS[kind]}"
        shutil.copyfile(files / places[kind], places[kind])
    text = f"{kind}:{places[kind]}"
    spec = RunSpec(
        dataset=str(folder),
        backbones=(EncoderSpec.parse(text),),
        heads=(HeadSpec.parse("logistic:C=0.1"),),
    )
    work = wiring.prepare(spec, store, download=True)
    planned = wiring.plan(work)
    (said,) = [step for step in planned if step.skipped]
    assert said.subject == f"untrained twin of {text}"
    assert "does not tell" in said.reason
    record = wiring.run(work)
    assert said in record.steps
    assert record.gain is None
    assert [r.role for r in record.results] == ["best", "control"]
    again = wiring.plan(wiring.prepare(spec, store, download=True))
    assert all(step.cached for step in again)

    model = index.load_model(store, folder.name)
    image = folder / "flower" / "000.jpg"
    (here,) = predict(model, [image])
    tl = [
        sys.executable,
        "-m",
        "tl_pipeline.cli",
        "predict",
        folder.name,
        str(image),
    ]
    fresh = subprocess.check_output(
        [*tl, "--store", str(store.root), "--json"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
    )
    (there,) = json.loads(fresh)
    assert (there["label"], here.label) == ("flower", "flower")
    assert there["confidence"] == pytest.approx(here.confidence, abs=1e-6)

    Path("own_nets.py" if kind == "python" else places[kind]).unlink()
    sys.modules.pop("own_nets", None)
    model = index.load_model(store, folder.name)
    if kind == "python":
        with pytest.raises(InvalidSpec, match="cannot import"):
            predict(model, [image])
    else:  # the store keeps the file
        (kept,) = predict(model, [image])
        assert kept.confidence == here.confidence


@pytest.mark.parametrize(
    ("text", "name", "params"),
    [
        ("timm:resnet18", "timm:resnet18", {}),
        (
            "timm:vit_small_patch14_dinov2.lvd142m:pool=cls,weights=random:0",
            "timm:vit_small_patch14_dinov2.lvd142m",
            {"weights": "random:0", "pool": "cls"},
        ),
        ("python:my_pkg.nets:make", "python:my_pkg.nets:make", {}),
        (
            "python:my_pkg.nets:make:resize=256",
            "python:my_pkg.nets:make",
            {"resize": 256},
        ),
        ("onnx:/a b/n,x.onnx:layer=out", "onnx:/a b/n,x.onnx", {"layer": "out"}),
        ("export:C.pt2:layer=a:b", "export:C.pt2", {"layer": "a:b"}),
    ],
)
def test_names_with_colons_are_read_and_written(text: str, name: str, params: dict):
    spec = EncoderSpec.parse(text)
    assert spec == EncoderSpec(backbone=name, **params)
    assert spec.short() == text
    assert EncoderSpec.parse(spec.short()) == spec


@pytest.mark.parametrize(
    "text", ["onnx:n.onnx:depth=1", "timm:x:layer=a,layer=b", "timm:"]
)
def test_wrong_names_with_colons_are_refused(text: str):
    with pytest.raises(InvalidSpec):
        EncoderSpec.parse(text)


def test_the_flow_admits_what_has_a_prefix():
    import re

    from tl_pipeline.encoders.backbones import PATTERN

    for good in (
        "timm:resnet18",
        "python:a.b:c:crop=3",
        "onnx:/x/y.onnx",
        "vgg16:layer=fc7",
    ):
        assert re.search(PATTERN, good)
    for bad in ("timm:", "tim:resnet18", "vgg17", "vgg16:fc7", "onnx"):
        assert not re.search(PATTERN, bad)


@pytest.mark.exhaustive  # pages: test_snapshots.py
def test_what_has_a_prefix_is_mentioned_and_shown(
    files: Path, capsys: pytest.CaptureFixture[str]
):
    from tl_pipeline.cli import backbone_commands

    backbone_commands.backbones(search="lenet")
    assert "timm:NAME, python:MODULE:FACTORY, onnx:FILE" in capsys.readouterr().out
    backbone_commands.show(f"onnx:{files / 'net.onnx'}")
    assert "8 x 15 x 15" in capsys.readouterr().out
    backbone_commands.show(f"export:{files / 'net.pt2'}", json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["preprocess"]["crop"] == SIDE
    assert [node["name"] for node in shown["graph"]] == ["vector", "map"]
