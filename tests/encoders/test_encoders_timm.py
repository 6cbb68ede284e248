"""The networks of timm as encoders: offline, with random weights and planted files."""

import gc
import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_data_config

from tests.exhaustive import more
from tests.imports import resolved_elsewhere
from tests.likely_weights import noise
from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.embedding.forward import Forward
from tl_pipeline.encoders import backbones, loading, networks, resolution
from tl_pipeline.encoders.backbones import timm_networks
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import InvalidSpec, UnknownName, WeightsError
from tl_pipeline.inputs.images import as_ppm
from tl_pipeline.inputs.pixels import pixels
from tl_pipeline.store.artifacts import Store

pytestmark = pytest.mark.usefixtures("one_thread")
# A small network of each kind, and a side in pixels that makes it cheap.
FAMILIES = {
    "resnet10t": 64,
    "cspdarknet53": 64,
    "mobilenetv4_conv_small": 64,  # a hidden layer between its mean and its classifier
    "convnext_atto": 64,
    "mambaout_femto": 64,  # maps with the channels last
    "vit_tiny_patch16_224": 64,  # made for one size
    "vit_small_patch14_dinov2": 56,  # without a classifier
    "vit_small_patch16_dinov3": 64,  # a class token and four registers
    "vit_pwee_patch16_reg1_gap_256": 64,  # a register and no class token
    "vit_xsmall_patch16_clip_224": 64,
}
# Those that `make test` runs.
SOME = (
    "resnet10t",
    "mambaout_femto",
    "vit_tiny_patch16_224",
    "vit_small_patch16_dinov3",
)


def resolved(store: Store, text: str, **changes: Any) -> Encoder:
    spec = EncoderSpec.parse(text)
    return resolution.resolve(spec.model_copy(update=changes), store)


class Family:
    """One network with random weights, and what two images became under its layers."""

    def __init__(self, name: str, store: Store) -> None:
        side = FAMILIES[name]
        given = f"weights=random:1,resize={side},crop={side}"
        vectors, means = (
            resolved(store, f"timm:{name}:{given}{layer}")
            for layer in ("", ",layer=features")
        )
        cut = loading.load_together([vectors, means])
        batch = noise(2, 3, side)
        self.training = [n for n, module in cut.named_modules() if module.training]
        self.learning = [n for n, p in cut.named_parameters() if p.requires_grad]
        self.widths = cut.widths
        with torch.inference_mode():
            self.together, self.again = cut(batch), cut(batch)
            one_by_one = [cut(image[None]) for image in batch]
            self.alone = tuple(map(torch.cat, zip(*one_by_one, strict=True)))
            self.by_timm = _by_timm(name, cut.body.state_dict(), batch)


def _by_timm(
    name: str, state: dict[str, torch.Tensor], batch: torch.Tensor
) -> torch.Tensor:
    """What timm's own network without a classifier gives."""
    about = timm.get_pretrained_cfg(name)
    sized = {"dynamic_img_size": True} if about.fixed_input_size else {}
    network = timm.create_model(name, num_classes=0, **sized).eval()
    left = network.load_state_dict(state, strict=False)
    assert left.missing_keys == []
    assert all(key.startswith(about.classifier) for key in left.unexpected_keys)
    return network(batch)


@pytest.fixture(
    scope="module",
    params=[
        n if n in SOME else pytest.param(n, marks=pytest.mark.exhaustive)
        for n in FAMILIES
    ],
)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Family]:
    yield Family(request.param, Store.open(tmp_path_factory.mktemp("absent")))
    gc.collect()


def test_a_network_of_timm_keeps_the_contract_of_every_backbone(family: Family):
    assert family.training == []
    assert family.learning == []
    found = zip(family.together, family.again, family.alone, family.widths, strict=True)
    for together, again, alone, width in found:
        assert together.dtype == torch.float32
        assert together.shape == (2, width)
        assert torch.isfinite(together).all()
        assert torch.equal(together, again)
        # Few of the values of an untrained DINOv2 come from the image.
        assert _apart(together[0], together[1]) > 1e-4
        assert _apart(together, alone) <= 1e-5


def test_pre_logits_is_timms_network_without_a_classifier(family: Family):
    assert _apart(family.together[0], family.by_timm) <= 1e-6


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return float((one - other).abs().max() / torch.maximum(one, other).abs().max())


# Layers


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("vit_small_patch16_dinov3", 5), ("vit_pwee_patch16_reg1_gap_256", 1)],
)
def test_tokens_before_those_of_the_image_are_no_part_of_its_mean(
    store: Store, name: str, prefix: int
):
    text = f"timm:{name}:layer=features,weights=random:1,resize=64,crop=64"
    cut = loading.load_together([resolved(store, text)])
    batch = noise(2, 3, 64)
    with torch.inference_mode():
        tokens = cut.body.network.forward_features(batch)
        assert tokens.shape[1] == prefix + 16
        torch.testing.assert_close(cut(batch)[0], tokens[:, prefix:].mean(dim=1))


def test_a_register_is_not_taken_for_a_class_token(store: Store):
    small = "layer=features,pool=cls,weights=random:1,resize=64,crop=64"
    first = loading.load(resolved(store, f"timm:vit_small_patch16_dinov3:{small}"))
    assert first(noise(1, 3, 64)).shape == (1, 384)
    without = resolved(store, f"timm:vit_pwee_patch16_reg1_gap_256:{small}")
    with pytest.raises(InvalidSpec, match="has no class token"):
        loading.load(without)


def test_a_module_in_several_places_keeps_its_values(store: Store):
    """CoaT's position encodings belong to the network and to each of its blocks."""
    text = "timm:coat_lite_tiny:weights=random:1,side=224"
    network = loading.load_together([resolved(store, text)])
    assert not [n for n, values in network.named_parameters() if values.is_meta]
    assert network(noise(1, 3, 224))[0].shape == (1, 320)


def test_a_network_of_two_branches_has_no_features(store: Store):
    text = "timm:crossvit_tiny_240:weights=random:0"
    assert loading.load(resolved(store, text))(noise(1, 3, 240)).shape == (
        1,
        288,
    )
    with pytest.raises(InvalidSpec, match="does not give one output an image"):
        loading.load(resolved(store, f"{text},layer=features"))


@pytest.mark.parametrize(
    ("name", "layer", "side"),
    [
        ("resnet10t", "layer3", 64),
        ("convnext_atto", "stages.2", 64),
        ("swin_tiny_patch4_window7_224", "layers.2", 224),  # its channels are last
        ("vit_small_patch16_dinov3", "blocks.3", 64),  # five tokens before the image's
        *more(
            ("efficientnet_b0", "blocks.4", 64),
            ("caformer_s18", "stages.1", 64),
            ("vit_tiny_patch16_224", "blocks.8", 224),
            ("vit_base_patch16_siglip_224", "blocks.2", 224),  # none
        ),
    ],
)
def test_blocks_and_stages_are_timms_own_pooled_over_places(
    store: Store, name: str, layer: str, side: int
):
    sized = "" if side == 224 else f",side={side}"
    text = f"timm:{name}:layer={layer},weights=random:1{sized},pool="
    cut = loading.load_together(
        [resolved(store, f"{text}{pool}") for pool in ("gap", "grid2", "avg+max")]
    )
    batch = noise(2, 3, side)
    network = cut.body.network
    with torch.inference_mode():
        means, cells, both = cut(batch)
        known = [about["module"] for about in network.feature_info]
        maps = network.forward_intermediates(
            batch, indices=[known.index(layer)], norm=False, intermediates_only=True
        )[0]
    high, wide = (length // 2 for length in maps.shape[2:])
    corner = maps[:, :, :high, :wide].mean(dim=(2, 3))
    torch.testing.assert_close(means, maps.mean(dim=(2, 3)))
    torch.testing.assert_close(cells[:, ::4], corner)
    torch.testing.assert_close(both, torch.cat([means, maps.amax(dim=(2, 3))], dim=1))


def test_a_pass_ends_at_the_last_layer_that_is_wanted(store: Store):
    """And what comes after, in place, does not change what was kept."""
    text = "timm:resnet10t:weights=random:1,side=64,layer="
    early = loading.load_together([resolved(store, f"{text}layer1")])
    calls = []
    for number in (1, 2):
        stage = early.body.network.get_submodule(f"layer{number}")
        stage.register_forward_pre_hook(lambda *_, n=number: calls.append(n))
    batch = noise(2, 3, 64)
    (alone,) = early(batch)
    assert calls == [1]
    names = ("pre_logits", "layer1", "bn1")
    whole = loading.load_together([resolved(store, f"{text}{name}") for name in names])
    _, first, normalised = whole(batch)
    torch.testing.assert_close(first, alone, rtol=0, atol=0)
    network = whole.body.network
    expected = network.bn1(network.conv1(batch)).mean(dim=(2, 3))
    torch.testing.assert_close(normalised, expected)  # before the ReLU after it
    assert (expected < 0).any()


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3", *more("vit_small_patch14_dinov2")]
)
def test_last_blocks_are_those_of_dinov2s_protocol(store: Store, name: str):
    """Class tokens of the last blocks and the mean of the last patches, normalised."""
    text = f"timm:{name}:weights=random:1,side=112,layer=last4,pool="
    cut = loading.load_together(
        [resolved(store, f"{text}{pool}") for pool in ("cls+mean", "cls", "gap")]
    )
    batch = noise(2, 3, 112)
    with torch.inference_mode():
        both, classes, mean = cut(batch)
        blocks = cut.body.network.forward_intermediates(
            batch,
            indices=4,
            norm=True,
            return_prefix_tokens=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
    expected = [tokens[:, 0] for _, tokens in blocks] + [blocks[-1][0].mean(dim=1)]
    torch.testing.assert_close(both, torch.cat(expected, dim=1))
    torch.testing.assert_close(both, torch.cat([classes, mean], dim=1))
    assert both.shape == (2, 5 * 384)


def test_tokens_before_the_class_token_joins_have_none(store: Store):
    text = "timm:vit_tiny_patch16_224:layer=norm_pre,weights=random:1"
    assert resolved(store, text).pooling == "cls"
    text = "timm:vit_tiny_patch16_224:layer=patch_embed,weights=random:1"
    encoder = resolved(store, text)
    assert encoder.pooling == "mean"
    cut = loading.load_together([encoder])
    batch = noise(1, 3, 224)
    with torch.inference_mode():
        patches = cut.body.network.patch_embed(batch)
        torch.testing.assert_close(cut(batch)[0], patches.mean(dim=1))
    with pytest.raises(InvalidSpec, match="has no class token"):
        loading.load(resolved(store, f"{text},pool=cls"))


@pytest.mark.parametrize(
    ("name", "layer", "near"),
    [
        ("resnet10t", "layer5", "features, layer1, .*layer4, .*pre_logits"),
        ("vit_tiny_patch16_224", "blocks.12", "blocks.1, .*blocks.11"),
        ("vit_tiny_patch16_224", "last13", "last1, .*last12"),
        ("vit_base_patch16_siglip_224", "last4", "features"),  # has no class token
    ],
)
def test_another_layer_is_refused_with_those_near_it(
    store: Store, name: str, layer: str, near: str
):
    with pytest.raises(UnknownName, match=near):
        resolved(store, f"timm:{name}:layer={layer},weights=random:1")


# Preprocessing


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t.c3_in1k",  # bicubic, all of the crop
        "cspdarknet53.ra_in1k",  # bilinear, 0.887
        "vit_small_patch14_dinov2.lvd142m",  # 518 pixels
        "vit_base_patch16_clip_224.openai",
        "dm_nfnet_f0.dm_in1k",  # squashed, 0.9
    ],
)
def test_pixels_are_those_of_timms_own_transform(store: Store, name: str):
    data = as_ppm(load_sample_images().images[0])
    how = resolved(store, f"timm:{name}:weights=random:0").preprocess
    config = resolve_data_config(
        {}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()
    )
    theirs = create_transform(**config, is_training=False)(_photo())
    mean, std = (
        torch.tensor(v).reshape(-1, 1, 1) for v in (config["mean"], config["std"])
    )
    found = torch.from_numpy(pixels(data, how).astype(np.float32)) / 255
    assert (how.mean, how.std) == (tuple(config["mean"]), tuple(config["std"]))
    off = (found - (theirs * std + mean)).abs() * 255
    # roundings; cubic weights may enlarge the first of two
    assert off.max() < (2.01 if how.interpolation == "bicubic" else 1.01)
    assert off.mean() < 0.02


def _photo() -> Image.Image:
    return Image.fromarray(load_sample_images().images[0])


@pytest.mark.parametrize(
    "name", ["deepseek_vit_412m.deepseek_v4_1_flash", "vit_base_patch16_sapiens2.fb"]
)
def test_what_cannot_be_expressed_is_refused(store: Store, name: str):
    """A border around the photo; inputs that are not square."""
    with pytest.raises(InvalidSpec, match=r"crop mode 'border'|only square RGB"):
        resolved(store, f"timm:{name}:weights=random:0")


def test_a_vision_transformer_takes_sides_and_grids_of_its_patches(store: Store):
    """6 x 6 patches behind the class token; timm resamples their positions."""
    text = "timm:vit_tiny_patch16_224:side=96,layer=features,weights=random:0,pool="
    grid, flat = (resolved(store, f"{text}{pool}") for pool in ("grid3", "flatten"))
    found, tokens = loading.load_together([grid, flat])(noise(2, 3, 96))
    patches = tokens.reshape(2, 37, 192)[:, 1:].reshape(2, 3, 2, 3, 2, 192)
    expected = patches.mean(dim=(2, 4)).permute(0, 3, 1, 2).flatten(1)
    torch.testing.assert_close(found, expected)
    assert resolution.width(grid, store) == 9 * 192


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch about timm
def test_windows_of_another_size_take_resampled_tables(store: Store, tmp_path: Path):
    """MaxViT's windows are the network's side / 32: 6 instead of 8."""
    name = "maxvit_nano_rw_256"
    torch.manual_seed(3)
    file = tmp_path / "maxvit.safetensors"
    usual = timm.create_model(name)
    save_file(usual.state_dict(), file)
    encoder = resolved(store, f"timm:{name}:weights={file},side=192")
    sized = timm.create_model(name, img_size=192, num_classes=0).eval()
    resample = timm.models.maxxvit.checkpoint_filter_fn
    sized.load_state_dict(resample(usual.state_dict(), sized), strict=False)
    batch = noise(2, 3, 192)
    with torch.inference_mode():
        torch.testing.assert_close(loading.load(encoder)(batch), sized(batch))


def test_another_size_is_refused_where_the_network_has_one_only(store: Store):
    text = "timm:mixer_s32_224:weights=random:0,resize=192,crop=192"
    with pytest.raises(InvalidSpec, match="inputs of 224 pixels only, not 192"):
        loading.load(resolved(store, text))


# Weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface_hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(
    hub: Path, repository: str, blob: str = "", **options: Any
) -> torch.nn.Module:
    """Put random weights where a download would: a blob, and a link to it."""
    torch.manual_seed(3)
    network = timm.create_model(repository.rpartition("/")[2], **options).eval()
    folder = hub / f"models--{repository.replace('/', '--')}"
    for name in ("blobs", "refs", "snapshots/0123abc"):
        (folder / name).mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abc")
    written = folder / "blobs" / "written"
    save_file(network.state_dict(), written)
    blob = blob or hashlib.sha256(written.read_bytes()).hexdigest()
    written.rename(folder / "blobs" / blob)
    link = folder / "snapshots" / "0123abc" / "model.safetensors"
    link.symlink_to(Path("../../blobs") / blob)
    return network


def test_weights_in_the_cache_are_found_by_their_tag(store: Store, hub: Path):
    """On timm's own transform of a photo, timm's own network says the same."""
    network = cached(hub, "timm/resnet10t.c3_in1k")
    found = [
        resolved(store, text)
        for text in ("timm:resnet10t", "timm:resnet10t.c3_in1k", "timm:resnet10t")
    ]
    encoder = found[0]
    assert found == [encoder] * 3
    file = encoder.weights.file
    assert file is not None
    theirs = huggingface_hub.try_to_load_from_cache(
        "timm/resnet10t.c3_in1k", "model.safetensors", cache_dir=hub
    )
    assert str(file) == theirs
    assert encoder.weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert encoder.label == "timm:resnet10t/pre_logits c3_in1k"

    config = resolve_data_config({}, model=network)
    photo = create_transform(**config, is_training=False)(_photo())
    data = as_ppm(load_sample_images().images[0])
    (ours,) = Forward([encoder])(np.stack([pixels(data, encoder.preprocess)]))
    with torch.inference_mode():
        bare = network.forward_head(
            network.forward_features(photo[None]), pre_logits=True
        )
    assert torch.cosine_similarity(torch.from_numpy(ours), bare).item() > 0.9999


def test_a_wrong_file_in_the_cache_is_refused(store: Store, hub: Path):
    cached(hub, "timm/resnet10t.c3_in1k", blob="0" * 64)
    with pytest.raises(WeightsError, match=r"not the published c3_in1k.*not 00000000"):
        resolved(store, "timm:resnet10t")


def test_missing_weights_say_what_to_put_where(store: Store, hub: Path):
    with pytest.raises(WeightsError) as fault:
        resolved(store, "timm:resnet10t")
    place = timm_networks.place(
        "https://huggingface.co/timm/resnet10t.c3_in1k/resolve/main/model.safetensors"
    )
    assert place.is_relative_to(hub)
    for told in ("c3_in1k", str(place), "22 MB", "weights=FILE"):
        assert told in str(fault.value)
    place.parent.mkdir(parents=True)
    state = timm.create_model("resnet10t").state_dict()
    save_file(state, place)
    assert resolved(store, "timm:resnet10t").weights.file == place


def test_a_download_is_tried_only_for_what_is_missing(
    store: Store, hub: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> None:
        asked.append((repository, file))
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for text in ("timm:resnet10t:weights=random:0", "timm:resnet10t:weights=a.pth"):
        resolution.fetch(EncoderSpec.parse(text), store)
    assert asked == []
    with pytest.raises(WeightsError, match="Download failed: offline"):
        resolution.fetch(EncoderSpec.parse("timm:resnet10t"), store)
    assert asked == [("timm/resnet10t.c3_in1k", "model.safetensors")]
    cached(hub, "timm/resnet10t.c3_in1k")
    resolution.fetch(EncoderSpec.parse("timm:resnet10t"), store)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("ending", "classes"), [("pth", 5), ("safetensors", 0), ("safetensors", 1000)]
)
def test_a_file_is_taken_whatever_its_classes(
    store: Store, tmp_path: Path, ending: str, classes: int
):
    network = timm.create_model("resnet10t", num_classes=classes).eval()
    file = tmp_path / f"tuned.{ending}"
    write = save_file if ending == "safetensors" else torch.save
    write(network.state_dict(), file)
    small = f"timm:resnet10t:weights={file},resize=64,crop=64"
    batch = noise(1, 3, 64)
    with torch.inference_mode():
        bare = network.forward_head(network.forward_features(batch), pre_logits=True)
        torch.testing.assert_close(loading.load(resolved(store, small))(batch), bare)


def test_weights_of_another_network_are_told_by_names(store: Store, tmp_path: Path):
    file = tmp_path / "other.safetensors"
    save_file(timm.create_model("convnext_atto").state_dict(), file)
    with pytest.raises(WeightsError, match=r"timm:resnet10t: \d+ missing .* unknown"):
        loading.load(resolved(store, f"timm:resnet10t:weights={file}"))


def replaced(name: str, *words: tuple[str, str]) -> str:
    for ours, theirs in words:
        name = re.sub(ours, theirs, name)
    return name


def by_convnexts_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As its authors published it; hidden layers are linear there."""
    words = (
        (r"^stem\.", "downsample_layers.0."),
        (r"stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"\.blocks\.", "."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    )
    return {
        replaced(name, *words): t.flatten(1) if "mlp" in name and t.ndim > 1 else t
        for name, t in state.items()
    }


def by_clips_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The visual tower as OpenAI published it; its head is a matrix."""
    words = (
        ("blocks", "transformer.resblocks"),
        (r"attn\.qkv\.", "attn.in_proj_"),
        (r"attn\.proj", "attn.out_proj"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        (r"norm(\d)", r"ln_\1"),
        (r"patch_embed\.proj", "conv1"),
        ("norm_pre", "ln_pre"),
        (r"^norm\.", "ln_post."),
        ("cls_token", "class_embedding"),
        ("pos_embed", "positional_embedding"),
        (r"head\.weight", "proj"),
    )
    shaped = {
        **state,
        "cls_token": state["cls_token"].flatten(),
        "pos_embed": state["pos_embed"][0],
        "head.weight": state["head.weight"].T.contiguous(),
    }
    return {
        f"visual.{replaced(name, *words)}": values
        for name, values in shaped.items()
        if name != "head.bias"
    }


def by_dinov2s_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "mask_token": torch.zeros(1, 384)}


def by_maes_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An encoder without a classifier, beside its decoder."""
    trunk = {name: t for name, t in state.items() if not name.startswith("head.")}
    decoder = {"decoder_pred.weight": torch.ones(768, 512)}
    return {**trunk, "mask_token": torch.zeros(1, 1, 512), **decoder}


def by_swins_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A stage ends with what timm's next one begins with; tables are saved, too."""
    found = {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}
    for name, values in state.items():
        theirs = re.sub(
            r"layers\.(\d)\.downsample",
            lambda at: f"layers.{int(at[1]) - 1}.downsample",
            name,
        )
        found[theirs.replace("head.fc.", "head.")] = values
    return found


@pytest.mark.parametrize(
    ("name", "side", "named"),
    [
        ("convnext_atto", 64, by_convnexts_names),
        ("vit_xsmall_patch16_clip_224", 64, by_clips_names),
        ("vit_tiny_patch16_224", 32, by_maes_names),  # with a mask token, as DINOv2's
        ("swin_tiny_patch4_window7_224", 224, by_swins_names),
        *more(("vit_small_patch14_dinov2", 56, by_dinov2s_names)),
    ],
)
def test_checkpoints_are_read_by_the_names_of_their_authors(
    store: Store, tmp_path: Path, name: str, side: int, named: Callable
):
    torch.manual_seed(3)
    clip = "clip" in name  # whose classifier is a projection without a bias
    network = timm.create_model(name)
    if clip:
        network.head.bias.data.zero_()
    theirs = named(network.state_dict())
    file = tmp_path / "theirs.pth"
    torch.save(theirs, file)
    saved = tmp_path / "ours.pth"
    torch.save(network.state_dict(), saved)
    sized = f"side={side}," if side != 224 else ""
    text = f"timm:{name}:{sized}weights="
    batch = noise(2, 3, side)
    with torch.inference_mode():
        found, expected = (
            loading.load(resolved(store, f"{text}{each}"))(batch)
            for each in (file, saved)
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert expected.std() > 0.1

    some = next(n for n in reversed(theirs) if re.search(r"\.1\..*weight", n))
    torch.save({n: t for n, t in theirs.items() if n != some}, file)
    with pytest.raises(WeightsError, match=r"1 missing \((blocks|stages|layers)\."):
        loading.load(resolved(store, f"{text}{file}"))


def test_positions_of_another_grid_are_resampled(store: Store, tmp_path: Path):
    """As timm does where a checkpoint was made for images of another size."""
    name = "vit_tiny_patch16_224"
    torch.manual_seed(3)
    larger = timm.create_model(name, img_size=384).state_dict()
    file = tmp_path / "larger.pth"
    torch.save(larger, file)
    network = timm.create_model(name, num_classes=0).eval()
    rename = timm.models.vision_transformer.checkpoint_filter_fn
    network.load_state_dict(rename(larger, network), strict=False)
    batch = noise(1, 3, 224)
    with torch.inference_mode():
        found = loading.load(resolved(store, f"timm:{name}:weights={file}"))(batch)
        torch.testing.assert_close(found, network(batch))


def test_a_layer_that_is_missing_is_never_drawn_at_random(store: Store, tmp_path: Path):
    state = timm.create_model("resnet10t").state_dict()
    late = {name: t for name, t in state.items() if not name.startswith("layer4")}
    early = {name: t for name, t in state.items() if not name.startswith("layer1")}
    for part, name in ((late, "late"), (early, "early")):
        save_file(part, tmp_path / f"{name}.safetensors")
    small = f"timm:resnet10t:resize=64,crop=64,weights={tmp_path}"
    for name in ("late", "early"):
        with pytest.raises(WeightsError, match=r"\d+ missing \(layer"):
            loading.load(resolved(store, f"{small}/{name}.safetensors"))


def test_a_seed_draws_the_same_network_again(store: Store):
    same, again, other = (
        resolved(store, f"timm:resnet10t:weights=random:{seed},resize=64,crop=64")
        for seed in (1, 1, 2)
    )
    assert same.key == again.key != other.key
    batch = noise(1, 3, 64)
    first, second, third = (loading.load(e)(batch) for e in (same, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    twin = resolution.random_init_baseline(
        EncoderSpec.parse("timm:resnet10t.c3_in1k"), 1
    )
    assert resolution.resolve(twin, store).weights.seed == 1


# Names


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("timm:resnet10", "Did you mean 'resnet10t'"),
        ("timm:resnet10t.nosuch", "weights 'nosuch'.* Known: c3_in1k"),
        ("timm:resnet10t:weights=nosuch", "weights 'nosuch'"),
    ],
)
def test_unknown_names_are_told_with_those_there_are(
    store: Store, text: str, told: str
):
    with pytest.raises(UnknownName, match=told):
        resolved(store, text)


def test_without_timm_one_is_told_how_to_install_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(InvalidSpec, match=r"pip install 'tl-pipeline\[timm\]'"):
        resolved(store, "timm:resnet10t")


def test_resolving_a_second_time_imports_neither_timm_nor_torch(
    store: Store, tmp_path: Path
):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"not read, only hashed")
    spec = EncoderSpec.parse(f"timm:resnet10t:weights={file}")
    here = resolution.resolve(spec, store).key
    key, imported = resolved_elsewhere(spec, store)
    assert key == here
    assert imported.isdisjoint({"timm", "torch"})


def test_a_network_of_timm_can_be_looked_into(capsys: pytest.CaptureFixture[str]):
    from tl_pipeline.cli import backbone_commands

    backbone_commands.show("timm:resnet10t")
    shown = capsys.readouterr().out
    for told in ("pre_logits", "512 values", "c3_in1k", "not on disk", "apache-2.0"):
        assert told in shown
    row = backbones.find_backbone("timm:resnet10t")
    how = backbones.named_weights(row, row.weights).preprocess
    shapes = {node.name: node.shape for node in networks.graph(row, how)}
    expected = {"pre_logits": (512,), "features": (512, 6, 6), "layer3": (256, 11, 11)}
    assert expected.items() <= shapes.items()
    assert {node.kind for node in networks.graph(row, how)} >= {"Sequential", "Conv2d"}
