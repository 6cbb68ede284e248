"""A run with every name resolved, before anything is computed or written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tl_pipeline import heads
from tl_pipeline.config import catalog
from tl_pipeline.config.dataset_entry import Modality, PixelSpec
from tl_pipeline.config.datasets import DatasetSpec
from tl_pipeline.config.encoder_specs import (
    BackboneSpec,
    EncoderSpec,
    members,
)
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.config.specs import Ensemble, HeadSpec, RunSpec, SearchSpec
from tl_pipeline.embedding import precision
from tl_pipeline.encoders import backbones, concat, resolution
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.errors import InvalidSpec
from tl_pipeline.evaluation.costs import COST
from tl_pipeline.heads.search import candidates
from tl_pipeline.inputs.images import AS_IS
from tl_pipeline.pipeline import teachers
from tl_pipeline.pipeline.manifest import Manifest
from tl_pipeline.pipeline.teachers import ModelTeacher
from tl_pipeline.registry import connection
from tl_pipeline.runs import records
from tl_pipeline.runs.planning import Step, Workspace
from tl_pipeline.runs.records import Record, RunRecord, Tuning
from tl_pipeline.storage import downloads
from tl_pipeline.store.artifacts import Store
from tl_pipeline.store.embeddings import EmbeddingFolder

MAJORITY = HeadSpec(name="majority")
# What to write where an encoder of another modality was named.
_CHOICES: dict[Modality, str] = {
    "image": "a network of images, such as lenet5; see `tl backbones`",
    "text": backbones.NON_IMAGE_ENCODERS["text"].CHOICE,
    "vector": backbones.NON_IMAGE_ENCODERS["features"].CHOICE,
}


@dataclass(frozen=True)
class FineTuning:
    """An encoder, a way to fine-tune it, and the heads to train on what comes of it.

    ``teacher`` is another encoder, whose best head teaches, or a model.
    """

    encoder: Encoder
    how: FinetuneSpec
    heads: Sequence[HeadSpec]
    teacher: AnyEncoder | ModelTeacher | None = None


@dataclass(frozen=True)
class Work:
    """What a run does: the heads to train on each encoder, candidates first.

    ``duplicate_encoder`` is the encoder in whose embeddings near duplicates are looked
    for, None to ignore them. ``baselines`` maps the key of an encoder to that of the
    same network with random weights. ``finetune`` is done besides. ``skipped`` are the
    controls that were asked for and do not exist. With ``verify`` no cache of unchanged
    files is trusted. ``tuning`` chose the backbones of ``spec``. ``ingested`` is the
    manifest, if the steps ``before`` made it.
    """

    spec: RunSpec
    at: Workspace
    dataset: DatasetSpec
    heads: list[tuple[AnyEncoder, list[HeadSpec]]]
    duplicate_encoder: AnyEncoder | None
    baselines: dict[str, str] = field(default_factory=dict)
    finetune: list[FineTuning] = field(default_factory=list)
    skipped: list[Step] = field(default_factory=list)
    verify: bool = False
    tuning: Tuning | None = None
    ingested: Manifest | None = None
    before: tuple[Step, ...] = ()

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """What is embedded: each encoder once, in the order of ``heads``."""
        used = [encoder for encoder, _ in self.heads]
        for wanted in self.finetune:
            used.append(wanted.encoder)
            if isinstance(wanted.teacher, ModelTeacher):
                used += wanted.teacher.encoders
        used += [self.duplicate_encoder] if self.duplicate_encoder else []
        return concat.unique_members(used)

    @property
    def leakage(self) -> tuple[AnyEncoder, list[HeadSpec]] | None:
        """What is also run on a split image by image, where images belong together."""
        if not (self.spec.controls and self.dataset.drawn_together):
            return None
        encoder, specs = self.heads[0]
        return encoder, [head for head in specs if not heads.HEADS[head.name].control]


def prepare(
    spec: RunSpec,
    store: Store,
    *,
    catalog_file: Path | None = None,
    verify: bool = False,
    download: bool = False,
) -> Work:
    """Resolve every name in ``spec``.

    Weights that were never used in this store are tried on. With ``download`` missing
    named weights are fetched by torchvision; with ``verify`` no cache of unchanged
    files is trusted.

    Raises:
        CatalogError, UnknownName, InvalidSpec, WeightsError: see ``errors``.
    """
    dataset: DatasetSpec = catalog.find(spec.dataset, catalog_file)
    check_labelled(dataset)
    if spec.choose_by == COST and not dataset.costs:
        raise InvalidSpec(
            "choose_by: cost needs what errors cost in the catalogue entry of "
            f"{dataset.name}, such as costs: {{LABEL: {{PREDICTION: 10}}}}"
        )
    last = records.latest(store, dataset.name)
    check_source(spec.dataset, dataset, last)
    connection.read(store, dataset.name)  # refuses what register could not use
    spec = _with_backbones(spec, dataset)
    _check_search(spec.search)
    wanted = _complete(spec)
    check_weights(dataset, wanted)
    duplicate_spec = _duplicate_spec(spec, dataset)
    to_tune = _to_tune(spec, dataset, store)
    duplicates = [duplicate_spec] if duplicate_spec else []
    asked = [*spec.backbones, *(wish for wish, *_ in to_tune), *duplicates]
    check_modality(dataset, asked)
    found = resolve(asked, store, how=dataset.pixels, verify=verify, download=download)
    check_places(found[: len(asked) - len(duplicates)], wanted)
    own, tuned = found[: len(spec.backbones)], found[len(spec.backbones) :]
    finetune = _finetune(to_tune, tuned, own, wanted)
    spec, encoders = _each_once(spec, own)
    work = [(encoder, list(wanted)) for encoder in encoders]
    if spec.ensemble:
        _check_ensemble(spec.ensemble, work)
    baselines: dict[str, AnyEncoder] = {}
    skipped: list[Step] = []
    if spec.controls:
        work[0][1].append(MAJORITY)
        baselines = _baselines(spec, store, encoders)
        known = {encoder.key for encoder, _ in work}
        new = {b.key: b for b in baselines.values() if b.key not in known}
        work += [(baseline, list(wanted)) for baseline in new.values()]
        skipped = list(_without_twin(spec))
    previous = records.keys_used(last)
    return Work(
        spec=spec,
        at=Workspace(store, previous),
        dataset=dataset,
        heads=work,
        duplicate_encoder=found[-1] if duplicate_spec else None,
        baselines={key: baseline.key for key, baseline in baselines.items()},
        finetune=finetune,
        skipped=skipped,
        verify=verify,
    )


def source(dataset: DatasetSpec) -> str | None:
    """The local path that ``dataset`` is read from; None where it has no single one."""
    path = getattr(dataset, "path", None)
    return str(path.resolve()) if isinstance(path, Path) else None


def check_source(named: str, dataset: DatasetSpec, last: Record | None) -> None:
    """Refuse a folder whose name stands for another folder in this store.

    Its models, or predictions, would be mixed with those of that one, of which ``last``
    is the last record. An entry of the catalogue says itself what its name stands for,
    and a folder that is gone may have been moved.

    Raises:
        InvalidSpec: ``dataset``, ``named`` by its path, is such a folder.
    """
    here = source(dataset)
    by_path = here is not None and Path(named).resolve() == Path(here)
    if last is None or not by_path:
        return
    known = last.source
    if known is None and isinstance(last, RunRecord):
        before = Path(last.spec.dataset)  # all that older records tell
        known = str(before.resolve()) if before.is_absolute() else None
    if known and known != here and Path(known).exists():
        raise InvalidSpec(
            f"in this store the dataset {dataset.name!r} is {known}, and {here} has "
            "the same name; they would share one champion, and predictions. Give it an "
            "entry with a name of its own in data_catalog.yaml (type: image_folder, "
            "path: ...) and name that, or use another --store"
        )


def _check_search(search: SearchSpec) -> None:
    """Refuse what does not go together; records of older versions hold it.

    Raises:
        InvalidSpec: it does not.
    """
    if search.select == "cross_validation" and not search.refit:
        raise InvalidSpec(
            "search: refit=false goes with validation; in cross_validation no head "
            "learned from all images before the refit"
        )
    if search.select == "validation" and search.folds is not None:
        raise InvalidSpec("search: folds goes with cross_validation, not validation")


def _complete(spec: RunSpec) -> list[HeadSpec]:
    """The heads of ``spec``, those of presets among them, each once.

    Raises:
        UnknownName, InvalidSpec: one cannot be tried, or all of them are controls.
    """
    every = [head for preset in spec.heads for head in heads.expanded(preset)]
    named = {head.short(): head for head in map(heads.complete, every)}
    wanted = list(named.values())
    for head in wanted:
        candidates(head, spec.search, spec.seed)  # refuses what cannot be tried
    if all(heads.HEADS[head.name].control for head in wanted):
        raise InvalidSpec(
            f"{', '.join(head.name for head in wanted)} is a control, run by itself; "
            "name a head to compare with it"
        )
    return wanted


def _each_once(
    spec: RunSpec, found: Sequence[AnyEncoder]
) -> tuple[RunSpec, list[AnyEncoder]]:
    """``spec`` and its encoders, the first of ``found``, without repetitions.

    Two backbones that are written differently may mean one encoder.
    """
    once: dict[str, tuple[BackboneSpec, AnyEncoder]] = {}
    for asked, encoder in zip(spec.backbones, found, strict=False):
        once.setdefault(encoder.key, (asked, encoder))
    backbones = tuple(asked for asked, _ in once.values())
    encoders = [encoder for _, encoder in once.values()]
    return spec.model_copy(update={"backbones": backbones}), encoders


def _to_tune(
    spec: RunSpec, dataset: DatasetSpec, store: Store
) -> list[tuple[EncoderSpec, FinetuneSpec, int | ModelTeacher | None]]:
    """Each encoder with each way to fine-tune it, at the side that this one has.

    And its teacher: the number of a backbone of ``spec``, or a model. None learns from
    itself.

    Raises:
        UnknownName: there is no such teacher.
        InvalidSpec: one of them cannot be fine-tuned.
    """
    ways = [_with_teacher(how, spec, dataset, store) for how in spec.finetune]
    return [
        (_student(wish, how), how, teacher)
        for at, wish in enumerate(spec.backbones)
        for how, teacher in ways
        if at != teacher
    ]


def _check_teacher(model: ModelTeacher, dataset: DatasetSpec) -> None:
    """Refuse a model that takes something else than ``dataset`` holds.

    Raises:
        InvalidSpec: it does.
    """
    for encoder in concat.unique_members(model.encoders):
        takes = backbones.find_backbone(encoder.backbone).modality
        if takes != dataset.modality:
            raise InvalidSpec(
                f"distil_from={model.label} takes {takes}s, and {dataset.name} holds "
                f"{dataset.modality}s; name a model of {dataset.modality}s"
            )


def _with_teacher(
    how: FinetuneSpec, spec: RunSpec, dataset: DatasetSpec, store: Store
) -> tuple[FinetuneSpec, int | ModelTeacher | None]:
    """``how``, which names the version of a model that teaches; and the teacher."""
    if how.distil_from is None:
        return how, None
    if how.distil_from.startswith(teachers.MODEL):
        model = teachers.find_model(how.distil_from, store)
        _check_teacher(model, dataset)
        return how.model_copy(update={"distil_from": model.label}), model
    at = teachers.find_backbone(how.distil_from, spec.backbones, store)
    if len(spec.backbones) == 1:
        raise InvalidSpec(
            f"distil_from={how.distil_from} is the only backbone of this run, and none "
            "learns from itself; name a student as another --backbone"
        )
    return how, at


def _student(wish: BackboneSpec, how: FinetuneSpec) -> EncoderSpec:
    """The encoder that is fine-tuned.

    Raises:
        InvalidSpec: it cannot be.
    """
    if not isinstance(wish, EncoderSpec):
        raise InvalidSpec(
            f"--finetune is of one network, and {wish.short()} are several; name "
            "each as a --backbone of its own"
        )
    origin = backbones.find_backbone(wish.backbone).origin
    if origin not in backbones.PROVIDERS:
        raise InvalidSpec(
            f"{wish.backbone} cannot be fine-tuned: it comes whole, or takes no "
            "images. Networks that can: those of torchvision and timm, and lenet5"
        )
    if how.side is None:
        return wish
    sized = {"side": how.side, "resize": None, "crop": None}
    return wish.model_copy(update=sized)


def _finetune(
    to_tune: Sequence[tuple[EncoderSpec, FinetuneSpec, int | ModelTeacher | None]],
    tuned: Sequence[AnyEncoder],
    own: Sequence[AnyEncoder],
    wanted: Sequence[HeadSpec],
) -> list[FineTuning]:
    """What is ``to_tune``, each by its encoder, the first of ``tuned``.

    ``own`` are the encoders of the backbones of the run.

    Raises:
        InvalidSpec: a network has fewer blocks than are to learn.
    """
    made = []
    for (_, how, teacher), encoder in zip(to_tune, tuned, strict=False):
        assert isinstance(encoder, Encoder)  # noqa: S101 - of one network
        if isinstance(how.blocks, int) and how.blocks:
            from tl_pipeline.finetuning import network  # noqa: PLC0415 - torch

            network.check_blocks(encoder, how)
        found = own[teacher] if isinstance(teacher, int) else teacher
        made.append(FineTuning(encoder, how, wanted, found))
    return made


def _duplicate_spec(spec: RunSpec, dataset: DatasetSpec) -> BackboneSpec | None:
    """In whose embeddings near duplicates are looked for; None to ignore them."""
    near = dataset.near_duplicates
    wanted = EncoderSpec.parse(near.backbone) if near.backbone else spec.backbones[0]
    return None if near.action == "ignore" else wanted


def _check_ensemble(
    ensemble: Ensemble, work: Sequence[tuple[AnyEncoder, list[HeadSpec]]]
) -> None:
    """Refuse to average what is one candidate alone."""
    scored = {
        (encoder.key, head.short())
        for encoder, specs in work
        for head in specs
        if not heads.HEADS[head.name].control
    }
    if ensemble == "average" and len({key for key, _ in scored}) < 2:
        raise InvalidSpec(
            "ensemble average takes the best head of each encoder, and this run has "
            "one encoder; add a backbone, or choose greedy"
        )
    if len(scored) < 2:
        raise InvalidSpec(
            f"ensemble {ensemble} averages heads, and this run has one; add a head or "
            "a backbone"
        )


def check_weights(dataset: DatasetSpec, wanted: Sequence[HeadSpec]) -> None:
    """Refuse heads that cannot take the weights that ``dataset`` gives its images.

    Raises:
        InvalidSpec: one of ``wanted`` cannot.
    """
    column = getattr(dataset, "weight_column", None)
    refused = [head.name for head in wanted if not heads.HEADS[head.name].takes_weights]
    if column is not None and refused:
        raise InvalidSpec(
            f"head {', '.join(map(repr, dict.fromkeys(refused)))} cannot take the "
            f"weights that {dataset.name} gives its images; leave it out, or "
            f"weight_column: {column}"
        )


def check_places(found: Sequence[AnyEncoder], wanted: Sequence[HeadSpec]) -> None:
    """Refuse heads that attend to places where an encoder keeps none.

    Raises:
        InvalidSpec: one of ``wanted`` does, and one of ``found`` keeps none.
    """
    named = [head.name for head in wanted if heads.HEADS[head.name].takes_places]
    for encoder in found:
        if not named or (isinstance(encoder, Encoder) and encoder.places):
            continue
        why = "gives one vector an image"
        if isinstance(encoder, concat.ConcatEncoder):
            why = "is several encoders side by side"
        raise InvalidSpec(
            f"head {named[0]!r} attends to places, and {encoder.label} {why}. Name one "
            "backbone with pool=tokens (every place), pool=grid2 or pool=grid3, or "
            "leave the head out"
        )


def check_labelled(dataset: DatasetSpec) -> None:
    """Refuse a dataset that there is nothing to learn from.

    Raises:
        InvalidSpec: its images have no labels; says what can be done with them.
    """
    if not dataset.labelled:
        raise InvalidSpec(
            f"{dataset.name} has no labels (labels: none), so nothing can be learned "
            f"from it. To predict its images: tl predict MODEL {dataset.name}"
        )


def check_modality(dataset: DatasetSpec, asked: Sequence[BackboneSpec]) -> None:
    """Refuse an encoder that takes something else than ``dataset`` holds.

    Raises:
        UnknownName: there is no such backbone.
        InvalidSpec: it takes something else.
    """
    for wish in (member for several in asked for member in members(several)):
        takes = backbones.find_backbone(wish.backbone).modality
        if takes != dataset.modality:
            raise InvalidSpec(
                f"{wish.backbone} takes {takes}s, but {dataset.name} holds "
                f"{dataset.modality}s. Choose {_CHOICES[dataset.modality]}"
            )


def _with_backbones(spec: RunSpec, dataset: DatasetSpec) -> RunSpec:
    """``spec`` with the backbone that is usual for ``dataset`` if it names none."""
    if "backbones" in spec.model_fields_set or dataset.modality == "image":
        return spec
    if dataset.modality == "text":
        raise InvalidSpec(
            f"{dataset.name} holds texts: name a network, --backbone "
            f"{_CHOICES['text']}; none comes with this package"
        )
    usual = EncoderSpec(backbone=_CHOICES[dataset.modality])
    return spec.model_copy(update={"backbones": (usual,)})


def resolve(
    asked: Sequence[BackboneSpec],
    store: Store,
    *,
    how: PixelSpec = AS_IS,
    verify: bool = False,
    download: bool = False,
) -> list[AnyEncoder]:
    """The encoders that are ``asked`` for, all names checked first; see ``prepare``.

    ``how`` is what their dataset says of reading images.

    Raises:
        UnknownName, InvalidSpec, WeightsError: see ``errors``.
    """
    for wish in asked:
        for member in members(wish):
            resolution.check_names(member, store)

    def one(wish: EncoderSpec) -> Encoder:
        if download:
            with downloads.watched():
                resolution.fetch(wish, store)
        encoder = resolution.resolve(wish, store, trust=not verify).reading(how)
        if not EmbeddingFolder(store, encoder.key).begun():
            known = resolution.width(encoder, store)  # refuses what does not fit
            if known is None and download:
                from tl_pipeline.encoders import loading  # noqa: PLC0415 - torch

                loading.load(encoder)
        if wish.precision == "auto":
            return precision.choose(encoder, store)
        return encoder

    return [concat.combine(list(map(one, members(wish))), wish) for wish in asked]


def _baselines(
    spec: RunSpec, store: Store, found: list[AnyEncoder]
) -> dict[str, AnyEncoder]:
    """The random-init baseline of each of ``found``, by its key; some have none."""
    return {
        trained.key: concat.random_init_baseline(wish, trained, spec.seed, store)
        for wish, trained in zip(spec.backbones, found, strict=True)
        if not concat.no_baseline_reason(wish)
    }


def _without_twin(spec: RunSpec) -> Iterator[Step]:
    """That the untrained control of a backbone is missing, for people to read."""
    for wish in spec.backbones:
        if why := concat.no_baseline_reason(wish):
            yield Step(
                stage="embed",
                subject=f"untrained twin of {wish.short()}",
                cached=True,
                reason=f"no such control: {why}",
                keys={},
                skipped=True,
            )
