"""Average: evaluations of several heads -> one candidate, their mean probabilities.

Reads the evaluations, and the manifest for its groups. Writes ``evaluations/<key>/`` as
evaluate does: METRICS, PREDICTIONS, ``calibration.json`` and ``chosen.json``, which
names the members and how often each counts. Members are calibrated already; their mean
is once more, as it is less sure than they are.
Members are chosen on validation; no head is fitted or asked again. An image that one of
the members has not scored is left out.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tl_pipeline import tables
from tl_pipeline.artifacts import Artifact, KeyDocument, Store, digest, key_document
from tl_pipeline.averaging import Said, averaged, greedy, shared
from tl_pipeline.errors import DatasetError
from tl_pipeline.labels import groups_of, units
from tl_pipeline.planning import Context, Outcome, Step, why_not_cached
from tl_pipeline.scored_rows import metric_rows, predictions
from tl_pipeline.specs import Ensemble
from tl_pipeline.splits import TEST, VALIDATION
from tl_pipeline.tables import METRICS, PREDICTIONS

# Bump when the same inputs must give other rows.
VERSION = 1
_HELD = (VALIDATION, TEST)
_SUBJECTS: dict[Ensemble, str] = {
    "average": "the best head of each encoder",
    "greedy": "heads chosen greedily",
}
_LABELS: dict[Ensemble, str] = {"average": "average", "greedy": "greedy average"}
# Of more encoders only the number is told; each has a row in the SQL table members.
_NAMED = 2


class _Scored(NamedTuple):
    """What the evaluation of one head tells of it: its row of METRICS, its scores."""

    evaluation: Artifact
    row: dict[str, Any]
    accuracy: float
    log_loss: float
    said: dict[str, Said]


def plan(
    context: Context,
    manifest: Artifact,  # noqa: ARG001 - the signature of run
    evaluations: Sequence[Artifact],
    ensemble: Ensemble,
) -> Outcome[Artifact]:
    """Look whether these heads were put together already."""
    started = time.perf_counter()
    document = _document(context, evaluations, ensemble)
    key, subject = digest(document), context.named(_SUBJECTS[ensemble])
    made = context.store.find("evaluations", key)
    if made:
        reason = _told(context.store, made)
    else:
        reason = why_not_cached(context, "evaluations", subject, "evaluation", document)
    step = Step(
        stage="average",
        subject=subject,
        cached=made is not None,
        reason=reason,
        keys={"evaluation": key},
        units=0 if made else len(evaluations),
        seconds=time.perf_counter() - started,
    )
    return Outcome(Artifact("evaluations", key, key), (step,))


def run(
    context: Context,
    manifest: Artifact,
    evaluations: Sequence[Artifact],
    ensemble: Ensemble,
) -> Outcome[Artifact]:
    """Choose members on validation, score their mean on validation and on test.

    Raises:
        DatasetError: no image of one of these splits was scored by all candidates.
    """
    started, planned = (
        time.perf_counter(),
        plan(context, manifest, evaluations, ensemble),
    )
    if planned.step.cached:
        return planned
    found = [_scored(context.store, evaluation) for evaluation in evaluations]
    _check(context, found)
    times = _times(found, ensemble)
    members = [one for one, count in zip(found, times, strict=True) if count]
    counts = [count for count in times if count]
    whole = {
        split: averaged([m.said[split] for m in members], counts) for split in _HELD
    }
    every = set[str]().union(*(m.said[s].image_ids for m in members for s in _HELD))
    scored = sum(len(said.image_ids) for said in whole.values())
    extra = {
        "members": [
            {
                "evaluation": member.evaluation.key,
                "encoder": member.row["encoder"],
                "head": member.row["head"],
                "times": count,
            }
            for member, count in zip(members, counts, strict=True)
        ],
        "candidates": len(found),
        "left_out": len(every) - scored,
    }
    document = _document(context, evaluations, ensemble)
    groups = groups_of(context.store, manifest)
    write = partial(_write, context, members, counts, whole, groups, document)
    made = context.store.build("evaluations", document, write, extra)
    reason = f"{planned.step.reason}: {_told(context.store, made)}"
    return planned.ran(time.perf_counter() - started, reason=reason)


def _check(context: Context, found: Sequence[_Scored]) -> None:
    for split in _HELD:
        if not len(shared([one.said[split] for one in found])):
            raise DatasetError(
                f"{context.dataset.name}: no {split} image was scored by all heads "
                "that may be averaged; the quarantine table tells what encoders "
                "refused"
            )


def _times(found: Sequence[_Scored], ensemble: Ensemble) -> list[int]:
    """How often each of ``found`` counts: one of an encoder, or as ``greedy`` says."""
    if ensemble == "greedy":
        return greedy([one.said[VALIDATION] for one in found])
    best: dict[str, _Scored] = {}
    for one in found:
        known = best.setdefault(one.row["encoder_key"], one)
        if (one.accuracy, -one.log_loss) > (known.accuracy, -known.log_loss):
            best[one.row["encoder_key"]] = one
    chosen = {one.evaluation.key for one in best.values()}
    return [int(one.evaluation.key in chosen) for one in found]


def _document(
    context: Context, evaluations: Sequence[Artifact], ensemble: Ensemble
) -> KeyDocument:
    heads = {artifact.fingerprint: None for artifact in evaluations}
    return key_document(
        "average",
        VERSION,
        {
            "family": ensemble,
            "control": bool(context.control),
            "seed": context.seed,
            "calibration": context.calibration,
            "error": context.error,
        },
        {"evaluations": digest(list(heads))},
    )


def _told(store: Store, made: Artifact) -> str:
    about = store.provenance(made)
    said = f"{len(about['members'])} of {about['candidates']} heads"
    if about["left_out"]:
        said += f"; {about['left_out']:,} images that not all of them scored left out"
    return said


def _scored(store: Store, evaluation: Artifact) -> _Scored:
    folder = store.path(evaluation)
    chosen = [row for row in tables.read(METRICS, folder).to_pylist() if row["chosen"]]
    value = {r["metric"]: r["value"] for r in chosen if r["split"] == VALIDATION}
    classes = json.loads((folder / "chosen.json").read_text())["classes"]
    rows = tables.read(PREDICTIONS, folder).sort_by("image_id")
    splits = np.array(rows["split"].to_pylist())
    said = {
        split: _said(rows.filter(pa.array(splits == split)), classes) for split in _HELD
    }
    return _Scored(evaluation, chosen[0], value["accuracy"], value["log_loss"], said)


def _said(rows: pa.Table, classes: list[str]) -> Said:
    flat = rows["probabilities"].combine_chunks().flatten().to_numpy()
    return Said(
        np.array(rows["image_id"].to_pylist()),
        np.array(rows["label"].to_pylist()),
        classes,
        flat.reshape(len(rows), len(classes)),
    )


def _write(
    context: Context,
    members: Sequence[_Scored],
    times: Sequence[int],
    whole: dict[str, Said],
    groups: Mapping[str, str],
    document: KeyDocument,
    folder: Path,
) -> str:
    from tl_pipeline import calibration, evaluation, operating_point  # noqa: PLC0415
    from tl_pipeline.metrics import scores  # noqa: PLC0415 - scipy

    seed, validation, test = context.seed, whole[VALIDATION], whole[TEST]
    belongs = units(validation.image_ids.tolist(), groups)
    targets = evaluation.targets_of(validation.labels, validation.classes)
    given = validation.probabilities
    crossed = calibration.cross_fitted(context.calibration, given, targets, belongs)
    point = operating_point.fit(
        context.calibration, given, crossed, targets, belongs, context.error
    )
    found = {
        VALIDATION: scores(validation.labels, validation.classes, crossed, seed),
        TEST: evaluation.scores_at(
            point, test.probabilities, test.labels, test.classes, seed
        ),
    }
    calibrated = {
        VALIDATION: replace(validation, probabilities=crossed),
        TEST: replace(test, probabilities=point.calibration.apply(test.probabilities)),
    }
    key, family = digest(document), document["params"]["family"]
    what = _LABELS[family]
    encoders = list(dict.fromkeys(member.row["encoder"] for member in members))
    keys = list(dict.fromkeys(member.row["encoder_key"] for member in members))
    about = {
        "evaluation": key,
        "encoder_key": "+".join(keys),
        "encoder": ", ".join(encoders)
        if len(encoders) <= _NAMED
        else f"{len(encoders)} encoders",
        "family": family,
        "head": f"{what} of {len(members)} heads",
        "chosen": True,
    }
    metrics = [
        row
        for split, said in calibrated.items()
        for row in metric_rows(
            about | {"split": split, "images": len(said.image_ids)}, found[split]
        )
    ]
    tables.write(METRICS, tables.from_rows(METRICS, metrics), folder)
    rows = [
        predictions(
            {"evaluation": key, "split": split},
            said.image_ids.tolist(),
            said.labels,
            said.classes,
            said.probabilities,
            point,
        )
        for split, said in calibrated.items()
    ]
    tables.write(PREDICTIONS, pa.concat_tables(rows), folder)
    chosen = {
        "members": [
            {"evaluation": member.evaluation.key, "times": count}
            for member, count in zip(members, times, strict=True)
        ],
        "classes": whole[TEST].classes,
    }
    (folder / "chosen.json").write_text(json.dumps(chosen, ensure_ascii=False))
    point.write(folder)
    return key
