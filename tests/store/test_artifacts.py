"""The store: keys, whole folders, overlays, locks, provenance."""

import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_pipeline.config.specs import RunSpec
from tl_pipeline.encoders import encoder as encoders
from tl_pipeline.encoders.encoder import Encoder, Weights
from tl_pipeline.errors import DamagedArtifact, StoreError
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.pipeline import wiring
from tl_pipeline.pipeline.stages import (
    audit,
    average,
    evaluate,
    ingest,
    register,
    shuffle,
    train,
)
from tl_pipeline.store.artifacts import LIBRARIES, PROVENANCE, Artifact, Store
from tl_pipeline.store.keys import digest, key_document

INTENDED = "you are about to invalidate every cache: intended?"
DOCUMENT = key_document("ingest", 1, {"dataset": "d"}, {"images": "i"})

LITERAL = {
    "ingest": key_document(
        "ingest",
        ingest.VERSION,
        {
            "dataset": "digits",
            "split": {
                "strategy": "auto",
                "validation": 0.2,
                "test": 0.2,
                "seed": 0,
            },
        },
        {"images": "a1", "places": "b2", "refused": "c3", "duplicates": "d4"},
    ),
    "train": key_document(
        "train",
        train.VERSION,
        {
            "head": {"name": "logistic", "C": 0.1},
            "seed": 0,
            "select": "cross_validation",
            "strategy": "grid",
            "folds": None,
            "refit": True,
        },
        {"encoder": "e5", "training rows": "f6", "fit": "a7"},
    ),
    "audit": key_document(
        "audit",
        audit.VERSION,
        {"action": "report", "ratio": None},
        {"manifest": "a1", "embeddings": "5b"},
    ),
    "shuffle": key_document(
        "shuffle", shuffle.VERSION, {"seed": 0}, {"manifest": "a1"}
    ),
    "evaluate": key_document(
        "evaluate",
        evaluate.VERSION,
        {
            "encoder": "lenet5/c5 LETTERS",
            "family": "logistic",
            "control": False,
            "seed": 0,
            "calibration": "temperature",
            "error": 0.05,
        },
        {"encoder": "e5", "heads": "07", "held-out rows": "18", "test rows": "29"},
    ),
    "average": key_document(
        "average",
        average.VERSION,
        {
            "family": "greedy",
            "control": False,
            "seed": 0,
            "calibration": "temperature",
            "error": 0.05,
        },
        {"evaluations": "4c"},
    ),
    "register": key_document(
        "register", register.VERSION, {"dataset": "digits"}, {"evaluation": "3a"}
    ),
}
GOLDEN = {
    "ingest": "e29e4c5545675ba9b30f1989cf0f7cdc",
    "train": "4c81582e35fc4335bb8bc2d071233d9f",
    "audit": "3ca1e443acef0e59d67ec041495fef5e",
    "shuffle": "2826bceef83726d945ad633d565b7a5e",
    "evaluate": "bad285387b50eca2b24fe37b63fad064",
    "average": "ed1ec3382a1cb02f9d70e034e47b344a",
    "register": "9ff3352db64af2c128756913519cbe9f",
}
GOLDEN_ENCODER = "5d260c480c378f102b29ec9b9c1d9881"
# Keys of `tl plan digits --head logistic:C=0.1 --no-controls`; the model's is not yet
# known to a plan.
GOLDEN_DIGITS = {
    "ingest": "8d00331bdba87d3240497a42f3fd403b",
    "embed": "c74cb216b643d03dce405c6aff463a95",
    "audit": "97df395aaeb34d1cb5f54440e0f43693",
    "train": "06d9a696dec24699c98b3165462e2d2c",
    "evaluate": "ffec2116dcd4787c81d560eb413aca0d",
}


@pytest.mark.parametrize("stage", GOLDEN)
def test_golden_keys_of_literal_documents(stage: str):
    assert digest(LITERAL[stage]) == GOLDEN[stage], INTENDED


def test_golden_key_of_a_literal_encoder():
    encoder = Encoder(
        backbone="lenet5",
        layer="c5",
        node="flatten",
        pooling="none",
        weights=Weights(name="LETTERS", sha256="0f" * 32),
        preprocess=Preprocess(resize=32, crop=32, grey=True, mean=(0.5,), std=(0.5,)),
        precision="fp32",
    )
    assert encoders.VERSION == 1, INTENDED
    assert encoder.key == GOLDEN_ENCODER, INTENDED


def test_golden_keys_of_the_digits(store: Store):
    """The documents that the stages really make, with their real inputs."""
    spec = RunSpec(
        dataset="digits",
        backbones=("lenet5",),
        heads=("logistic:C=0.1",),
        controls=False,
    )
    catalog = store.root / "data_catalog.yaml"
    catalog.write_text("version: 1\ndatasets:\n  digits:\n    type: digits\n")
    steps = wiring.plan(wiring.prepare(spec, store, catalog_file=catalog))
    found = {step.stage: key for step in steps for key in step.keys.values()}
    assert found == GOLDEN_DIGITS, INTENDED


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


def reversed_everywhere(value):
    if isinstance(value, dict):
        return {k: reversed_everywhere(v) for k, v in reversed(value.items())}
    if isinstance(value, list):
        return [reversed_everywhere(item) for item in value]
    return value


@settings(deadline=None)
@given(plain)
def test_a_digest_is_independent_of_the_order_of_fields(document):
    assert digest(reversed_everywhere(document)) == digest(document)


@settings(deadline=None)
@given(plain, plain)
def test_other_documents_have_other_digests(first, second):
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (digest(first) == digest(second)) == same


@pytest.mark.parametrize("field", ["stage", "version", "params", "inputs"])
def test_every_field_of_a_key_document_is_in_the_key(field: str):
    other = {**DOCUMENT, field: 2 if field == "version" else {"other": "x"}}
    assert digest(other) != digest(DOCUMENT)


def test_a_digest_is_independent_of_the_hash_seed():
    code = (
        "from tl_pipeline.store.keys import digest\n"
        "print(digest({k: list({k}) for k in {'one', 'two', 'drei', 'quattro'}}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    words = ("one", "two", "drei", "quattro")
    assert found == {digest({word: [word] for word in words}) + "\n"}


def writes(folder: Path) -> None:
    """Two files, one of them in a folder."""
    (folder / "one.txt").write_text("first")
    (folder / "deep").mkdir()
    (folder / "deep" / "two.txt").write_text("second")


def everything(root: Path) -> dict[str, int]:
    return {
        str(path.relative_to(root)): path.stat().st_size if path.is_file() else -1
        for path in root.rglob("*")
    }


def test_a_built_artifact_is_found_and_whole(store: Store):
    made = store.build("manifests", DOCUMENT, writes)
    assert made == store.find("manifests", digest(DOCUMENT))
    assert (store.path(made) / "deep" / "two.txt").read_text() == "second"
    assert not list((store.root / ".building").iterdir())


def test_a_fingerprint_stands_for_the_content(store: Store):
    other = {**DOCUMENT, "params": {"dataset": "other"}}
    first, second = (store.build("k", d, writes) for d in (DOCUMENT, other))
    assert first.key != second.key
    assert first.fingerprint == second.fingerprint
    third = {**DOCUMENT, "params": {"dataset": "third"}}
    named = store.build("k", third, lambda folder: writes(folder) or "my own")
    assert named.fingerprint == "my own"


def test_a_writer_that_raises_leaves_nothing(store: Store):
    before = everything(store.root)

    def fails(folder: Path) -> None:
        writes(folder)
        raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"):
        store.build("manifests", DOCUMENT, fails)
    left = everything(store.root).keys() - before.keys()
    assert left <= {".building"}
    assert store.find("manifests", digest(DOCUMENT)) is None


def test_while_it_is_written_an_artifact_is_absent(store: Store):
    def looks(folder: Path) -> None:
        writes(folder)
        assert store.find("manifests", digest(DOCUMENT)) is None
        assert not (store.root / "manifests").exists()

    assert store.build("manifests", DOCUMENT, looks)


def unlink(file: Path) -> None:
    file.unlink()


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


damage = pytest.mark.parametrize("damage", [unlink, shorten, lengthen])
of_each_file = pytest.mark.parametrize("name", ["one.txt", "deep/two.txt"])


@damage
@of_each_file
def test_an_artifact_with_one_damaged_file_is_not_found(
    store: Store, damage: Callable[[Path], None], name: str
):
    made = store.build("manifests", DOCUMENT, writes)
    damage(store.path(made) / name)
    assert store.find("manifests", made.key) is None


@damage
def test_an_artifact_with_damaged_provenance_is_not_found(
    store: Store, damage: Callable[[Path], None]
):
    made = store.build("manifests", DOCUMENT, writes)
    damage(store.path(made) / PROVENANCE)
    assert store.find("manifests", made.key) is None


@damage
@of_each_file
def test_a_build_sets_a_damaged_folder_aside_and_replaces_it(
    store: Store, damage: Callable[[Path], None], name: str
):
    made = store.build("manifests", DOCUMENT, writes)
    damage(store.path(made) / name)
    damaged = everything(store.path(made))
    assert store.build("manifests", DOCUMENT, writes) == made
    assert store.find("manifests", made.key) == made
    assert (store.path(made) / "one.txt").read_text() == "first"
    aside, reason, kept = sorted((store.root / "manifests").iterdir())
    assert kept.name == made.key
    assert aside.name.startswith(f".damaged-{made.key}-")
    assert "not as provenance.json lists it" in reason.read_text()
    assert everything(aside) == damaged


def test_two_builders_of_one_key_get_the_same_artifact(store: Store):
    barrier = Barrier(2)

    def build(number: int) -> Artifact:
        def write(folder: Path) -> None:
            writes(folder)
            (folder / "who.txt").write_text(str(number))
            barrier.wait(timeout=60)

        return store.build("manifests", DOCUMENT, write)

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(build, (1, 2))
    assert first == second == store.find("manifests", digest(DOCUMENT))
    assert [path.name for path in (store.root / "manifests").iterdir()] == [first.key]
    assert not list((store.root / ".building").iterdir())


def test_an_overlay_shows_the_store_and_vanishes_without_a_trace(store: Store):
    real = store.build("manifests", DOCUMENT, writes)
    before = everything(store.root)
    other = {**DOCUMENT, "params": {"dataset": "other"}}
    with store.overlay() as overlay:
        assert overlay.planning
        assert overlay.find("manifests", real.key) == real
        assert overlay.path(real) == store.path(real)
        made = overlay.build("manifests", other, writes)
        folder = overlay.path(made)
        assert overlay.find("manifests", made.key) == made
        assert (folder / "one.txt").read_text() == "first"
        assert store.find("manifests", made.key) is None
        assert everything(store.root) == before
    assert not folder.exists()
    assert not store.planning
    assert everything(store.root) == before


def test_an_overlay_of_a_store_that_is_not_there_does_not_create_it(tmp_path: Path):
    with Store.open(tmp_path / "none").overlay() as overlay:
        made = overlay.build("manifests", DOCUMENT, writes)
        assert overlay.find("manifests", made.key) == made
    assert not (tmp_path / "none").exists()


def test_an_overlay_rebuilds_what_is_damaged_in_the_store(store: Store):
    """The reader must see the new rows, not the damaged folder of the same key."""
    made = store.build("manifests", DOCUMENT, writes)
    (store.path(made) / "one.txt").unlink()
    before = everything(store.root)
    with store.overlay() as overlay:
        again = overlay.build("manifests", DOCUMENT, writes)
        assert (overlay.path(again) / "one.txt").read_text() == "first"
    assert everything(store.root) == before


def test_open_writes_nothing_and_create_can_be_repeated(tmp_path: Path):
    store = Store.open(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    store.create()
    before = everything(tmp_path)
    store.create()
    assert everything(tmp_path) == before
    assert Store.open(str(tmp_path / "new")).root == store.root


def test_open_expands_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store.open("~/store").root == tmp_path / "store"


@pytest.mark.parametrize("uri", ["https://host/store", "file:///tmp/store"])
def test_open_refuses_what_is_no_local_folder(uri: str):
    with pytest.raises(StoreError, match=rf"{uri}.*local folder"):
        Store.open(uri)


def test_open_refuses_a_file(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file is a file; a store is a folder"):
        Store.open(tmp_path / "file")


def test_open_refuses_a_folder_of_somebody_elses_files(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match="holds files but is not a store"):
        Store.open(tmp_path)


def test_open_takes_an_empty_folder(tmp_path: Path):
    (tmp_path / ".hidden").write_text("")
    assert Store.open(tmp_path).root == tmp_path


def test_open_refuses_another_format(store: Store):
    (store.root / "store.json").write_text('{"format": 99}')
    with pytest.raises(StoreError, match="format 99, this version reads 1"):
        Store.open(store.root)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
def test_open_refuses_a_damaged_marker(store: Store, text: str):
    (store.root / "store.json").write_text(text)
    with pytest.raises(StoreError, match=r"store\.json|format"):
        Store.open(store.root)


def test_create_says_where_it_may_not_write(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write to the store"):
        Store(tmp_path / "file" / "store").create()


HOLDER = """
import sys
from tl_pipeline.store.artifacts import Store
with Store.open(sys.argv[1]).lock("registry"):
    print("held", flush=True)
    sys.stdin.read()
"""
COUNTER = """
import sys
from pathlib import Path
from tl_pipeline.store.artifacts import Store
store, count = Store.open(sys.argv[1]), Path(sys.argv[2])
for _ in range(500):
    with store.lock("count"):
        count.write_text(str(int(count.read_text()) + 1))
"""


def test_a_lock_excludes_a_second_process_and_dies_with_its_holder(store: Store):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (store.root / ".locks" / "registry").open() as handle:
            with pytest.raises(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder.send_signal(signal.SIGKILL)
            assert holder.wait() == -signal.SIGKILL
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with store.lock("registry"):
            pass


def test_two_processes_that_count_under_a_lock_lose_nothing(
    store: Store, tmp_path: Path
):
    count = tmp_path / "count"
    count.write_text("0")
    command = [sys.executable, "-c", COUNTER, str(store.root), str(count)]
    counting = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in counting] == [0, 0]
    assert count.read_text() == "1000"


def test_locks_of_other_names_do_not_exclude_each_other(store: Store):
    with store.lock("one"), store.lock("two"):
        assert {p.name for p in (store.root / ".locks").iterdir()} == {"one", "two"}


def test_provenance_says_how_an_artifact_was_made(store: Store):
    made = store.build("manifests", DOCUMENT, writes, extra={"note": "by hand"})
    said = store.provenance(made)
    assert {field: said[field] for field in DOCUMENT} == DOCUMENT
    assert said["key"] == made.key
    assert said["fingerprint"] == made.fingerprint
    assert said["files"].keys() == {"one.txt", "deep/two.txt"}
    assert said["files"]["one.txt"]["bytes"] == 5
    assert said["libraries"].keys() == set(LIBRARIES)
    assert said["host"]
    assert said["seconds"] >= 0
    assert datetime.fromisoformat(said["finished"]).tzinfo
    assert said["note"] == "by hand"


def test_provenance_that_is_gone_is_a_damaged_artifact(store: Store):
    made = store.build("manifests", DOCUMENT, writes)
    (store.path(made) / PROVENANCE).unlink()
    with pytest.raises(DamagedArtifact, match=PROVENANCE):
        store.provenance(made)
