"""A small part of the training images that stands for all of them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tl_pipeline.data.splits import draw

# So many images of every class come before shares are looked at: a class that is to be
# learned and tested in turns needs a few.
FIRST = 5


@dataclass(frozen=True, slots=True)
class Drawable:
    """An image that may be drawn; images of one ``group`` are nearly the same image."""

    image_id: str
    label: str
    group: str | None = None

    @property
    def unit(self) -> str:
        """What the image is one look at: its group, or itself."""
        return self.image_id if self.group is None else f"group {self.group}"


def stratified(images: Sequence[Drawable], size: int) -> list[Drawable]:
    """``size`` of ``images``, or all if there are fewer, in the order of their ids.

    All images stand in one fixed order, and its beginning is taken: a larger sample
    holds every smaller one, and what was embedded for one serves the other. The order
    begins with the first, then the second image of every class, up to ``FIRST``; the
    rest follows such that every class has its share of each beginning. Inside a class
    the hashes of the ids decide, but a group gives its second image only after every
    group gave its first: many looks at different things tell more than many looks at
    one.
    """
    classes: dict[str, list[Drawable]] = defaultdict(list)
    for image in images:
        classes[image.label].append(image)
    placed: list[tuple[float, str, Drawable]] = []
    for members in classes.values():
        for rank, image in enumerate(_by_turns(members)):
            share = (rank + 0.5) / len(members)
            place = rank - FIRST if rank < FIRST else share
            placed.append((place, image.image_id, image))
    placed.sort(key=lambda entry: entry[:2])
    return sorted((image for *_, image in placed[:size]), key=lambda i: i.image_id)


def _by_turns(members: Sequence[Drawable]) -> list[Drawable]:
    """The images of one class in the order of the draw, one of each group a turn."""
    turns: dict[str, int] = defaultdict(int)
    ordered = []
    for image in sorted(members, key=lambda i: _draw(i.image_id)):
        ordered.append((turns[image.unit], _draw(image.unit), image.image_id, image))
        turns[image.unit] += 1
    return [image for *_, image in sorted(ordered, key=lambda entry: entry[:3])]


def _draw(name: str) -> float:
    # a hash of its own: that of the split alone has chosen which images are here
    return draw(f"sample {name}", seed=0)
