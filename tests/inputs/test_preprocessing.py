"""What networks are fed: torchvision's own presets, or what is set."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model, get_model_weights
from torchvision.transforms import v2

from tests.exhaustive import one_of_each
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.encoders import backbones, resolution
from tl_pipeline.encoders.backbones import BACKBONES
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.inputs.pixels import pixels
from tl_pipeline.store.artifacts import Store

CLASSIFIERS = [n for n, row in BACKBONES.items() if row.origin == "torchvision"]
DETECTORS = [n for n, row in BACKBONES.items() if row.weights == "COCO_V1"]
# Smaller than the crop, between crop and resize, larger; portrait, landscape, odd.
# 303 - 224 = 79 halves to 39.5: there rounding half to even shows.
SIZES = [(17, 17), (37, 91), (224, 224), (225, 223), (256, 303), (303, 256), (500, 375)]


def recorded(name: str, member: str) -> Preprocess:
    """What we keep of the preset of a named member."""
    return backbones.named_weights(BACKBONES[name], member).preprocess


def one_member_per_preset() -> list[tuple[str, str]]:
    """The first member with each different preprocessing, of all networks."""
    found: dict[Preprocess, tuple[str, str]] = {}
    for name in CLASSIFIERS:
        for member in get_model_weights(name):
            found.setdefault(recorded(name, member.name), (name, member.name))
    return list(found.values())


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A photo-like picture: smooth colours and sharp noise."""
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
    noise = chance.integers(-20, 21, (480, 640, 3))
    return Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def test_every_member_is_recorded_field_by_field():
    """No preset has a field that we do not keep: all are of one class, and square."""
    members = [(name, m) for name in CLASSIFIERS for m in get_model_weights(name)]
    for name, member in members:
        preset, how = member.transforms(), recorded(name, member.name)
        assert type(preset).__name__ == "ImageClassification"
        assert preset.resize_size == [how.resize]
        assert preset.crop_size == [how.crop]
        assert preset.interpolation.value == how.interpolation
        assert (preset.antialias, how.grey) == (how.antialias, False)
        assert (tuple(preset.mean), tuple(preset.std)) == (how.mean, how.std)


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize(
    ("name", "member"),
    one_of_each(one_member_per_preset(), lambda pair: recorded(*pair).interpolation),
)
def test_preprocessing_is_torchvisions_to_a_rounding(
    name: str, member: str, size: tuple[int, int], photo: Image.Image
):
    image = photo.crop((20, 30, 20 + size[0], 30 + size[1]))
    how = recorded(name, member)
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (how.mean, how.std))
    theirs = get_model_weights(name)[member].transforms()(image) * std + mean
    exact = (theirs * 255).round().to(torch.int).numpy()
    off = np.abs(pixels(_png(image), how).astype(int) - exact)
    # two roundings in a row, of which cubic weights may enlarge the first
    assert off.max() <= (2 if how.interpolation == "bicubic" else 1)
    assert off.mean() < 0.02


@pytest.mark.parametrize(
    "name", one_of_each(DETECTORS, lambda name: name.partition("_")[0])
)
def test_a_detector_is_fed_at_its_own_side_with_its_own_means(name: str):
    transform = get_model(name, weights=None, weights_backbone=None).transform
    how = recorded(name, "COCO_V1")
    fixed = transform.fixed_size or (transform.min_size[-1],)
    assert {how.resize, how.crop} == set(fixed)
    assert list(how.mean) == transform.image_mean
    assert list(how.std) == transform.image_std


@pytest.mark.parametrize("size", [(8, 8), (33, 57), (500, 375)])
def test_lenet5_sees_grey_32x32_in_minus_one_to_one(
    size: tuple[int, int], photo: Image.Image
):
    image = photo.crop((0, 0, *size))
    how = recorded("lenet5", "LETTERS")
    expected = v2.Compose([v2.Grayscale(), v2.Resize(32), v2.CenterCrop(32)])(image)
    off = pixels(_png(image), how)[0].astype(int) - np.asarray(expected)
    assert np.abs(off).max() <= 1
    assert (how.mean, how.std) == ((0.5,), (0.5,))


def resolved(store: Store, **wish):
    """A ResNet-18 with random weights, fed as ``wish`` says."""
    spec = EncoderSpec.model_validate(
        {"backbone": "resnet18", "weights": "random:0", **wish}
    )
    return resolution.resolve(spec, store)


@pytest.mark.parametrize(
    "change",
    [
        {"resize": 232},
        {"crop": 192},
        {"interpolation": "bicubic"},
        {"mean": "0.5/0.5/0.5"},
        {"std": (0.5, 0.25, 0.5)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_override_changes_its_field_the_key_and_the_label(
    store: Store, change: dict
):
    usual, other = resolved(store), resolved(store, **change)
    before, after = (e.preprocess.model_dump() for e in (usual, other))
    assert {name for name in before if before[name] != after[name]} == set(change)
    assert other.key != usual.key
    assert f"{next(iter(change))}=" in other.label


@pytest.mark.parametrize(
    ("backbone", "side", "resize"),
    [
        ("resnet18", 128, 146),  # of 256/224
        ("squeezenet1_0", 160, 183),
        ("inception_v3", 160, 183),  # of 342/299
        ("efficientnet_b0", 112, 128),
        ("vit_b_32", 96, 110),
        ("lenet5", 48, 48),
        ("caffe_alexnet", 113, 127),  # of 256/227, which squashes
    ],
)
def test_a_side_keeps_the_proportion_of_the_weights(
    store: Store, backbone: str, side: int, resize: int
):
    short = resolved(store, backbone=backbone, side=side)
    spelt = resolved(store, backbone=backbone, resize=resize, crop=side)
    assert (short.preprocess.resize, short.preprocess.crop) == (resize, side)
    assert short == spelt
    assert short.key == spelt.key
    assert f"(@{side})" in short.label


def test_the_usual_side_and_fit_are_the_usual_encoder(store: Store):
    assert resolved(store, side=224) == resolved(store)
    assert resolved(store, fit="crop") == resolved(store)
    squashing = resolved(store, backbone="caffe_alexnet")
    cropping = resolved(store, backbone="caffe_alexnet", fit="crop")
    assert (squashing.preprocess.squash, cropping.preprocess.squash) == (True, False)
    assert cropping.key != squashing.key
    assert "(crop)" in cropping.label
    whole = resolved(store, backbone="caffe_alexnet", fit="squash")
    assert (whole.preprocess.resize, whole.preprocess.crop) == (227, 227)
    assert "(squash)" in whole.label


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize(("side", "label"), [(None, "({})"), (96, "(@96 2x2 {})")])
def test_the_whole_image_is_a_choice(
    store: Store, fit: str, side: int | None, label: str
):
    pool = {"pool": "grid2", "layer": "layer4"} if side else {}
    found = resolved(store, fit=fit, side=side, **pool)
    how = found.preprocess
    assert (how.resize, how.crop) == (side or 224, side or 224)
    assert (how.squash, how.pad) == (fit == "squash", fit == "pad")
    assert label.format(fit) in found.label
    assert found.key != resolved(store, side=side, **pool).key


@pytest.mark.parametrize("size", [(64, 40), (41, 63), (20, 20), (90, 1)])
def test_squashed_and_padded_images_by_hand(photo: Image.Image, size: tuple[int, int]):
    """The margin is the mean, which is 0 once normalised; an odd pixel lies behind."""
    image = photo.crop((0, 0, *size))
    mean = (0.485, 0.456, 0.406)
    how = Preprocess(resize=32, crop=32, mean=mean, std=(0.2, 0.2, 0.2), squash=True)
    squashed = pixels(_png(image), how).astype(int)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(squashed - expected.transpose(2, 0, 1)).max() <= 1
    padded = pixels(_png(image), how.model_copy(update={"squash": False, "pad": True}))
    scale = 32 / max(size)
    width, height = (max(1, round(length * scale)) for length in size)
    shown = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = (32 - height) // 2, (32 - width) // 2
    inside = padded[:, top : top + height, left : left + width].astype(int)
    assert np.abs(inside - shown.transpose(2, 0, 1)).max() <= 1
    margin = np.ones((32, 32), bool)
    margin[top : top + height, left : left + width] = False
    assert (padded[:, margin].T == [124, 116, 104]).all()
    assert padded.shape == (3, 32, 32)


def test_what_is_set_to_its_default_changes_nothing(store: Store):
    same = resolved(store, resize=256, crop=224, interpolation="bilinear")
    assert same == resolved(store)


def test_the_defaults_are_those_of_the_weights(store: Store):
    """An override changes one field; the others stay those of the named member."""
    wish = {"weights": "random:0:IMAGENET1K_V2", "crop": 192, "backbone": "resnet50"}
    how = resolved(store, **wish).preprocess
    assert (how.resize, how.crop) == (232, 192)


def test_the_twin_is_fed_as_the_weights_it_is_compared_with(store: Store):
    """Else a part of the gain by transfer would be that of another input."""
    wish = EncoderSpec.parse("vit_b_16:weights=IMAGENET1K_SWAG_E2E_V1,pool=cls+mean")
    twin = resolution.random_init_baseline(wish, 3)
    found = resolution.resolve(twin, store)
    assert found.preprocess == recorded("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert (found.preprocess.crop, found.pooling) == (384, "cls+mean")
    assert found.weights.name == "random:3:IMAGENET1K_SWAG_E2E_V1"
    by_default = resolution.random_init_baseline(EncoderSpec(backbone="vit_b_16"), 3)
    assert by_default.weights == "random:3"


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("resnet18:crop=299", "a crop of 299 is larger than .*resize=256. Set both"),
        ("resnet18:mean=0.5", "mean must have 3 values"),
        ("lenet5:std=0.5/0.5/0.5", "std must have 1 values"),
    ],
)
def test_an_input_that_makes_no_sense_is_refused(store: Store, wish: str, said: str):
    spec = EncoderSpec.parse(wish).model_copy(update={"weights": "random:0"})
    with pytest.raises(InvalidSpec, match=said):
        resolution.resolve(spec, store)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("resnet18:mean=123.7/116.8/103.9", "less than or equal to 1"),
        ("resnet18:std=0/0/0", "greater than 0"),
        ("resnet18:resize=4", "greater than or equal to 8"),
        ("resnet18:side=7", "^'resnet18:side=7': side: .*greater than or equal to 8"),
        ("resnet18:side=96,crop=64", "side=96 sets resize and crop; give it or them"),
        ("resnet18:fit=pad,resize=96", "fit=pad shows the whole image.*give side in"),
        ("resnet18:fit=fill", "'crop', 'squash' or 'pad'"),
        ("resnet18:resize=9999", "less than or equal to 2048"),
        ("resnet18:crop=big", "valid integer"),
        ("resnet18:interpolation=lanczos", "'bilinear', 'bicubic' or 'nearest'"),
        ("resnet18:pool=max", "'gap', 'avg.max', 'grid2', 'grid3', 'gem', "),
    ],
)
def test_values_out_of_range_are_refused_where_they_are_parsed(wish: str, said: str):
    with pytest.raises(InvalidSpec, match=said):
        EncoderSpec.parse(wish)


def test_the_short_form_reads_back():
    text = (
        "resnet50:layer=layer4,pool=gem,weights=IMAGENET1K_V2,resize=232,crop=224,"
        "interpolation=bicubic,mean=0.5/0.5/0.5,std=0.25/0.25/0.25"
    )
    spec = EncoderSpec.parse(text)
    assert spec.mean == (0.5, 0.5, 0.5)
    assert spec.short() == text
    assert EncoderSpec.parse(spec.short()) == spec
