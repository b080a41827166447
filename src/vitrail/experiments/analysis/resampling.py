"""Which pictures are drawn anew: every picture by itself, or all pictures of a prompt together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.schedule.streams import Streams

if TYPE_CHECKING:
    from torch import Tensor

SEED = 0  # of the draws, the same for every row
FEWEST = 3  # things that are drawn, below which nothing can be said about an interval


@frozen
class Drawing:
    """What is drawn of a set of pictures.

    Pictures of one prompt are like each other, so they are no independent pictures of the method: prompts are drawn
    then, each with all of its pictures. Of one or two prompts the pictures are drawn nevertheless, and an interval
    speaks of these prompts alone.

    Attributes:
        prompts: Of each picture, by whatever name.
    """

    prompts: tuple[str, ...] = field(converter=as_tuple)

    @classmethod
    def of_each(cls, count: int) -> Drawing:
        """As many pictures of as many prompts."""
        return cls(tuple(map(str, range(count))))

    @property
    def kinds(self) -> int:
        """How many prompts there are."""
        return len(set(self.prompts))

    @property
    def clusters(self) -> tuple[tuple[int, ...], ...]:
        """The pictures' numbers, those together that are drawn together."""
        if self.kinds == len(self.prompts) or self.kinds < FEWEST:
            return tuple((number,) for number in range(len(self.prompts)))
        found: dict[str, list[int]] = {}
        for number, prompt in enumerate(self.prompts):
            found.setdefault(prompt, []).append(number)
        return tuple(map(tuple, found.values()))

    def cluster_of(self) -> list[int]:
        """The cluster of each picture, by number."""
        places = {picture: number for number, cluster in enumerate(self.clusters) for picture in cluster}
        return [places[picture] for picture in range(len(self.prompts))]

    def draws(self, resamples: int) -> Iterator[Tensor]:
        """The numbers of the pictures of each draw, Int64[Tensor, "drawn"]."""
        import torch

        clusters = [torch.tensor(cluster, dtype=torch.int64, device="cpu") for cluster in self.clusters]
        for drawn in draws(len(clusters), resamples):
            alone = len(clusters) == len(self.prompts)
            yield drawn if alone else torch.cat([clusters[number] for number in drawn.tolist()])


def draws(count: int, resamples: int) -> Tensor:
    """Which of some things are drawn, Int64[Tensor, "resamples count"]; the same for every set of as many things."""
    import torch

    generator = Streams(SEED).generator("bootstrap", count)
    return torch.randint(max(count, 1), (resamples, count), generator=generator, dtype=torch.int64, device="cpu")


def prompts_note(sets: Sequence[tuple[int, int]]) -> str:
    """What a note says of sets whose prompts have several pictures; empty if there is none.

    Args:
        sets: Pictures and prompts of each.
    """
    several = sorted({(pictures, prompts) for pictures, prompts in sets if prompts < pictures}, reverse=True)
    if not several:
        return ""
    listed = ", ".join(f"{pictures} of {prompts}" for pictures, prompts in several)
    few = min(prompts for _, prompts in several) < FEWEST
    how = "fewer than three prompts cannot be drawn, so their intervals speak of these prompts alone"
    together = "all pictures of a prompt are drawn together"
    drawn = [*([together] if any(prompts >= FEWEST for _, prompts in several) else []), *([how] if few else [])]
    return f"Pictures of prompts: {listed}; {'; '.join(drawn)}."
