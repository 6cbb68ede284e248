"""The command line as a user meets it: output, exit codes, nothing half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from tests.command_line import Tl, in_its_own_process, in_this_process
from tests.conftest import REPOSITORY


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a copy of the catalogue and nothing else."""
    shutil.copyfile(REPOSITORY / "data_catalog.yaml", tmp_path / "data_catalog.yaml")
    return tmp_path


@pytest.fixture
def tl(place: Path, monkeypatch: pytest.MonkeyPatch) -> Tl:
    """Type ``tl`` in that folder; test_documents.py types it in processes."""
    return in_this_process(place, monkeypatch)


@pytest.fixture
def tl_process(place: Path) -> Tl:
    """The same in a process of its own."""
    return in_its_own_process(place)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['tl', '--help']\n"
        "from tl_pipeline.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'sklearn', 'prefect', 'mlflow', 'duckdb', 'pandas'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "HEAVY []" in done.stdout
    for command in ("run", "plan", "sql", "models", "backbones", "catalog", "doctor"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("command", "wish", "fits"),
    [
        (
            ["plan"],
            "lenet5:pool=grid2",
            "no pool at all, pool=flatten. A layer that gives a map",
        ),
        (
            ["run", "--runner", "direct"],
            "lenet5:layer=c5_relu,pool=grid3",
            "pool=gap, pool=avg+max, pool=gem",
        ),
    ],
)
def test_a_grid_that_a_layer_has_no_places_for_is_refused_at_once(
    tl: Tl, folder: Path, place: Path, command: list[str], wish: str, fits: str
):
    done = tl(*command, folder, "--backbone", wish)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"InvalidSpec: pool={wish[-5:]} does not fit layer ")
    assert f"Fits: {fits}" in done.stderr
    assert not (place / "tl_store" / "embeddings").exists()


def in_catalogue(place: Path, sql: str) -> list[tuple[object, ...]]:
    """What the file of the SQL catalogue answers as the last command left it."""
    file = place / "tl_store" / "catalog.duckdb"
    with duckdb.connect(file, read_only=True) as connection:
        return connection.execute(sql).fetchall()


@pytest.mark.usefixtures("catalogue")
def test_run_twice_then_ask(tl: Tl, folder: Path, tmp_path: Path):
    """Run, look, run again: everything cached; the tables answer."""
    request = (folder, "--head", "logistic:C=0.1", "--runner", "direct")
    planned = tl("plan", *request[:3], "--json")
    first = tl("run", *request)
    assert first.returncode == 0, first.stderr
    assert "test accuracy" in first.stdout
    assert "gain by transfer" in first.stdout
    assert "majority" in first.stdout
    steps = json.loads(planned.stdout)
    assert not any(s["cached"] for s in steps)
    again = tl("run", *request, "--json")
    record = json.loads(again.stdout)
    assert all(s["cached"] for s in record["steps"])
    assert [s["subject"] for s in record["steps"]] == [s["subject"] for s in steps]
    assert in_catalogue(tmp_path, "SELECT count(*) FROM runs") == [(2,)]

    rows = json.loads(tl("sql", "FROM metrics", "--json").stdout)
    keys = [
        (r["run_id"], r["encoder"], r["head"], r["split"], r["metric"]) for r in rows
    ]
    assert len(set(keys)) == len(keys) > 0
    tested = {r["head"] for r in rows if r["split"] == "test"}
    assert tested == {"logistic(C=0.1)", "majority"}
    counted = json.loads(
        tl(
            "sql",
            "SELECT (SELECT count(*) FROM images) AS images, "
            "(SELECT count(*) FROM embeddings) AS embeddings, "
            "(SELECT count(DISTINCT len(embedding)) FROM embeddings) AS widths, "
            "(SELECT count(*) FROM runs) AS runs",
            "--json",
        ).stdout
    )
    assert counted == [{"images": 60, "embeddings": 120, "widths": 1, "runs": 2}]
    accuracy = json.loads(
        tl(
            "sql",
            "SELECT avg(correct::INT) AS accuracy FROM predictions "
            "WHERE role = 'best' AND split = 'test'",
            "--json",
        ).stdout
    )
    assert accuracy[0]["accuracy"] == pytest.approx(best(record)["test"]["value"])
    models = json.loads(tl("models", "--json").stdout)
    assert [(m["name"], m["version"], m["aliases"]) for m in models] == [
        ("photos", 1, ["champion"])
    ]
    report = tmp_path / "tl_store" / "reports" / "photos" / "latest.html"
    assert "gain by transfer" in report.read_text()
    assert "http" not in report.read_text()


def best(record: dict) -> dict:
    return next(r for r in record["results"] if r["role"] == "best")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digts"], "unknown dataset 'digts'. Did you mean 'digits'?"),
        (["digits", "--backbone", "resnet5"], "Did you mean 'resnet50'?"),
        (["digits", "--head", "svm"], "Did you mean 'rbf_svm'? Known: "),
        (["digits", "--head", "logistic:c=1"], "unknown logistic parameter 'c'"),
        (["digits", "--head", "logistic:C=x"], "C must be a number"),
        (["digits", "--backbone", "vgg16:layer=fc9"], "Known: fc6, fc7"),
        (["digits", "--backbone", "vgg16:size=3"], "Known parameters: backbone, layer"),
        (["digits", "--weights", "no.pth"], "no.pth does not exist"),
        (["digits", "--weights", "random:x"], "write random:SEED"),
        (["digits", "--store", "https://host/store"], "local folder"),
        (["digits", "--config", "no.yaml"], "no.yaml: no such file"),
        (["digits", "--catalog", "no.yaml"], "no.yaml: no such file"),
        ([], "name a DATASET"),
    ],
)
def test_wrong_request_is_one_message_and_exit_2(
    tl: Tl, tmp_path: Path, arguments: list[str], said: str
):
    """The fault, the choices, the cure; and no store is made."""
    done = tl("run", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "tl_store").exists()


def test_a_process_ends_with_the_message_and_the_code_alone(
    tl_process: Tl, folder: Path
):
    """No library adds a word of its own, and no process outlives the error."""
    for file in (folder / "flower").iterdir():
        file.write_text("not an image")
    done = tl_process("run", folder, "--runner", "direct")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("TooManyRefused: ")
    head, *named = done.stderr.strip().splitlines()
    assert head.endswith("The first of them:")
    assert ["not an image" in line for line in named] == [True] * 5


def test_missing_weights_tell_file_place_and_size(tl: Tl, tmp_path: Path):
    """Planning downloads nothing; it says what is missing."""
    done = tl("plan", "digits", "--backbone", "resnet50")
    assert done.returncode == 2
    assert "resnet50-0676ba61.pth (98 MB" in done.stderr
    place = tmp_path / "torch" / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    assert str(place) in done.stderr


def test_weights_of_another_network_are_refused_before_anything_runs(
    tl: Tl, tmp_path: Path
):
    letters = REPOSITORY / "tl_pipeline" / "weights" / "lenet5-letters.safetensors"
    done = tl("run", "digits", "--backbone", "resnet18", "--weights", letters)
    assert done.returncode == 2
    assert "does not hold weights of resnet18" in done.stderr
    assert not (tmp_path / "tl_store").exists()


def test_unusable_folders_are_refused(tl: Tl, folder: Path, tmp_path: Path):
    empty, single, words = (tmp_path / name for name in ("empty", "single", "words"))
    empty.mkdir()
    shutil.copytree(folder / "china", single / "china")
    (words / "a").mkdir(parents=True)
    (words / "a" / "x.jpg").write_text("not an image")
    for place, code, lines, said in (
        (empty, 2, 1, "is empty"),
        (single, 2, 1, "one class, 'china'"),
        (words, 3, 2, "none of 1 inputs can be used (1 not an image)"),
    ):
        done = tl("run", place, "--runner", "direct")
        assert (done.returncode, done.stdout) == (code, "")
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == lines
    assert not (tmp_path / "tl_store" / "heads").exists()


@pytest.mark.exhaustive  # test_flow.py: a failure is the first error
def test_error_inside_the_flow_is_the_same_one_message(tl_process: Tl, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    done = tl_process("run", tmp_path / "empty")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("DatasetError: ")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("catalogue")
def test_too_many_refused_inputs_exit_3(tl: Tl, folder: Path, tmp_path: Path):
    """A few are quarantined and the run goes on; more than allowed stop it."""
    (folder / "china" / "bad.jpg").write_bytes(b"\xff\xd8\xff no")
    done = tl("run", folder, "--head", "logistic:C=1", "--runner", "direct")
    assert done.returncode == 0, done.stderr
    rows = json.loads(tl("sql", "FROM quarantine", "--json").stdout)
    assert [Path(row["uri"]).name for row in rows] == ["bad.jpg"]
    assert "1 inputs refused" in done.stdout
    for number in range(9):
        (folder / "china" / f"bad{number}.jpg").write_bytes(b"")
    done = tl("run", folder, "--head", "logistic:C=1", "--runner", "direct")
    assert done.returncode == 3
    assert "10 of 70 inputs were refused (9 empty" in done.stderr
    asked = "SELECT reason, count(*) AS n FROM quarantine GROUP BY reason ORDER BY n"
    assert in_catalogue(tmp_path, asked) == [("not an image", 1), ("empty", 9)]


def test_all_faults_of_a_catalogue_are_told_at_once(tl: Tl, tmp_path: Path):
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "version: 1\n"
        "datasets:\n"
        "  a: {type: image_foldr, path: x}\n"
        "  b:\n"
        "    type: image_folder\n"
        "    path: y\n"
        "    lable: z\n"
        "  c:\n"
        "    type: digits\n"
        "    split: {validation: 2}\n"
    )
    done = tl("catalog", "--catalog", bad)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert [line.split(str(bad))[1].split(":")[1] for line in lines] == ["3", "7", "10"]


def test_config_file_and_flags_together(tl: Tl, tmp_path: Path):
    (tmp_path / "run.yaml").write_text(
        "dataset: digits\n"
        "backbones: [lenet5, {backbone: lenet5, layer: f6}]\n"
        "heads:\n"
        "  - {name: logistic, params: {C: [0.1, 1.0]}}\n"
        "controls: false\n"
    )
    steps = json.loads(tl("plan", "--config", "run.yaml", "--json").stdout)
    assert [s["subject"] for s in steps if s["stage"] == "embed"] == [
        "lenet5/c5 LETTERS",
        "lenet5/f6 LETTERS",
    ]
    fewer = tl("plan", "--config", "run.yaml", "--backbone", "lenet5", "--json")
    assert len([s for s in json.loads(fewer.stdout) if s["stage"] == "embed"]) == 1


def test_lists_are_json_for_scripts(tl: Tl):
    found = json.loads(tl("backbones", "--search", "vgg16", "--json").stdout)
    assert [row["backbone"] for row in found] == ["vgg16", "vgg16_bn", "ssd300_vgg16"]
    assert found[0]["width"] == 4096
    assert found[0]["layers"][0] == {
        "layer": "fc6",
        "node": "classifier.1",
        "pool": None,
        "width": 4096,
    }
    (first, features) = found[0]["weights"]
    assert (first["name"], first["default"]) == ("IMAGENET1K_V1", True)
    assert (first["score"], first["parameters"]) == (71.592, 138_357_544)
    assert "ImageNet-1K" in first["licence"]
    assert first["on_disk"] is False
    assert features["score"] is None  # torchvision has none; NaN would be no JSON
    heads = {row["head"] for row in json.loads(tl("heads", "--json").stdout)}
    assert {"logistic", "mlp", "majority"} <= heads
    (digits,) = json.loads(tl("catalog", "--json").stdout)
    assert digits["name"] == "digits"


def test_backbones_are_listed_with_weights_scores_and_what_is_on_disk(
    tl: Tl, tmp_path: Path
):
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "resnet50-11ad3fa6.pth").write_bytes(b"")
    lines = tl("backbones").stdout.splitlines()
    (resnet,) = (line for line in lines if line.startswith("resnet50 "))
    for told in ("avgpool", "224", "25.6", "IMAGENET1K_V1 76.1 top-1 ImageNet-1K"):
        assert told in resnet
    assert sum(line[:1].isalnum() for line in lines) > 90
    assert resnet.split()[-1] == "IMAGENET1K_V2"
    assert any("IMAGENET1K_V2 80.9 top-1" in line for line in lines)
    assert (
        "no backbone has 'resnet5000'"
        in tl("backbones", "--search", "resnet5000").stdout
    )


def test_a_backbone_is_shown_as_names_that_can_be_layers(tl: Tl):
    shown = tl("backbones", "show", "swin_t").stdout
    for told in ("stage4", "768 values", "features.7.1.add_1", "7 x 7 x 768", "81.5"):
        assert told in shown
    assert "relative_position_bias_table" not in shown  # a node, but no layer
    document = json.loads(tl("backbones", "show", "lenet5", "--json").stdout)
    shapes = {node["name"]: node["shape"] for node in document["graph"]}
    assert shapes["c3_relu"] == [16, 10, 10]
    assert shapes["output"] == [26]
    whole = json.loads(tl("backbones", "show", "features", "--json").stdout)
    assert (whole["takes"], whole["layer"]) == ("vectors", "vector")
    assert "takes" in tl("backbones", "show", "features").stdout
    nowhere = tl("backbones", "show", "text:nowhere")
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    unknown = tl("backbones", "show", "resnet5")
    assert unknown.returncode == 2
    assert "Did you mean 'resnet50'" in unknown.stderr


def test_predict_names_the_class_and_refuses_what_is_no_image(tl: Tl, folder: Path):
    tl("run", folder, "--head", "logistic:C=0.1", "--runner", "direct")
    good, bad = folder / "flower" / "000.jpg", folder / "notes.txt"
    bad.write_text("not an image")
    done = tl("predict", "photos", good, bad, "--json")
    first, second = json.loads(done.stdout)
    assert done.returncode == 3
    assert first["label"] == "flower"
    assert 0.5 < first["confidence"] <= 1
    assert second["label"] is None
    assert "not an image" in second["refused"]
    unknown = tl("predict", "fotos", good)
    assert unknown.returncode == 2
    assert "Did you mean 'photos'" in unknown.stderr


def test_catalog_check_schema_and_show(tl: Tl, folder: Path, tmp_path: Path):
    """A dataset can be looked at before anything is run on it."""
    assert "no faults" in tl("catalog", "check").stdout
    schema = json.loads(tl("catalog", "schema").stdout)
    assert {"DigitsSpec", "ImageFolderSpec"} <= schema["$defs"].keys()
    (folder / "china" / "copy.jpg").write_bytes((folder / "china/001.jpg").read_bytes())
    (folder / "china" / "bad.jpg").write_text("no image")
    done = tl("catalog", "show", folder, "--sheet", "sheet.png", "--json")
    found = json.loads(done.stdout)
    assert (found["images"], found["duplicates"]) == (60, 1)
    assert found["refused"] == "1 not an image"
    assert [row["all"] for row in found["classes"]] == [30, 30]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 700
        assert len(sheet.getcolors(1 << 20) or []) > 1000
    assert not (tmp_path / "tl_store").exists()


def test_unexpected_counts_are_an_error_with_both_numbers(
    tl: Tl, folder: Path, tmp_path: Path
):
    (tmp_path / "data_catalog.yaml").write_text(
        "version: 1\n"
        "datasets:\n"
        f"  few: {{type: image_folder, path: {folder}, expect: {{images: 61}}}}\n"
    )
    done = tl("plan", "few")
    assert done.returncode == 2
    assert "60 images instead of 61" in done.stderr
