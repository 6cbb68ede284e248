"""What a stage would do and why: the vocabulary that stages, plan and flow share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from tl_pipeline.errors import DamagedArtifact
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.keys import KeyDocument, digest
from tl_pipeline.store.timings import Timings

OutputT = TypeVar("OutputT")
# (stage, subject) -> label -> key
KeysUsed = Mapping[tuple[str, str], Mapping[str, str]]
# What makes a control of a manifest or of averaged heads.
ONE_BY_ONE = "split image by image"
UNTRAINED = "untrained"
LOST = "its artifact is missing or damaged"


@dataclass(frozen=True)
class Step:
    """One stage at work on one subject: what came, or would come, of it.

    ``keys`` maps the label of each thing it stands for to its key. ``units`` counts the
    images to embed, heads to train or epochs; the estimates are None where nothing is
    known, and so is ``width``, the values of an embedding.
    What is ``skipped`` cannot be done at all, and the reason says why. ``timings`` tell
    where the time of embedding went, ``note`` what to know before it is paid for.
    """

    stage: str
    subject: str
    cached: bool
    reason: str
    keys: Mapping[str, str]
    units: int = 0
    seconds: float = 0.0
    estimated_seconds: float | None = None
    estimated_bytes: int | None = None
    width: int | None = None
    skipped: bool = False
    timings: Timings | None = None
    note: str = ""


@dataclass(frozen=True)
class Outcome(Generic[OutputT]):
    """A stage's output, small references, and the steps that led to it."""

    output: OutputT
    steps: tuple[Step, ...]

    @property
    def step(self) -> Step:
        """The step of a stage that works on one subject."""
        (step,) = self.steps
        return step

    def ran(self, seconds: float, **changes: Any) -> "Outcome[OutputT]":
        """This plan once it has been carried out, in ``seconds``."""
        step = replace(self.step, cached=False, seconds=seconds, **changes)
        return replace(self, steps=(step,))


@dataclass(frozen=True)
class Workspace:
    """Where stages work: the store, and the keys that the last finished run used.

    Only the reasons that people read come from ``previous``, never a decision.
    """

    store: Store
    previous: KeysUsed = field(default_factory=dict)

    def why_not_cached(
        self, kind: str, subject: str, label: str, document: KeyDocument
    ) -> str:
        """Why ``label``, an artifact of ``kind`` with this ``document``, must be made.

        It is compared with what the last run used under the same subject and label; if
        that run used one other thing there, with that.
        """
        before = self.previous.get((document["stage"], subject), {})
        others = list(before.values())
        key = before.get(label) or (others[0] if len(others) == 1 else None)
        if key is None:
            return "new"
        if key == digest(document):
            return LOST
        found = self.store.find(kind, key)
        if found is None:
            return "new"
        try:
            return "; ".join(changes(self.store.provenance(found), document)) or LOST
        except DamagedArtifact:
            return LOST

    def manifest_before(self, dataset: str) -> "str | None":
        """The key of the manifest that ingest gave the last run on ``dataset``."""
        return self.previous.get(("ingest", dataset), {}).get("manifest")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How one key document differs from another, in words."""
    said = []
    if before["version"] != now["version"]:
        said.append(f"{now['stage']} version {before['version']} -> {now['version']}")
    said += field_changes(before["params"], now["params"])
    said += [
        f"{name} changed"
        for name, fingerprint in now["inputs"].items()
        if before["inputs"].get(name) != fingerprint
    ]
    return said


def field_changes(before: Any, now: Any, path: str = "") -> list[str]:
    """Each leaf that differs, as ``path: before -> now``."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [
            change
            for name in sorted({*before, *now})
            for change in field_changes(
                before.get(name), now.get(name), f"{path}.{name}" if path else name
            )
        ]
    return [] if before == now else [f"{path}: {_short(before)} -> {_short(now)}"]


def flat(params: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of ``params``, each under the names that lead to it."""
    for name, value in params.items():
        where = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            yield from flat(value, where)
        else:
            yield where, value


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:8]}..."
