"""Weights of the encoders that runs used: ``weights/<sha256>``, each once.

Models name their weights by this hash, so they are complete wherever the file that a
user named has gone. Files are copied: a link would share its bytes with a file that the
user may overwrite. Weights of several files are a folder.
"""

import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tl_pipeline.errors import WeightsError
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.files import file_sha256, make_folder, publish

FOLDER = "weights"


def keep(
    store: Store, sha256: str, place: Path, files: Sequence[Path] | None = None
) -> None:
    """Copy the weights at ``place`` into the store unless they are there.

    They are the file ``place``, or those ``files`` in the folder ``place``.

    Raises:
        WeightsError: the file is not, or no longer, of that hash.
    """
    if find(store, sha256):
        return
    kept = store.root / FOLDER / sha256
    building = store.root / ".building" / uuid.uuid4().hex
    names = [file.relative_to(place) for file in files or [place]]
    try:
        for name in names:
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place / name, building / name)
        if files is None and file_sha256(building) != sha256:
            raise WeightsError(f"{place} changed while it was read; run again")
        make_folder(kept.parent)
        with store.lock("publish"), store.mirror.sending(*(kept / n for n in names)):
            if not kept.exists():
                publish(building, kept)
    finally:
        if building.is_dir():
            shutil.rmtree(building)
        building.unlink(missing_ok=True)


def find(store: Store, sha256: str) -> Path | None:
    """Where the weights of that hash are on this machine; None if not in ``store``."""
    kept = store.root / FOLDER / sha256
    if not kept.exists() and store.mirror.url:
        store.mirror.fetch_folder(kept)
        with suppress(FileNotFoundError):
            store.mirror.fetch([kept])
    return kept if kept.exists() else None
