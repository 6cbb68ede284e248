"""What a stage is: one verb at work on one subject, with a plan and a run.

A stage is a frozen value that holds its inputs. ``plan`` only looks and says what
``run`` would do; what it returns names the output before it exists, so that the stages
after it can be planned too. Most stages make one artifact: they are a ``Unit``, which
names what the artifact depends on and writes it. Everything else is the same for all.
"""

import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol

from tl_pipeline.runs.planning import Outcome, OutputT, Step, Workspace
from tl_pipeline.store.artifacts import Artifact
from tl_pipeline.store.keys import KeyDocument, digest


class Stage(Protocol[OutputT]):
    """One stage at work on one subject; it gives an ``OutputT``."""

    @property
    def title(self) -> str:
        """What the Prefect UI calls it, such as ``train mlp on resnet18/avgpool``."""
        ...

    def plan(self) -> Outcome[OutputT]:
        """Look what is there and what is missing, and why; write nothing."""
        ...

    def run(self) -> Outcome[OutputT]:
        """Make what is missing."""
        ...


@dataclass(frozen=True)
class Unit(Generic[OutputT]):
    """A stage that makes one artifact: a key document, and how to write it.

    ``stage`` names the verb, ``kind`` the folder of the store, ``label`` the artifact
    in the record of a run.
    """

    stage: ClassVar[str]
    kind: ClassVar[str]
    label: ClassVar[str]

    at: Workspace

    @property
    @abstractmethod
    def subject(self) -> str:
        """What it works on, as people read it."""

    @abstractmethod
    def depends_on(self) -> KeyDocument:
        """Everything that the artifact depends on."""

    @cached_property
    def document(self) -> KeyDocument:
        """What the artifact depends on; its digest is the key."""
        return self.depends_on()

    @abstractmethod
    def write(self, folder: Path) -> str | None:
        """Fill ``folder``; the fingerprint, or None for a hash over the files."""

    @abstractmethod
    def output(self, made: Artifact | None) -> OutputT:
        """What the stages after this one are given; ``made`` is None while planning."""

    @abstractmethod
    def found(self, made: Artifact) -> str:
        """What to say of an artifact that is there."""

    @property
    def title(self) -> str:
        """See ``Stage``."""
        return f"{self.stage} {self.subject}"

    @cached_property
    def key(self) -> str:
        """The key of the artifact."""
        return digest(self.document)

    def missing(self) -> str:
        """Why the artifact has to be made."""
        return self.at.why_not_cached(
            self.kind, self.subject, self.label, self.document
        )

    def units(self, made: Artifact | None) -> int:
        """How many things there are to do."""
        return 0 if made else 1

    def keys(self, made: Artifact) -> Mapping[str, str]:  # noqa: ARG002 - for those that override it
        """Further keys that the artifact stands for, by their labels."""
        return {}

    def extra(self) -> Mapping[str, Any]:
        """What the provenance is to tell besides."""
        return {}

    def look(self) -> Outcome[OutputT]:
        """Whether the artifact is there, and why not."""
        started = time.perf_counter()
        made = self.at.store.find(self.kind, self.key)
        step = Step(
            stage=self.stage,
            subject=self.subject,
            cached=made is not None,
            reason=self.found(made) if made else self.missing(),
            keys={self.label: self.key, **(self.keys(made) if made else {})},
            units=self.units(made),
            seconds=time.perf_counter() - started,
        )
        return Outcome(self.output(made), (step,))

    def plan(self) -> Outcome[OutputT]:
        """See ``Stage``."""
        return self.look()

    def run(self) -> Outcome[OutputT]:
        """See ``Stage``."""
        started = time.perf_counter()
        looked = self.look()
        if looked.step.cached:
            return looked
        made = self.at.store.build(self.kind, self.document, self.write, self.extra())
        step = looked.ran(
            time.perf_counter() - started,
            reason=self.told(looked.step.reason, made),
            keys={self.label: self.key, **self.keys(made)},
        ).step
        return Outcome(self.output(made), (step,))

    def told(self, reason: str, made: Artifact) -> str:  # noqa: ARG002 - for those that override it
        """What to say once it was made for ``reason``."""
        return reason
