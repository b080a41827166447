"""What a metric of finished pictures answers, and what it looks at. Metrics are frozen attrs classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Protocol

from attrs import evolve, field, frozen

from vitrail.core.config.fields import as_tuple

if TYPE_CHECKING:
    from torch import Tensor

Better = Literal["up", "down", "none"]


@frozen(kw_only=True)
class Column:
    """One number of a metric, as a table shows it.

    Attributes:
        name: The heading, e.g. ``FID_c``.
        better: Which way is better, if any is.
        decimals: Shown after the point.
        lowest: No value is below, nor is an interval's end.
        highest: No value is above.
        is_whole: Whether it is the mean of whole numbers of the pictures, as shares and counts are. Few pictures take
            few values then, so a difference must pass an exact test besides its interval.
        needs_equal_counts: Whether it depends on how many pictures there are, as FID does, so that rows compare at
            equal numbers only.
    """

    name: str
    better: Better = "none"
    decimals: int = 2
    lowest: float = -math.inf
    highest: float = math.inf
    is_whole: bool = False
    needs_equal_counts: bool = False

    @property
    def of_differences(self) -> Column:
        """The same for the difference of two rows."""
        return evolve(self, lowest=self.lowest - self.highest, highest=self.highest - self.lowest)


@frozen(kw_only=True, eq=False)
class Shown:
    """A finished picture, as it was saved.

    Attributes:
        picture: Float32[Tensor, "3 Height Width"] in [0, 1].
        prompt: What it was to show; empty if nobody said.
        native_size: Pixels: the size that its model was trained at.
        rows: Pixel rows at which a view of its last stage begins or ends, the picture's own edges left out; () if
            its views have no edges, as strided views have none.
        columns: Pixel columns, as above.
    """

    picture: Tensor
    prompt: str
    native_size: int
    rows: tuple[int, ...] = field(converter=as_tuple, default=())
    columns: tuple[int, ...] = field(converter=as_tuple, default=())


class FeatureExtractor(Protocol):
    """What looks at one picture. Its answers are kept under its ``repr``, so no picture is looked at twice.

    An eye that looks with weights or other files has a ``digest`` besides, a text that stands for their contents and
    is kept with its ``repr``.
    """

    def look(self, shown: Shown) -> Tensor:
        """What counts of one picture.

        Returns:
            Float32[Tensor, "..."], of the same shape for every picture; nan where there is nothing to say.
        """


class Metric(Protocol):
    """A column or several of a table, from what an eye saw in a cell's pictures."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """What ``gather`` answers, in order."""

    @property
    def extractor(self) -> FeatureExtractor:
        """Who looks at the pictures; metrics with equal eyes share what was seen. May be the metric itself."""

    @property
    def needs_reference(self) -> bool:
        """Whether ``gather`` compares with a reference set."""

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """The columns of a set of pictures.

        Args:
            features: What the eye saw, Float32[Tensor, "pictures ..."]; a resampled set may hold a picture twice.
            reference: What it saw in the reference set, Float32[Tensor, "references ..."], if there is one.

        Returns:
            One number a column; nan where there are too few pictures.
        """


class Features(Protocol):
    """Turns pictures into vectors that a distance between sets is measured in.

    Those that are read from files have a ``digest`` besides, a text that stands for the files' contents.
    """

    def extract(self, pictures: Tensor) -> Tensor:
        """Features of pictures of any size.

        Args:
            pictures: Float32[Tensor, "batch 3 Height Width"] in [0, 1].

        Returns:
            Float32[Tensor, "batch dim"].
        """

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Of the classes that the network knows, for the inception score and for repetition.

        Args:
            pictures: As above.

        Returns:
            Float32[Tensor, "batch classes"]; the last class stands for nothing, or is one that never occurs.
        """


class References(Protocol):
    """A set of true pictures to compare with."""

    def pictures(self, height: int, width: int) -> Iterator[Shown]:
        """The pictures at a size, in pixels; always the same ones."""

    @property
    def digest(self) -> str:
        """Stands for the contents of the set."""
