"""Pickles of arrays: what the notebooks keep is read, and nothing else is run."""

import contextlib
import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tl_pipeline.config.datasets import PickleSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.errors import DatasetError
from tl_pipeline.inputs.images import as_ppm
from tl_pipeline.sources.pickled import Pickled

PROTOCOLS = range(6)
Images = list[tuple[bytes, str]]


def source(train: Path, **fields: Any) -> Pickled:
    """The source of these files."""
    return Pickled(PickleSpec(name="x", type="pickle", train=train, **fields))


def written(file: Path, content: Any, protocol: int = 4) -> Path:
    """``content``, pickled by Python itself, or these very bytes."""
    raw = isinstance(content, bytes)
    file.write_bytes(content if raw else pickle.dumps(content, protocol))
    return file


def rows(n: int = 4, **changes: Any) -> dict[str, Any]:
    """A dictionary of n different grey images of 2x3 pixels, labelled 0, 1, ..."""
    features = np.arange(6 * n, dtype=np.uint8).reshape(n, 2, 3)
    return {"features": features, "labels": np.arange(n), **changes}


def reads(content: Any, folder: Path, protocol: int = 4) -> list[bytes]:
    """The images that a pickle of ``content`` gives."""
    found = source(written(folder / "train.p", content, protocol))
    return [found.read(entry.uri) for entry in found.entries()]


# What is read


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_images_come_back_with_their_ids_and_labels(
    two_hundred: Images, tmp_path: Path, protocol: int
):
    pixels = [np.frombuffer(ppm[-3072:], np.uint8) for ppm, _ in two_hundred]
    content = {
        "features": np.stack(pixels).reshape(-1, 32, 32, 3),
        "labels": np.array([label for _, label in two_hundred]),
        "sizes": np.zeros((200, 2), np.int64),
        "coords": np.zeros((200, 4), np.int64),
    }
    found = source(written(tmp_path / "train.p", content, protocol))
    entries = list(found.entries())
    assert [entry.label for entry in entries] == [label for _, label in two_hundred]
    assert [image_id(found.read(entry.uri)) for entry in entries] == [
        image_id(ppm) for ppm, _ in two_hundred
    ]


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "by-column": np.asfortranarray,
    "every-other": lambda a: np.repeat(a, 2, axis=0)[::2],
    "transposed": lambda a: np.ascontiguousarray(a.transpose(1, 0, 2)).transpose(
        1, 0, 2
    ),
    "big-endian": lambda a: a.astype(">i4"),
    "int64": lambda a: a.astype(np.int64),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_in_memory_gives_the_same_images(
    tmp_path: Path, layout: str, protocol: int
):
    plain = rows()["features"]
    content = rows(features=LAYOUTS[layout](plain))
    assert reads(content, tmp_path, protocol) == [as_ppm(image) for image in plain]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_and_numpy_scalars_beside_the_arrays_are_no_fault(
    tmp_path: Path, protocol: int
):
    beside = {
        "plain": [b"", b"\xff", "\xe9", (1, 2.5), None, True, {"a": []}, -(2**70)],
        "numpy": [np.float32(0.5), np.int64(3), np.bool_(True), np.str_("x")],
        "none": np.zeros((0, 2), np.uint8),
        7: "a class's name",
    }
    assert len(reads(rows(beside=beside), tmp_path, protocol)) == 4


def test_labels_are_text(tmp_path: Path):
    content = rows(labels=np.array([7, 0, 7, 42], np.uint8))
    found = source(written(tmp_path / "train.p", content))
    assert [entry.label for entry in found.entries()] == ["7", "0", "7", "42"]


def test_keys_may_have_other_names(tmp_path: Path):
    content = {"X": rows()["features"], "y": rows()["labels"]}
    found = source(written(tmp_path / "t.p", content), features="X", labels="y")
    assert len(list(found.entries())) == 4


def py2(value: Any) -> bytes:  # noqa: PLR0911
    """``value`` as cPickle of Python 2 with numpy 1 writes it in protocol 2.

    There bytes are ``str``, written as SHORT_BINSTRING or BINSTRING.
    """
    match value:
        case dict():
            items = b"".join(py2(k) + py2(v) for k, v in value.items())
            return b"}(" + items + b"u"
        case tuple():
            return b"(" + b"".join(map(py2, value)) + b"t"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case None:
            return b"N"
        case str():
            return py2(value.encode())
        case bytes():
            short = len(value) < 256
            size = struct.pack("<B" if short else "<i", len(value))
            return (b"U" if short else b"T") + size + value
        case np.dtype():
            order = "|" if value.itemsize == 1 else "<"
            state = (3, order, None, None, None, -1, -1, 0)
            code = f"{value.kind}{value.itemsize}"
            return b"cnumpy\ndtype\n" + py2((code, 0, 1)) + b"R" + py2(state) + b"b"
        case np.ndarray():
            made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
            made += py2((0,)) + py2("b") + b"tR"
            state = (1, value.shape, value.dtype, False, value.tobytes())
            return made + py2(state) + b"b"
    raise TypeError(value)


def test_a_file_of_python_2_is_read(tmp_path: Path):
    features = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    content = rows(features=features, labels=np.arange(4, dtype=np.int64))
    data = b"\x80\x02" + py2(content) + b"."
    expected = pickle.loads(data, encoding="latin1")
    assert np.array_equal(expected["features"], features)
    assert reads(data, tmp_path) == [as_ppm(image) for image in features]


# Splits, versions, copies


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], [None]),
        (["validation"], ["train", "validation"]),
        (["test"], ["train", "test"]),
        (["validation", "test"], ["train", "validation", "test"]),
    ],
    ids=str,
)
def test_splits_follow_the_files(
    tmp_path: Path, given: list[str], expected: list[str | None]
):
    files = {n: written(tmp_path / f"{n}.p", rows(1)) for n in ["train", *given]}
    found = list(source(files.pop("train"), **files).entries())
    assert [entry.split for entry in found] == expected
    assert [Path(entry.uri).name for entry in found] == [
        f"{name}.p#0" for name in ["train", *given]
    ]


def test_one_file_for_two_splits_is_an_error(tmp_path: Path):
    file = written(tmp_path / "train.p", rows())
    with pytest.raises(DatasetError, match="two splits"):
        list(source(file, test=tmp_path / "." / "train.p").entries())


def test_a_file_is_read_again_only_when_it_changes(tmp_path: Path):
    file = written(tmp_path / "train.p", rows(2))
    os.utime(file, ns=(1, 1))
    found = source(file)
    (first, _) = found.entries()
    size = file.stat().st_size
    assert (first.version, first.modified_ns) == (f"{size}:1", 1)
    file.write_bytes(bytes(size))
    os.utime(file, ns=(1, 1))
    assert len(list(found.entries())) == 2
    written(file, rows(3))
    assert len(list(found.entries())) == 3


def test_uris_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written(tmp_path / "a#1.p", rows(1))
    monkeypatch.chdir(tmp_path)
    found = source(Path("a#1.p"))
    (entry,) = found.entries()
    assert entry.uri == f"{tmp_path / 'a#1.p'}#0"
    assert found.read(entry.uri) == as_ppm(rows(1)["features"][0])


@pytest.mark.parametrize("end", ["#4", "#-1", "#", "", "#x", "#\u0663", ".q#0"])
def test_an_unknown_uri_is_an_os_error(tmp_path: Path, end: str):
    file = written(tmp_path / "train.p", rows())
    with pytest.raises(OSError, match=str(file)):
        source(file).read(f"{file}{end}")


def test_a_copy_for_another_process_leaves_the_arrays_behind(tmp_path: Path):
    found = source(written(tmp_path / "train.p", rows(1000)))
    entries = list(found.entries())
    data = pickle.dumps(found)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert list(copy.entries()) == entries
    assert copy.read(entries[-1].uri) == found.read(entries[-1].uri)


# What is refused


def refusal(content: Any, folder: Path) -> str:
    """What is said of a pickle that must not be read."""
    file = written(folder / "train.p", content)
    with pytest.raises(DatasetError) as error:
        list(source(file).entries())
    assert str(file) in str(error.value)
    return str(error.value)


FAULTS: dict[str, tuple[Any, str]] = {
    "list": ([1, 2], "found a list"),
    "keys": ({"images": 1, "y": 2}, r"the keys \['images', 'y'\]"),
    "empty": ({}, "expected arrays 'features' and 'labels'"),
    "labels-list": (rows(labels=[1, 2, 3, 4]), "expected arrays"),
    "lengths": (rows(labels=np.arange(3)), "4 images, but 3 labels"),
    "one-hot": (rows(labels=np.eye(4, dtype=int)), r"\(4, 4\); expected \(n,\)"),
    "float-labels": (rows(labels=np.zeros(4)), "labels' is float64"),
    "surrogates": (rows(labels=np.array(["\ud800"] * 4)), "no valid text"),
    "one-image": (rows(features=np.zeros((3,), np.uint8)), "expected"),
    "flat": (rows(features=np.zeros((4, 784), np.uint8)), "precomputed features"),
    "bottleneck": (rows(features=np.zeros((4, 7, 7, 512), "f4")), "precomputed"),
    "channels-first": (rows(features=np.zeros((4, 3, 8, 8), "u1")), r"\(n, h, w, 3\)"),
    "no-pixels": (rows(features=np.zeros((4, 0, 8), "u1")), "expected"),
    "unit-floats": (rows(features=np.ones((4, 2, 2, 3), "f4")), "0..255"),
    "negative": (rows(features=np.full((4, 2, 2), -1)), "0..255"),
    "16-bit": (rows(features=np.full((4, 2, 2), 256)), "0..255"),
    "objects": (rows(features=np.array([None] * 4)), "type 'O8'"),
    "object-labels": (rows(labels=np.array(["a"] * 4, object)), "type 'O8'"),
    "records": (rows(more=np.zeros(2, [("a", "O")])), "type 'V8'"),
    "times": (rows(more=np.zeros(2, "M8[s]")), "type 'M8'"),
    "subclass": (rows(more=np.ma.zeros(2)), "numpy.ma"),
    "text": (b"<html>404 Not Found</html>\n", "damaged or no pickle"),
    "nothing": (b"", "damaged or no pickle"),
}


@pytest.mark.parametrize(("content", "said"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named(tmp_path: Path, content: Any, said: str):
    with pytest.raises(DatasetError, match=said):
        raise DatasetError(refusal(content, tmp_path))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, protocol: int):
    data = pickle.dumps(rows(), protocol)
    for end in range(len(data)):
        assert refusal(data[:end], tmp_path)


def test_a_missing_file_or_a_folder_is_an_error(tmp_path: Path):
    for path in (tmp_path, tmp_path / "gone.p"):
        with pytest.raises(DatasetError, match="cannot be read"):
            list(source(path).entries())


def test_labels_beyond_unicode_are_refused(tmp_path: Path):
    labels = np.full(4, 0x7FFFFFFF, np.int32).view("U1")
    assert "no valid text" in refusal(rows(labels=labels), tmp_path)


def test_damage_at_random_gives_images_or_a_dataset_error(tmp_path: Path):
    chance = np.random.default_rng(0)
    intact = [pickle.dumps(rows(more=["x", 2.5, {"k": 1}]), p) for p in PROTOCOLS]
    for number in range(2000):
        data = bytearray(intact[number % 6])
        for _ in range(number % 5 + 1):
            data[chance.integers(len(data))] = chance.integers(256)
        with contextlib.suppress(DatasetError):
            assert len(reads(bytes(data), tmp_path)) <= 4


# What is hostile


class Call:
    """Pickles into a call of ``function`` with ``args``."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def hostile(touch: str) -> dict[str, Call]:
    """Pickles that would run a command or take all memory."""
    code = f"open({touch.partition(' ')[2]!r}, 'w')"
    inner = pickle.dumps(Call(os.system, touch))
    return {
        "os.system": Call(os.system, touch),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "Popen": Call(subprocess.Popen, touch.split()),
        "check_output": Call(subprocess.check_output, touch.split()),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "partial": Call(partial, os.system, touch),
        "numpy.load": Call(np.load, "file.npy", None, True),
        "fromfile": Call(np.fromfile, "/etc/passwd"),
        "loads": Call(pickle.loads, inner),
        "bytearray": Call(bytearray, 2**40),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", hostile(""))
def test_a_call_is_named_and_not_run(tmp_path: Path, case: str, protocol: int):
    marker = tmp_path / "marker"
    call = hostile(f"touch {marker}")[case]
    said = refusal(pickle.dumps(rows(more=call), protocol), tmp_path)
    first = call.call[0]
    renamed = {"builtins": "__builtin__", "subprocess": "commands", "_pickle": "pickle"}
    module = first.__module__
    if protocol < 3:  # such a file uses the names of Python 2
        module = renamed.get(module, module)
    assert f"would import '{module}.{first.__name__}'" in said
    assert "Nothing in it was run" in said
    assert not marker.exists()


SYSTEM = b"cposix\nsystem\n"
TEXT = b"X\x05\0\0\0touch"
NDARRAY, RECONSTRUCT = b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n"
DTYPE = b"cnumpy\ndtype\n"
NESTED = b")" + b"\x85" * 300_000
OPCODES = {
    "global": SYSTEM + TEXT + b"\x85R.",
    "inst": b"(" + TEXT + b"iposix\nsystem\n.",
    "obj": b"(" + SYSTEM + TEXT + b"o.",
    "newobj": SYSTEM + b")\x81.",
    "stack-global": b"\x8c\x05posix\x8c\x06system\x93" + TEXT + b"\x85R.",
    "dotted": b"\x8c\x05numpy\x8c\x0bos.path.sys\x93.",
    "dotted-module": b"cnumpy.dtype\n__class__\n.",
    "memoised": SYSTEM + b"q\x010h\x01" + TEXT + b"\x85R.",
    "codec": b"c_codecs\nencode\n" + NESTED + TEXT + b"\x86R.",
    "decoder": b"c_codecs\ndecode\n.",
    "ndarray-called": NDARRAY + b"(J\xff\xff\xff\x7ft\x85R.",
    "ndarray-new": NDARRAY + b"\x85\x81.",
    "build-class": DTYPE + b"}X\x01\0\0\0aK\x01sb.",
    "build-function": RECONSTRUCT + b"N}X\x0c\0\0\0__defaults__)s\x86b.",
    "build-array-as-object": RECONSTRUCT + b")R}X\x01\0\0\0aK\x01sb.",
    "dtype-of-objects": DTYPE + b"X\x01\0\0\0O\x85R.",
    "dtype-of-fields": DTYPE + b"(X\x01\0\0\0a" + TEXT + b"t\x85R.",
    "persistent": b"Pposix\n.",
    "extension": b"\x82\x01.",
    "bytes-of-a-size": b"cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "list-in-itself": b"]q\0h\0a.",
    "mark-alone": b"(.",
    "underflow": b"0.",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("opcodes", OPCODES.values(), ids=OPCODES)
def test_opcodes_written_by_hand_are_refused(tmp_path: Path, opcodes: bytes):
    assert refusal(opcodes, tmp_path)


def test_what_a_hostile_file_built_on_dies_with_it(tmp_path: Path):
    refusal(OPCODES["build-function"], tmp_path)
    refusal(OPCODES["build-class"], tmp_path)
    assert len(reads(rows(), tmp_path)) == 4
