"""Every page that ``tl`` prints, as it was last read and found good.

``make snapshots`` writes them anew; what changed is then read in ``git diff``. Numbers
with a point may differ a little, and durations, sizes, dates and hashes as they like.
"""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests import documents
from tests.command_line import Tl, in_this_process
from tests.conftest import REPOSITORY
from tests.documents import options

PAGES = Path(__file__).parent / "snapshots"
WIDTH = "100"

# A name for each page, and the words that print it; typed in this order.
BEFORE = {
    "catalog": "catalog",
    "catalog-check": "catalog check",
    "catalog-show": "catalog show photos",
    "heads": "heads",
    "heads-of-one": "heads logistic",
    "backbones-search": "backbones --search squeezenet",
    "backbones-show": "backbones show lenet5",
    "plan-of-the-first-run": "plan photos --head logistic",
}
AFTER = {
    "run": "run photos --head logistic --runner direct",
    "plan-of-nothing-to-do": "plan photos --head logistic",
    "run-of-nothing-to-do": "run photos --head logistic --runner direct",
    "plan-of-one-more-head": "plan photos --head logistic --head lda",
    "runs": "runs",
    "runs-show": "runs show",
    "models": "models --json",  # a table is cut where the folder has a long path
    "predict": "predict photos photos/flower/000.jpg photos/china/000.jpg",
    "sql-contents": "sql",
    "sql": "sql 'SELECT split, label, images FROM class_counts ORDER BY ALL'",
    "rank": "rank photos --backbone lenet5:layer=f6",
    "few-shot": "few-shot photos --shots 1/2 --draws 2 --head logistic:C=0.1",
    "store-show": "store show",
    "store-gc": "store gc --dry-run",
    "store-compact": "store compact",
}
FAULTS = {
    "an unknown dataset": "run digts",
    "no dataset": "run",
    "an unknown backbone": "run photos --backbone resnet5",
    "an unknown layer": "run photos --backbone lenet5:layer=fc8",
    "a backbone parameter that is none": "run photos --backbone lenet5:size=3",
    "weights that are missing": "plan photos --backbone resnet50",
    "a weights file that is not there": "run photos --weights no.pth",
    "an unknown head": "run photos --head svm",
    "an unknown head parameter": "run photos --head logistic:c=1",
    "a head parameter that is no number": "run photos --head logistic:C=x",
    "a catalogue that is not there": "run photos --catalog no.yaml",
    "a catalogue with faults": "catalog --catalog faults.yaml",
    "a configuration that is not there": "run --config no.yaml",
    "a store where none can be": "run photos --store https://host/store",
    "a folder with one class": "run one --runner direct",
    "an empty folder": "run empty --runner direct",
    "too many refused": "run broken --runner direct",
    "an unknown model": "predict fotos photos/china/000.jpg",
    "an unknown alias": "predict photos photos/china/000.jpg --alias champions",
    "no image": "predict photos data_catalog.yaml",
    "a query that is none": "sql 'SELEC 1'",
    "an unknown table": "sql 'FROM nowhere'",
    "an unknown command": "rum photos",
    "an unknown option": "run photos --heads logistic",
    "an option without its value": "run photos --head",
}
# What tells of this machine and moment, beside what ``documents`` knows of.
CHANCE = (
    (r"\nembedding: [^\n]*", ""),  # where its time went
    (r"\n[a-z]+ [^\n]*: [\d,]+ in TIME \([^\n]*", ""),  # a stage that took seconds
    (r"[\d.]+(?: \(remembered\))?( +TIME, TIME)", r"#\1"),  # of `rank`, a column
    (r"( 60 +\d+ +)[\d.]+( +logistic)", r"\1#\2"),  # of `runs`, a column
    (r"https://[\w./-]*/", "URL/"),
)
HELP = {f"help/{command or 'tl'}": f"{command} --help" for command in options()}
EVERY = [*HELP, *BEFORE, *AFTER, "errors"]


@pytest.fixture(scope="module")
def printed(
    tmp_path_factory: pytest.TempPathFactory, crops: Callable[[str, int], Image.Image]
) -> dict[str, str]:
    """Name -> page, from one journey in one folder."""
    place = tmp_path_factory.mktemp("reader")
    _prepare(place, crops)
    with pytest.MonkeyPatch.context() as patch:
        tl = in_this_process(place, patch, COLUMNS=WIDTH)
        pages = {
            name: _page(tl, words, place)
            for name, words in (HELP | BEFORE | AFTER).items()
        }
        pages["errors"] = "\n".join(
            f"# {fault}\n{_page(tl, words, place)}" for fault, words in FAULTS.items()
        )
    return pages


def _prepare(place: Path, crops: Callable[[str, int], Image.Image]) -> None:
    """Photos of two classes, and folders and files of each kind of fault."""
    shutil.copyfile(REPOSITORY / "data_catalog.yaml", place / "data_catalog.yaml")
    for label in ("china", "flower"):
        for number in range(30):
            file = place / "photos" / label / f"{number:03d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            crops(label, number).save(file, quality=90)
    (place / "empty").mkdir()
    shutil.copytree(place / "photos" / "china", place / "one" / "china")
    shutil.copytree(place / "photos", place / "broken")
    for file in (place / "broken" / "flower").iterdir():
        file.write_text("no image")
    (place / "faults.yaml").write_text(
        "version: 1\n"
        "datasets:\n"
        "  a: {type: image_foldr, path: x}\n"
        "  b: {type: image_folder, path: y, lable: z}\n"
        "  c: {type: digits, split: {validation: 2}}\n"
    )


def _page(tl: Tl, words: str, place: Path) -> str:
    """What a terminal shows: the command, its output, its exit code if it is not 0."""
    done = tl(*shlex.split(words))
    text = f"$ tl {words.strip()}\n{done.stdout}{done.stderr}"
    text += f"[exit code {done.returncode}]\n" if done.returncode else ""
    text = documents.without_chance(text, place)
    for pattern, instead in CHANCE:
        text = re.sub(pattern, instead, text)
    return re.sub(r"[ \t]+\n", "\n", text)


@pytest.mark.parametrize("name", EVERY)
def test_a_page_is_as_it_was_read(
    name: str, printed: dict[str, str], pytestconfig: pytest.Config
):
    file = PAGES / f"{name.replace(' ', '-')}.txt"
    if pytestconfig.getoption("--update-snapshots"):
        if not file.exists() or documents.changed(file.read_text(), printed[name]):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(printed[name])
        return
    assert file.exists(), "a new page: `make snapshots` writes it"
    assert documents.changed(file.read_text(), printed[name]) == [], (
        f"{printed[name]}\nIf this is how it should be: `make snapshots`"
    )


def test_no_page_is_left_of_what_is_gone():
    there = {str(f.relative_to(PAGES)) for f in PAGES.rglob("*.txt")}
    assert there == {f"{name.replace(' ', '-')}.txt" for name in EVERY}
