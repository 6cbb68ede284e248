"""The weights of encoders in a store, where models find them by their hash."""

from tl_pipeline.encoders import backbones
from tl_pipeline.encoders.backbones import NON_IMAGE_ENCODERS
from tl_pipeline.encoders.encoder import Encoder
from tl_pipeline.store import weights
from tl_pipeline.store.artifacts import Store


def keep(encoder: Encoder, store: Store) -> None:
    """Copy the weights of ``encoder`` into ``store``, if they are files.

    Raises:
        WeightsError: they changed since they were resolved.
    """
    named = encoder.weights
    if named.file is None or named.seed is not None:
        return
    kind = NON_IMAGE_ENCODERS.get(backbones.find_backbone(encoder.backbone).origin)
    files = kind.files(named.file) if kind else None
    weights.keep(store, named.sha256, named.file, files)


def located(encoder: Encoder, store: Store) -> Encoder:
    """``encoder`` with the weights that ``store`` keeps, if it does."""
    named = encoder.weights
    if named.file is None or named.seed is not None:
        return encoder
    kept = weights.find(store, named.sha256) or named.file
    return encoder.model_copy(
        update={"weights": named.model_copy(update={"file": kept})}
    )
