"""What a machine may refuse: one message that names the cure, and exit code 2."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tl_pipeline.cli import main
from tl_pipeline.config.specs import RunSpec
from tl_pipeline.errors import InvalidSpec, ServerError, StoreError
from tl_pipeline.pipeline import wiring
from tl_pipeline.store.artifacts import Store

NOBODY = "http://127.0.0.1:1/api"
PARAMETERS = {"runner": "threads", "address": None, "dataset": "digits"}


def test_a_server_that_does_not_answer_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import launch

    monkeypatch.setattr(launch, "_PATIENCE", 0)
    there = temporary_settings({PREFECT_API_URL: NOBODY})
    with there, pytest.raises(ServerError) as refused:
        launch.run_here(PARAMETERS)
    assert str(refused.value).startswith(
        f"the Prefect server at {NOBODY} does not answer ("
    )
    assert str(refused.value).endswith("or do without: tl run --runner direct")


@pytest.mark.parametrize("cron", ["banana", "* * *", "61 2 * * *"])
def test_a_schedule_that_is_none_is_refused_before_anything_is_served(cron: str):
    from flows import launch

    with pytest.raises(InvalidSpec, match=r"give five fields \(minute, hour"):
        launch.serve("served", cron, PARAMETERS)


def test_serving_without_a_server_is_refused():
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import launch

    nowhere = temporary_settings({PREFECT_API_URL: None})
    with nowhere, pytest.raises(ServerError, match="no schedule would ever fire"):
        launch.serve("served", "0 2 * * *", PARAMETERS)


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "Free some space, or put --store on another disk"),
        (errno.EFBIG, "Allow larger files (ulimit -f)"),
        (errno.EROFS, "The disk is read-only: put --store on another"),
        (errno.EACCES, "Ask for permission to it"),
    ],
)
def test_what_the_disk_refuses_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    cure: str,
):
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number), "tl_store/x.parquet")

    monkeypatch.setattr(main, "app", full)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(
        f"MachineError: {os.strerror(number)}: tl_store/x.parquet. {cure}"
    )
    assert said.count("\n") == 1


def test_a_store_that_cannot_be_written_is_refused_before_any_stage(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    store.create()
    spec = RunSpec(dataset=str(folder), controls=False)
    work = wiring.prepare(spec, store)

    def read_only(**_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(StoreError, match=r"cannot write to the store .* name another"):
        wiring.run(work)
    assert not (store.root / "manifests").exists()
