"""Processes that read for a GPU: the same images, the same faults, and none left."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from tl_pipeline.config.datasets import ImageFolderSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.embedding import readers
from tl_pipeline.embedding.readers import Looked, Readers
from tl_pipeline.errors import StoreError, WorkerLost
from tl_pipeline.inputs.images import RefusedImage
from tl_pipeline.sources.image_folder import ImageFolder

EVERY = frozenset({(1, 1), (1, 2), (2, 2)})
Images = list[tuple[str, str]]


def photo(kind: str, colour: int) -> bytes:
    kept = io.BytesIO()
    Image.new("RGB", (20 + colour, 30), (colour, 0, 0)).save(kept, kind)
    return kept.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """JPEGs and others, among them some that changed, vanished or are empty."""
    held = {f"{at:02}.jpg": photo("JPEG", at) for at in range(30)}
    held |= {"as.png": photo("PNG", 1), "text.jpg": b"no image", "empty.jpg": b""}
    found: Images = []
    for name, data in held.items():
        (tmp_path / name).write_bytes(data)
        found.append((image_id(data), str(tmp_path / name)))
    (tmp_path / "03.jpg").write_bytes(b"changed")
    (tmp_path / "04.jpg").unlink()
    return found


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], bytes]:
    """As stages read."""
    return ImageFolder(ImageFolderSpec(name="some", path=tmp_path)).read


@pytest.fixture
def process(read: Callable[[str], bytes]) -> Iterator[Readers]:
    """One, for the thread of the test."""
    made = Readers(read, EVERY)
    made.enlist()
    yield made
    made.close()


def plain(found: list[Looked]) -> list[tuple[object, object]]:
    """What can be compared."""
    return [
        (str(data) if isinstance(data, RefusedImage) else bytes(data), size)
        for data, size in found
    ]


def pids(of: int) -> list[int]:
    """The children of a process."""
    tasks = Path(f"/proc/{of}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def wait_for(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_sees_what_a_thread_sees(
    process: Readers, images: Images, read: Callable[[str], bytes]
):
    found, seconds = process(images)
    assert plain(found) == plain([readers.look(one, read, EVERY) for one in images])
    assert seconds > 0
    assert [size for _, size in found].count(None) == 5
    assert found[29].size == (30, 49)
    kinds = [data.reason for data, _ in found if isinstance(data, RefusedImage)]
    assert kinds == ["changed", "unreadable"]
    # what is held stays as it is while the next ones are read
    process(images[::-1])
    assert plain(found) == plain([readers.look(one, read, EVERY) for one in images])


def test_nothing_but_faults_is_read_too(process: Readers, images: Images):
    found, _ = process([*images[3:5], images[-1]])
    assert [size for _, size in found] == [None] * 3
    assert bytes(found[2].data) == b""


def test_each_thread_has_a_process_and_none_is_left(
    images: Images, read: Callable[[str], bytes]
):
    before, every = set(pids(os.getpid())), Readers(read, EVERY)
    with ThreadPoolExecutor(3, initializer=every.enlist) as threads:
        parts = [images[at : at + 2] for at in range(0, len(images), 2)]
        found = [one for some, _ in threads.map(every, parts) for one in some]
        started = set(pids(os.getpid())) - before
    assert 1 <= len(started) <= 3
    assert plain(found) == plain([readers.look(one, read, EVERY) for one in images])
    every.close()
    assert not started & set(pids(os.getpid()))


def test_a_process_that_is_killed_is_told(process: Readers, images: Images):
    process(images)
    os.kill(pids(os.getpid())[-1], signal.SIGKILL)
    with pytest.raises(WorkerLost, match=r"ended with -9 .* run again"):
        process(images)


def test_processes_end_with_who_started_them():
    script = (
        "import sys, time\n"
        "from tl_pipeline.embedding.readers import Readers\n"
        "every = Readers(str.encode, frozenset())\n"
        "every.enlist()\n"
        "every([('x', '/nowhere')])\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        told = parent.stdout.readline()
        (child,) = pids(parent.pid)
        parent.kill()
    assert told == "ready\n"
    wait_for(lambda: not Path(f"/proc/{child}").exists() or is_zombie(child))


def is_zombie(pid: int) -> bool:
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


class Odd(Exception):
    """Cannot be sent: it wants more than its message."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def fail(uri: str) -> bytes:
    """Faults that are of no image."""
    if uri == "odd":
        raise Odd("very", "odd")
    raise StoreError(f"{uri}: the store is gone")


def test_a_fault_of_the_source_is_raised_here():
    every = Readers(fail, EVERY)
    every.enlist()
    with pytest.raises(StoreError, match="some: the store is gone"):
        every([("x", "some")])
    with pytest.raises(RuntimeError, match="Odd: very odd"):
        every([("x", "odd")])
    every.close()


def test_files_are_for_processes_and_rows_of_tables_are_not(images: Images):
    assert readers.suit(images)
    assert not readers.suit([images[0], ("x", f"{images[1][1]}#row=3")])


def test_a_process_that_reads_starts_without_torch():
    script = (
        "import sys\nfrom tl_pipeline import sources\n"
        "from tl_pipeline.embedding import readers\n"
        "print({'torch', 'pandas', 'sklearn'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout == "set()\n"
