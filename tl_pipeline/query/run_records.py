"""What all run records of a store tell, as far as the SQL catalogue needs it in Python.

Records are read as plain JSON: those of other versions count, too.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tl_pipeline import progress
from tl_pipeline.runs.records import JointEncoder

_NEEDED = ("run_id", "dataset", "manifest", "results")


@dataclass
class Known:
    """What all readable records tell.

    ``files`` are those of the records. ``joints`` has the encoders of several by key,
    ``registered`` (model, version) -> (run id, end of the run in UTC) of the first run
    that registered it, ``current`` (dataset, encoder, kind of head) -> (run id,
    evaluations) of the last run that had it. ``evaluations`` are those of all records.
    """

    files: list[Path] = field(default_factory=list)
    joints: dict[str, JointEncoder] = field(default_factory=dict)
    registered: dict[tuple[str, int], tuple[str, datetime]] = field(
        default_factory=dict
    )
    current: dict[tuple[str, str, str], tuple[str, list[str]]] = field(
        default_factory=dict
    )
    evaluations: set[str] = field(default_factory=set)

    def add(self, file: Path, record: Mapping[str, Any]) -> None:
        """Take in a record; those that were added before are older."""
        self.files.append(file)
        for joint in record.get("joints", ()):
            self.joints[joint["key"]] = JointEncoder.model_validate(joint)
        if (model := record.get("registered")) and "finished" in record:
            name = (model["name"], model["version"])
            self.registered.setdefault(name, (record["run_id"], _finished(record)))
        for result in record["results"]:
            family = result["head"].partition("(")[0]
            what = (record["dataset"], result["encoder"], family)
            run_id, evaluations = self.current.get(what, ("", []))
            if run_id != record["run_id"]:
                evaluations = []
                self.current[what] = (record["run_id"], evaluations)
            if result["evaluation"] not in evaluations:
                evaluations.append(result["evaluation"])
            self.evaluations.add(result["evaluation"])


def known(files: Iterable[Path]) -> Known:
    """What ``files`` tell, which are oldest first.

    Those that are no run records are named in a notice.
    """
    found = Known()
    for file in files:
        try:
            record = json.loads(file.read_bytes())
        except FileNotFoundError:
            continue
        except ValueError:  # no JSON, or no text
            record = None
        if isinstance(record, dict) and all(name in record for name in _NEEDED):
            found.add(file, record)
        else:
            progress.notice(f"left {file} out of the SQL catalogue: no run record")
    return found


def _finished(record: Mapping[str, Any]) -> datetime:
    finished = datetime.fromisoformat(record["finished"])
    return finished.astimezone(UTC).replace(tzinfo=None)
