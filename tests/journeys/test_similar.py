"""``tl similar``: a table, a contact sheet, and one message for each fault."""

import html
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import tl_pipeline
from tests.command_line import Tl, in_this_process


@pytest.fixture
def tl(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tl:
    """``tl`` in a folder with ``photos``, which a run has embedded."""
    assert folder.name == "photos"
    found = in_this_process(tmp_path, monkeypatch)
    words = ("--head", "ridge:alpha=1", "--no-controls", "--runner", "direct")
    assert found("run", "photos", *words).returncode == 0
    return found


def test_the_images_most_like_a_new_one_and_a_stored_one(
    folder: Path, tmp_path: Path, tl: Tl
):
    stored = folder / "flower" / "004.jpg"
    new = tmp_path / "it's <new> & ü.jpg"
    new.write_bytes(stored.read_bytes() + b"\0")  # the same pixels, another id

    found = tl("similar", new.name, "-k", "3", "--html", "sheet.html", "--json")
    assert (found.returncode, found.stderr) == (0, "")
    rows = json.loads(found.stdout)
    assert [row["uri"] for row in rows[:1]] == [str(stored.resolve())]
    assert rows[0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert len(rows) == 3

    page = (tmp_path / "sheet.html").read_text()
    assert "it&#39;s &lt;new&gt; &amp; ü.jpg" in page
    assert len(re.findall('<img src="data:image/webp;base64', page)) == 4
    shown = re.findall("<b>([01].[0-9]{3})</b>", page)
    said = [row["similarity"] for row in rows]
    assert [float(one) for one in shown] == pytest.approx(said, abs=1e-3)
    assert "http" not in page

    shown = tl_pipeline.open("tl_store").similar(new.name, k=3)
    assert shown.frame["uri"].tolist() == [row["uri"] for row in rows]
    (inside,) = re.findall('<iframe srcdoc="([^"]*)"', shown._repr_html_())
    assert html.unescape(inside) == page

    again = tl("similar", "photos/flower/004.jpg", "-k", "2", "--html", "again.html")
    lines = again.stdout.splitlines()
    assert [line.split() for line in lines[1:3]] == [
        [str(row["similarity"]), row["label"], row["split"], "photos", row["uri"]]
        for row in rows[1:3]
    ]
    assert lines[3:] == ["contact sheet: again.html"]
    assert "flower" in (tmp_path / "again.html").read_text()

    moved = folder.rename(tmp_path / "moved")
    tl("similar", new.name, "-k", "3", "--html", "gone.html")
    page = (tmp_path / "gone.html").read_text()
    assert len(re.findall('<img src="data:image/webp;base64', page)) == 1
    assert page.count("no picture: data_catalog.yaml: no such file.") == 3
    moved.rename(folder)

    (tmp_path / "text.jpg").write_text("no image")
    for words, said in (
        (["none.jpg"], "InvalidSpec: none.jpg is no file, nor the id or uri of"),
        (["text.jpg"], "InvalidSpec: text.jpg: not an image"),
        ([new.name, "--encoder", "lenet"], "UnknownName: unknown encoder 'lenet'. Did"),
        ([new.name, "-k", "0"], "InvalidSpec: k=0: ask for 1 neighbour or more"),
        ([new.name, "--html", "no/x.html"], "InvalidSpec: cannot write no/x.html: No "),
        ([new.name, "--store", "none"], "StoreError: "),
    ):
        fault = tl("similar", *words)
        assert (fault.returncode, fault.stdout) == (2, "")
        assert fault.stderr.startswith(said)
        assert len(fault.stderr.splitlines()) == 1


def test_new_files_are_embedded_as_a_run_would(folder: Path, tmp_path: Path, tl: Tl):
    files = [str(folder / "flower" / name) for name in ("004.jpg", "000.jpg")]
    done = tl("embed", *files, "-o", "new.parquet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    stored = tl_pipeline.open(tmp_path / "tl_store").embeddings("photos")
    by_uri = dict(zip(stored.uris, stored.vectors, strict=True))
    rows = pq.read_table(tmp_path / "new.parquet").to_pylist()
    assert [row["file"] for row in rows] == files
    for row in rows:
        known = by_uri[str(Path(row["file"]).resolve())]
        assert row["embedding"] == pytest.approx(known.tolist(), abs=1e-5)
    tl("embed", files[0], "-o", "new.jsonl")
    (line,) = (tmp_path / "new.jsonl").read_text().splitlines()
    assert json.loads(line)["embedding"] == pytest.approx(rows[0]["embedding"])
    for words, said in (
        (["none.jpg", "-o", "x.csv"], "InvalidSpec: none.jpg: "),
        ([files[0], "-o", "x.npy"], "InvalidSpec: in which format is x.npy"),
    ):
        fault = tl("embed", *words)
        assert (fault.returncode, fault.stderr.startswith(said)) == (2, True)
