"""A store in an object store: several machines, lost connections, damaged objects.

S3 is spoken by moto's server in this process. A machine is a cache folder of its own.
"""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.conftest import REPOSITORY
from tests.exhaustive import more
from tests.object_store import SECRET, ObjectStore, environment
from tests.runs.made import without_times
from tl_pipeline import query
from tl_pipeline.cli import main
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.errors import DamagedArtifact, StoreError
from tl_pipeline.inputs.images import as_ppm
from tl_pipeline.maintenance import compaction, gc
from tl_pipeline.pipeline import partitions, wiring
from tl_pipeline.registry import index
from tl_pipeline.runs import records
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store import duplicate_rows
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import EmbeddingFolder
from tl_pipeline.store.keys import key_document

LOGISTIC = HeadSpec(name="logistic", params={"C": [0.1]})
RIDGE = HeadSpec(name="ridge")
KEY = "0" * 32
At = Callable[[str], Store]

pytestmark = pytest.mark.usefixtures("one_thread", "one_core", "object_server")


@pytest.fixture
def server(object_server: ObjectStore) -> ObjectStore:
    return object_server


@pytest.fixture(scope="module")
def made(
    _serving: ObjectStore, sixty_photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, RunRecord]:
    """The URL of a store in which ``sixty_photos`` were run, and the record."""
    url = _serving.bucket("made") + "/store"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(_serving).items():
            patch.setenv(name, value)
        patch.setenv("TL_CACHE", str(tmp_path_factory.mktemp("made")))
        patch.setenv("TL_CORES", "1")
        return url, run(Store.open(url), sixty_photos)


@pytest.fixture
def first(made: tuple[str, RunRecord], url: str, server: ObjectStore) -> RunRecord:
    """The record of a run of another machine, which has sent its store to ``url``."""
    server.copy(made[0], url)
    return made[1]


def run(store: Store, images: Path, *heads: HeadSpec) -> RunRecord:
    return wiring.run(work(store, images, *heads))


def work(store: Store, images: Path, *heads: HeadSpec) -> wiring.Work:
    spec = RunSpec(
        dataset=str(images),
        backbones=(EncoderSpec(backbone="lenet5"),),
        heads=heads or (LOGISTIC,),
        part_rows=16,
        controls=False,
    )
    return wiring.prepare(spec, store)


def ran(record: RunRecord) -> list[str]:
    return [f"{s.stage} {s.subject}" for s in record.steps if not s.cached]


def due(store: Store, images: Path, *heads: HeadSpec) -> list[str]:
    """What a run would do."""
    steps = wiring.plan(work(store, images, *heads))
    return [f"{step.stage} {step.subject}" for step in steps if not step.cached]


# Two machines, one after the other


def test_the_second_machine_computes_nothing_and_asks_everything(
    at: At, sixty_photos: Path, server: ObjectStore, url: str, first: RunRecord
):
    made = server.objects(url)
    second = at("B")
    assert due(second, sixty_photos) == []
    assert server.objects(url) == made  # a plan writes nothing
    before = query.ask(at("A"), "SELECT run_id FROM runs").to_pylist()
    assert before == [{"run_id": first.run_id}]
    record = run(at("B"), sixty_photos)
    assert ran(record) == []
    assert without_times(record.results) == without_times(first.results)
    told = {"reason", "promoted"}
    assert record.registered.model_dump(exclude=told) == first.registered.model_dump(
        exclude=told
    )

    second = at("B")
    (row,) = query.ask(second, "SELECT count(*) AS n FROM images").to_pylist()
    assert row == {"n": 60}
    found = query.ask(second, "FROM embeddings").to_pandas()
    assert len(found) == found["image_id"].nunique() == 60
    assert [r.run_id for r in records.every(at("A"))] == [first.run_id, record.run_id]
    # the catalogue of A is from before the second run
    rows = query.ask(at("A"), "SELECT run_id FROM runs").to_pylist()
    assert {row["run_id"] for row in rows} == {first.run_id, record.run_id}


@pytest.mark.exhaustive  # a second machine finds all: the test of that always runs
def test_both_machines_give_the_same_embeddings_bit_for_bit(at: At, folder: Path):
    run(at("A"), folder)
    run(at("B"), folder)
    (key,) = (e.key for e in work(at("A"), folder).encoders)
    here, there = (EmbeddingFolder(at(name), key) for name in "AB")
    ids = here.embedded()
    left, right = here.load(ids), there.load(ids)
    assert left.image_ids == right.image_ids
    assert len(ids) == 60
    np.testing.assert_array_equal(left.vectors, right.vectors)


@pytest.mark.exhaustive  # a second machine finds all: the test of that always runs
def test_another_head_on_the_second_machine_trains_that_head_only(at: At, folder: Path):
    run(at("A"), folder)
    record = run(at("B"), folder, LOGISTIC, RIDGE)
    done = ran(record)
    assert {step.partition(" ")[0] for step in done} <= {
        "train",
        "evaluate",
        "register",
    }
    assert all("ridge" in step for step in done if not step.startswith("register"))
    assert len(done) >= 2
    assert due(at("A"), folder, LOGISTIC, RIDGE) == []


@pytest.mark.exhaustive  # rows that are missing alone: those of damaged vectors
def test_a_new_image_is_embedded_alone_by_whoever_sees_it(
    at: At, folder: Path, crops: Callable[[str, int], Any]
):
    run(at("A"), folder)
    crops("china", 77).save(folder / "china" / "new.jpg")
    record = run(at("B"), folder)
    (embedded,) = [s for s in record.steps if s.stage == "embed"]
    assert embedded.units == 1
    assert due(at("A"), folder) == []


@pytest.mark.exhaustive  # a second machine finds all: the test of that always runs
def test_vectors_stay_where_they_are_until_they_are_needed(at: At, folder: Path):
    run(at("A"), folder)
    second = at("B")
    assert due(second, folder) == []
    assert list((second.root / "embeddings").glob("*/part-*")) == []


@pytest.mark.exhaustive  # registry/test_at_url.py, without runs
def test_models_have_the_same_versions_and_champion_everywhere(at: At, folder: Path):
    run(at("A"), folder, LOGISTIC)
    run(at("B"), folder, HeadSpec.parse("mlp:hidden=1,max_epochs=1,learning_rate=1e-9"))
    run(at("A"), folder, HeadSpec.parse("logistic:C=0.1001"))

    def listed(name: str) -> list[Any]:
        columns = ("name", "version", "aliases", "model", "folds_accuracy")
        return [[row[c] for c in columns] for row in index.models(at(name))]

    assert listed("A") == listed("B") == listed("C")
    assert [row[1:3] for row in listed("C")] == [[3, ["champion"]], [2, []], [1, []]]
    model = index.load_model(at("C"), "photos")
    assert model.folder.is_relative_to(at("C").root)
    assert model.dataset == "photos"


# What goes wrong


@pytest.mark.parametrize("writes", [14, *more(1)])
def test_a_connection_lost_while_sending_is_told_and_made_good(
    at: At, folder: Path, server: ObjectStore, url: str, writes: int
):
    """The same machine sends what it had finished, and computes none of it again."""
    first = at("A")
    left = [writes]

    def lose(method: str, _: str) -> int | None:
        left[0] -= method == "PUT"
        return 403 if left[0] < 0 else None

    server.before = lose
    with pytest.raises(StoreError) as error:
        run(first, folder)
    assert url in str(error.value)
    assert SECRET not in str(error.value)
    server.before = None
    finished = {
        path.parent.name
        for kind in ("heads", "evaluations", "models")
        for path in first.root.glob(f"{kind}/*/provenance.json")
    }
    parts = {path: path.stat().st_mtime_ns for path in first.root.rglob("part-*")}
    record = run(at("A"), folder)
    again = {key for s in record.steps if not s.cached for key in s.keys.values()}
    assert not again & finished - {record.registered.model}
    assert all(path.stat().st_mtime_ns == time for path, time in parts.items())
    assert due(at("B"), folder) == []
    assert list(first.root.glob(".unsent/*")) == []


def killed(
    server: ObjectStore, number: int, command: list[str], method: str = "PUT"
) -> bool:
    """Run ``command`` and kill it while that request of ``method`` goes on.

    False if it ends before.
    """
    left, reached, go_on = [number], threading.Event(), threading.Event()

    def hold(asked: str, _: str) -> int | None:
        left[0] -= asked == method
        if left[0] == 0:
            reached.set()
            go_on.wait(60)

    server.before = hold
    child = subprocess.Popen(command, cwd=REPOSITORY)
    while child.poll() is None and not reached.wait(0.1):
        pass
    alive = child.poll() is None
    child.kill()
    child.wait()
    server.before = None
    go_on.set()
    server.settle()
    return alive


@pytest.mark.exhaustive  # connections lost: below
@pytest.mark.parametrize("held", [(8,), *more(((5, 8),))])
def test_a_killed_run_is_made_good_by_the_next(
    at: At, folder: Path, server: ObjectStore, url: str, held: tuple[int, ...]
):
    """SIGKILL while the server holds back the answer to one write after another."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.store.test_mirror import run\n"
        "from tl_pipeline.store.artifacts import Store\n"
        "run(Store.open(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    root = at("A").root
    command = [sys.executable, "-c", code, url, str(folder)]
    kills = sum(killed(server, writes, command) for writes in held)
    assert kills == len(held)
    run(at("A"), folder)
    assert list(root.glob(".unsent/*")) == []
    assert due(at("B"), folder) == []
    (key,) = (e.key for e in work(at("B"), folder).encoders)
    assert len(EmbeddingFolder(at("B"), key).embedded()) == 60


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(
    ("pattern", "damage", "stages"),
    [
        ("/part-", "truncated", {"embed"}),
        *more(
            ("heads/*/provenance.json", "changed", {"train"}),
            ("heads/*/head-*.safetensors", "truncated", {"train"}),
            ("evaluations/*/metrics-", "changed", {"evaluate"}),
            ("manifests/*/manifest-", "truncated", {"ingest", "audit"}),
        ),
    ],
)
def test_a_damaged_object_is_made_anew_and_replaced(
    at: At,
    sixty_photos: Path,
    server: ObjectStore,
    url: str,
    pattern: str,
    damage: str,
    stages: set[str],
):
    bits = pattern.split("*")
    name, data = next(
        (n, d) for n, d in server.objects(url).items() if all(bit in n for bit in bits)
    )
    cut = data[:-5] if damage == "truncated" else flipped(data)
    server.put(f"{url}/{name}", cut)
    made = ran(run(at("B"), sixty_photos))
    assert {step.partition(" ")[0] for step in made} <= stages | {"audit"}
    assert stages & {step.partition(" ")[0] for step in made}
    assert due(at("C"), sixty_photos) == []
    if name.endswith("parquet") and "part-" in name:
        assert server.objects(url)[name] == data


def flipped(data: bytes) -> bytes:
    """One bit differs, in what Parquet has a checksum of, or JSON a meaning for."""
    at = 400 if data[:4] == b"PAR1" else 0
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.usefixtures("first")
def test_what_arrives_damaged_once_is_fetched_again(
    at: At, sixty_photos: Path, server: ObjectStore
):
    met: set[str] = set()

    def cut_once(path: str, body: bytes) -> bytes:
        # three in a row at once would be a network that fails
        spoilt = path in met or not ("/heads/" in path or "/predictions-" in path)
        met.add(path)
        return body if spoilt or path.endswith("json") else body[:-1]

    server.after = cut_once
    assert due(at("B"), sixty_photos) == []
    assert len(met) > 3


@pytest.mark.usefixtures("first")
def test_vectors_damaged_there_are_told_and_computed_again(
    at: At, sixty_photos: Path, server: ObjectStore, url: str
):
    """The ids of a part are whole, so it is believed until its vectors are read."""
    name, data = next(
        pair for pair in server.objects(url).items() if "/part-" in pair[0]
    )
    middle = data.find(b"PAR1", 4) if data.count(b"PAR1") > 2 else len(data) // 2
    server.put(f"{url}/{name}", data[:middle] + b"XXXX" + data[middle + 4 :])
    with pytest.raises(DamagedArtifact, match="set aside"):
        run(at("B"), sixty_photos, RIDGE)
    assert name not in server.objects(url)
    record = run(at("B"), sixty_photos, RIDGE)
    (embedded,) = [s for s in record.steps if s.stage == "embed"]
    assert 0 < embedded.units < 60
    assert server.objects(url)[name] == data


def test_a_store_that_does_not_answer_is_one_message(
    at: At, url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError) as error:
        at("A")
    assert url in str(error.value)
    assert SECRET not in str(error.value)


def test_denied_access_says_whence_credentials_come(at: At, server: ObjectStore):
    server.before = lambda *_: 403
    with pytest.raises(StoreError, match="credentials of a store come from the env"):
        at("A")


# What a URL may be


def test_a_bucket_that_is_not_there_is_refused():
    with pytest.raises(StoreError, match=r"s3://nobody-made.*Make the bucket"):
        Store.open("s3://nobody-made/store")


def test_a_place_with_other_things_is_refused(server: ObjectStore, url: str):
    server.put(f"{url}/holiday.jpg", b"x")
    with pytest.raises(StoreError, match="holds objects but is not a store"):
        Store.open(url)


@pytest.mark.parametrize(
    "text",
    ["s3://", "s3:///x", "s3://b/../c", "s3://b//c", "s3://b/a?c=d", "ftp://x/y"],
)
def test_what_cannot_hold_a_store_is_refused(text: str):
    with pytest.raises(StoreError, match=r"s3://|local folder"):
        Store.open(text)


def test_another_format_is_refused(at: At, server: ObjectStore, url: str):
    server.put(f"{url}/store.json", b'{"format": 9}')
    with pytest.raises(StoreError, match=f"{url} has store format 9"):
        at("A")


def test_the_mirror_of_a_store_that_is_gone_is_kept_aside(
    at: At, server: ObjectStore, url: str
):
    first = at("A")
    first.create()
    (first.root / "mine").write_text("x")
    server.put(f"{url}/store.json", b'{"format": 1, "id": "another"}')
    second = at("A")
    assert second.root == first.root
    assert not (second.root / "mine").exists()
    (aside,) = second.root.parent.glob(f"{second.root.name}.before-*")
    assert (aside / "mine").read_text() == "x"


def test_one_url_on_two_servers_is_two_mirrors(
    at: At, monkeypatch: pytest.MonkeyPatch, server: ObjectStore
):
    first = at("A").root
    other = server.url.replace("127.0.0.1", "localhost")
    monkeypatch.setenv("AWS_ENDPOINT_URL", other)
    assert at("A").root != first


def test_two_machines_that_make_one_store_agree_on_it(at: At):
    first, second = at("A"), at("B")
    first.create()
    second.create()
    ids = [
        json.loads((s.root / "store.json").read_text())["id"] for s in (first, second)
    ]
    assert ids[0] == ids[1]


# At the same time


def model(store: Store, number: int) -> Artifact:
    """A model folder, as ``stages.register`` writes it."""
    score = {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}
    about = {
        "dataset": "photos",
        "encoder_label": "e",
        "head_label": f"h{number}",
        "metrics": {"validation": score, "test": score},
        "evaluation": f"{number:032x}",
    }
    document = key_document("register", 1, {"number": number}, {})

    def write(folder: Path) -> None:
        (folder / "model.json").write_text(json.dumps(about))

    return store.build("models", document, write)


def test_two_builders_of_one_key_leave_the_files_of_one(
    at: At, server: ObjectStore, url: str
):
    """Their bytes differ, as those of two kinds of processors may."""
    at("A").create()
    first, second = at("A"), at("B")
    document = key_document("train", 1, {}, {})

    def writer(text: str) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            (folder / "one").write_text(text)
            (folder / "two.json").write_text(text * 2)

        return write

    made = first.build("heads", document, writer("a"))
    second.build("heads", document, writer("bbb"))
    third = at("C")
    assert third.find("heads", made.key)
    texts = [(third.path(made) / name).read_text() for name in ("one", "two.json")]
    assert texts == ["bbb", "bbbbbb"]
    assert len(server.objects(f"{url}/heads/{made.key}")) == 5


def test_rows_that_two_machines_made_count_once(at: At):
    at("A").create()
    ids = [f"{number:032x}" for number in range(20)]
    vectors = np.arange(60, dtype=np.float32).reshape(20, 3)
    for name, rows in (("A", slice(0, 15)), ("B", slice(5, 20))):
        folder = EmbeddingFolder(at(name), KEY)
        folder.describe("{}")
        folder.add(ids[rows], vectors[rows])
    found = EmbeddingFolder(at("C"), KEY).load(ids)
    assert found.image_ids == ids
    np.testing.assert_array_equal(found.vectors, vectors)
    third = EmbeddingFolder(at("C"), KEY)
    with third.writing():
        pass
    assert not duplicate_rows.find(EmbeddingFolder(at("D"), KEY).parts().whole)
    np.testing.assert_array_equal(
        EmbeddingFolder(at("D"), KEY).load(ids).vectors, vectors
    )


def test_compacted_on_one_machine_is_read_on_another(
    at: At, server: ObjectStore, url: str
):
    at("A").create()
    ids = [f"{number:032x}" for number in range(40)]
    vectors = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    folder = EmbeddingFolder(at("A"), KEY)
    folder.describe("{}")
    for start in range(0, 40, 8):
        folder.add(ids[start : start + 8], vectors[start : start + 8])
    old = EmbeddingFolder(at("C"), KEY)
    assert len(old.embedded()) == 40  # and knows the small parts
    done = compaction.compact(at("B"), KEY, rows=100)
    assert (done.parts_before, done.parts_after) == (5, 1)
    assert len([n for n in server.objects(url) if "/part-" in n]) == 1
    for reader in (old, EmbeddingFolder(at("A"), KEY), EmbeddingFolder(at("D"), KEY)):
        np.testing.assert_array_equal(reader.load(ids).vectors, vectors)
        assert len(reader.embedded()) == 40
    assert len(list((at("A").root / "embeddings").glob("*/part-*"))) == 1


# Workers


def listed(folder: Path) -> list[tuple[str, str]]:
    files = sorted(folder.rglob("*.jpg"))
    return [(image_id(file.read_bytes()), str(file)) for file in files]


def test_a_worker_elsewhere_embeds_into_the_same_store(
    at: At, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The function that Dask and Ray call, on a machine with another mirror."""
    from tl_pipeline.pipeline.stages import embed

    asked = work(at("A"), folder)
    store, dataset = asked.at.store, asked.dataset
    store.create()
    images = [
        (image_id(file.read_bytes()), str(file))
        for file in sorted(folder.rglob("*.jpg"))
    ]
    places: list[Any] = []

    def execute(
        store: Store, dataset: Any, rows: int, groups: Any, _: Any
    ) -> embed.RemoteResult:
        done: dict[str, Any] = {}
        with partitions.cut(store, dataset, rows, groups) as cut:
            monkeypatch.setenv("TL_CACHE", str(tmp_path / "worker"))
            for one in cut:
                places.append(one.store)
                for key, made in partitions.embed(one, cores=1).items():
                    done[key] = done[key] + made if key in done else made
        return embed.RemoteResult(done, "; elsewhere")

    found = embed.fill(store, dataset, asked.encoders, images, 512, execute)
    assert set(places) == {store.uri}
    assert [(made.images, made.where) for made in found.values()] == [
        (60, "; elsewhere")
    ]
    assert ran(run(at("A"), folder))[0].startswith(("ingest", "audit", "train"))
    assert list((tmp_path / "worker").glob("*/embeddings/*/part-*"))


def test_a_partition_that_was_begun_elsewhere_is_finished(
    at: At, folder: Path, server: ObjectStore, url: str
):
    asked = work(at("A"), folder)
    store, dataset = asked.at.store, asked.dataset
    store.create()
    images = [
        (image_id(file.read_bytes()), str(file))
        for file in sorted(folder.rglob("*.jpg"))
    ]
    from tl_pipeline.embedding.engine import Job
    from tl_pipeline.pipeline.stages.embed import Group

    (encoder,) = asked.encoders
    job = Job(encoder, EmbeddingFolder(store, encoder.key))
    job.folder.describe("{}")
    with partitions.cut(store, dataset, 512, [Group([job], images)]) as cut:
        at("B")
        first = partitions.embed(cut[0], cores=1)
        at("C")
        second = partitions.embed(cut[0], cores=1)
        begun = [name for name in server.objects(url) if name.endswith(".begun")]
        assert len(begun) == 1
    assert first[encoder.key].images == second[encoder.key].images > 0
    assert not second[encoder.key].seconds_per_image
    assert not [name for name in server.objects(url) if ".building" in name]


# Servers without conditional writes; local stores


@pytest.mark.parametrize("conditions", [True, False])
def test_a_number_that_is_given_is_not_given_again(
    at: At, server: ObjectStore, conditions: bool
):
    server.conditions = conditions
    at("A").create()
    first, second = at("A"), at("B")
    there = [store.root / "registry" / "mlflow-000001.db" for store in (first, second)]
    assert first.mirror.append(there[0], b"one")
    assert not second.mirror.append(there[1], b"another")
    assert not there[1].exists()
    assert third_sees(at, "registry/mlflow-000001.db") == b"one"


def third_sees(at: At, name: str) -> bytes:
    store = at("C")
    store.mirror.fetch([store.root / name])
    return (store.root / name).read_bytes()


def _a_minute_ago() -> datetime:
    return datetime.now(UTC) - timedelta(minutes=1)


def test_google_is_asked_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of Google's store only our side is tested, on a file system in memory."""
    given: list[dict[str, Any]] = []

    class Cloud(MemoryFileSystem):
        protocol = "gs"
        when = {"updated": f"{_a_minute_ago():%Y-%m-%dT%H:%M:%S}.123Z"}  # noqa: RUF012
        cachable = False
        store: dict[str, Any] = {}  # noqa: RUF012 - as MemoryFileSystem has it
        pseudo_dirs: list[str] = [""]  # noqa: RUF012

        def __init__(self, **options: Any) -> None:
            given.append(options)
            super().__init__()

        def info(self, path: str, **options: Any) -> dict[str, Any]:
            return super().info(path, **options) | self.when

        def find(self, path: str, **options: Any) -> Any:
            found = super().find(path, **options)
            return {name: info | self.when for name, info in found.items()}

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("gs://").strip("/")

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gs", Cloud)
    Cloud().mkdir("gs://bucket")

    def at(name: str) -> Store:
        monkeypatch.setenv("TL_CACHE", str(tmp_path / name))
        return Store.open("gs://bucket/store")

    at("A").create()
    made = model(at("A"), 0)
    assert given[-1]["access"] == "read_write"
    assert at("B").find("models", made.key) == made
    folder = EmbeddingFolder(at("B"), KEY)
    folder.describe("{}")
    folder.add(["1" * 32], np.ones((1, 3), np.float32))
    assert EmbeddingFolder(at("A"), KEY).load(["1" * 32]).vectors.shape == (1, 3)
    assert len(gc.find(at("A")).stays) == 2
    done = gc.collect(at("A"), retention_days=0)
    assert {g.item.path.name for g in done.garbage} == {made.key, folder.path.name}
    assert done.stays == []
    assert at("C").find("models", made.key) is None
    assert at("A").mirror.append(at("A").root / "numbered", b"one")
    assert not at("B").mirror.append(at("B").root / "numbered", b"another")


def test_a_mirror_is_not_opened_as_a_local_store(at: At):
    at("A").create()
    with pytest.raises(StoreError, match="open that by its URL"):
        Store.open(at("A").root)


def test_a_local_store_needs_no_object_store(folder: Path, store: Store):
    """And a plan of what is finished loads no network."""
    wiring.run(work(store, folder))
    code = (
        "import sys; sys.argv = ['tl', 'plan', *sys.argv[1:]]\n"
        "from tl_pipeline.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "names = {'s3fs', 'botocore', 'tl_pipeline.store.remote.object_mirror', "
        "'torch'}\n"
        "print('HEAVY', sorted(names & set(sys.modules)))"
    )
    words = (folder, "--head", "logistic:C=0.1", "--no-controls", "--store", store.root)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert "HEAVY []" in done.stdout


# The command line


@pytest.fixture
def tl(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """``tl(...)``: what the command prints as JSON, in this process."""

    def call(*arguments: object) -> Any:
        with contextlib.suppress(SystemExit):
            main.app([*map(str, arguments), "--json"])
        return json.loads(capsys.readouterr().out)

    return call


@pytest.mark.exhaustive  # a test of each kind has a URL
def test_every_command_takes_a_url(
    url: str, tl: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Machine A runs the digits; B plans and runs them, C asks.

    The flow itself runs on a URL in test_runners.py.
    """
    from sklearn.datasets import load_digits

    few = ("digits", "--no-controls", "--head", "logistic:C=0.1", "--store", url)
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "A"))
    first = RunRecord.model_validate(tl("run", *few, "--runner", "direct"))
    assert len(ran(first)) == 6

    monkeypatch.setenv("TL_CACHE", str(tmp_path / "B"))
    assert [step for step in tl("plan", *few) if not step["cached"]] == []
    again = RunRecord.model_validate(tl("run", *few, "--runner", "direct"))
    assert ran(again) == []

    monkeypatch.setenv("TL_CACHE", str(tmp_path / "C"))
    at_url = ("--store", url)
    assert tl("sql", "SELECT count(*) AS n FROM images", *at_url) == [{"n": 1797}]
    (row,) = tl("models", *at_url)
    assert (row["version"], row["aliases"]) == (1, ["champion"])
    assert row["model"] == first.registered.model
    digit = tmp_path / "digit.ppm"
    pixels = (load_digits().images[0] * 255 / 16).round().astype(np.uint8)
    digit.write_bytes(as_ppm(np.repeat(pixels[:, :, None], 3, axis=2)))
    (row,) = tl("predict", "digits", digit, *at_url)
    assert row["label"] == "0"
    assert [row["run_id"] for row in tl("runs", *at_url)] == [
        first.run_id,
        again.run_id,
    ]
    shown = tl("store", "show", *at_url)
    counts = {row["kind"]: (row["count"], row["unused"]) for row in shown["kinds"]}
    assert counts["models"] == counts["embeddings"] == (1, 0)
    assert counts["runs"] == (2, 0)
    assert [row["images"] for row in shown["encoders"]] == [1797]
    assert shown["encoders"][0]["bytes"] > 1797 * 120 * 4
    (row,) = tl("store", "compact", *at_url)
    assert (row["parts_before"], row["parts_after"]) == (4, 1)
    assert tl("store", "gc", *at_url)["garbage"] == []
