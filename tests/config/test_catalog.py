"""The data catalogue and a run's file: every fault at once, each with its line."""

from pathlib import Path

import pytest

from tl_pipeline.config import catalog
from tl_pipeline.config.datasets import DigitsSpec, ImageFolderSpec
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.config.split_specs import SplitSpec
from tl_pipeline.errors import CatalogError, UnknownName

GOOD = """\
version: 1
datasets:
  photos:
    type: image_folder
    path: pictures/photos
    licence: CC0
    split: {strategy: stable, test: 0.3, seed: 7}
  digits:
    type: digits
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data_catalog.yaml"


def faults(file: Path, text: str) -> list[str]:
    """The lines of the error, without the folder."""
    file.write_text(text)
    with pytest.raises(CatalogError) as error:
        catalog.load(file)
    return str(error.value).replace(f"{file.parent}/", "").splitlines()


def test_a_good_catalogue_is_read_in_its_order(file: Path):
    file.write_text(GOOD)
    found = catalog.load(file)
    assert list(found) == ["photos", "digits"]
    assert found["digits"] == DigitsSpec(type="digits", name="digits")
    assert found["photos"] == ImageFolderSpec(
        name="photos",
        path=file.parent / "pictures" / "photos",
        licence="CC0",
        split=SplitSpec(strategy="stable", test=0.3, seed=7),
    )


def test_all_faults_are_reported_together_each_with_its_line(file: Path):
    text = """\
version: 1
datasets:
  one:
    type: image_folder
    path: here
    colour: red
  two:
    type: image_foldr
    path: there
  three:
    type: digits
    split:
      seed: 3
      test: 1.5
"""
    unknown, tag, share = faults(file, text)
    assert unknown == "data_catalog.yaml:6: datasets.one.colour: unknown field"
    assert tag == (
        "data_catalog.yaml:8: datasets.two: type must be one of: archive, "
        "coco_objects, digits, features, huggingface, image_folder, pickle, table, "
        "torchvision, voc_objects, webdataset"
    )
    assert share.startswith("data_catalog.yaml:14: datasets.three.split.test: ")
    assert "less than 1" in share


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("version: 1\ndatasets: {}\nextra: 1\n", "3: unknown field 'extra' at the top"),
        ("datasets: {}\n", "1: version must be 1"),
        ("datasets: {}\nversion: 2\n", "2: version must be 1"),
        ("version: 1\n", "1: datasets must map names to entries"),
        ("version: 1\ndatasets: [a]\n", "2: datasets must map names to entries"),
        ("version: 1\ndatasets:\n  a: 3\n", "3: dataset 'a' must be a mapping"),
        (
            "version: 1\ndatasets:\n  a:\n    type: digits\n    name: b\n",
            "3: dataset 'a': its key is its name; remove 'name'",
        ),
        (
            "version: 1\ndatasets:\n  a:\n    licence: CC0\n",
            "3: datasets.a: type must be one of",
        ),
        (
            "version: 1\ndatasets:\n  a:\n    type: image_folder\n",
            "3: datasets.a.path: Field required",
        ),
        (
            "version: 1\ndatasets:\n  b/c:\n    type: digits\n",
            "3: datasets.b/c.name: ",
        ),
        (
            "version: 1\ndatasets:\n  a:\n    type: digits\n    max_quarantined: 2\n",
            "5: datasets.a.max_quarantined: ",
        ),
        (
            "version: 1\ndatasets:\n  a: {type: digits, split: {test: 0.8}}\n",
            "3: datasets.a.split: ",
        ),
    ],
)
def test_a_fault_is_named_with_its_line(file: Path, text: str, fault: str):
    (found,) = faults(file, text)
    assert found.startswith(f"data_catalog.yaml:{fault}")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("version: 1\ndatasets:\n  a: {type: digits}\n  a: {type: digits}\n", 4, "dup"),
        ("version: 1\ndatasets: {}\nversion: 1\n", 3, "duplicate"),
        ("version: 1\ndatasets: [\n", 3, "expected"),
        ("a: 1\n  b: 2\n", 2, "mapping values are not allowed"),
    ],
    ids=["duplicate entry", "duplicate field", "open bracket", "indentation"],
)
def test_broken_yaml_is_a_fault_with_its_line(
    file: Path, text: str, line: int, words: str
):
    (found,) = faults(file, text)
    assert found.startswith(f"data_catalog.yaml:{line}: ")
    assert words in found


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text\n", "# nothing\n"])
def test_a_file_that_is_no_mapping_is_a_fault(file: Path, text: str):
    assert faults(file, text) == ["data_catalog.yaml:1: expected a mapping of fields"]


def test_a_missing_catalogue_is_named_with_the_cure(file: Path):
    with pytest.raises(CatalogError, match=r"data_catalog\.yaml: no such .*--catalog"):
        catalog.load(file)


def test_bytes_that_are_no_text_are_a_fault_of_the_catalogue(file: Path):
    file.write_bytes(b"version: 1\nname: \xff\xfe\n")
    with pytest.raises(CatalogError, match=r"data_catalog\.yaml"):
        catalog.load(file)


def test_a_home_folder_and_an_absolute_path_stay_what_they_are(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", "/home/somebody")
    file.write_text(
        "version: 1\ndatasets:\n"
        "  home: {type: image_folder, path: ~/photos}\n"
        "  root: {type: image_folder, path: /srv/photos}\n"
    )
    found = catalog.load(file)
    assert found["home"].path == Path("/home/somebody/photos")
    assert found["root"].path == Path("/srv/photos")


def test_a_relative_path_starts_at_the_catalogue_and_not_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "catalog.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    found = catalog.find("photos", Path("deep/catalog.yaml"))
    assert found.path.resolve() == tmp_path / "deep" / "pictures" / "photos"


def test_an_unknown_dataset_is_offered_the_nearest_name(file: Path):
    file.write_text(GOOD)
    with pytest.raises(UnknownName, match=r"'digit'.*Did you mean 'digits'") as error:
        catalog.find("digit", file)
    assert "photos" in str(error.value)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("birds", "birds"),
        ("My Photos (2026)", "My-Photos-2026"),
        ("_hidden.", "hidden"),
        ("写真", "images"),
        ("v1.2_final", "v1.2_final"),
    ],
)
def test_a_folder_that_is_no_entry_is_a_dataset_of_images(
    file: Path, folder: str, name: str
):
    file.write_text(GOOD)
    path = file.parent / folder
    path.mkdir()
    for given in (file, None):
        assert catalog.find(str(path), given) == ImageFolderSpec(name=name, path=path)


def test_a_folder_needs_no_catalogue_but_a_name_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert catalog.find("photos").name == "photos"
    with pytest.raises(CatalogError, match="no such file"):
        catalog.find("digits")
    with pytest.raises(CatalogError, match="no such file"):
        catalog.find("photos", Path("gone.yaml"))


def test_an_entry_goes_before_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    Path("data_catalog.yaml").write_text(GOOD)
    assert isinstance(catalog.find("digits"), DigitsSpec)


RUN = """\
dataset: digits
backbones:
  - lenet5:layer=f6
  - {backbone: vgg16, weights: vgg16.pth}
heads:
  - name: logistic
    params: {C: [1e-3, 0.1]}
seed: 4
"""


def test_a_run_is_read_from_its_file(file: Path):
    file.write_text(RUN)
    assert catalog.load_run(file) == RunSpec(
        dataset="digits",
        backbones=(
            EncoderSpec(backbone="lenet5", layer="f6"),
            EncoderSpec(backbone="vgg16", weights="vgg16.pth"),
        ),
        heads=(HeadSpec(name="logistic", params={"C": [0.001, 0.1]}),),
        seed=4,
    )


def test_what_is_given_beside_the_file_wins_but_none_does_not(file: Path):
    file.write_text(RUN)
    plain = catalog.load_run(file)
    given = catalog.load_run(file, dataset="photos", seed=0, heads=None, controls=False)
    changed = {"dataset": "photos", "seed": 0, "controls": False}
    assert given == plain.model_copy(update=changed)


def test_the_faults_of_a_run_are_reported_together_each_with_its_line(file: Path):
    file.write_text("dataset: digits\nseed: many\npart_rows: 0\nsede: 3\n")
    with pytest.raises(CatalogError) as error:
        catalog.load_run(file)
    found = sorted(str(error.value).splitlines())
    assert [line.partition(": ")[0] for line in found] == [
        f"{file}:{n}" for n in (2, 3, 4)
    ]
    assert found[2] == f"{file}:4: sede: unknown field"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("backbones: []", "backbones"),
        ("heads: []", "heads"),
        ("backbones: ['vgg16:bogus=1']", "bogus"),
        ("heads: ['logistic:C']", "logistic:C"),
    ],
)
def test_a_fault_in_an_encoder_or_head_of_a_run_has_its_line(
    file: Path, line: str, words: str
):
    file.write_text(f"dataset: digits\n{line}\n")
    with pytest.raises(CatalogError) as error:
        catalog.load_run(file)
    assert str(error.value).startswith(f"{file}:2: ")
    assert words in str(error.value)


def test_a_run_without_a_file_or_dataset_is_a_fault(file: Path):
    with pytest.raises(CatalogError, match="no such file"):
        catalog.load_run(file)
    file.write_text("seed: 3\n")
    with pytest.raises(CatalogError, match=r"yaml:1: dataset: Field required"):
        catalog.load_run(file)


def test_a_yaml_bomb_is_refused_unexploded(tmp_path: Path):
    """Ten aliases in ten aliases ...: ten thousand million words, if written out."""
    lines = ["version: 1", "x0: &x0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for level in range(1, 10):
        ten = ", ".join([f"*x{level - 1}"] * 10)
        lines.append(f"x{level}: &x{level} [{ten}]")
    lines += ["datasets:", "  a: {type: digits, description: *x9}"]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join(lines))
    with pytest.raises(CatalogError) as refusal:
        catalog.load(file)
    said = str(refusal.value).splitlines()
    assert len(said) == 11
    assert said[-1].startswith(f"{file}:13: datasets.a.description: ")
