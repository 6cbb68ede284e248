"""What several tests need: a store, small folders of real images, the shared data."""

import gc
import os
import shutil
import threading

# Tests run one on each core: more threads would wait for one another, spinning. It is
# read when a library is loaded, so it is said before the other imports.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from tl_pipeline import query
from tl_pipeline.inputs.images import as_ppm
from tl_pipeline.pipeline import batch, wiring
from tl_pipeline.registry import connection
from tl_pipeline.store.artifacts import Store

if TYPE_CHECKING:
    from tests.object_store import ObjectStore

REPOSITORY = Path(__file__).parents[1]

# Files of half a minute and more, the longest first: of two processes that take file
# after file none is left alone with one of these at the end.
LONG = (
    "test_documents.py",
    "test_deployment.py",
    "test_runners.py",
    "test_mirror.py",
    "test_encoders_own.py",
    "test_encoders_timm.py",
    "test_networks.py",
    "test_cli.py",
    "test_gc_at_url.py",
    "test_onednn_fusion.py",
    "test_store_commands.py",
    "test_every_head.py",
)

# No test may call home or look for a network.
os.environ["DO_NOT_TRACK"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# Prefect gives up a server of its own after 20 seconds, which a busy machine needs.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--update-snapshots``, as ``make snapshots`` gives it."""
    parser.addoption(
        "--update-snapshots",
        action="store_true",
        help="write what tl prints to tests/journeys/snapshots/",
    )


def pytest_xdist_auto_num_workers() -> int:
    """A process more than cores: one may wait for servers, files and clocks."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


def pytest_collection_finish() -> None:
    """What was imported stays, so it is not searched for garbage again and again.

    That is a million objects and half a second each time.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """What was imported goes in the usual order."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def ready_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow's empty database, which new stores of this process copy.

    MLflow makes one by some seventy migrations, in more time than a whole run takes
    here. Those of other processes, and one store of this, are made so. It also reads
    them each time it opens a database, to compare the last: here once.
    """
    ready, lock = tmp_path_factory.mktemp("mlflow") / "mlflow.db", threading.Lock()
    make = connection.make_empty

    def copy(file: Path) -> None:
        with lock:
            if not ready.exists():
                make(ready)
                from mlflow.store.db import utils

                latest = utils._get_latest_schema_revision()
                patch.setattr(utils, "_get_latest_schema_revision", lambda: latest)
        shutil.copyfile(ready, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "make_empty", copy)
        yield


@pytest.fixture(scope="session", autouse=True)
def catalogue_when_asked() -> Iterator[None]:
    """Runs of this process build no SQL catalogue: half of what a small one costs.

    Whoever asks in SQL builds it, since it is not of the records that there are. The
    runs of other processes, and those of tests that use ``catalogue``, build it.
    """
    idle = SimpleNamespace(build=lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "query", idle)
        patch.setattr(batch, "query", idle)
        yield


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run builds the SQL catalogue, as it does for users."""
    monkeypatch.setattr(wiring, "query", query)
    monkeypatch.setattr(batch, "query", query)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    made = Store.open(tmp_path / "store")
    made.create()
    return made


@pytest.fixture(scope="module")
def _serving() -> "Iterator[ObjectStore]":
    from tests.object_store import serving  # seconds

    with serving() as made:
        yield made


@pytest.fixture
def object_server(
    _serving: "ObjectStore", monkeypatch: pytest.MonkeyPatch
) -> "Iterator[ObjectStore]":
    """An S3 server, which this machine may use; one for each file of tests."""
    from tests.object_store import environment

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment(_serving).items():
        monkeypatch.setenv(name, value)
    yield _serving
    _serving.before = _serving.after = None
    _serving.conditions = True


@pytest.fixture
def url(object_server: "ObjectStore") -> str:
    """A place for a store, in a bucket of its own."""
    return object_server.bucket("bucket") + "/some/store"


@pytest.fixture
def at(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Store]:
    """``at("A")``: the store as machine A opens it now, with a mirror of its own."""

    def open_at(name: str) -> Store:
        monkeypatch.setenv("TL_CACHE", str(tmp_path / name))
        return Store.open(url)

    return open_at


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline on one core."""
    monkeypatch.setenv("TL_CORES", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and data beside the checkout, or a skip."""
    folder = Path(os.environ.get("TL_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "weights").is_dir():
        pytest.skip("no shared data")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: on small inputs threads wait more than they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def crops() -> Callable[[str, int], Image.Image]:
    """``crops(label, i)``: crop number i of the photo "china" or "flower".

    Two real classes from the two photos that scikit-learn ships: no network, no files.
    """
    china, flower = (Image.fromarray(photo) for photo in load_sample_images().images)
    photos = {"china": china, "flower": flower}

    def crop(label: str, number: int) -> Image.Image:
        chance = np.random.default_rng([number, len(label)])
        side = int(chance.integers(48, 160))
        left = int(chance.integers(0, photos[label].width - side))
        top = int(chance.integers(0, photos[label].height - side))
        return photos[label].crop((left, top, left + side, top + side))

    return crop


@pytest.fixture(scope="session")
def two_hundred(
    crops: Callable[[str, int], Image.Image],
) -> list[tuple[bytes, str]]:
    """(encoded bytes, label) of 200 different images of 32x32, as binary PPM.

    Every kind of source must give them back with these bytes and labels; PPM, because
    sources of arrays encode so.
    """
    return [
        (as_ppm(np.asarray(crops(label, number).resize((32, 32)))), label)
        for label in ("china", "flower")
        for number in range(100)
    ]


@pytest.fixture(scope="session")
def sixty_photos(
    tmp_path_factory: pytest.TempPathFactory, crops: Callable[[str, int], Image.Image]
) -> Path:
    """A folder ``root/class/*.jpg`` with two classes of 30 photos each, to be read."""
    root = tmp_path_factory.mktemp("sixty") / "photos"
    for label in ("china", "flower"):
        (root / label).mkdir(parents=True)
        for number in range(30):
            crops(label, number).save(root / label / f"{number:03d}.jpg", quality=90)
    return root


@pytest.fixture
def folder(tmp_path: Path, sixty_photos: Path) -> Path:
    """A copy of ``sixty_photos``, which may be changed."""
    return shutil.copytree(sixty_photos, tmp_path / "photos")
