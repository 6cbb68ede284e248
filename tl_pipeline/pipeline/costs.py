"""What an image costs each candidate of a run: time on this machine, and bytes."""

from collections.abc import Mapping, Sequence

from tl_pipeline.encoders.concat import AnyEncoder, members_of
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.evaluation.choice import Cost
from tl_pipeline.pipeline import speeds
from tl_pipeline.store.artifacts import Artifact, Store
from tl_pipeline.store.embeddings import EmbeddingFolder

# How the weights of a network that was fine-tuned here are called.
FINETUNED = "finetuned "


def of_each(
    store: Store,
    evaluations: Sequence[Artifact],
    encoders: Sequence[AnyEncoder | None],
) -> dict[str, Cost]:
    """The cost of each of ``evaluations`` by its key.

    ``encoders[i]`` is that of ``evaluations[i]``; None of averaged heads, which cost
    what the encoders of their members do.
    """
    used = {
        evaluation.key: members_of(encoder) if encoder else ()
        for evaluation, encoder in zip(evaluations, encoders, strict=True)
    }
    return {
        evaluation.key: _of(
            store, used[evaluation.key] or _of_members(store, evaluation, used)
        )
        for evaluation in evaluations
    }


def _of_members(
    store: Store, evaluation: Artifact, used: Mapping[str, Sequence[Encoder]]
) -> list[Encoder]:
    """The encoders of the heads that ``evaluation`` averages."""
    members = store.provenance(evaluation).get("members", [])
    return [one for row in members for one in used.get(row["evaluation"], ())]


def _of(store: Store, encoders: Sequence[Encoder]) -> Cost:
    """Of all ``encoders`` together, each once."""
    time, size = 0.0, 0
    each = {encoder.key: encoder for encoder in encoders}.values()
    tuned = any(encoder.weights.name.startswith(FINETUNED) for encoder in each)
    for encoder in each:
        known = speeds.known_speed(EmbeddingFolder(store, encoder.key))
        if known is None:
            return Cost(None, None, tuned)
        time += 1000 / known.images_per_second
        size += known.width * (2 if encoder.store == "float16" else 4)
    return Cost(time, size, tuned)
