"""Ways to fine-tune, as people write them."""

from typing import Any

import pytest

from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.errors import InvalidSpec


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("all", {"blocks": "all"}),
        ("head", {"blocks": 0}),
        ("blocks=2", {"blocks": 2}),
        ("blocks=2,lr=0.001", {"blocks": 2, "learning_rate": 0.001}),
        ("epochs=5", {"blocks": "all", "epochs": 5}),
        ("all,wise=true,side=128", {"wise": True, "side": 128}),
    ],
)
def test_a_word_and_what_differs(text: str, fields: dict[str, Any]):
    """What is left out stands at its default, and the short form reads back."""
    found = FinetuneSpec.parse(text)
    assert found == FinetuneSpec(**fields)
    assert FinetuneSpec.parse(found.short()) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("everything", "write all, head or blocks=N"),
        ("epochs=5,all", "write all, head or blocks=N"),
        ("all,lr=0", "learning_rate: Input should be greater than 0"),
        ("blocks=-1", "greater than or equal to 0"),
        ("all,epoch=5", "epoch: Extra inputs are not permitted"),
        ("all,augment=flip", "'affine', 'crop', 'randaugment'"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, said: str):
    """The message names the parameter and what it takes."""
    with pytest.raises(InvalidSpec) as fault:
        FinetuneSpec.parse(text)
    assert said in str(fault.value)
