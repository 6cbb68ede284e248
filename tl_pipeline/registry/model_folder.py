"""A model folder as it is written, and what in it counts for whether two are the same.

Beside what ``model`` reads it holds ``MLmodel``, by which MLflow loads it with code of
this package and without a pickle.
"""

import json
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tl_pipeline import heads
from tl_pipeline.config.specs import HeadConfig
from tl_pipeline.encoders.concat import AnyEncoder, members_of, unique_members
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.encoders.weight_store import located
from tl_pipeline.errors import DamagedArtifact
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import PROVENANCE, Artifact, Store
from tl_pipeline.store.keys import digest
from tl_pipeline.store.tables import METRICS

MODEL = "model.json"
MLMODEL = "MLmodel"
# The format of ``model.json`` where there are several encoders or heads.
SEVERAL = 2
# ``operating_point.FILE``, whose module takes two seconds to import.
_POINT = "calibration.json"
_LOADER = "tl_pipeline.registry.pyfunc"
# One column of any name: files, or their contents as bytes.
_INPUTS = [{"type": "any", "required": True}]
_OUTPUTS = [
    {"type": "string", "name": "label", "required": False},
    {"type": "double", "name": "confidence", "required": False},
    {
        "type": "array",
        "items": {"type": "string"},
        "name": "labels",
        "required": False,
    },
    {"type": "boolean", "name": "accepted", "required": False},
    {"type": "string", "name": "refused", "required": False},
]


def write(
    store: Store,
    dataset: str,
    best: Artifact,
    chosen_by: str,
    encoders: Mapping[str, AnyEncoder],
    manifest: str,
    folder: Path,
) -> None:
    """Write the model of the evaluation ``best`` into ``folder``.

    ``chosen_by`` tells by what it was chosen; ``encoders`` has the encoder of each
    evaluation of one head, by its key. ``manifest`` is the key of the images of the
    run.

    Raises:
        DamagedArtifact: a head is not in the store.
    """
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
        "manifest": manifest,
    }
    text = json.dumps(model, indent=1, ensure_ascii=False)
    (folder / MODEL).write_text(text)
    write_mlmodel(folder)


def write_mlmodel(folder: Path) -> None:
    """Write the file by which MLflow loads the model in ``folder``; YAML, as JSON."""
    about = {
        "flavors": {
            "python_function": {
                "loader_module": _LOADER,
                "python_version": platform.python_version(),
            }
        },
        "mlflow_version": metadata.version("mlflow-skinny"),
        "signature": {
            "inputs": json.dumps(_INPUTS),
            "outputs": json.dumps(_OUTPUTS),
            "params": None,
        },
    }
    (folder / MLMODEL).write_text(json.dumps(about, indent=1))


def encoders_of(folder: Path, store: Store) -> tuple[Encoder, ...]:
    """Every encoder that an input of the model must go through, once.

    Its weights are those that ``store`` keeps. Heads are not loaded for it.
    """
    about = json.loads((folder / MODEL).read_text())
    rows = about.get("members") or [{"encoders": [about["encoder"]]}]
    found = [Encoder.model_validate(one) for row in rows for one in row["encoders"]]
    return unique_members(located(encoder, store) for encoder in found)


def content(folder: Path) -> str | None:
    """A digest of what predicts in the model folder; None if the folder is not whole.

    That is heads and encoders by their keys, operating points, and how they are put
    together: not the grid in which a head was found, nor what its weights are called.
    """
    try:
        files = json.loads((folder / PROVENANCE).read_text())["files"]
        about = json.loads((folder / MODEL).read_text())
    except (FileNotFoundError, ValueError):
        return None
    points = {
        name: facts["sha256"]
        for name, facts in files.items()
        if Path(name).name == _POINT
    }
    members = [
        [row["folder"], row["times"], row["encoder_keys"], row["head"]]
        for row in about.get("members", ())
    ]
    single = [about.get("encoder_key"), about.get("head")]
    return digest([points, members, single, about["classes"]])


def _metrics(store: Store, evaluation: Artifact) -> dict[str, dict[str, Any]]:
    """Split -> metric -> value, low, high of the chosen configuration."""
    found: dict[str, dict[str, Any]] = {}
    for row in tables.read(METRICS, store.path(evaluation)).to_pylist():
        if row["chosen"]:
            score = {name: row[name] for name in ("value", "low", "high")}
            found.setdefault(row["split"], {})[row["metric"]] = score
    return found


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
    place = store.path(Artifact("evaluations", evaluation, ""))
    shutil.copyfile(place / _POINT, folder / _POINT)


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
