"""What is wished for (``EncoderSpec``), and which encoder that is.

Resolving a second time imports no torch: what torchvision said of a named member or a
graph node, and the hash of an unchanged weights file, are remembered.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Literal

from tl_pipeline.config.encoder_specs import EncoderSpec
from tl_pipeline.encoders import backbones, weight_names
from tl_pipeline.encoders.backbones import (
    NON_IMAGE_ENCODERS,
    PROVIDERS,
    SELF_CONTAINED,
    Backbone,
    Layer,
    NamedWeights,
    Pooling,
)
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.encoders.weight_names import Weights
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.inputs.images import Preprocess
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.cache import Cache

# Names of poolings in a wish, where the identity has another.
_POOLINGS: dict[str, Pooling] = {"gap": "mean"}
# in labels
_SHORT = {"grid2": "2x2", "grid3": "3x3", "avg+max": "avg+max", "tokens": "tokens"}
_NODE = "node:"


def resolve(
    spec: EncoderSpec, store: Store, *, trust: bool = True, control: bool = False
) -> Encoder:
    """Find the weights and the preprocessing that ``spec`` means.

    With ``trust=False`` remembered hashes of weights files are not believed. Where
    ``spec`` leaves the precision to us it is fp32; ``precision.choose`` may better it.

    Raises:
        UnknownName: no such backbone, layer, or named weights.
        WeightsError: the weights are not on disk, or not what their name promises.
        InvalidSpec: ``random:SEED`` without a number; a preprocessing that the network
            cannot be fed with; a layer that is no vector and that nothing makes one.
    """
    backbone = backbones.find_backbone(spec.backbone)
    memo = Cache(store, trust=trust)
    if backbone.origin in NON_IMAGE_ENCODERS:
        return _whole(spec, backbone, memo, control)
    asked = weight_names.parse(spec.weights, backbone)
    backbone, named = _described(backbone, asked.member, memo)
    name, usual = _layer(spec, backbone, named, memo)
    weights = weight_names.find(asked, backbone, named, memo)
    memo.save()
    told = backbone.origin not in SELF_CONTAINED or name not in backbone.layers
    layer = _pooled(spec, usual, told=told)
    preprocess = _overridden(spec, named.preprocess)
    encoder = Encoder(
        backbone=backbone.name,
        layer=name,
        node=layer.node,
        pooling=layer.pooling,
        weights=weights,
        preprocess=preprocess,
        precision=_precision(spec, fixed=backbone.origin in SELF_CONTAINED),
        control=control,
        variant=_variant(
            spec, pooled=layer != usual, how=preprocess, usual=named.preprocess
        ),
        store=_kept(spec),
    )
    if layer.pooling == "tokens":
        tokens = _tokens(encoder, backbone, layer, memo)
        encoder = encoder.model_copy(update={"tokens": tokens})
    return encoder


def random_init_baseline(spec: EncoderSpec, seed: int) -> EncoderSpec:
    """The control of ``spec``: the same network, layer and input, random weights.

    Raises:
        InvalidSpec: there is none, see ``no_baseline_reason``.
    """
    why = no_baseline_reason(spec)
    if why:
        raise InvalidSpec(f"{spec.short()} has no untrained twin: {why}")
    backbone = backbones.find_backbone(spec.backbone)
    if backbone.origin in NON_IMAGE_ENCODERS:
        return spec.model_copy(update={"weights": f"random:{seed}"})
    weights = weight_names.untrained(spec.weights, backbone, seed)
    return spec.model_copy(update={"weights": weights})


def no_baseline_reason(spec: EncoderSpec) -> str:
    """Why ``spec`` has no untrained twin, or "" where it has one."""
    origin = backbones.find_backbone(spec.backbone).origin
    whole = SELF_CONTAINED.get(origin) or NON_IMAGE_ENCODERS.get(origin)
    return whole.NO_BASELINE if whole else ""


def check_names(spec: EncoderSpec, store: Store) -> Backbone:
    """The backbone of ``spec``, if it has the layer and the input is in range.

    Raises:
        UnknownName: one of them is not there.
        InvalidSpec: the layer is no vector and nothing makes one.
    """
    backbone = backbones.find_backbone(spec.backbone)
    if backbone.origin in NON_IMAGE_ENCODERS:
        _seed(spec, backbone)
        return backbone
    asked = weight_names.parse(spec.weights, backbone)
    memo = Cache(store)
    described, named = _described(backbone, asked.member, memo)
    _layer(spec, described, named, memo)
    memo.save()
    return backbone


def width(encoder: Encoder, store: Store) -> int | None:
    """How many values the embedding of an image has; remembered in ``store``.

    None where the input is no image, and where weights are named that are not made yet.
    A network that was not seen before is loaded.

    Raises:
        WeightsError: it cannot be loaded.
        InvalidSpec: the input or the pooling does not suit it.
    """
    named = encoder.weights
    provided = backbones.find_backbone(encoder.backbone).origin in PROVIDERS
    unmade = provided and named.file is None and named.seed is None
    if unmade or not isinstance(encoder.preprocess, Preprocess):
        return None
    memo = Cache(store)
    exact = encoder.model_copy(update={"precision": "fp32", "store": None})
    known = memo.get(f"width {exact.key}")
    if known is None:
        # pyright does not see that frozen models have a hash
        known = {"width": _width(exact)}  # pyright: ignore[reportArgumentType]
        memo.put(f"width {exact.key}", known)
        memo.save()
    return known["width"]


@lru_cache(maxsize=64)  # where there is no store yet
def _width(encoder: Encoder) -> int:
    from tl_pipeline.encoders import loading  # noqa: PLC0415 - torch

    return loading.width(encoder)


def _tokens(encoder: Encoder, backbone: Backbone, layer: Layer, memo: Cache) -> int:
    """How many places ``layer`` keeps; remembered.

    Raises:
        InvalidSpec: it has none.
    """
    key = f"tokens {encoder.key}"
    known = memo.get(key)
    if known is None:
        from tl_pipeline.encoders import networks  # noqa: PLC0415 - torch

        assert isinstance(encoder.preprocess, Preprocess)  # noqa: S101 - of an image
        known = {"tokens": networks.tokens(backbone, encoder.preprocess, layer)}
        memo.put(key, known)
        memo.save()
    return known["tokens"]


def fetch(spec: EncoderSpec, store: Store) -> None:
    """Download the named weights of ``spec`` by their package's loader if missing.

    Raises:
        UnknownName, InvalidSpec: see ``check_names``.
        WeightsError: they cannot be downloaded; says which file to put where.
    """
    backbone = check_names(spec, store)
    embedder = NON_IMAGE_ENCODERS.get(backbone.origin)
    if embedder:
        embedder.fetch(backbone)
    else:
        weight_names.fetch(spec.weights, backbone)


def _whole(
    spec: EncoderSpec, backbone: Backbone, memo: Cache, control: bool
) -> Encoder:
    """The identity of an encoder whose inputs are no images."""
    seed = _seed(spec, backbone)
    found = NON_IMAGE_ENCODERS[backbone.origin].identify(backbone, seed, memo.sha256)
    memo.save()
    name, layer = backbone.layer(spec.layer)
    return Encoder(
        backbone=backbone.name,
        layer=name,
        node=layer.node,
        pooling=layer.pooling,
        weights=Weights(
            name=found.name, sha256=found.sha256, file=found.place, seed=seed
        ),
        preprocess=found.input,
        precision=_precision(spec, fixed=True),
        control=control,
        variant=_kept(spec) or "",
        store=_kept(spec),
    )


def _seed(spec: EncoderSpec, backbone: Backbone) -> int | None:
    """The seed that ``spec`` asks for; nothing else can be set.

    Raises:
        UnknownName, InvalidSpec: something else is asked for.
    """
    backbone.layer(spec.layer)
    known = {"backbone", "layer", "weights", "precision", "store"}
    odd = spec.model_dump(exclude=known, exclude_none=True)
    if odd:
        raise InvalidSpec(
            f"{spec.short()}: {', '.join(odd)} is of images, and {backbone.name} takes "
            "none; leave it out"
        )
    if spec.weights is None:
        return None
    seed = spec.weights.removeprefix("random:")
    why = NON_IMAGE_ENCODERS[backbone.origin].NO_BASELINE
    if why or seed == spec.weights or not seed.isdecimal() or int(seed) >= 2**64:
        choice = f"nothing, {why}" if why else "random:SEED"
        raise InvalidSpec(f"{spec.short()}: weights can be {choice}")
    return int(seed)


def _kept(spec: EncoderSpec) -> Literal["float16"] | None:
    """How values are kept, as an encoder says it."""
    return None if spec.store == "float32" else spec.store


def _precision(spec: EncoderSpec, *, fixed: bool) -> str:
    """``fixed``: the network computes as it was made to."""
    if fixed and spec.precision == "bf16":
        raise InvalidSpec(
            f"{spec.short()}: the precision of {spec.backbone} is its own; leave "
            "precision out"
        )
    return "fp32" if spec.precision == "auto" else spec.precision


def _described(
    backbone: Backbone, member: str, memo: Cache
) -> tuple[Backbone, NamedWeights]:
    """What is said of ``member``; a network that brings its weights learns its layers.

    Its file or code is not looked into before.
    """
    named = weight_names.find_named(backbone, member, memo)
    layers = named.layers or backbone.layers
    return replace(backbone, layers=layers), named


def _layer(
    spec: EncoderSpec, backbone: Backbone, named: NamedWeights, memo: Cache
) -> tuple[str, Layer]:
    """The layer that is asked for, by a listed name or by that of a graph node."""
    name = spec.layer or backbone.default_layer
    sealed = backbone.origin in SELF_CONTAINED and not named.sha256
    if name in backbone.layers or sealed:  # a file has the outputs that it lists
        return backbone.layer(name)
    name = name.removeprefix(_NODE)
    node = backbone.aliases.get(name, name)
    described = f"{weight_names.described_by(backbone)} {backbone.name}"
    key = " ".join(filter(None, [described, named.sha256, "node", node]))
    known = memo.get(key)
    if known is None:
        from tl_pipeline.encoders import networks  # noqa: PLC0415 - torch

        shape = networks.input_shape(named.preprocess)
        found = networks.layer_at(backbone.name, node, shape, named.sha256)
        memo.put(key, {"pooling": found.pooling})
        return name, found
    return name, Layer(node, known["pooling"])


def _pooled(spec: EncoderSpec, usual: Layer, *, told: bool) -> Layer:
    """``told``: whether it is known by now that a layer without pooling is a vector."""
    flat = told and usual.pooling == "none"
    if spec.pool is None or (spec.pool == "flatten" and flat):
        return usual  # a vector is flat already
    return replace(usual, pooling=_POOLINGS.get(spec.pool, spec.pool))


def _overridden(spec: EncoderSpec, usual: Preprocess) -> Preprocess:
    """``usual`` with what ``spec`` sets itself."""
    given = {
        name: value
        for name in ("resize", "crop", "interpolation", "mean", "std")
        if (value := getattr(spec, name)) is not None
    }
    found = usual.model_copy(update=given | _sized(spec, usual))
    for name in ("mean", "std"):
        if len(getattr(found, name)) != len(usual.mean):
            raise InvalidSpec(
                f"{spec.short()}: {name} must have {len(usual.mean)} values, one for "
                "each channel of the network, with slashes between"
            )
    if found.crop > found.resize:
        raise InvalidSpec(
            f"{spec.short()}: a crop of {found.crop} is larger than what it is cut "
            f"from, resize={found.resize}. Set both"
        )
    return found


def _sized(spec: EncoderSpec, usual: Preprocess) -> dict[str, int | bool]:
    """The fields that ``side`` and ``fit`` set."""
    side = spec.side or usual.crop
    if spec.fit in {"squash", "pad"}:
        shown = {"squash": spec.fit == "squash", "pad": spec.fit == "pad"}
        return {"resize": side, "crop": side, **shown}
    fields: dict[str, int | bool] = {"squash": False, "pad": False} if spec.fit else {}
    if spec.side:
        fields |= {"resize": _in_proportion(side, usual), "crop": side}
    return fields


def _in_proportion(side: int, usual: Preprocess) -> int:
    """What an image is resized to before ``side`` pixels are cropped."""
    return round(side * usual.resize / usual.crop)


def _variant(
    spec: EncoderSpec, *, pooled: bool, how: Preprocess, usual: Preprocess
) -> str:
    """In what an encoder differs from the usual: ``@160 2x2 squash``.

    Sides in proportion are told alike, whichever way they were asked for.
    """
    told = []
    whole = spec.fit in {"squash", "pad"}
    short = how.resize == (how.crop if whole else _in_proportion(how.crop, usual))
    if short and how.crop != usual.crop:
        told.append(f"@{how.crop}")
    if pooled and spec.pool:
        told.append(_SHORT.get(spec.pool, f"pool={spec.pool}"))
    uncropped = whole and usual.resize != usual.crop
    if uncropped or (how.squash, how.pad) != (usual.squash, usual.pad):
        told.append(str(spec.fit))
    if how != usual:
        changed = {"interpolation", "mean", "std"}
        changed |= set() if short and how.crop != usual.crop else {"resize", "crop"}
        given = spec.model_dump(include=changed, exclude_none=True)
        told += [f"{name}={text}" for name, text in EncoderSpec.texts(given).items()]
    told += [spec.store] if _kept(spec) else []
    return " ".join(told)
