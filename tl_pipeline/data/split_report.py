"""How a dataset is split: the values of it that a run record keeps."""

from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ConfigDict

from tl_pipeline.data.splits import SPLITS, TRAIN
from tl_pipeline.score import Score

# A class that trains on fewer images than this is tiny.
FEW = 3
# Whoever has that share of the best head's gain over the majority has a large part.
LARGE_PART = 0.5


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class SplitSize(_Frozen):
    """One split: its images, their share of all, how its classes compare with train's.

    ``groups`` counts distinct groups, None where no image has one. ``distance`` is the
    total variation distance between the class shares of this split and train's: the
    fraction of its images that would have to be of another class for the shares to
    agree. ``by_chance`` is what a random draw of these sizes gives on average.
    """

    images: int
    share: float
    groups: int | None = None
    distance: float | None = None
    by_chance: float | None = None


class SplitChange(_Frozen):
    """What happened to one split since the last run, in images.

    ``came_from`` maps another split to how many of its images stand here now;
    ``relabelled`` counts known images that are of another class now.
    """

    entered: int = 0
    left: int = 0
    came_from: Mapping[str, int] = {}
    relabelled: int = 0


class DuplicateFiles(_Frozen):
    """Files that were left out for having the very bytes of another.

    ``split`` is where the image that was kept stands, ``kept_declared`` what the source
    says of it, ``declared`` what it says of the files.
    """

    split: str
    declared: str | None
    kept_declared: str | None = None
    files: int


class NearDuplicateFindings(_Frozen):
    """Pairs of images that are nearly the same by their embeddings under ``encoder``.

    ``ratio`` is that of the test that found them (see ``near_duplicates``), ``largest``
    the images of the largest cluster. ``across`` maps two splits, "train/test", to the
    pairs with one image in each, before any was moved. Where clusters are kept together
    ``moved`` counts the images that changed sides for it, ``excluded`` among them
    those that are on no side now.
    """

    encoder: str
    ratio: float
    pairs: int
    images: int
    clusters: int
    largest: int
    across: Mapping[str, int]
    moved: int | None = None
    excluded: int = 0

    @property
    def leaks(self) -> bool:
        """Whether near duplicates stand on two sides."""
        return self.moved is None and any(self.across.values())


class Leakage(_Frozen):
    """A control run: one head, its validation drawn image by image and by group.

    All are accuracies. ``by_group`` is validation as the dataset's split has it.
    """

    head: str
    encoder: str
    by_image: Score
    by_group: Score
    test: Score

    @property
    def excess(self) -> float:
        """By how much validation image by image exceeds that by group."""
        return self.by_image.value - self.by_group.value

    @property
    def certain(self) -> bool:
        """Whether it is more, and by more than the intervals of both."""
        low, high = self.by_image.low, self.by_group.high
        return self.excess > 0 and (low is None or high is None or low > high)


class Shortcut(_Frozen):
    """What a classifier that sees no image makes of the attributes of files.

    ``accuracy`` is its accuracy on test, ``gain`` that less the accuracy of the class
    that is most frequent among the images to learn from. ``attribute`` decides most;
    None where none decides.
    """

    accuracy: Score
    gain: Score
    attribute: str | None

    @property
    def majority(self) -> float:
        """The accuracy on test of the most frequent class."""
        return self.accuracy.value - self.gain.value

    def strong(self, best: Score) -> bool:
        """Whether it has ``LARGE_PART`` of what ``best`` gains, and not by chance."""
        enough = LARGE_PART * (best.value - self.majority)
        return (self.gain.low or 0.0) > 0 and self.gain.value >= enough


class SplitReport(_Frozen):
    """The split of one run's manifest; ``split_counts.describe`` makes it.

    ``classes`` maps each label, sorted, to its images in train, validation and test.
    ``since`` is None where there is no earlier manifest to compare with.
    ``groups_across`` maps two splits, "train/test", to the groups with images in both.
    """

    splits: Mapping[str, SplitSize]
    classes: Mapping[str, tuple[int, int, int]]
    since: Mapping[str, SplitChange] | None = None
    duplicates: list[DuplicateFiles] = []
    groups_across: Mapping[str, int] = {}
    near_duplicates: NearDuplicateFindings | None = None
    leakage: Leakage | None = None
    shortcut: Shortcut | None = None

    def shares(self) -> Iterator[tuple[str, str, int, float]]:
        """(label, split, images, their share of the split's) for every pair."""
        for label, counts in self.classes.items():
            for split, images in zip(SPLITS, counts, strict=True):
                whole = self.splits[split].images
                yield label, split, images, images / whole if whole else 0.0

    def absent(self, split: str) -> list[str]:
        """The classes without an image in ``split``."""
        place = SPLITS.index(split)
        return [label for label, counts in self.classes.items() if not counts[place]]

    def few(self) -> list[str]:
        """The classes with some training images, but fewer than ``FEW``."""
        place = SPLITS.index(TRAIN)
        return [label for label, n in self.classes.items() if 0 < n[place] < FEW]
