"""Keys: digests of the documents that say what an artifact depends on."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

KeyDocument = Mapping[str, Any]
_FIELDS = ("stage", "version", "params", "inputs")
_KEY = re.compile(r"\b[0-9a-f]{32}(?:[0-9a-f]{32})?\b")


def digest(document: Any) -> str:
    """Sha256 of the canonical JSON of ``document``: its first 128 bits, in hex."""
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def keys_in(text: str) -> set[str]:
    """Everything in ``text`` that looks like a key, or like the sha256 of a file."""
    return set(_KEY.findall(text))


def key_document(
    stage: str, version: int, params: Mapping[str, Any], inputs: Mapping[str, str]
) -> KeyDocument:
    """Everything that the output of a stage depends on; its ``digest`` is the key.

    ``inputs`` holds fingerprints of artifacts, ``params`` plain values.
    """
    return {
        "stage": stage,
        "version": version,
        "params": dict(params),
        "inputs": dict(inputs),
    }


def document_of(provenance: Mapping[str, Any]) -> KeyDocument:
    """The key document of the artifact that ``provenance`` describes."""
    return {name: provenance.get(name) for name in _FIELDS}
