"""Predictions of single inputs."""

from pathlib import Path
from typing import Any

import pytest

from tl_pipeline.config.specs import EncoderSpec, HeadSpec, RunSpec
from tl_pipeline.pipeline import wiring
from tl_pipeline.registry import index, prediction
from tl_pipeline.store.artifacts import Store


def test_networks_are_built_once_for_all_calls(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    spec = RunSpec(
        dataset=str(folder),
        backbones=(EncoderSpec(backbone="lenet5"),),
        heads=(HeadSpec.parse("logistic:C=1"),),
        controls=False,
    )
    wiring.run(wiring.prepare(spec, store))
    built: list[Any] = []
    network = prediction.Forward

    def build(*given: Any) -> Any:
        built.append(given)
        return network(*given)

    monkeypatch.setattr(prediction, "Forward", build)
    model = index.load_model(store, "photos")
    photos = sorted(folder.rglob("*.jpg"))[:3]
    apart = [found for photo in photos for found in prediction.predict(model, [photo])]
    assert len(built) == 1
    together = prediction.predict(model, photos)
    assert [one.label for one in apart] == [one.label for one in together]
    assert [one.confidence for one in apart] == pytest.approx(
        [one.confidence for one in together], abs=1e-5
    )
    assert len(built) == 1
