"""Is this machine fit to run the pipeline? Each check says what it found."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from tl_pipeline.config import catalog
from tl_pipeline.embedding.process import cores
from tl_pipeline.encoders.backbones import checkpoint_folder
from tl_pipeline.errors import TransferLearningError
from tl_pipeline.runs import records
from tl_pipeline.store.artifacts import Store

_MINUTE = "%Y-%m-%d %H:%M UTC"
REINSTALL = "install again with constraints.txt: make clean demo"


@dataclass(frozen=True)
class Check:
    """One check; ``cure`` is empty where nothing is wrong."""

    check: str
    ok: bool
    found: str
    cure: str = ""


def examine(
    store: str, server: Callable[[], str], dead_runs: Callable[[], str]
) -> list[Check]:
    """Run every check; none of them stops the others.

    ``server`` and ``dead_runs`` look at Prefect, of which nothing is known here.
    """
    return [
        Check("python", True, f"{platform.python_version()} on {platform.platform()}"),
        *_versions(),
        _tried("torch and torchvision", _torch, REINSTALL),
        _tried("processor", _processor, ""),
        _tried("prefect server", server, REINSTALL),
        _tried(
            "runs under Prefect",
            dead_runs,
            "prefect automation create --from-file automations.yaml; until then: "
            "prefect flow-run delete ID",
        ),
        _tried("store", lambda: _store(store), "name another with --store or TL_STORE"),
        _tried(
            "clock",
            lambda: _clock(store),
            "set the clock: the last run is found by its time",
        ),
        _tried(
            "room for the next runs",
            lambda: _room(store),
            "tl store gc, or put --store on a larger disk",
        ),
        _tried("registry", lambda: _registry(store), "tl models rebuild"),
        _tried("data catalogue", _catalog, "see README, 'Your own images'"),
        Check("downloaded weights", True, str(checkpoint_folder())),
    ]


def _versions() -> Iterator[Check]:
    for requirement in metadata.requires("tl-pipeline") or []:
        text, _, marker = requirement.partition(";")
        if marker:
            continue
        from packaging.requirements import Requirement

        wanted = Requirement(text)
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield Check(wanted.name, False, "not installed", REINSTALL)
            continue
        ok = wanted.specifier.contains(version, prereleases=True)
        found = version if ok else f"{version}, not {wanted.specifier}"
        yield Check(wanted.name, ok, found, "" if ok else REINSTALL)


def _tried(name: str, probe: Callable[[], str], cure: str) -> Check:
    try:
        return Check(name, True, probe())
    # A broken installation may raise anything; the doctor says so and goes on.
    except Exception as error:  # noqa: BLE001
        reason = str(error).strip() or type(error).__name__
        return Check(name, False, reason, cure)


def _torch() -> str:
    import torch
    import torchvision

    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    return (
        f"{torch.__version__} with {torchvision.__version__}, operators work together"
    )


def _processor() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"no GPU seen by torch; {cores()} processor cores"
    torch.zeros(8, device="cuda").sum().item()
    from tl_pipeline.embedding.gpu import nvjpeg

    _, why = nvjpeg.judge(torch.device("cuda", 0))
    jpegs = f"JPEGs by the cores: {why}" if why else "its hardware decodes JPEGs"
    gpu, number = torch.cuda.get_device_name(), torch.cuda.device_count()
    return f"{gpu} ({number} GPU); {jpegs}"


def _store(uri: str) -> str:
    store = Store.open(uri)
    place = _existing(store.root)
    with tempfile.NamedTemporaryFile(dir=place):
        pass
    free = shutil.disk_usage(place).free / 1e9
    state = "" if (store.root / "store.json").exists() else ", not made yet"
    here = f" in its mirror {store.root}" if store.mirror.url else ""
    return f"{store.uri}{state}, {free:.0f} GB free{here}"


def _existing(root: Path) -> Path:
    return next(p for p in (root, *root.parents) if p.is_dir())


def _clock(uri: str) -> str:
    """Whether the last run finished before now."""
    now = datetime.now(UTC)
    last = max((r.finished for r in records.every(Store.open(uri))), default=now)
    if now < last:
        raise RuntimeError(f"{now:{_MINUTE}}, but the last run ended {last:{_MINUTE}}")
    return f"{now:{_MINUTE}}"


def _room(uri: str) -> str:
    """What the last run of each dataset would write if it ran again, by its plan."""
    from tl_pipeline.pipeline import wiring

    store = Store.open(uri)
    wanted, unknown = 0, []
    for name, record in records.latest_of_each(records.every(store)).items():
        try:
            work = wiring.prepare(record.spec, store, download=False)
            steps = wiring.plan(work)
        except TransferLearningError:  # its images or weights are elsewhere
            unknown.append(name)
            continue
        wanted += sum(step.estimated_bytes or 0 for step in steps if not step.cached)
    free = shutil.disk_usage(_existing(store.root)).free
    said = f"{wanted / 1e9:.2f} GB would be written, {free / 1e9:.0f} GB are free"
    if wanted > free:
        raise RuntimeError(said)
    return f"{said}; not known of {', '.join(unknown)}" if unknown else said


def _registry(uri: str) -> str:
    from tl_pipeline.registry import connection

    return connection.examine(Store.open(uri))


def _catalog() -> str:
    path = Path(os.environ.get("TL_CATALOG", catalog.DEFAULT))
    if not path.exists():
        return f"none at {path}"
    try:
        return f"{path}: {len(catalog.load(path))} datasets"
    except TransferLearningError as error:
        raise RuntimeError(f"{error}") from None
