"""Nights that are disturbed, and what the next night must make of them.

A night is `tl run --runner direct` on a small folder of scanned digits, to which images
were added since the night before. Each trial starts from the same folder and store; a
fault disturbs the night, and another night follows undisturbed. Its tables must equal
those of a store that was never disturbed, with one champion, no half artifact and no
room lost.

Runs are forked from a server that has imported everything, so a night costs a second.
"""

import contextlib
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.object_store import ObjectStore
from tl_pipeline.maintenance import gc, listing, verification
from tl_pipeline.maintenance.listing import (
    ARTIFACTS,
    DAMAGED,
    EMBEDDINGS,
    IN_USE,
    UNFINISHED,
)
from tl_pipeline.registry import index
from tl_pipeline.runs import records
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import EmbeddingFolder, described
from tl_pipeline.store.tables import MANIFEST, METRICS, PREDICTIONS

CLASSES, BEFORE, ADDED = 3, 40, 8  # images of a class, the night before and tonight
HEADS = ("logistic:C=0.01/0.1", "ridge:alpha=10")
PATIENCE = 300  # seconds after which a night waits for ever
# Between probabilities: a head that is fitted alone begins elsewhere than beside others
# of its grid, which a night before may have fitted, and ends where its solver stops.
TOLERANCE = 5e-3
ROOM = 1.1  # of the room that an undisturbed store takes
_FORKED = multiprocessing.get_context("forkserver")
# What a night imports, late and slowly.
_IMPORTED = (
    "tl_pipeline.cli.main",
    "tl_pipeline.cli.console",
    "tl_pipeline.pipeline.wiring",
    "tl_pipeline.registry.tracking",
    "tl_pipeline.registry.prediction",
    "tl_pipeline.evaluation.comparison",
    "tl_pipeline.query.catalogue",
    "tl_pipeline.report.page",
    "alembic.command",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "pyarrow.dataset",
    "sklearn.linear_model",
    "torchvision",
)
_FORKED.set_forkserver_preload([*_IMPORTED, "tests.faults"])


class Ended(NamedTuple):
    """How a night ended: its exit code, that of a signal negative; what it printed."""

    code: int
    said: str
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A folder of images and a store, on which one night is disturbed."""

    images: Path
    store: str
    chance: random.Random
    length: float  # of an undisturbed night, in seconds
    server: ObjectStore | None = None

    def moment(self) -> float:
        """Some moment of a night, in seconds."""
        return self.chance.uniform(0, self.length)


@dataclass(frozen=True)
class Fault:
    """``disturb`` spoils a night, which cannot end well where it ``fails``.

    ``codes`` are exit codes that are right beside 0, 2 and a kill. ``expects`` names
    the undisturbed night whose tables the next one must equal.
    """

    disturb: Callable[[Trial], Ended]
    fails: bool = False
    codes: tuple[int, ...] = ()
    expects: str = "added"
    at_url: bool = False
    needs_mount: bool = False


def night(
    images: Path, store: str, spoil: Callable[[], None] | None = None
) -> "Running":
    """Begin `tl run`; ``spoil`` is called in its process before."""
    return Running(images, store, spoil)


class Running:
    """A night under way in a process of its own."""

    def __init__(
        self, images: Path, store: str, spoil: Callable[[], None] | None
    ) -> None:
        self._begun = time.monotonic()
        self._told, tell = _FORKED.Pipe(duplex=False)
        self.process = _FORKED.Process(
            target=_night, args=(images, store, spoil, tell, dict(os.environ))
        )
        self.process.start()
        tell.close()

    def ended(self) -> Ended:
        """Wait for the end.

        Raises:
            TimeoutError: it waits for ever.
        """
        said = ""
        with contextlib.suppress(EOFError):
            if self._told.poll(PATIENCE):
                said = self._told.recv()
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"a night still ran after {PATIENCE} s: {said}")
        return Ended(self.process.exitcode, said, time.monotonic() - self._begun)

    def kill(self) -> None:
        """SIGKILL, as by the kernel or a power cut."""
        self.process.kill()


def _night(
    images: Path,
    store: str,
    spoil: Callable[[], None] | None,
    tell: Connection,
    environment: Mapping[str, str],
) -> None:
    """What the process of a night does: ``tl run`` as somebody types it."""
    import io

    from tl_pipeline.cli import console, main

    os.environ.update(environment)
    sys.argv = ["tl", "run", str(images), "--store", store, "--runner", "direct"]
    sys.argv += ["--no-controls", *(w for head in HEADS for w in ("--head", head))]
    said = io.StringIO()
    sys.stdout = sys.stderr = console.err.file = console.out.file = said
    code = 0
    try:
        if spoil:
            spoil()
        main.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - a bug, which is what we look for
        code = 1
        said.write(f"{type(error).__name__}: {error}")
    with contextlib.suppress(OSError):
        tell.send(said.getvalue())
    os._exit(code)


# -- what disturbs a night ---------------------------------------------------------


def _killed(trial: Trial) -> Ended:
    running = night(trial.images, trial.store)
    time.sleep(trial.moment())
    running.kill()
    return running.ended()


def _raises_at(stage: int, *, done: bool) -> None:
    """Let the ``stage``-th raise, once it is ``done`` or before."""
    from tl_pipeline.pipeline import wiring

    count, run = iter(range(1_000)), wiring.run

    def execute(one: Any) -> Any:
        due = next(count) == stage
        if due and not done:
            raise RuntimeError("a stage raised")
        outcome = one.run()
        if due:
            raise RuntimeError("a stage raised")
        return outcome

    wiring.run = partial(run, execute=execute)


def _raised(trial: Trial) -> Ended:
    stage = trial.chance.randrange(8)  # ingest, embed, audit, 2 x (train, evaluate), ..
    done = trial.chance.random() < 0.5
    spoil = partial(_raises_at, stage, done=done)
    return night(trial.images, trial.store, spoil).ended()


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _limited(trial: Trial) -> Ended:
    """No file may grow beyond some size, as in a quota."""
    spoil = partial(_limit_files, trial.chance.choice([100, 3_000, 20_000, 100_000]))
    return night(trial.images, trial.store, spoil).ended()


def _full(trial: Trial) -> Ended:
    """The disk is full after some of what the night writes."""
    used = _used(Path(trial.store))
    size = used + int(trial.chance.uniform(0.0, 1.0) * 400_000)
    _mount(trial.store, f"remount,size={size}")
    try:
        return night(trial.images, trial.store).ended()
    finally:
        _mount(trial.store, "remount,size=256m")


def _read_only(trial: Trial) -> Ended:
    _mount(trial.store, "remount,ro")
    try:
        return night(trial.images, trial.store).ended()
    finally:
        _mount(trial.store, "remount,rw")


def _changed(trial: Trial) -> Ended:
    """Images come, go, change and get another label while the night runs."""
    running = night(trial.images, trial.store)
    time.sleep(trial.moment())
    change(trial.images)
    return running.ended()


def _set_clock_back(days: float) -> None:
    """The clock of this process is ``days`` behind, as far as our code asks for it."""
    shift, now = timedelta(days=days), time.time

    class Behind(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) - shift

    time.time = lambda: now() - shift.total_seconds()
    for name, module in list(sys.modules.items()):
        if name.startswith("tl_pipeline") and vars(module).get("datetime") is datetime:
            vars(module)["datetime"] = Behind


def _behind(trial: Trial) -> Ended:
    days = trial.chance.choice([0.01, 1.0, 400.0])
    return night(trial.images, trial.store, partial(_set_clock_back, days)).ended()


def _restarted(trial: Trial) -> Ended:
    """The object store is restarted: for a while nobody listens."""
    assert trial.server
    running = night(trial.images, trial.store)
    time.sleep(trial.moment())
    trial.server.restart(trial.chance.uniform(0.1, 2.0))
    return running.ended()


FAULTS = {
    "killed": Fault(_killed),
    "stage raises": Fault(_raised, codes=(1,)),
    "file too large": Fault(_limited),
    "disk full": Fault(_full, needs_mount=True),
    "store read-only": Fault(_read_only, fails=True, needs_mount=True),
    "images changed meanwhile": Fault(_changed, codes=(3,), expects="changed"),
    "clock set back": Fault(_behind),
    "object store restarted": Fault(_restarted, at_url=True),
    "killed, store at a URL": Fault(_killed, at_url=True),
}


# -- what must hold afterwards -----------------------------------------------------


class Nights:
    """A folder and a store after one night, and what undisturbed nights make of them.

    ``root`` is an empty folder. Where the object store of a test serves, ``server`` has
    the store, too.
    """

    def __init__(self, root: Path, server: ObjectStore | None = None) -> None:
        self._root, self._server, self._trials = root, server, 0
        self.images, self.place = root / "now" / "scans", root / "now" / "store"
        draw(root / "scans", range(BEFORE))
        self.begin()
        _must_end_well(night(self.images, str(self.place)).ended())
        shutil.copytree(self.place, root / "store", symlinks=True)
        self.expected: dict[str, dict[str, Any]] = {}
        for name, prepare in (("added", lambda _: None), ("changed", change)):
            self.begin()
            prepare(self.images)
            ended = _must_end_well(night(self.images, str(self.place)).ended())
            store = Store.open(self.place)
            self.expected[name] = content(store)
            if name == "added":
                self.room = _collected(store)
        self.length = ended.seconds
        self._url = ""
        if server:
            self._url = f"{server.bucket('faults')}/store"
            self.begin()
            shutil.rmtree(self.place)
            shutil.rmtree(self.images)
            draw(self.images, range(BEFORE))
            _must_end_well(night(self.images, self._url).ended())

    def begin(self) -> None:
        """The folder and the store as they are before tonight."""
        shutil.rmtree(self.place.parent, ignore_errors=True)
        shutil.copytree(self._root / "scans", self.images)
        if (self._root / "store").exists():
            draw(self.images, range(BEFORE, BEFORE + ADDED))
            shutil.copytree(self._root / "store", self.place, symlinks=True)

    def try_out(self, name: str, seed: int) -> Ended:
        """Disturb a night, and see what the next one makes of it; how the first ended.

        Raises:
            AssertionError: something does not hold.
            TimeoutError: the next night waits for ever.
        """
        fault, store = FAULTS[name], str(self.place)
        self.begin()
        if fault.at_url:
            assert self._server
            self._trials += 1
            store = f"{self._url}-{self._trials}"
            self._server.copy(self._url, store)
        place = _tmpfs(self.place) if fault.needs_mount else nullcontext()
        with place:
            chance = random.Random(f"{name} {seed}")
            trial = Trial(self.images, store, chance, self.length, self._server)
            ended = fault.disturb(trial)
            assert ended.code in {0, 2, -signal.SIGKILL, *fault.codes}, ended
            assert not (fault.fails and ended.code == 0), ended
            assert "Traceback" not in ended.said, ended.said
            _must_end_well(night(self.images, store).ended())
            self.check(Store.open(store), fault.expects)
        return ended

    def check(self, store: Store, expects: str = "added") -> None:
        """What must hold of ``store`` after the night ``expects``.

        Raises:
            AssertionError: something does not.
        """
        found, expected = content(store), self.expected[expects]
        if expects != "added":  # the night between may have seen other images
            found, expected = (_but_models(one) for one in (found, expected))
        for name in found | expected:
            apart = _apart(found.get(name), expected.get(name))
            most = 0 if name.startswith(("manifest", "embeddings")) else TOLERANCE
            assert apart <= most, f"{name} is {apart} from an undisturbed store's"
        (model,) = index.registered(store)
        assert model.champion, "there is no champion"
        damaged = verification.verify(store).damaged
        assert not damaged, f"damaged: {damaged}"
        room = _collected(store)
        if expects == "added":
            assert room <= ROOM * self.room + 10_000, f"{room} of {self.room} bytes"
        left = [
            i for i in listing.items(store) if i.kind in {UNFINISHED, DAMAGED, IN_USE}
        ]
        assert not left, f"left over: {left}"


def content(store: Store) -> dict[str, Any]:
    """What stands in the tables of the last run on scans."""
    record = records.latest(store, "scans")
    assert record, "no run is recorded"
    manifest = Artifact("manifests", record.manifest, "")
    images = _rows(store, manifest, MANIFEST)
    ids = [row["image_id"] for row in images]
    found: dict[str, Any] = {"manifest": images}
    for key in described(store):
        loaded = EmbeddingFolder(store, key).load(ids)
        found[f"embeddings {key}"] = [loaded.image_ids, loaded.vectors.tolist()]
    for one in record.results:
        made = Artifact("evaluations", one.evaluation, "")
        for table in (METRICS, PREDICTIONS):
            found[f"{table.file} of {one.head}"] = _rows(store, made, table)
    (model,) = index.registered(store)
    found["versions"] = [(v.number, v.evaluation) for v in model.versions]
    found["champion"] = [model.aliases]
    return found


def _but_models(found: Mapping[str, Any]) -> dict[str, Any]:
    return {n: d for n, d in found.items() if n not in {"versions", "champion"}}


def _rows(store: Store, made: Artifact, table: tables.Table) -> list[dict[str, Any]]:
    assert store.find(made.kind, made.key), f"{made} is gone"
    rows = tables.read(table, store.path(made)).to_pylist()
    names = [name for name in table.key if name in rows[0]] if rows else []
    return sorted(rows, key=lambda row: [str(row[name]) for name in names])


def _apart(one: Any, other: Any) -> float:
    """The largest difference of numbers; infinite where anything else differs."""
    if isinstance(one, float) and isinstance(other, float):
        return 0.0 if one == other else abs(one - other)
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((_apart(one[name], other[name]) for name in one), default=0.0)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return math.inf
        return max(map(_apart, one, other), default=0.0)
    return 0.0 if one == other else math.inf


def _collected(store: Store) -> int:
    """The bytes of artifacts and embeddings once nothing is kept that nobody uses."""
    gc.collect(store, retention_days=0)
    kinds = {*ARTIFACTS, EMBEDDINGS}
    return sum(i.bytes for i in listing.items(store) if i.kind in kinds)


def _must_end_well(ended: Ended) -> Ended:
    assert ended.code == 0, ended
    return ended


# -- the images and the disk ---------------------------------------------------------


def draw(folder: Path, numbers: range) -> None:
    """Scanned digits, those ``numbers`` of each class, as PNG files."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    for label in range(CLASSES):
        scans = digits.images[digits.target == label]
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            pixels = (scans[number] * 15.9).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{number:03d}.png")


def change(folder: Path) -> None:
    """Images come and go, one is rewritten, one is of another class."""
    draw(folder, range(BEFORE + ADDED, BEFORE + ADDED + 1))
    (folder / "0" / "001.png").unlink()
    draw(folder, range(BEFORE + ADDED + 1, BEFORE + ADDED + 2))
    (folder / "1" / f"{BEFORE + ADDED + 1:03d}.png").replace(folder / "1" / "002.png")
    (folder / "2" / "003.png").rename(folder / "1" / "other.png")


@contextmanager
def _tmpfs(place: Path) -> Iterator[None]:
    """``place`` on a file system of its own, in memory."""
    beside = place.with_name("beside")
    place.rename(beside)
    place.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", place], check=True
    )
    try:
        shutil.copytree(beside, place, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(beside)
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def can_mount() -> bool:
    """Whether this user may mount a file system."""
    return sys.platform == "linux" and os.geteuid() == 0


def _mount(place: str, options: str) -> None:
    subprocess.run(["mount", "-o", options, place], check=True)


def _used(place: Path) -> int:
    disk = os.statvfs(place)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize
