"""Real weights on real photos reach what plain torchvision and scikit-learn reach."""

from pathlib import Path

from tl_pipeline import pipeline
from tl_pipeline.artifacts import Store
from tl_pipeline.specs import EncoderSpec, HeadSpec, RunSpec

WEIGHTS = "squeezenet1_0-imagenet-deepcompression.pth"


def test_ants_and_bees_are_told_apart(shared: Path, store: Store):
    """Layer, weights, preprocessing, split and head are right end to end.

    At least 0.92 of 153 photos; torchvision and scikit-learn by hand reach 0.94.
    """
    weights = str(shared / "weights" / WEIGHTS)
    spec = RunSpec(
        dataset=str(shared / "data" / "hymenoptera"),
        backbones=(EncoderSpec(backbone="squeezenet1_0", weights=weights),),
        heads=(HeadSpec(name="logistic"),),
        controls=False,
    )
    record = pipeline.run(pipeline.prepare(spec, store))
    assert (record.images, record.quarantined) == (398, 0)
    assert record.best.test_images == 153
    assert record.best.test.value >= 0.92
