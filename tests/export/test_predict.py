"""The script of an export makes the pixels of the pipeline, to the last value."""

import importlib.util
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tl_pipeline.export import exporting
from tl_pipeline.inputs import pixels
from tl_pipeline.inputs.images import Preprocess

FILE = REPOSITORY / "tl_pipeline" / "export" / "predict.py"
SIZES = [(300, 211), (33, 400), (20, 17), (64, 64), (1, 5), (1000, 90), (48, 64)]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("exported_predict", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"resize": 40},  # smaller than the crop: padded
        {"squash": True, "resize": 57},
        {"pad": True},
        {"grey": True, "mean": (0.5,), "std": (0.5,)},
    ],
)
def test_pixels_are_those_of_the_pipeline(
    interpolation: Any, more: dict[str, Any], script: Any
):
    usual = {"resize": 64, "crop": 57 if "pad" not in more else 64}
    colour = {"mean": (0.485, 0.456, 0.406), "std": (0.2, 0.2, 0.2)}
    how = Preprocess(**{**usual, **colour, **more}, interpolation=interpolation)
    made = script.Classifier.__new__(script.Classifier)
    made.how = exporting.preprocessing(how)
    chance = np.random.default_rng(0)
    for width, height in SIZES:
        values = chance.integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(values).save(file, "png")
        wanted = pixels.pixels(file.getvalue(), how)
        assert np.array_equal(made.prepare(file.getvalue()), wanted), (width, height)
