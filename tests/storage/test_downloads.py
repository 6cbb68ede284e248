"""What other libraries download: told in a line, and given up when nothing comes."""

import socket
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.command_line import in_this_process
from tl_pipeline.errors import WeightsError
from tl_pipeline.storage import downloads, places

FILE = "resnet18-f37072fd.pth"


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    monkeypatch.setattr(downloads, "SILENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def answering() -> Iterator[str]:
    """The address of a server that promises 2.5 MB and sends 3 bytes of them."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2500000")
            self.end_headers()
            self.wfile.write(b"abc")
            self.wfile.flush()
            ended.wait(60)

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    ended = threading.Event()
    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_weights_that_a_silent_server_holds_back_are_one_message(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from torchvision.models import ResNet18_Weights

    entries = "version: 1\ndatasets: {digits: {type: digits}}\n"
    (tmp_path / "data_catalog.yaml").write_text(entries)
    url = f"{silent}/{FILE}"
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", url)
    tl = in_this_process(tmp_path, monkeypatch, TORCH_HOME=str(tmp_path / "torch"))
    done = tl("run", "digits", "--backbone", "resnet18", "--runner", "direct")
    assert (done.returncode, done.stdout) == (2, "")
    *_, said = done.stderr.strip().splitlines()
    place = tmp_path / "torch" / "hub" / "checkpoints" / FILE
    assert said.startswith("WeightsError: weights IMAGENET1K_V1 are not on disk")
    assert f"put {FILE} (45 MB, from {url}) at {place}" in said
    assert f"nothing came from {url} for 0.2 s: " in said
    assert said.endswith("or bring the file from another machine")


def test_images_that_a_silent_server_holds_back_are_one_message(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", f"{silent}/cifar.tar.gz")
    (tmp_path / "data_catalog.yaml").write_text(
        "version: 1\n"
        "datasets:\n"
        "  small: {type: torchvision, dataset: CIFAR10, path: data, download: true}\n"
    )
    done = in_this_process(tmp_path, monkeypatch)("catalog", "show", "small")
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.strip().splitlines()
    assert said.startswith("DatasetError: CIFAR10 (train) in ")
    assert f"nothing came from {silent}/cifar.tar.gz for 0.2 s: " in said
    assert "try again or put its files there" in said


def test_a_table_at_a_silent_server_is_one_message(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = f"{silent}/rows.csv"
    (tmp_path / "data_catalog.yaml").write_text(
        "version: 1\n"
        "datasets:\n"
        f"  w: {{type: table, path: {url}, image_column: a, label_column: b}}\n"
    )
    monkeypatch.setattr(places, "_WAITS", ())
    done = in_this_process(tmp_path, monkeypatch)("catalog", "show", "w")
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.strip().splitlines()
    assert said.startswith(
        f"DatasetError: {url}: Timeout on reading data from socket; "
    )
    assert "nothing came from there for 0.2 s: does a proxy or firewall" in said


def test_a_download_that_stops_halfway_is_told_with_its_size(
    answering: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(downloads, "SILENCE", 0.2)
    before = getattr(urllib.request, "_opener", None)

    def fetch() -> None:
        try:
            urllib.request.urlretrieve(f"{answering}/a.pth?sig=x", tmp_path / "a")
        except OSError as error:
            raise WeightsError(f"a.pth: {error}") from None

    with pytest.raises(WeightsError) as stopped, downloads.watched():
        fetch()
    assert f"nothing came from {answering}/a.pth?... for 0.2 s" in str(stopped.value)
    assert capsys.readouterr().err == f"downloading {answering}/a.pth?... (2.5 MB)\n"
    assert getattr(urllib.request, "_opener", None) is before


def test_another_error_stays_as_it_is():
    fault = WeightsError("no such file")
    with pytest.raises(WeightsError) as raised, downloads.watched():
        raise fault
    assert raised.value is fault
