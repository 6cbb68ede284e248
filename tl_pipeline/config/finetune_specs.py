"""How a network is fine-tuned, as a frozen value. Pure, as ``specs``."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tl_pipeline.config.encoder_specs import SIDES
from tl_pipeline.config.short_forms import Spec, checked, text_of
from tl_pipeline.errors import InvalidSpec

Augmentation = Literal["affine", "crop", "randaugment", "trivialaugment", "none"]
Share = Annotated[float, Field(ge=0, lt=1)]
# Which weights learn, in a word: all of them, or none but the head's.
_WORDS: dict[str, int | str] = {"all": "all", "head": 0}


class FinetuneSpec(Spec):
    """One way to fine-tune a network, from weights and a linear head on them.

    ``blocks`` are the last blocks that learn, ``all``, or 0: the head alone.
    ``epochs`` passes over the training images in batches of ``batch_size``, the
    gradients of ``accumulate`` of which make a step. The learning rate rises for a
    share ``warmup`` of the steps and then falls to 0 as half a cosine. The k-th block
    below the head learns at ``learning_rate x decay^k``. ``norm`` says whether
    statistics of batch normalisation stay as they are or are learned.

    ``start`` is where the head begins: a linear head that was fitted on the embeddings
    of the frozen network (LP-FT; Kumar et al. 2022, "Fine-Tuning can Distort Pretrained
    Features"), or random values. ``ema`` is the decay of a moving average of the
    weights, which is then what is kept; 0: none. With ``wise`` the weights are mixed
    with those before training, as images that were left out for that say (WiSE-FT;
    Wortsman et al. 2022, "Robust Fine-Tuning of Zero-Shot Models").

    ``distil_from`` names a teacher: the best head on a backbone of the run, or
    ``model:NAME@VERSION``. What it says of the images is learned as the labels are
    (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network").

    With ``refit`` it is done once more with the validation images among those to learn
    from; thresholds and comparisons come from the first network, which never saw them.
    ``side`` is that of the inputs, the encoder's own by default.
    """

    blocks: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        default="all", description="the last blocks that learn; 0: the head alone"
    )
    epochs: int = Field(
        default=8, ge=1, le=10_000, description="passes over the images to learn from"
    )
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = Field(
        default=None,
        description="at its height, of the head; short: lr. By default 0.001, and less "
        "in proportion where there are fewer than 500 steps",
    )
    decay: float = Field(
        default=1.0, gt=0, le=1, description="of the rate, from block to block down"
    )
    weight_decay: float = Field(
        default=0.01, ge=0, le=10, description="not of norms and biases"
    )
    optimiser: Literal["adamw", "sgd"] = Field(
        default="adamw", description="adamw, or sgd with momentum 0.9"
    )
    batch_size: int = Field(default=64, ge=1, le=1 << 16, description="images a batch")
    accumulate: int = Field(default=1, ge=1, le=1 << 12, description="batches a step")
    warmup: Share = Field(
        default=0.1, description="share of the steps in which the rate rises"
    )
    norm: Literal["frozen", "learned"] = Field(
        default="frozen", description="statistics of batch normalisation"
    )
    augment: Augmentation = Field(
        default="affine",
        description="affine (turned, scaled, moved, recoloured), crop (a random part), "
        "randaugment, trivialaugment, none",
    )
    mixup: float = Field(
        default=0.0, ge=0, le=100, description="alpha of its beta law; 0: none"
    )
    cutmix: float = Field(
        default=0.0, ge=0, le=100, description="alpha of its beta law; 0: none"
    )
    label_smoothing: Share = Field(
        default=0.05, description="share of a target that all classes get alike"
    )
    dropout: Share = Field(default=0.0, description="of embeddings before the head")
    class_weight: Literal["none", "balanced"] = Field(
        default="none", description="balanced: every class counts the same in all"
    )
    ema: Share = Field(
        default=0.0, description="decay of the average of the weights; 0: none"
    )
    wise: bool = Field(
        default=False, description="mix with the weights from before (WiSE-FT)"
    )
    start: Literal["linear", "random"] = Field(
        default="linear", description="the head: fitted on embeddings, or drawn"
    )
    side: Annotated[int, Field(ge=SIDES[0], le=SIDES[-1])] | None = Field(
        default=None, description="of the inputs in pixels; the encoder's own"
    )
    distil_from: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="a teacher: a backbone of the run, or model:NAME@VERSION",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="of products; auto: bf16 where it is faster"
    )
    refit: bool = Field(
        default=True, description="train once more with validation images"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.wise and self.distil_from:
            raise ValueError(
                "wise chooses by images that nobody learned from, and a teacher "
                "learned from them; give wise or distil_from"
            )
        return self

    @property
    def augmented(self) -> bool:
        """Whether a network is given other pixels of an image in each epoch."""
        return self.augment != "none" or bool(self.mixup or self.cutmix)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``all``, ``head``, ``blocks=2,epochs=5``: a word, and what differs.

        Raises:
            InvalidSpec: the text has another form, or an unknown parameter.
        """
        fields: dict[str, Any] = {}
        for place, piece in enumerate(text.split(",")):
            name, found, value = piece.strip().partition("=")
            if found and name:
                fields["learning_rate" if name == "lr" else name] = value
            elif place == 0 and name in _WORDS:
                fields["blocks"] = _WORDS[name]
            else:
                raise InvalidSpec(
                    f"--finetune {text!r}: write all, head or blocks=N, and after "
                    f"commas what differs: {', '.join(cls.model_fields)}"
                )
        return checked(cls, fields, f"--finetune {text}")

    def short(self) -> str:
        """The text that ``parse`` reads back to this."""
        words = {value: word for word, value in _WORDS.items()}
        first = words.get(self.blocks, f"blocks={self.blocks}")
        given = self.model_dump(exclude={"blocks"}, exclude_defaults=True)
        return ",".join([first, *(f"{n}={text_of(v)}" for n, v in given.items())])
