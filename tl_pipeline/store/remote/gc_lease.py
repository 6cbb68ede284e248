"""The one object by which a collection tells all machines what it is about to remove.

A store that holds objects alone has no lock. So who collects first posts this notice
and only then looks at what is used; who comes to use something first says so (by its
run record, or a mark) and only then reads the notice. One of the two sees the other:
either the collection spares it, or the user waits until the collection is over and
sees what is left. Clocks of several machines are not compared: a notice that does not
change while somebody watches it is of a process that died.
"""

import contextlib
import json
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from tl_pipeline.errors import StoreError
from tl_pipeline.storage.objects import Objects

NAME = ".collecting.json"
_RENEWED_S = 10.0  # after which a collection renews its notice
_ASLEEP_S = 30.0  # after which one that could not renew it must not go on
_DEAD_S = 60.0  # after which others believe that it died
_LOOK_S = 1.0


class Notice:
    """That of this process, which is removing ``places``."""

    def __init__(self, objects: Objects, places: list[str]) -> None:
        self._objects = objects
        self._about = {
            "host": platform.node(),
            "id": uuid.uuid4().hex,
            "places": places,
        }
        self._renewed, self._times = time.time(), 0
        self._lock = threading.Lock()

    def text(self) -> bytes:
        """What it says now; another text each time that it is renewed."""
        return json.dumps({**self._about, "times": self._times}).encode()

    def renew(self) -> None:
        """Say that we are alive; to be called before each deletion, from any thread.

        Raises:
            StoreError: we were held up so long that others may believe us dead.
        """
        with self._lock:
            # not monotonic, which stands still while a machine sleeps
            since = time.time() - self._renewed
            if since > _ASLEEP_S:
                raise StoreError(
                    f"tl store gc stood still for {since:.0f} s, so others no longer "
                    "wait for it; what was removed is removed, collect again"
                )
            if since > _RENEWED_S:
                self._times += 1
                self._objects.write(NAME, self.text())
                self._renewed = time.time()


@contextlib.contextmanager
def posted(objects: Objects, places: list[str]) -> Iterator[Notice]:
    """Tell all machines that ``places`` are being removed, as long as the block lasts.

    Raises:
        StoreError: another collection is under way.
    """
    notice = Notice(objects, places)
    if not objects.create(NAME, notice.text()):
        _outlive(objects)
        objects.remove(NAME)
        taken = objects.create(NAME, notice.text())
        time.sleep(2 * _LOOK_S)  # another that outlived it, too, may take it from us
        if not taken or _read(objects) != notice.text():
            raise _busy(objects)
    try:
        yield notice
    finally:
        # what hinders this hindered the block, and is told by it
        with contextlib.suppress(StoreError):
            objects.remove(NAME)


def wait(objects: Objects, concerned: Callable[[str], bool]) -> None:
    """Return when no collection is removing a place of which ``concerned`` is true."""
    seen, since = b"", 0.0
    while (text := _read(objects)) is not None:
        if not any(map(concerned, json.loads(text)["places"])):
            return
        if text != seen:
            seen, since = text, time.monotonic()
        elif time.monotonic() - since > _DEAD_S:
            return
        time.sleep(_LOOK_S)


def _outlive(objects: Objects) -> None:
    """Watch the notice of another until it is sure that its process died.

    Raises:
        StoreError: it lives.
    """
    seen, since = _read(objects), time.monotonic()
    while seen is not None and time.monotonic() - since <= _DEAD_S:
        time.sleep(_LOOK_S)
        if (text := _read(objects)) is not None and text != seen:
            raise _busy(objects)
        seen = text


def _busy(objects: Objects) -> StoreError:
    text = _read(objects)
    host = json.loads(text)["host"] if text else "another machine"
    return StoreError(
        f"{objects.url}: a tl store gc on {host} is under way; wait until it ends. "
        "Nothing was removed"
    )


def _read(objects: Objects) -> bytes | None:
    try:
        return objects.read(NAME)
    except FileNotFoundError:
        return None
