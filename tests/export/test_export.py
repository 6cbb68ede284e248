"""An exported folder says what the model says, and none is left that does not."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.command_line import Tl, in_this_process
from tests.conftest import REPOSITORY
from tl_pipeline.export import checking, exporting, graphs
from tl_pipeline.export.checking import Agreement
from tl_pipeline.registry import index
from tl_pipeline.score import Score
from tl_pipeline.store.artifacts import Store

FAST = pytest.mark.usefixtures("_fast")
# What another machine does: no part of this package is to be found.
ALONE = """
import runpy, sys
script, *files = sys.argv[1:]
sys.argv = [script, *files]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    assert not [name for name in sys.modules if name.startswith("tl_pipeline")]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a model of digits, and that as ONNX."""
    place = tmp_path_factory.mktemp("export")
    shutil.copyfile(REPOSITORY / "data_catalog.yaml", place / "data_catalog.yaml")
    with pytest.MonkeyPatch.context() as monkeypatch:
        tl = in_this_process(place, monkeypatch)
        more = ("--no-controls", "--runner", "direct", "--head", "logistic:C=0.1")
        for words in (
            ("run", "digits", *more),
            ("export", "digits", "--output", "onnx"),
        ):
            done = tl(*words)
            assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def tl(made: Path, monkeypatch: pytest.MonkeyPatch) -> Tl:
    return in_this_process(made, monkeypatch)


@pytest.fixture
def _fast(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network as ONNX is the one that is there already."""
    known = made / "onnx" / "model.onnx"
    monkeypatch.setattr(graphs, "write", lambda *a: shutil.copyfile(known, a[3]))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """100 files of odd sizes and of every kind that is common."""
    folder = tmp_path_factory.mktemp("photos")
    chance = np.random.default_rng(0)
    files = []
    for number in range(100):
        size = chance.integers(3, 300, 2)
        coarse = chance.integers(0, 256, (6, 5, 4), dtype=np.uint8)
        image = Image.fromarray(coarse, "RGBA").resize((int(size[0]), int(size[1])))
        kind = ("jpg", "palette", "grey", "rgba", "cmyk", "grey-jpg")[number % 6]
        file = folder / f"{number}.{'jpg' if kind in JPEGS else 'png'}"
        exif = Image.Exif()
        exif[0x0112] = 1 + number // 6 % 8
        options = {"exif": exif, "quality": 90} if kind in JPEGS else {"exif": exif}
        if kind == "palette":
            image = image.convert("RGB").quantize(16)
            options["transparency"] = 3
        image = image.convert(MODES[kind]) if kind in MODES else image
        image.save(file, **options)
        files.append(file)
    return files


JPEGS = ("jpg", "cmyk", "grey-jpg")
MODES = {"jpg": "RGB", "grey": "L", "cmyk": "CMYK", "grey-jpg": "L"}


def predicted(folder: Path, files: list[Path]) -> list[tuple[str, float]]:
    """Label and probability by the script of ``folder``, on its own."""
    words = [sys.executable, "-I", "-B", "-c", ALONE, folder / "predict.py", *files]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TL_"))}
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=kept, cwd="/"
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(file) for file in files]
    return [(label, float(probability)) for _, label, probability in rows]


def card(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "card.json").read_text())


def test_alone_it_says_of_100_files_what_tl_predict_says(
    made: Path, photos: list[Path], tl: Tl
):
    check_alone(made / "onnx", photos, tl)


@pytest.mark.exhaustive
def test_for_torch_it_says_the_same(made: Path, photos: list[Path], tl: Tl):
    done = tl("export", "digits", "--format", "torch-export", "--output", "torch")
    assert done.returncode == 0, done.stderr
    check_alone(made / "torch", photos, tl)
    check_card(made / "torch", "model.pt2")


def check_alone(folder: Path, photos: list[Path], tl: Tl) -> None:
    done = tl("predict", "digits", *photos, "--json")
    assert done.returncode == 0, done.stderr
    wanted = json.loads(done.stdout)
    found = predicted(folder, photos)
    differences = [
        abs(probability - row["confidence"])
        for (_, probability), row in zip(found, wanted, strict=True)
    ]
    assert max(differences) < 1e-3
    assert [label for label, _ in found] == [row["label"] for row in wanted]
    assert len({label for label, _ in found}) > 3  # it is not one label for all


def check_card(folder: Path, file: str) -> None:
    names = {path.name for path in folder.iterdir()}
    texts = {"labels.json", "preprocessing.json", "predict.py", "card.json"}
    assert names == texts | {file}
    labels = json.loads((folder / "labels.json").read_text())
    assert labels == list("0123456789")
    told = card(folder)
    assert told["model"] == "digits version 1"
    assert told["fp32"]["of_pixels"] < 1e-5
    assert told["fp32"]["of_files"] < 1e-5
    assert told["fp32"]["images"] == 359
    assert told["fp32"]["accuracy"] == told["tl_predict"]["accuracy"]
    assert told["megabytes"] == pytest.approx((folder / file).stat().st_size / 1e6)


def test_a_folder_tells_all_that_its_use_takes(made: Path):
    check_card(made / "onnx", "model.onnx")
    graph = onnx.load(made / "onnx" / "model.onnx").graph
    shapes = [
        [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim]
        for one in (*graph.input, *graph.output)
    ]
    assert shapes == [["images", 1, 32, 32], ["images", 10]]


@FAST
def test_int8_quantises_the_network_alone_and_tells_what_it_costs(made: Path, tl: Tl):
    done = tl("export", "digits", "--precision", "int8", "--output", "int8")
    assert done.returncode == 0, done.stderr
    told = card(made / "int8")
    exact, fewer = told["fp32"]["accuracy"], told["int8"]["accuracy"]
    loss = told["int8"]["loss"]
    assert loss["value"] == pytest.approx(exact["value"] - fewer["value"])
    assert loss["low"] <= loss["value"] <= loss["high"]
    assert abs(loss["value"]) <= 0.02
    assert told["int8"]["of_pixels"] > 1e-4
    nodes = onnx.load(made / "int8" / "model.onnx").graph.node
    made_by = {name: node for node in nodes for name in node.output}
    products = {"Conv": 0, "Gemm": 0, "MatMul": 0}
    for node in nodes:
        if node.op_type in products:
            before = made_by.get(node.input[0])
            quantised = before is not None and before.op_type == "DequantizeLinear"
            assert quantised == (node.op_type == "Conv")
            products[node.op_type] += 1
    assert products["Conv"] == 3
    assert products["Gemm"] + products["MatMul"] == 1
    assert told["megabytes"] < 0.8 * card(made / "onnx")["megabytes"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_fp16_stays_near(kind: str, made: Path, tl: Tl):
    words = ("--format", kind, "--precision", "fp16", "--output", f"half-{kind}")
    done = tl("export", "digits", *words)
    assert done.returncode == 0, done.stderr
    told = card(made / f"half-{kind}")
    assert 1e-6 < told["fp16"]["of_files"] < 0.02
    assert told["megabytes"] < 0.9 * told["tl_predict"]["megabytes"]


# what is wrong is refused


@pytest.mark.parametrize(
    "wrong",
    [{"interpolation": "nearest"}, {"resize": 40}, {"interpolation": "bicubic"}],
)
@FAST
def test_other_pixels_than_the_models_are_refused(
    wrong: dict[str, Any],
    tl: Tl,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    right = exporting.preprocessing
    monkeypatch.setattr(exporting, "preprocessing", lambda how: right(how) | wrong)
    before = sorted(made.iterdir())
    done = tl("export", "digits", "--output", "wrong")
    assert done.returncode == 2
    assert done.stderr.startswith("InvalidSpec: nothing is exported: from the bytes")
    assert "the files become other pixels" in done.stderr
    assert sorted(made.iterdir()) == before


@FAST
def test_another_network_is_refused(
    tl: Tl, made: Path, monkeypatch: pytest.MonkeyPatch
):
    other = made / "other.onnx"
    graph = onnx.load(made / "onnx" / "model.onnx")
    weights = next(t for t in graph.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(weights) * np.float32(1.01)
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(graph, other)
    monkeypatch.setattr(graphs, "write", lambda *a: shutil.copyfile(other, a[3]))
    done = tl("export", "digits", "--output", "wrong")
    assert done.returncode == 2
    assert "from the same pixels, probabilities of the exported network" in done.stderr
    assert not (made / "wrong").exists()


@FAST
def test_a_loss_beyond_the_limit_is_refused(
    tl: Tl, made: Path, monkeypatch: pytest.MonkeyPatch
):
    compare, lost = checking.compare, iter([0.0, 0.03])

    def worse(*given: Any) -> Agreement:
        found = vars(compare(*given))
        return Agreement(**found | {"loss": Score(value=next(lost))})

    monkeypatch.setattr(checking, "compare", worse)
    monkeypatch.setattr(graphs, "quantise", lambda *_: None)
    words = ("export", "digits", "--precision", "int8", "--output", "worse")
    done = tl(*words)
    assert done.returncode == 2
    assert "3.0 points less than float32, where 2 are allowed" in done.stderr
    assert not (made / "worse").exists()
    lost = iter([0.0, 0.03])
    assert tl(*words, "--max-loss", "0.03").returncode == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("--format", "torch-export", "--precision", "int8"),
            "goes with --format onnx",
        ),
        (("--output", "onnx"), "onnx is there already"),
        (("--alias", "7"), "unknown alias or version of model 'digits' '7'"),
        (("--catalog", "none.yaml"), "none.yaml: no such file"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_message(
    words: tuple[str, ...], told: str, tl: Tl
):
    done = tl("export", "digits", *words)
    assert done.returncode == 2
    assert told in done.stderr


def test_without_the_packages_it_says_which_to_install(
    tl: Tl, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = tl("export", "digits", "--output", "wrong")
    assert done.returncode == 2
    assert "pip install 'tl-pipeline[export]'" in done.stderr


def as_file(mode: str, kind: str) -> Callable[[], bytes]:
    def data() -> bytes:
        values = np.arange(64 * 48).reshape(48, 64)
        image = Image.fromarray(
            values.astype(np.uint16 if mode == "I;16" else np.uint8)
        )
        file = io.BytesIO()
        image.save(file, kind)
        return file.getvalue()

    return data


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (as_file("I;16", "png"), "16 bits, TIFF and JPEG 2000 are not read here"),
        (as_file("L", "tiff"), "16 bits, TIFF and JPEG 2000 are not read here"),
        (lambda: b"P5 2 1 256\n" + bytes(4), "16 bits, TIFF and JPEG 2000"),
        (lambda: b"no image", "cannot identify image file"),
        (lambda: as_file("L", "png")()[:-40], "truncated"),
    ],
)
def test_the_script_says_what_it_does_not_read(
    data: Callable[[], bytes], told: str, made: Path, tmp_path: Path
):
    good, bad = tmp_path / "good.pgm", tmp_path / "bad"
    good.write_bytes(b"P5 2 2 255\n" + bytes(4))
    bad.write_bytes(data())
    words = [sys.executable, "-I", "-B", made / "onnx" / "predict.py", bad, good]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith(f"{bad}: ")
    assert told in done.stderr
    assert done.stdout.startswith(f"{good}\t")


def test_images_are_those_of_the_split(made: Path):
    store = Store.open(made / "tl_store")
    model = index.load_model(store, "digits")
    catalog = made / "data_catalog.yaml"
    some = checking.images(store, model, "validation", 20, catalog)
    every = checking.images(store, model, "validation", 1000, catalog)
    assert (len(some.files), len(every.files)) == (20, 359)
    assert some.files == every.files[:20]
    said = checking.told(model, some)
    labels = np.array(model.classes)[said.probabilities.argmax(axis=1)]
    assert said.accuracy.value == (labels == some.labels).mean()
