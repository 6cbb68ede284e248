"""Which places of an image a prediction rests on."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.command_line import in_this_process
from tl_pipeline.config.dataset_entry import PixelSpec
from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.pipeline import wiring
from tl_pipeline.registry import index, occlusion
from tl_pipeline.report.occlusion_page import occlusion_page
from tl_pipeline.store.artifacts import Store

SIDE = 64
# Where the bright square of each class is: top and left.
PLACES = {"upper": (8, 8), "lower": (40, 40)}


def image(label: str, number: int) -> Image.Image:
    """Dark noise with a bright square of 16 pixels."""
    pixels = np.random.default_rng(number).integers(0, 40, (SIDE, SIDE, 3), np.uint8)
    top, left = PLACES[label]
    pixels[top : top + 16, left : left + 16] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A folder of two classes, whose images differ in one place each."""
    for label in PLACES:
        (tmp_path / "squares" / label).mkdir(parents=True)
        for number in range(20):
            image(label, number).save(tmp_path / "squares" / label / f"{number}.png")
    return tmp_path / "squares"


def test_a_label_rests_on_the_place_that_tells_it(squares: Path, store: Store):
    spec = RunSpec(
        dataset=str(squares),
        backbones=(EncoderSpec(backbone="lenet5"),),
        heads=(HeadSpec.parse("logistic:C=0.1"),),
        controls=False,
    )
    wiring.run(wiring.prepare(spec, store))
    model = index.load_model(store, "squares")
    for label, (top, left) in PLACES.items():
        found = occlusion.occlude(model, squares / label / "0.png")
        assert found.label == label
        (said,) = model.predictor.predict([squares / label / "0.png"])
        assert found.confidence == pytest.approx(said.confidence, abs=1e-5)
        assert found.drops.shape == (8, 8)
        row, column = np.unravel_index(found.drops.argmax(), found.drops.shape)
        assert top // 8 <= row < (top + 16) // 8
        assert left // 8 <= column < (left + 16) // 8
        assert found.drops.max() > 0.05
        far = found.drops[::-1, ::-1][row, column]
        assert far < found.drops.max() / 2


def test_a_cell_has_the_mean_of_the_squares_over_it():
    changes = np.zeros((7, 7))
    changes[0, 0], changes[3, 4] = 1.0, 2.0
    cells = occlusion._cells(changes)
    assert cells[0, 0] == 1.0  # one square covers a corner
    assert cells[0, 1] == 0.5
    assert cells[1, 1] == 0.25
    assert cells[3:5, 4:6].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert cells.sum() == pytest.approx(1 + 2 * 0.5 + 0.25 + 4 * 0.5)


@pytest.mark.usefixtures("squares")
def test_the_page_shows_each_image_that_could_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tl = in_this_process(tmp_path, monkeypatch)
    tl("run", "squares", "--head", "ridge:alpha=1", "--no-controls", "--runner=direct")
    (tmp_path / "no.png").write_text("no image")
    photos = ("squares/upper/0.png", "no.png", "squares/lower/1.png")
    done = tl("predict", "squares", *photos, "--html", "where.html")
    assert done.returncode == 3
    page = (tmp_path / "where.html").read_text()
    assert re.findall(r"<b>(\w+)</b> at", page) == ["upper", "lower"]
    assert page.count("data:image/webp;base64") == 2
    assert page.count("<rect ") == 2 * 64
    strongest = re.findall(r'class="less".*opacity="0.75"', page)
    assert len(strongest) == 2
    assert "http" not in page

    done = tl("predict", "squares", "squares", "--html", "where.html")
    assert done.returncode == 2
    assert done.stderr == (
        "InvalidSpec: --html is of files, not of a dataset or folder: name some of "
        "squares\n"
    )
    done = tl("predict", "squares", photos[0], "--html", "nowhere/where.html")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "InvalidSpec: cannot write nowhere/where.html: No such file or directory",
    )


def test_the_page_decodes_an_image_as_its_model_does(tmp_path: Path):
    """A file of five bands, of which the model's pixels name three."""
    file = tmp_path / "bands.tif"
    bands = np.zeros((16, 16, 5), np.uint8)
    bands[..., 4] = 200
    tifffile.imwrite(file, bands, photometric="minisblack", planarconfig="contig")
    found = occlusion.Occluded(
        file, PixelSpec(channels=(5, 1, 2)), "field", 0.9, np.zeros((8, 8))
    )
    (source,) = re.findall(r"base64,([^\"]+)", occlusion_page("fields", [found]))
    picture = Image.open(io.BytesIO(base64.b64decode(source)))
    red, green, blue = np.asarray(picture.convert("RGB"))[8, 8].tolist()
    assert red == pytest.approx(200, abs=8)
    assert max(green, blue) < 16
