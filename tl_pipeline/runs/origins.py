"""Where what lies in a store comes from: its inputs, the run that made it, and why.

Keys tell what depends on what: the provenance of an artifact names its inputs, the
records of runs name the stages that used them.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from tl_pipeline.encoders import labels
from tl_pipeline.errors import InvalidSpec, UnknownName
from tl_pipeline.runs.planning import Step
from tl_pipeline.runs.records import Record, RunRecord
from tl_pipeline.store.artifacts import Artifact, Store, library_versions
from tl_pipeline.store.embeddings import EmbeddingFolder

# The folders of the store whose artifacts have a provenance.
KINDS = (
    "manifests",
    "searches",
    "trials",
    "heads",
    "finetuned",
    "evaluations",
    "models",
    "references",
    "predictions",
)
_PREFIX = re.compile(r"[0-9a-f]{4,32}")
# The rows of a manifest are an input of what learns from them or is scored on them.
_ROWS = re.compile(r"\b(rows|images)$")


class Origin(BaseModel):
    """What one key of the store stands for, and where it comes from.

    ``stage`` and ``subject`` are those of the step that has it under ``label``. ``run``
    made it last, for ``reason``, and ``used_by`` is the last run that used it; all five
    are "" where no record tells. ``params`` and ``inputs`` are what the key depends on,
    ``made_of`` those of the inputs that are artifacts. ``libraries`` names what is
    installed in another version now than then. ``registered`` is the registry's word on
    a model.
    """

    key: str
    stage: str = ""
    subject: str = ""
    label: str = ""
    run: str = ""
    reason: str = ""
    used_by: str = ""
    finished: str = ""
    seconds: float | None = None
    host: str = ""
    params: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    libraries: dict[str, str] = {}
    registered: str = ""
    made_of: list["Origin"] = []

    @property
    def keys_below(self) -> set[str]:
        """The keys of all that it is made of, directly or not."""
        return {key for one in self.made_of for key in (one.key, *one.keys_below)}


class _Use(NamedTuple):
    record: Record
    step: Step
    label: str


class Origins:
    """The origin of all that ``found``, records from oldest to latest, name."""

    def __init__(self, store: Store, found: Sequence[Record]) -> None:
        self._store, self._found = store, found
        self._uses: dict[str, list[_Use]] = {}
        for record in found:
            for step in record.steps:
                for label, key in step.keys.items():
                    self._uses.setdefault(key, []).append(_Use(record, step, label))

    def find(self, subject: str) -> list[Origin]:
        """The origins of ``subject``: the beginning of a key, or what stages worked on.

        That is a dataset, an encoder, a head, or a head on an encoder, in the last run
        that had it; encoders may be named in short. What another of them is made of
        stands below that one alone.

        Raises:
            UnknownName: nothing is called so.
            InvalidSpec: several keys begin so.
        """
        if _PREFIX.fullmatch(subject) and (key := self._beginning(subject)):
            return [self.of(key)]
        for record in reversed(self._found):
            shown = labels.short(step.subject for step in record.steps)
            keys = [
                next(iter(step.keys.values()))
                for step in record.steps
                if step.keys and subject in _names(step.subject, shown)
            ]
            if keys:
                found = [self.of(key) for key in dict.fromkeys(keys)]
                below = {key for one in found for key in one.keys_below}
                return [one for one in found if one.key not in below]
        known = (step.subject for record in self._found for step in record.steps)
        raise UnknownName("subject", subject, {*known, "KEY", "MODEL/VERSION"})

    def _beginning(self, prefix: str) -> str | None:
        there = {
            folder.name
            for kind in KINDS
            for folder in (self._store.root / kind).glob(f"{prefix}*")
        }
        keys = there | {key for key in self._uses if key.startswith(prefix)}
        if len(keys) > 1:
            raise InvalidSpec(
                f"{len(keys)} keys begin with {prefix}: {', '.join(sorted(keys)[:5])}; "
                "give more of one"
            )
        return next(iter(keys), None)

    def of(self, key: str) -> Origin:
        """The origin of ``key``, with those of its inputs."""
        uses = self._uses.get(key, [])
        made = next((u for u in reversed(uses) if not u.step.cached), None)
        about = made or (uses[-1] if uses else None)
        found = Origin(
            key=key,
            stage=about.step.stage if about else "",
            subject=about.step.subject if about else "",
            label=about.label if about else "",
            run=made.record.run_id if made else "",
            reason=made.step.reason if made else "",
            used_by=uses[-1].record.run_id if uses else "",
            registered=_registered(uses[-1]) if uses else "",
        )
        artifact = self._artifact(key)
        if artifact is None:
            params = self._encoder(key)
            return found.model_copy(update={"params": params}) if params else found
        provenance = self._store.provenance(artifact)
        inputs = provenance["inputs"]
        return found.model_copy(
            update={
                "stage": provenance["stage"],
                "finished": provenance["finished"],
                "seconds": provenance["seconds"],
                "host": provenance["host"],
                "params": provenance["params"],
                "inputs": inputs,
                "libraries": _other_versions(provenance["libraries"]),
                "made_of": [
                    self.of(one) for one in self._made_of(artifact, inputs, about)
                ],
            }
        )

    def _artifact(self, key: str) -> Artifact | None:
        found = (self._store.find(kind, key) for kind in KINDS)
        return next((one for one in found if one), None)

    def _encoder(self, key: str) -> dict[str, Any]:
        """The identity of the encoder ``key``; empty if there is none."""
        file = EmbeddingFolder(self._store, key).description
        return json.loads(file.read_text()) if file.is_file() else {}

    def _made_of(
        self, artifact: Artifact, inputs: Mapping[str, str], use: _Use | None
    ) -> Iterator[str]:
        """The keys among ``inputs``, and of the manifest whose rows are among them."""
        yield from (key for key in inputs.values() if key in self._uses)
        of_rows = any(_ROWS.search(name) for name in inputs)
        if use and of_rows and artifact.kind != "manifests":
            yield use.record.manifest


def _names(subject: str, shown: Mapping[str, str]) -> set[str]:
    """What a subject may be called: ``head on encoder`` also by its head."""
    return {
        name
        for form in (subject, shown[subject])
        for name in (form, form.partition(" on ")[0])
    }


def _registered(use: _Use) -> str:
    record = use.record
    if use.step.stage != "register" or not isinstance(record, RunRecord):
        return ""
    entry = record.registered
    rank = "champion" if entry.champion else "not champion"
    return f"{entry.name} version {entry.version}, {rank}: {entry.reason}"


def _other_versions(then: Mapping[str, str]) -> dict[str, str]:
    now = library_versions()
    return {
        name: f"{version} -> {now[name]}"
        for name, version in then.items()
        if now.get(name, version) != version
    }
