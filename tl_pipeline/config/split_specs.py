"""How a dataset is to be divided: its splits, and what becomes of near duplicates."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tl_pipeline.config.specs import Spec


class SplitSpec(Spec):
    """Which images are learned from, chosen on, and looked at once.

    - ``auto``: keep the splits that the source declares and draw the missing ones;
      where the source gives groups, whole groups are drawn.
    - ``group``: the same, but the source must give groups.
    - ``predefined``: the source must declare splits; what is missing is drawn image by
      image, whatever the groups.
    - ``stable``: ignore declarations and groups, draw every image by its own hash.
    - ``stratified``: like ``stable``, but with the exact shares in every class. The
      price is that new images may move old ones to another side.

    Shares are fractions of all images; of the training images where a test split is
    declared. But for ``stratified`` they are expectations: an image (or its group) is
    drawn by a hash of its content (or name), so that new images never move old ones.

    A class may be too small for all three splits. No image is moved for its sake:
    what a hash drew stays, and ingest names the classes and the splits where they have
    no image. Without a training image a class cannot be learned, and its validation
    and test images count as errors, because no head can name it. Without validation or
    test images it is learned, and has no part in the scores of that split. Only
    ``stratified`` gives a class its first image to train on, the second to test on,
    the third to validate on: choose it where classes are tiny.
    """

    strategy: Literal["auto", "predefined", "group", "stable", "stratified"] = "auto"
    validation: float = Field(default=0.2, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation ({self.validation}) and test ({self.test}) leave nothing "
                "to train on: their sum must be below 1"
            )
        return self


Action = Literal["report", "keep_together", "ignore"]


class NearDuplicatesSpec(Spec):
    """What is done about images that are almost the same as another.

    - ``report``: they are found, and those on two sides are reported as leakage.
    - ``keep_together``: a cluster of them is drawn as one group. Images that resemble
      a declared test or validation image, but are not declared to be with it, are
      ``excluded``: on no side, so that an official split keeps its images.
    - ``ignore``: they are not looked for.

    They are looked for in the embeddings of ``backbone``, by default the first one of
    the run; name it where splits must not change when other networks are compared. A
    ``ratio`` (see ``near_duplicates.find``) replaces the calibrated one. New images may
    join two clusters, and so move old ones.
    """

    action: Action = "report"
    backbone: str | None = None
    ratio: float | None = Field(default=None, gt=0, lt=1)
    most_images: int = Field(
        default=100_000,
        ge=1,
        description="all pairs are compared; with more images than this, none",
    )
