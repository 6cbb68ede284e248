"""Opening a dataset of the library ``datasets`` without calling anybody unasked."""

import contextlib
import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tl_pipeline import progress
from tl_pipeline.config.datasets import HuggingFaceSpec
from tl_pipeline.errors import DatasetError
from tl_pipeline.storage import downloads

_settings = threading.Lock()  # the library's are those of the whole process
ALL = "all"  # the name given to the rows of a dataset without splits


def load(spec: HuggingFaceSpec) -> tuple[dict[str, Any], list[Path]]:
    """The splits by their names, and the folders that paths of images may lead into.

    Files are mapped to memory, not read. The network is used only with ``download``,
    and then only if the cache does not hold the dataset. No telemetry and no counting
    of downloads in either case; and since its version 4 the library runs no code of a
    dataset.

    Raises:
        DatasetError: it is not there, or not what the library writes.
    """
    try:
        with _settled(offline=True):
            return _opened(spec)
    except Exception as error:  # noqa: BLE001 - the library's and Arrow's are many
        if not spec.download:
            raise _explained(spec, error) from None
    address = importlib.import_module("huggingface_hub.constants").ENDPOINT
    progress.notice(f"downloading {spec.dataset} from {address}")
    with downloads.watched():
        try:
            with _settled(offline=False):
                return _opened(spec)
        except Exception as error:  # noqa: BLE001
            raise _explained(spec, error) from None


def _opened(spec: HuggingFaceSpec) -> tuple[dict[str, Any], list[Path]]:
    library = importlib.import_module("datasets")
    if spec.path:
        root = spec.path.expanduser().resolve()
        found, roots = library.load_from_disk(str(root), keep_in_memory=False), [root]
    else:
        name = str(spec.dataset)
        if Path(name).exists():
            raise ValueError(
                "a folder here has this name, and the library would read it instead; "
                "start elsewhere, or give it as 'path'"
            )
        hub = importlib.import_module("huggingface_hub.constants")
        found = library.load_dataset(name, spec.config, revision=spec.revision)
        roots = [Path(library.config.HF_DATASETS_CACHE), Path(hub.HF_HUB_CACHE)]
    parts = dict(found) if isinstance(found, dict) else {ALL: found}
    for part in parts.values():
        # Without a network the library takes what it has, whatever was asked for.
        files = [Path(file["filename"]) for file in part.cache_files]
        if spec.revision and not all(spec.revision in file.parts for file in files):
            raise ValueError(f"the cache holds another revision than {spec.revision}")
    return parts, [root.resolve() for root in roots]


@contextlib.contextmanager
def _settled(*, offline: bool) -> Iterator[None]:
    """Set what HF_HUB_OFFLINE and its like would, which are read at import only."""
    library = importlib.import_module("datasets")
    hub = importlib.import_module("huggingface_hub.constants")
    wanted = [
        (hub, "HF_HUB_OFFLINE", offline or hub.HF_HUB_OFFLINE),
        (hub, "HF_HUB_DISABLE_TELEMETRY", True),
        (library.config, "HF_HUB_OFFLINE", offline or library.config.HF_HUB_OFFLINE),
        (library.config, "HF_UPDATE_DOWNLOAD_COUNTS", False),
    ]
    with _settings:
        before = [(module, name, getattr(module, name)) for module, name, _ in wanted]
        loudness = library.logging.get_verbosity()
        library.logging.set_verbosity_error()
        try:
            for module, name, value in wanted:
                setattr(module, name, value)
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)
            library.logging.set_verbosity(loudness)


def _explained(spec: HuggingFaceSpec, error: Exception) -> DatasetError:
    said = f"{spec.path or spec.dataset}: {type(error).__name__}: {error}"
    if spec.path:
        return DatasetError(
            f"{said}; 'path' must be a folder written by save_to_disk (Parquet files "
            "are read by 'type: table', folders of images by 'type: image_folder')"
        )
    if spec.download:
        return DatasetError(f"{said}; the download failed: try again")
    return DatasetError(
        f"{said}; set 'download: true', or save it elsewhere with save_to_disk and "
        "give that folder as 'path'"
    )
