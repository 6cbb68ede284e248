"""Refuses exported networks whose loading would run code of the file. Imports torch.

What ``torch.export.load`` of torch 2.15 does with a file, read in its source:

- records marked ``use_pickle``, sample inputs and legacy weights go through
  ``torch.load(weights_only=False)``, opaque constants through ``pickle.loads``: here
  each must load with ``weights_only=True``, and objects are refused;
- sizes (``expr_str``) go to ``sympy.sympify``, which evaluates Python: here they are
  symbols, whole numbers and arithmetic by name;
- targets are looked up by ``getattr`` from ``torch``, ``operator`` and ``math``: here
  they are operators of ``torch.ops.aten`` that touch no file, and sums of sizes;
- names are written into generated Python: here they are names, with dots.

Everything is read by torch's own reader of archives, so that both see the same records.
"""

import ast
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.export.pt2_archive import PT2ArchiveReader

from tl_pipeline.errors import WeightsError

_WEIGHTS, _CONSTANTS, _MODELS = "data/weights/", "data/constants/", "models/"
_TENSORS = ("weight_", "tensor_")
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!(from_file|save|load)\b)\w+\.\w+"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|wrap_with_\w+)"
    r"|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|getitem)"
    r"|_operator\.(eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_NAME = re.compile(r"[\w.+\-]*")
# Texts that torch keeps for people, or reads as JSON of its own with a list of types.
_FREE = {"stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack"}
_SPECS = {"in_spec", "out_spec"}
_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
_SYMBOLIC = re.compile(
    "Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv"
    "|ModularIndexing|Max|Min|CeilToInt|FloorToInt|TruncToInt|RoundToInt|ToFloat"
    "|IntTrueDiv|FloatTrueDiv|FloatPow|PowByNatural|LShift|RShift|Where|Eq|Ne|Le|Lt|Ge"
    "|Gt|Equality|Unequality|LessThan|StrictLessThan|GreaterThan|StrictGreaterThan|And"
    "|Or|Not|True|False"
)
_SYMBOLIC_SYNTAX = (
    ast.Expression,
    ast.Call,
    ast.keyword,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.UnaryOp,
    ast.USub,
)


def check(data: bytes, origin: str) -> None:
    """Nothing, if loading ``data`` runs no code that the file brings.

    Raises:
        WeightsError: it would, or this is no exported network; ``origin`` names it.
    """
    try:
        reader = PT2ArchiveReader(io.BytesIO(data))
        records = reader.get_file_names()
        models = [name for name in records if name.startswith(_MODELS)]
    except Exception as fault:  # noqa: BLE001 - of many kinds for damaged files
        reason = str(fault).strip().partition("\n")[0]
        raise WeightsError(
            f"{origin}: cannot be read as an exported network ({reason}). Expected "
            "what torch.export.save(program, FILE) writes"
        ) from None
    if models != [f"{_MODELS}model.json"]:
        raise WeightsError(f"{origin}: holds {len(models)} programs, not one")
    for fault in _faults(reader, records):
        raise WeightsError(
            f"{origin}: refused, because loading it could run code that it brings: "
            f"{fault}. Export the network again with torch.export.save"
        )


def _faults(reader: Any, records: list[str]) -> Iterator[str]:
    for name in records:
        if name.endswith(".pt"):
            yield from _pickled(reader, name)
        if name.startswith((_WEIGHTS, _CONSTANTS)) and name.endswith("_config.json"):
            yield from _payloads(reader, name)
    program = json.loads(reader.read_bytes(f"{_MODELS}model.json"))
    yield from _words(program, "")


def _payloads(reader: Any, name: str) -> Iterator[str]:
    folder = name.rpartition("/")[0]
    for about in json.loads(reader.read_bytes(name))["config"].values():
        path = about["path_name"]
        if not path.startswith(_TENSORS):
            yield f"{path} is an object, not a tensor"
        elif about["use_pickle"]:
            yield from _pickled(reader, f"{folder}/{path}")


def _pickled(reader: Any, name: str) -> Iterator[str]:
    data = reader.read_bytes(name)
    try:
        if data:
            torch.load(io.BytesIO(data), weights_only=True)
    except Exception as fault:  # noqa: BLE001 - of many kinds
        yield f"{name} is a pickle of more than tensors ({type(fault).__name__})"


def _words(value: Any, key: str) -> Iterator[str]:
    """What is wrong with any text under ``value``, which stands under ``key``."""
    if isinstance(value, dict):
        for name, part in value.items():
            if not _NAME.fullmatch(name):
                yield f"the name {name!r}"
            yield from _words(part, name)
    elif isinstance(value, list) and key != "guards_code":  # never generated here
        for part in value:
            yield from _words(part, key)
    elif isinstance(value, str) and key not in _FREE and not _sound(value, key):
        yield f"the {key} {value[:80]!r}"


def _sound(text: str, key: str) -> bool:
    if key == "target":
        return _TARGET.fullmatch(text) is not None
    if key == "expr_str":
        return _symbolic(text)
    if key in _SPECS:
        return _plain_types(json.loads(text))
    return _NAME.fullmatch(text) is not None


def _symbolic(text: str) -> bool:
    """Whether ``text`` is a size: symbols, numbers, and functions of those by name."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return (
        all(isinstance(node, _SYMBOLIC_SYNTAX) for node in ast.walk(tree))
        and all(map(_SYMBOLIC.fullmatch, names))
        and all(name.isidentifier() for name in texts)
    )


def _plain_types(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("type") in _TYPES and all(map(_plain_types, value.values()))
    return not isinstance(value, list) or all(map(_plain_types, value))
