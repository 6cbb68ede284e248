"""Poolings that keep where things are, computed by hand with numpy."""

from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch

from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.data.identity import image_id
from tl_pipeline.embedding import engine, process
from tl_pipeline.embedding.forward import Forward
from tl_pipeline.encoders import loading, resolution
from tl_pipeline.encoders.backbones import Backbone, Layer, Pooling, PrefixTokens
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.encoders.feature_extractor import FeatureExtractor
from tl_pipeline.encoders.lenet import LeNet5
from tl_pipeline.encoders.pooling import PooledLayer
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.pipeline import wiring
from tl_pipeline.progress import track
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder, Places

CHANNELS = 5
POOLS = ("gap", "avg+max", "grid2", "grid3")


def cells(maps: np.ndarray, number: int) -> np.ndarray:
    """The means of (n, channels, height, width) in ``number`` squared cells."""
    height, width = maps.shape[2:]
    found = [
        maps[:, :, top:bottom, left:right].mean(axis=(2, 3))
        for top, bottom in edges(height, number)
        for left, right in edges(width, number)
    ]
    return np.stack(found, axis=2).reshape(len(maps), -1)


def edges(length: int, number: int) -> list[tuple[int, int]]:
    """Where cells begin and end: neighbours share what cannot be divided."""
    return [
        (i * length // number, ceil((i + 1) * length / number)) for i in range(number)
    ]


def by_hand(maps: np.ndarray) -> dict[str, np.ndarray]:
    """What each of ``POOLS`` makes of (n, channels, height, width)."""
    mean, most = maps.mean(axis=(2, 3)), maps.max(axis=(2, 3))
    return {
        "gap": mean,
        "avg+max": np.concatenate([mean, most], axis=1),
        "grid2": cells(maps, 2),
        "grid3": cells(maps, 3),
    }


def pooled(
    pooling: Pooling, shape: tuple[int, ...], class_tokens: int = 0, last: bool = False
) -> PooledLayer:
    """The pooling of a layer of that shape, whose channels come last or first."""
    backbone = Backbone(
        "net", {}, prefix=PrefixTokens(class_tokens, min(class_tokens, 1))
    )
    bigger = (2, 2, 0) if last else (0, 2, 2)
    grown = tuple(a + b for a, b in zip(shape, bigger, strict=False))
    return PooledLayer(
        backbone, Layer("node", pooling), shape, grown if len(shape) == 3 else ()
    )


def test_three_places_in_two_cells_share_the_middle_one():
    """``adaptive_avg_pool2d`` has it so: rows 0-1 and 1-2, columns alike."""
    maps = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert pooled("grid2", (1, 3, 3))(maps).tolist() == [[2, 3, 5, 6]]
    assert pooled("grid3", (1, 3, 3))(maps).tolist() == [list(range(9))]
    assert pooled("avg+max", (1, 3, 3))(maps).tolist() == [[4, 8]]


@pytest.mark.parametrize("side", [3, 6, 7, 13, 14])
@pytest.mark.parametrize("kind", ["map", "channels last", "tokens", "class and tokens"])
@pytest.mark.parametrize("pool", ["avg+max", "grid2", "grid3"])
def test_cells_of_maps_and_tokens_by_hand(pool: Pooling, kind: str, side: int):
    maps = np.random.default_rng(side).normal(size=(2, CHANNELS, side, side))
    values = torch.from_numpy(maps)
    tokens = values.flatten(2).transpose(1, 2)
    classes = torch.full((2, 1, CHANNELS), 1e6, dtype=tokens.dtype)
    given, first = {
        "map": (values, 0),
        "channels last": (values.permute(0, 2, 3, 1).contiguous(), 0),
        "tokens": (tokens, 0),
        "class and tokens": (torch.cat([classes, tokens], dim=1), 1),
    }[kind]
    layer = pooled(pool, tuple(given.shape[1:]), first, kind == "channels last")
    np.testing.assert_allclose(layer(given).numpy(), by_hand(maps)[pool], atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("map", [0, 1, 2, 3]),
        ("channels last", [0, 1, 2, 3]),
        ("tokens", [0, 1, 2, 3]),
        ("class and register", [-2, 0, 1, 2, 3]),
    ],
)
def test_tokens_are_all_places_and_class_tokens_before_them(kind: str, kept: list[int]):
    """Place p holds 10 p + channel; the register, which is left out, -10 + channel."""
    places = 10.0 * torch.arange(4).reshape(1, 4, 1) + torch.arange(3)
    maps = places.transpose(1, 2).reshape(1, 3, 2, 2)
    prefix = 10.0 * torch.tensor([-2, -1]).reshape(1, 2, 1) + torch.arange(3)
    given = {
        "map": maps,
        "channels last": maps.permute(0, 2, 3, 1),
        "tokens": places,
        "class and register": torch.cat([prefix, places], dim=1),
    }[kind]
    first = 2 if kind == "class and register" else 0
    layer = pooled("tokens", tuple(given.shape[1:]), first, kind == "channels last")
    assert layer.tokens == len(kept)
    expected = [10.0 * place + channel for place in kept for channel in range(3)]
    assert layer(given).tolist() == [expected]


@pytest.mark.parametrize(
    ("wish", "places", "width"),
    [
        ("squeezenet1_1:side=64,pool=tokens", Places(9), 9 * 512),
        ("squeezenet1_1:side=64,pool=grid2", Places(4, channels_first=True), 4 * 512),
        ("squeezenet1_1:side=64", None, 512),
        ("vit_b_32:layer=encoder.ln,side=96,pool=tokens", Places(10), 10 * 768),
        ("swin_t:layer=stage3,side=112,pool=tokens", Places(49), 49 * 384),
        (
            "timm:vit_tiny_patch16_224:layer=last2,side=64,pool=tokens",
            Places(18),  # two class tokens
            18 * 192,
        ),
    ],
)
def test_an_encoder_knows_the_places_that_its_rows_hold(
    store: Store, wish: str, places: Places | None, width: int
):
    store.create()
    spec = EncoderSpec.parse(f"{wish}{',' if '=' in wish else ':'}weights=random:0")
    encoder = resolution.resolve(spec, store)
    assert encoder.places == places
    assert resolution.width(encoder, store) == width
    assert Encoder.model_validate_json(encoder.model_dump_json()).places == places
    assert encoder.key == encoder.model_copy(update={"tokens": None}).key


@pytest.mark.parametrize(
    ("pool", "shape", "class_tokens", "said"),
    [
        ("grid2", (512,), 0, r"\(512\).*Fits: no pool at all, pool=flatten. A layer"),
        ("tokens", (512,), 0, r"Fits: no pool at all, pool=flatten. A layer that"),
        ("avg+max", (512,), 0, r"A layer that gives a map takes others"),
        ("grid3", (8, 2, 2), 0, "Fits: pool=gap, pool=avg.max, pool=grid2, pool=gem"),
        ("grid2", (8, 1, 1), 0, "Fits: pool=gap, pool=avg.max, pool=gem, pool=flatten"),
        ("grid2", (7, 8), 0, r"\(7, 8\).*Fits: pool=gap, pool=avg.max, pool=gem"),
        (
            "grid3",
            (5, 8),
            1,
            r"\(5, 8\).*pool=grid2, pool=gem.*pool=cls, pool=cls.mean",
        ),
    ],
)
def test_a_grid_without_a_place_for_each_cell_is_refused(
    pool: Pooling, shape: tuple[int, ...], class_tokens: int, said: str
):
    with pytest.raises(InvalidSpec, match=f"pool={pool}.*{said}".replace("+", ".")):
        pooled(pool, shape, class_tokens)


def encoders(wish: str, store: Store, *pools: str) -> list[Encoder]:
    """Those of ``wish``, a text with random weights, by ``pools``."""
    texts = [f"{wish},weights=random:0,pool={pool}" for pool in pools]
    return [resolution.resolve(EncoderSpec.parse(text), store) for text in texts]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("wish", "shape", "last"),
    [
        ("squeezenet1_1:resize=224,crop=224", (512, 13, 13), False),
        ("swin_t:layer=stage3,resize=112,crop=112", (7, 7, 384), True),
        ("vit_b_32:layer=encoder.ln,resize=96,crop=96", (10, 768), False),
    ],
)
def test_pools_of_one_pass_are_those_of_the_map_in_float32(
    store: Store,
    wish: str,
    shape: tuple[int, ...],
    last: bool,
    precision: str,
):
    """Also of a network that computes in bfloat16: its map is pooled in float32."""
    given = encoders(f"{wish},precision={precision}", store, "flatten", *POOLS)
    how = given[0].preprocess
    assert isinstance(how, Preprocess)
    chance = np.random.default_rng(0)
    batch = chance.integers(0, 256, (2, 3, how.crop, how.crop), dtype=np.uint8)
    flat, *found = Forward(given)(batch)
    values = flat.reshape(2, *shape)
    if len(shape) == 2:
        side = round((shape[0] - 1) ** 0.5)
        maps = values[:, 1:].transpose(0, 2, 1).reshape(2, shape[1], side, side)
    else:
        maps = values.transpose(0, 3, 1, 2) if last else values
    for vectors, expected in zip(found, by_hand(maps).values(), strict=True):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(
            vectors, expected, atol=2e-6 * np.abs(maps).max(), rtol=0
        )


def test_the_width_is_known_before_anything_is_computed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store.create()
    given = encoders("squeezenet1_1:resize=64,crop=64", store, *POOLS)
    assert [resolution.width(one, store) for one in given] == [512, 1024, 2048, 4608]
    file = tmp_path / "three classes.pth"
    torch.save(LeNet5(3).state_dict(), file)
    spec = EncoderSpec(backbone="lenet5", weights=str(file), layer="output")
    given.append(resolution.resolve(spec, store))
    assert resolution.width(given[-1], store) == 3
    monkeypatch.setattr(loading, "width", lambda _: pytest.fail("looked again"))
    half = given[-1].model_copy(update={"precision": "bf16"})
    assert resolution.width(half, store) == 3


def test_four_pools_of_a_layer_cost_the_forward_passes_of_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    files = sorted(folder.rglob("*.jpg"))[:40]
    images = [(image_id(file.read_bytes()), str(file)) for file in files]
    passes: list[int] = []
    compute = FeatureExtractor.forward

    def counted(self: FeatureExtractor, batch: torch.Tensor) -> object:
        passes.append(len(batch))
        return compute(self, batch)

    def embedded(*pools: str) -> tuple[list[int], list[int]]:
        """The images of each forward pass, and the width of each encoder."""
        store = Store.open(tmp_path / f"{len(pools)}")
        jobs = []
        for encoder in encoders("squeezenet1_1:resize=64,crop=64", store, *pools):
            jobs.append(engine.Job(encoder, EmbeddingFolder(store, encoder.key)))
            jobs[-1].folder.describe(encoder.model_dump_json())
        passes.clear()
        with track("test", len(images) * len(pools)) as progress:
            read = lambda uri: Path(uri).read_bytes()  # noqa: E731
            done = engine.embed(jobs, images, read, 512, progress)
        return sorted(passes), [stats.width for stats in done]

    monkeypatch.setattr(FeatureExtractor, "forward", counted)
    (one, _), (five, widths) = embedded("gap"), embedded(*POOLS, "tokens")
    assert one == five
    assert widths == [512, 1024, 2048, 4608, 4608]


def test_tokens_that_heads_have_no_room_for_are_refused_before_anything_is_computed(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    text = "squeezenet1_1:side=64,pool=tokens,weights=random:0,precision=fp32"
    spec = RunSpec(
        dataset=str(folder),
        backbones=(EncoderSpec.parse(text),),
        heads=(HeadSpec.parse("lda:shrinkage=0.3"),),
        controls=False,
    )
    images = len(list(folder.rglob("*.jpg")))
    needed = images * 9 * 512 * 4
    monkeypatch.setattr(process, "memory", lambda: 4 * needed)
    steps = wiring.plan(wiring.prepare(spec, store))
    (planned,) = [step for step in steps if step.stage == "embed"]
    assert planned.estimated_bytes == needed
    monkeypatch.setattr(process, "memory", lambda: 4 * needed - 4)
    said = (
        r"pool=tokens keeps 9 places of 512 values, 0\.02 MB an image and 0\.0 GB for "
        rf"{images} images; heads have room for 0\.0 GB here, a quarter of the memory"
    )
    for carry_out in (wiring.plan, wiring.run):
        with pytest.raises(InvalidSpec, match=said):
            carry_out(wiring.prepare(spec, store))
    assert not list(store.root.glob("embeddings/*/*.parquet"))
