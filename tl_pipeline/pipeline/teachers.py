"""Who a network learns from beside the labels: ``distil_from`` of a fine-tuning.

A teacher is a classifier that is there: the best head of a run on one of its encoders,
or a registered model. What it says of an image comes from the stored embedding. It has
not learned from images that score its student, whose labels it would pass on: heads are
fitted anew on what the student learns from, and of a model that was fine-tuned the
network is asked that never saw validation images.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_pipeline.config.encoder_specs import BackboneSpec, EncoderSpec
from tl_pipeline.data.splits import TRAIN, VALIDATION
from tl_pipeline.encoders import concat
from tl_pipeline.encoders.concat import AnyEncoder
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.encoders.weight_store import located
from tl_pipeline.errors import InvalidSpec, UnknownName
from tl_pipeline.pipeline import choices, finetuned, fits
from tl_pipeline.pipeline.manifest import Manifest, Rows
from tl_pipeline.registry import index
from tl_pipeline.store import tables
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import described
from tl_pipeline.store.keys import digest
from tl_pipeline.store.tables import MANIFEST, SEARCH

if TYPE_CHECKING:
    from tl_pipeline.heads.fitted import FittedHead

# Bump when the same teacher must say something else, or be heard differently.
VERSION = 1
MODEL = "model:"
_CHAMPION = "champion"


@dataclass(frozen=True)
class Teacher:
    """A head on ``embeddings``, by what it is made of.

    ``made`` is a fitted head; what fine-tuning left, whose own head it is; or searches,
    of which the best configuration is fitted on what the student learns from.
    ``learned`` are the ids of further images whose labels it knows.
    """

    label: str
    embeddings: Artifact
    made: tuple[Artifact, ...]
    learned: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """Stands for what it says, beside the images that a student learns from."""
        made = sorted((one.kind, one.key) for one in self.made)
        return digest([VERSION, self.embeddings.key, made])

    def probabilities(
        self, store: Store, rows: Rows, classes: Sequence[str], seed: int
    ) -> np.ndarray:
        """What it says of ``rows``: float32 (n, K), in the order of ``classes``.

        Of an image without an embedding it says the label.
        """
        head = self._head(store, rows, seed)
        there = concat.load(store, self.embeddings, rows.ids)
        columns = [head.classes.index(name) for name in classes]
        found = head.predict_proba(there)[:, columns]
        labels = np.searchsorted(classes, rows.labels)
        every = np.eye(len(classes), dtype=np.float32)[labels]
        total = np.maximum(found.sum(axis=1, keepdims=True), np.finfo("f4").tiny)
        every[np.searchsorted(rows.ids, there.image_ids)] = found / total
        return every

    def _head(self, store: Store, rows: Rows, seed: int) -> "FittedHead":
        from tl_pipeline.heads import fitted  # noqa: PLC0415 - a plan reads no head

        (made, *_) = self.made
        if made.kind == finetuned.KIND:
            return finetuned.own_head(store, made, self.embeddings.key, seed)
        if made.kind == "searches":
            best = max(self.made, key=lambda one: _merit(store, one))
            config = choices.config_of(store, best)
            (made,) = fits.make(store, self.embeddings, rows, [config], seed)
        return fitted.load(store.path(made))


@dataclass(frozen=True)
class ModelTeacher:
    """A registered model of one head as it teaches.

    ``judged`` is its encoder before that saw validation images, and ``made`` what its
    head is made of again, both None where the store does not know that any more.
    ``learned`` are the ids of the images that it may have learned from.
    """

    label: str
    encoder: AnyEncoder
    head: Artifact
    classes: tuple[str, ...]
    learned: frozenset[str]
    judged: AnyEncoder | None
    made: Artifact | None

    @property
    def encoders(self) -> tuple[AnyEncoder, ...]:
        """Those whose embeddings it needs."""
        return (self.encoder, self.judged) if self.judged else (self.encoder,)


def find_backbone(text: str, specs: Sequence[BackboneSpec], store: Store) -> int:
    """Which of the backbones ``specs`` of a run the teacher ``text`` is.

    Raises:
        UnknownName: none.
        InvalidSpec: several.
    """
    short = [spec.short() for spec in specs]
    names = [one.backbone if isinstance(one, EncoderSpec) else "" for one in specs]
    if text in short:
        return short.index(text)
    if text not in names:
        models = [f"{MODEL}{one.name}@{_CHAMPION}" for one in index.registered(store)]
        raise UnknownName("teacher (distil_from)", text, [*short, *models])
    if names.count(text) > 1:
        raise InvalidSpec(
            f"distil_from={text}: several backbones of this run are {text}; register "
            f"the model that is meant, and write distil_from={MODEL}NAME@VERSION"
        )
    return names.index(text)


def find_model(text: str, store: Store) -> ModelTeacher:
    """The registered model that ``text`` names: ``model:NAME@VERSION`` or an alias.

    Raises:
        UnknownName, DamagedArtifact: see ``index.load_model``.
        InvalidSpec: it has several heads, or nobody knows what it learned from.
    """
    name, _, alias = text.removeprefix(MODEL).partition("@")
    number = index.find_version(store, name, alias or _CHAMPION).number
    label = f"{MODEL}{name}@{number}"
    model = index.load_model(store, name, str(number))
    if len(model.members) != 1:
        raise InvalidSpec(
            f"distil_from={label}: this model averages {len(model.members)} heads, and "
            "a teacher is one. Name a version of one head, or a backbone of the run"
        )
    encoder, about = model.members[0].encoder, model.about
    key = about.get("manifest")  # models of older versions do not tell
    images = store.find("manifests", key) if key else None
    if images is None:
        raise InvalidSpec(
            f"distil_from={label}: the images that it learned from are not in this "
            f"store any more, so that nobody knows whether some would score the "
            f"student. Run on {name} again, or name a backbone of the run"
        )
    rows = tables.read(MANIFEST, store.path(images), ("image_id", "split"))
    pairs = tables.values(rows, "image_id", "split")
    head = about.get("head") or about["members"][0]["head"]
    judged, made = _before_validation(store, about["evaluation"], encoder)
    return ModelTeacher(
        label,
        encoder,
        Artifact("heads", head, head),
        tuple(model.classes),
        frozenset(one for one, split in pairs if split in (TRAIN, VALIDATION)),
        judged,
        made,
    )


def check_classes(teacher: ModelTeacher, manifest: Manifest) -> None:
    """See that a model knows the classes of ``manifest``, those to learn at least.

    Raises:
        InvalidSpec: it does not.
    """
    rows = manifest.table
    labels = {
        label
        for label, split in tables.values(rows, "label", "split")
        if split in (TRAIN, VALIDATION)
    }
    if unknown := sorted(labels.difference(teacher.classes)):
        raise InvalidSpec(
            f"distil_from={teacher.label}: it knows {_some(sorted(teacher.classes))}, "
            f"and not {_some(unknown)} of {manifest.dataset}. A teacher knows all "
            "classes of its student: name a model of these classes, or a backbone of "
            "the run"
        )


def of_model(
    store: Store,
    model: ModelTeacher,
    embedded: Mapping[str, Artifact],
    scored: Iterable[str],
) -> Teacher:
    """``model`` for a student that the images ``scored`` (ids) score.

    As it is if it learned from none of those, else made again without them.

    Raises:
        InvalidSpec: it cannot be.
    """
    scored = frozenset(scored)
    if not model.learned & scored:
        embeddings = concat.embeddings_of(embedded, model.encoder)
        return Teacher(model.label, embeddings, (model.head,), model.learned)
    if model.judged is None or model.made is None:
        why = "how it was made is not in this store any more"
    else:
        seen = frozenset(finetuned.seen(store, model.judged))
        if not seen & scored:
            embeddings = concat.embeddings_of(embedded, model.judged)
            return Teacher(model.label, embeddings, (model.made,), seen)
        why = f"its network was fine-tuned on {len(seen & scored):,} of them"
    raise InvalidSpec(
        f"distil_from={model.label}: it learned from images that score the student, "
        f"whose labels it would pass on, and {why}. Fine-tune the teacher on this "
        "dataset as it is now and name that model, or name a backbone of the run"
    )


def _before_validation(
    store: Store, evaluation: str, encoder: AnyEncoder
) -> tuple[AnyEncoder | None, Artifact | None]:
    """``judged`` and ``made`` of a ``ModelTeacher``."""
    scored = store.find("evaluations", evaluation)
    made = scored and store.find("searches", _inputs(store, scored)["heads"])
    if made is None:
        return None, None
    inputs = _inputs(store, made)
    key = inputs["encoder"]
    if "judged" in inputs:  # a head that was trained with its network
        made = store.find(finetuned.KIND, inputs["judged"])
    if key == encoder.key:
        return encoder, made
    file = described(store).get(key)
    if file is None:
        return None, None
    return located(Encoder.model_validate_json(file.read_text()), store), made


def _inputs(store: Store, made: Artifact) -> dict[str, Any]:
    return store.provenance(made)["inputs"]


def _merit(store: Store, search: Artifact) -> tuple[float, float]:
    rows = tables.read(SEARCH, store.path(search)).to_pylist()
    (chosen,) = (row for row in rows if row["chosen"])
    return chosen["accuracy"], -chosen["log_loss"]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
