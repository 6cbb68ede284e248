"""An S3 server for tests: moto's, in a thread, which can be told to misbehave."""

import itertools
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from threading import Lock, Thread
from typing import Any

SECRET = "very-secret-0123456789"
Environment = dict[str, Any]


def _backend() -> Any:
    """What moto holds."""
    from moto.s3.models import s3_backends

    return s3_backends["123456789012"]["aws"]


def _application() -> Any:
    from moto.server import DomainDispatcherApplication, create_backend_app

    return DomainDispatcherApplication(create_backend_app)


_numbers = itertools.count()


@dataclass
class ObjectStore:
    """The server: what was asked of it, and its buckets.

    ``before`` sees (method, path) of each request; if it returns a status, that is the
    answer. ``after`` may change the body of an answer to a GET of an object. Without
    ``conditions`` it writes whatever the condition of a write.
    """

    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    received: int = 0
    active: int = 0
    before: Callable[[str, str], int | None] | None = None
    after: Callable[[str, bytes], bytes] | None = None
    conditions: bool = True
    lock: Any = field(default_factory=Lock)
    app: Any = field(default_factory=_application)
    _listening: Any = None

    def bucket(self, name: str) -> str:
        """Make a bucket of its own, whose name begins with ``name``; its URL."""
        name = f"{name}-{next(_numbers)}"
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        with urllib.request.urlopen(request):
            return f"s3://{name}"

    def objects(self, url: str) -> dict[str, bytes]:
        """Name below ``url`` -> bytes."""
        return {name: key.value for name, key in self._keys(url)}

    def copy(self, url: str, to: str) -> None:
        """Everything below ``url``, as it is and as old as it is."""
        there = to.removeprefix("s3://").partition("/")
        for name, key in list(self._keys(url)):
            put = _backend().put_object
            made = put(there[0], f"{there[2]}/{name}", key.value)
            made.last_modified = key.last_modified

    def age(self, url: str, days: float) -> None:
        """Make everything below ``url`` that many days older."""
        for _, key in self._keys(url):
            key.last_modified -= timedelta(days=days)

    def put(self, url: str, data: bytes) -> None:
        """Write an object, or replace it."""
        bucket, _, name = url.removeprefix("s3://").partition("/")
        _backend().put_object(bucket, name, data)

    def forget(self) -> None:
        """Begin to count anew."""
        self.requests.clear()
        self.sent = self.received = 0

    def _keys(self, url: str) -> Iterator[tuple[str, Any]]:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        keys = _backend().buckets[bucket].keys
        prefix = f"{prefix}/" if prefix else ""
        for name, key in sorted(keys.items()):
            if name.startswith(prefix):
                yield name.removeprefix(prefix), key

    def start(self, port: int = 0) -> None:
        """Listen, on a free port unless ``port`` is given."""
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *_: object, **__: object) -> None:
                pass

        make = partial(make_server, threaded=True, request_handler=Quiet)
        self._listening = server = make("127.0.0.1", port, self)
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"

    def stop(self) -> None:
        """Listen no more, and answer nobody who is connected."""
        server, self._listening = self._listening, None
        server.shutdown()
        server.server_close()

    def restart(self, seconds: float) -> None:
        """Be away for so long; what is stored stays."""
        port = self._listening.server_port
        self.stop()
        time.sleep(seconds)
        self.start(port)

    def settle(self) -> None:
        """Wait for what is still done for clients, also for those that were killed."""
        while self.active:
            time.sleep(0.01)

    def __call__(self, environ: Environment, start: Any) -> Iterable[bytes]:
        if self._listening is None:
            raise ConnectionResetError
        with self.lock:
            self.active += 1
        try:
            return self._answer(environ, start)
        finally:
            with self.lock:
                self.active -= 1

    def _answer(self, environ: Environment, start: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        status = self.before(method, path) if self.before else None
        with self.lock:
            self.requests.append((method, path))
            self.received += int(environ.get("CONTENT_LENGTH") or 0)
        if status is not None:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(f"{status} no", [("Content-Length", "0")])
            return [b""]
        if not self.conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        answer: list[Any] = []
        body = b"".join(self.app(environ, lambda *given: answer.extend(given)))
        if self.after and method == "GET":
            body = self.after(path, body)
        headers = [pair for pair in answer[1] if pair[0].lower() != "content-length"]
        if method != "HEAD":
            headers.append(("Content-Length", str(len(body))))
            self.sent += len(body)
        else:
            headers = answer[1]
        start(answer[0], headers)
        return [body]


@contextmanager
def serving() -> Iterator[ObjectStore]:
    """A server on a free port of this machine."""
    store = ObjectStore()
    store.start()
    try:
        yield store
    finally:
        store.stop()


def environment(server: ObjectStore) -> dict[str, str]:
    """What a machine that may use the server has in its environment."""
    return {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "TESTKEY12345",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }
