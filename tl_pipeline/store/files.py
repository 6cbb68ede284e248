"""Single files of a store: replaced whole, hashed."""

import hashlib
import uuid
from pathlib import Path


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader sees the old or the new, whole."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    beside.write_bytes(data.encode() if isinstance(data, str) else data)
    beside.replace(path)


def file_sha256(file: Path) -> str:
    """The hash of the bytes of ``file``, in hex."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
