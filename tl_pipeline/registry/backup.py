"""A copy of what the registry says, one small file for each registered model.

``registry/<name>.backup.json`` is written after every change, and read only to make a
lost database again. MLflow's database is what counts.
"""

from pathlib import Path

from pydantic import ValidationError

from tl_pipeline.errors import StoreError
from tl_pipeline.registry.connection import FOLDER
from tl_pipeline.registry.entries import RegisteredModel
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.files import write_atomically

_ENDING = ".backup.json"


def read(store: Store) -> list[RegisteredModel]:
    """Every registered model as it was when it last changed, by name.

    Raises:
        StoreError: a file cannot be read.
    """
    folder = store.root / FOLDER
    for name in store.mirror.listing(folder):
        if name.endswith(_ENDING):
            store.mirror.fetch_again(folder / name)
    return [_parsed(file) for file in sorted(folder.glob(f"[!.]*{_ENDING}"))]


def write(store: Store, model: RegisteredModel) -> None:
    """Keep ``model``, unless that is what is kept."""
    file = store.root / FOLDER / f"{model.name}{_ENDING}"
    text = model.model_dump_json(indent=1)
    if file.exists() and file.read_text(errors="replace") == text:
        return
    file.parent.mkdir(exist_ok=True)
    with store.mirror.sending(file):
        write_atomically(file, text)


def _parsed(file: Path) -> RegisteredModel:
    try:
        return RegisteredModel.model_validate_json(file.read_bytes())
    except ValidationError:
        raise StoreError(
            f"{file} is damaged; without it `tl models rebuild` numbers the versions "
            "of this model by the age of their folders. Delete it for that"
        ) from None
