"""A process that is killed while MLflow writes leaves a database that can be read."""

import signal
import subprocess
import sys
from pathlib import Path

from tl_pipeline.registry import connection, sqlite

# Half of its pages are on the disk when it dies, and the old ones in the journal.
WRITER = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN")
for number in range(5_000):
    database.execute(
        "INSERT INTO registered_models (name) VALUES (?)", (f"{number:0200}",)
    )
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_rolled_back(tmp_path: Path):
    file = tmp_path / "mlflow.db"
    connection.make_empty(file)
    before = file.stat().st_size
    done = subprocess.run([sys.executable, "-c", WRITER, file], check=False)
    assert done.returncode == -signal.SIGKILL
    journal = file.with_name("mlflow.db-journal")
    assert journal.exists()
    assert file.stat().st_size > before
    assert sqlite.read(file) == []
    assert not journal.exists()
    assert file.stat().st_size == before
