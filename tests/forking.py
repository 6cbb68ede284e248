"""``tl`` for tests that type it many times: its imports are done once.

A process that has imported everything forks for each command. The fork has the words,
the folder, the environment and the three streams of whoever typed it. That the imports
succeed in a new process is left to test_cli.py.
"""

import atexit
import gc
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from tests.conftest import REPOSITORY
from tl_pipeline.cli import main

_AT_ONCE = 1 << 16  # bytes
_IMPORTED = (
    "flows.transfer_learning",
    "mlflow",
    "tl_pipeline.embedding.engine",
    "tl_pipeline.registry.prediction",
    "tl_pipeline.registry.index",
)

# What stands in for ``tl``: it starts in the time of an empty Python.
_TYPED = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect(sys.argv[1])
    said = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(line, [b" "], [0, 1, 2])
    line.sendall(said + b"\\n")
    code = line.recv(16)
    line.recv(1)  # nothing comes, but the end of the process
sys.exit(int(code or 70))
"""


@contextmanager
def forking_tl(environment: dict[str, str]) -> Iterator[Path]:
    """A folder in which ``tl`` is, as long as the block runs."""
    # Names of sockets are short, and temporary folders of tests are not.
    with tempfile.TemporaryDirectory(prefix="tl-", dir="/tmp") as place:
        folder = Path(place)
        (folder / "typed.py").write_text(_TYPED)
        words = (sys.executable, "-IS", str(folder / "typed.py"), str(folder / "line"))
        tl = folder / "tl"
        tl.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        tl.chmod(0o755)
        command = [sys.executable, "-m", "tests.forking", words[-1]]
        with subprocess.Popen(command, cwd=REPOSITORY, env=environment) as process:
            try:
                while not (folder / "line").exists():
                    assert process.poll() is None, "it ended instead of listening"
                    time.sleep(0.05)
                yield folder
            finally:
                process.kill()


def _listen(address: str) -> None:
    """Fork for each that types; this returns in none but the forks."""
    for name in _IMPORTED:
        import_module(name)
    assert threading.active_count() == 1, "a fork has none but the first thread"
    gc.freeze()  # else each fork searches all that was imported, which copies it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{address}.new")
        door.listen()
        Path(f"{address}.new").rename(address)
        line = door.accept()[0]
        while os.fork():
            line.close()
            line = door.accept()[0]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _become(line)
    code = 1
    try:
        main.main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - as Python shows it
        traceback.print_exc()
    line.send(str(code).encode())
    # As any process ends, but for taking apart all that was imported.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _become(line: socket.socket) -> None:
    """Take the place of who typed."""
    _, streams, _, _ = socket.recv_fds(line, 1, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    said = b""
    while not said.endswith(b"\n"):
        said += line.recv(_AT_ONCE)
    words, folder, environment = json.loads(said)
    sys.argv = ["tl", *words]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)


if __name__ == "__main__":
    _listen(sys.argv[1])
