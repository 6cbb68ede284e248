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


def test_an_input_beyond_float16_is_refused_and_the_others_are_predicted(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    spec = RunSpec(
        dataset=str(folder),
        backbones=(EncoderSpec.parse("lenet5:store=float16"),),
        heads=(HeadSpec.parse("logistic:C=1"),),
        controls=False,
    )
    wiring.run(wiring.prepare(spec, store))
    model = index.load_model(store, "photos")
    photos = sorted(folder.rglob("*.jpg"))[:3]
    expected = prediction.predict(model, photos)
    compute = prediction.Forward.__call__

    def large(self: Any, *given: Any) -> Any:
        found = compute(self, *given)
        found[0][1, 0] = -70_000
        return found

    monkeypatch.setattr(prediction.Forward, "__call__", large)
    first, second, third = prediction.predict(model, photos)
    assert second.file == photos[1]
    assert (second.label, second.confidence) == (None, None)
    assert second.refused == (
        "beyond float16: a value of its embedding is 70,000, and float16 ends at "
        "65,504; leave store=float16 out"
    )
    assert [first.label, third.label] == [expected[0].label, expected[2].label]
    assert [first.confidence, third.confidence] == pytest.approx(
        [expected[0].confidence, expected[2].confidence], abs=1e-5
    )
