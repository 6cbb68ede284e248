"""Register: all evaluations of a run -> the best candidate as a model.

Reads the evaluations. Writes ``models/<key>/``, one complete folder (``model.json`` and
the head's files, those of several in ``members/<number>/``), gives it a version in the
registry, and the alias ``champion`` if it earns it. Controls are compared with, never
registered. What is the best, ``choice`` decides.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.data.splits import FOLDS, VALIDATION
from tl_pipeline.encoders.concat import AnyEncoder, members_of
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import DamagedArtifact
from tl_pipeline.evaluation import choice
from tl_pipeline.evaluation.choice import Candidate, Tally
from tl_pipeline.registry import versions
from tl_pipeline.runs.planning import Outcome, Step, Workspace
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.keys import KeyDocument, digest, key_document
from tl_pipeline.store.tables import METRICS

# Bump when the same inputs must give another model folder.
VERSION = 1


@dataclass(frozen=True)
class Best:
    """The registered model, its evaluation, and by what it was chosen, in words."""

    model: Artifact
    evaluation: Artifact
    chosen: str


@dataclass(frozen=True)
class Register:
    """The best of ``evaluations`` as a model of ``dataset``.

    ``encoders[i]`` is the encoder of ``evaluations[i]``, None of averaged heads.
    """

    at: Workspace
    dataset: str
    evaluations: tuple[Artifact, ...]
    encoders: tuple[AnyEncoder | None, ...]

    @property
    def title(self) -> str:
        return f"register {self.dataset}"

    def plan(self) -> Outcome[Best | None]:
        """Look whether the best is registered; None while one is unscored."""
        started, store = time.perf_counter(), self.at.store
        unscored = [
            evaluation
            for evaluation in self.evaluations
            if store.find("evaluations", evaluation.key) is None
        ]
        if unscored:
            step = Step(
                stage="register",
                subject=self.dataset,
                cached=False,
                reason=f"waits for {len(unscored)} evaluations",
                keys={},
                seconds=time.perf_counter() - started,
            )
            return Outcome(None, (step,))
        best, chosen = _best(store, self.evaluations)
        document = _document(self.dataset, best)
        key = digest(document)
        whole = store.find("models", key) is not None
        registered = versions.is_registered(store, key)
        reason = "the best candidate is registered"
        if not (whole and registered):
            reason = self.at.why_not_cached("models", self.dataset, "model", document)
        step = Step(
            stage="register",
            subject=self.dataset,
            cached=whole and registered,
            reason=reason,
            keys={"model": key},
            seconds=time.perf_counter() - started,
        )
        return Outcome(Best(Artifact("models", key, key), best, chosen), (step,))

    def run(self) -> Outcome[Best | None]:
        """Build the model folder of the best candidate and register it."""
        started, store, planned = time.perf_counter(), self.at.store, self.plan()
        if planned.step.cached:
            return planned
        # MLflow is imported only when there is something to register
        from tl_pipeline.registry import index  # noqa: PLC0415

        best, chosen = _best(store, self.evaluations)
        document = _document(self.dataset, best)
        pairs = zip(self.evaluations, self.encoders, strict=True)
        used = {evaluation.key: encoder for evaluation, encoder in pairs if encoder}
        write = partial(_write, store, best, chosen, used, self.dataset)
        index.register(store, store.build("models", document, write))
        return planned.ran(time.perf_counter() - started)


def _best(store: Store, evaluations: Sequence[Artifact]) -> tuple[Artifact, str]:
    """The best of the evaluations that are no controls, and by what it was chosen."""
    about = {e.key: store.provenance(e) for e in evaluations}
    candidates = [e for e in evaluations if not about[e.key]["params"]["control"]]
    found = choice.best(
        [_candidate(store, e, about[e.key]["inputs"]) for e in candidates]
    )
    return candidates[found.at], found.words


def _candidate(
    store: Store, evaluation: Artifact, inputs: Mapping[str, str]
) -> Candidate:
    """What held-out images say of ``evaluation``; its test rows are not looked at."""
    rows = tables.read(METRICS, store.path(evaluation)).to_pylist()
    chosen = [row for row in rows if row["chosen"]]

    def tally(split: str) -> Tally | None:
        found = {row["metric"]: row for row in chosen if row["split"] == split}
        if not found:
            return None
        accuracy, loss = found["accuracy"], found["log_loss"]
        return Tally(accuracy["images"], accuracy["value"], loss["value"])

    validation = tally(VALIDATION)
    assert validation  # noqa: S101 - every evaluation has it
    return Candidate(
        name=f"{chosen[0]['head']} on {chosen[0]['encoder']}",
        validation=validation,
        folds=tally(FOLDS),
        rows=digest(
            [inputs.get(name) for name in ("rows of folds", "validation rows")]
        ),
    )


def _metrics(store: Store, evaluation: Artifact) -> dict[str, dict[str, Any]]:
    """Split -> metric -> value, low, high of the chosen configuration."""
    found: dict[str, dict[str, Any]] = {}
    for row in tables.read(METRICS, store.path(evaluation)).to_pylist():
        if row["chosen"]:
            score = {name: row[name] for name in ("value", "low", "high")}
            found.setdefault(row["split"], {})[row["metric"]] = score
    return found


def _document(dataset: str, best: Artifact) -> KeyDocument:
    return key_document(
        "register",
        VERSION,
        {"dataset": dataset},
        {"evaluation": best.fingerprint},
    )


def _write(
    store: Store,
    best: Artifact,
    chosen_by: str,
    encoders: Mapping[str, AnyEncoder],
    dataset: str,
    folder: Path,
) -> str:
    """``encoders`` has the encoder of each evaluation of one head, by its key."""
    from tl_pipeline.registry.index import SEVERAL  # noqa: PLC0415 - see run

    rows = tables.read(METRICS, store.path(best)).to_pylist()
    shown = next(row for row in rows if row["chosen"])
    chosen = _chosen(store, best.key)
    encoder = encoders.get(best.key)
    _copy_point(store, best.key, folder)
    if isinstance(encoder, Encoder):
        model = {
            "format": 1,
            "encoder": encoder.model_dump(mode="json"),
            "encoder_key": encoder.key,
            "head": chosen["head"],
            "head_label": _copy_head(store, chosen["head"], folder),
        }
    else:
        rows = chosen.get("members") or [{"evaluation": best.key, "times": 1}]
        model = {
            "format": SEVERAL,
            "members": [
                _member(store, row, encoders, folder, f"members/{number}")
                for number, row in enumerate(rows)
            ],
            "head_label": shown["head"],
        }
        for row, place in zip(rows, model["members"], strict=True):
            if row["evaluation"] != best.key:  # of several, each is calibrated
                _copy_point(store, row["evaluation"], folder / place["folder"])
    model |= {
        "dataset": dataset,
        "encoder_label": shown["encoder"],
        "classes": chosen["classes"],
        "metrics": _metrics(store, best),
        "chosen": chosen_by,
        "evaluation": best.key,
    }
    text = json.dumps(model, indent=1, ensure_ascii=False)
    (folder / "model.json").write_text(text)
    return digest(_document(dataset, best))


def _member(
    store: Store,
    row: Mapping[str, Any],
    encoders: Mapping[str, AnyEncoder],
    folder: Path,
    place: str,
) -> dict[str, Any]:
    """Copy the head of one member to ``place`` in ``folder``; what the model tells."""
    encoder = encoders[row["evaluation"]]
    head = _chosen(store, row["evaluation"])["head"]
    (folder / place).mkdir(parents=True)
    return {
        "folder": place,
        "times": row["times"],
        "encoders": [part.model_dump(mode="json") for part in members_of(encoder)],
        "encoder_keys": [part.key for part in members_of(encoder)],
        "encoder_label": encoder.label,
        "head": head,
        "head_label": _copy_head(store, head, folder / place),
        "evaluation": row["evaluation"],
    }


def _chosen(store: Store, evaluation: str) -> dict[str, Any]:
    folder = store.path(Artifact("evaluations", evaluation, ""))
    return json.loads((folder / "chosen.json").read_text())


def _copy_point(store: Store, evaluation: str, folder: Path) -> None:
    """Copy the operating point of an evaluation into ``folder``."""
    from tl_pipeline.evaluation import operating_point  # noqa: PLC0415 - imports scipy

    place = store.path(Artifact("evaluations", evaluation, ""))
    shutil.copyfile(place / operating_point.FILE, folder / operating_point.FILE)


def _copy_head(store: Store, key: str, folder: Path) -> str:
    """Copy the files of a head into ``folder``; its label."""
    made = store.find("heads", key)
    if made is None:
        raise DamagedArtifact(f"the head {key} is not in the store; run again")
    head = store.path(made)
    about = json.loads((head / "head.json").read_text())
    for name in ("head.json", about["file"]):
        shutil.copyfile(head / name, folder / name)
    return heads.label(HeadConfig.model_validate(about["config"]))
