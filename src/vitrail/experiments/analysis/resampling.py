"""Units of the bootstrap: single pictures, or clusters of all pictures of a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.schedule.streams import Streams

if TYPE_CHECKING:
    from torch import Tensor

SEED = 0  # of the resamples, the same for every row
FEWEST = 3  # minimum number of units for an interval


@frozen
class Drawing:
    """Resampling of a set of pictures, clustered by prompt.

    Pictures of one prompt are correlated, so where prompts have several pictures, prompts are resampled, each with all
    of its pictures (cluster bootstrap). With one or two prompts single pictures are resampled, and the interval is
    conditional on these prompts.

    Attributes:
        prompts: Prompt of each picture, as any text that identifies it.
    """

    prompts: tuple[str, ...] = field(converter=as_tuple)

    @classmethod
    def of_each(cls, count: int) -> Drawing:
        """Return the resampling of ``count`` pictures that all have different prompts."""
        return cls(tuple(map(str, range(count))))

    @property
    def kinds(self) -> int:
        """Number of different prompts."""
        return len(set(self.prompts))

    @property
    def clusters(self) -> tuple[tuple[int, ...], ...]:
        """Indices of the pictures of each resampled unit."""
        if self.kinds == len(self.prompts) or self.kinds < FEWEST:
            return tuple((number,) for number in range(len(self.prompts)))
        found: dict[str, list[int]] = {}
        for number, prompt in enumerate(self.prompts):
            found.setdefault(prompt, []).append(number)
        return tuple(map(tuple, found.values()))

    def cluster_of(self) -> list[int]:
        """Return the index of each picture's cluster."""
        places = {picture: number for number, cluster in enumerate(self.clusters) for picture in cluster}
        return [places[picture] for picture in range(len(self.prompts))]

    def draws(self, resamples: int) -> Iterator[Tensor]:
        """Yield the picture indices of each resample, Int64[Tensor, "drawn"]."""
        import torch

        clusters = [torch.tensor(cluster, dtype=torch.int64, device="cpu") for cluster in self.clusters]
        for drawn in draws(len(clusters), resamples):
            alone = len(clusters) == len(self.prompts)
            yield drawn if alone else torch.cat([clusters[number] for number in drawn.tolist()])


def draws(count: int, resamples: int) -> Tensor:
    """Draw indices of ``count`` units with replacement, Int64[Tensor, "resamples count"]; equal for equal arguments."""
    import torch

    generator = Streams(SEED).generator("bootstrap", count)
    return torch.randint(max(count, 1), (resamples, count), generator=generator, dtype=torch.int64, device="cpu")


def prompts_note(sets: Sequence[tuple[int, int]]) -> str:
    """Return the note on sets whose prompts have several pictures; empty if there are none.

    Args:
        sets: Number of pictures and of prompts of each set.
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
