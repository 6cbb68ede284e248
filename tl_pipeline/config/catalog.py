"""``data_catalog.yaml`` to ``DatasetSpec``; every fault reported together, by line."""

import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tl_pipeline.config.datasets import DatasetSpec, ImageFolderSpec
from tl_pipeline.config.encoder_specs import BACKBONE_TAGS
from tl_pipeline.config.specs import RunSpec
from tl_pipeline.errors import CatalogError, InvalidSpec, UnknownName

_ENTRY: TypeAdapter[DatasetSpec] = TypeAdapter(DatasetSpec)
DEFAULT = Path("data_catalog.yaml")


def load(path: Path) -> dict[str, DatasetSpec]:
    """Read every entry of the catalogue, in the order of the file.

    A relative ``path`` of an entry starts from the folder of the catalogue.

    Raises:
        CatalogError: one line ``file:line: fault`` for each fault in the whole file.
    """
    document = _parse(path)
    faults = [
        f"{path}:{_line(document, [key])}: unknown field {key!r} at the top; "
        "known: version, datasets"
        for key in document
        if key not in ("version", "datasets")
    ]
    if document.get("version") != 1:
        faults.append(f"{path}:{_line(document, ['version'])}: version must be 1")
    entries = document.get("datasets")
    if not isinstance(entries, CommentedMap):
        line = _line(document, ["datasets"])
        faults.append(f"{path}:{line}: datasets must map names to entries")
        entries = CommentedMap()
    specs: dict[str, DatasetSpec] = {}
    for name, entry in entries.items():
        try:
            specs[str(name)] = _entry(str(name), entry).rooted(path.parent)
        except ValidationError as errors:
            faults += _explain(errors, path, document, ["datasets", name])
        except InvalidSpec as fault:
            faults.append(f"{path}:{_line(document, ['datasets', name])}: {fault}")
    if faults:
        raise CatalogError("\n".join(faults))
    return specs


def find(name: str, path: Path | None = None) -> DatasetSpec:
    """The dataset entry ``name``; failing that, the folder of images ``name``.

    ``path`` is the catalogue, ``./data_catalog.yaml`` when None; that default may be
    absent where a folder is named.

    Raises:
        CatalogError: the catalogue has faults or is missing.
        UnknownName: neither an entry nor a folder.
    """
    folder = Path(name)
    file = path or DEFAULT
    known = load(file) if path or file.exists() or not folder.is_dir() else {}
    if name in known:
        return known[name]
    if folder.is_dir():
        slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name).strip("-._")
        return ImageFolderSpec(name=slug or "images", path=folder)
    raise UnknownName("dataset", name, known)


def schema() -> dict[str, Any]:
    """The JSON schema of a catalogue, which editors complete and check by."""
    entry = _ENTRY.json_schema()
    definitions = entry.pop("$defs")
    for definition in definitions.values():
        if "name" in definition.get("required", []):  # the key of the entry says it
            definition["required"].remove("name")
            definition["properties"].pop("name")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "data_catalog.yaml of tl-pipeline",
        "type": "object",
        "additionalProperties": False,
        "required": ["version", "datasets"],
        "properties": {
            "version": {"const": 1},
            "datasets": {"type": "object", "additionalProperties": entry},
        },
        "$defs": definitions,
    }


def load_run(path: Path, **overrides: Any) -> RunSpec:
    """Read a run's YAML file; ``overrides`` that are not None replace its fields.

    Raises:
        CatalogError: one line ``file:line: fault`` for each fault.
    """
    document = _parse(path)
    fields = {key: value for key, value in overrides.items() if value is not None}
    try:
        return RunSpec.model_validate({**document, **fields})
    except ValidationError as errors:
        raise CatalogError("\n".join(_explain(errors, path, document, []))) from None


def _parse(path: Path) -> CommentedMap:
    try:
        document = YAML(typ="rt").load(path)
    except FileNotFoundError:
        raise CatalogError(
            f"{path}: no such file. Write one (see README, 'Your own images') or name "
            "another with --catalog FILE"
        ) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        reason = " ".join(str(error.problem or error.context).split())
        raise CatalogError(f"{path}:{line}: {reason}") from None
    except YAMLError as error:  # bytes that are no text
        reason = str(error).partition("\n")[0]
        raise CatalogError(f"{path}:1: {reason}") from None
    if not isinstance(document, CommentedMap):
        raise CatalogError(f"{path}:1: expected a mapping of fields")
    return document


def _entry(name: str, entry: Any) -> DatasetSpec:
    if not isinstance(entry, CommentedMap):
        raise InvalidSpec(f"dataset {name!r} must be a mapping of fields")
    if "name" in entry:
        raise InvalidSpec(f"dataset {name!r}: its key is its name; remove 'name'")
    return _ENTRY.validate_python({**entry, "name": name})


def _explain(
    errors: ValidationError, path: Path, document: CommentedMap, prefix: list[Any]
) -> list[str]:
    """One line a fault; pydantic's place in the model becomes a line of the file."""
    lines = []
    for error in errors.errors():
        # The tag of a discriminated union is part of pydantic's place, not of the file.
        tags = {*_tags(), *BACKBONE_TAGS}
        where = [part for part in error["loc"] if part not in tags]
        dotted = ".".join(str(part) for part in [*prefix, *where])
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            message = "unknown field"
        if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
            message = f"type must be one of: {', '.join(sorted(_tags()))}"
            where = [*where, "type"]
        line = _line(document, [*prefix, *where])
        lines.append(f"{path}:{line}: {dotted}: {message}")
    return lines


def _tags() -> set[str]:
    return set(_ENTRY.json_schema()["discriminator"]["mapping"])


def _line(document: CommentedMap, keys: list[Any]) -> int:
    """The line, from 1, of the deepest key of ``keys`` that is in the file."""
    node, line = document, document.lc.line
    for key in keys:
        if not isinstance(node, CommentedMap) or key not in node:
            break
        line = node.lc.key(key)[0]
        node = node[key]
    return line + 1
