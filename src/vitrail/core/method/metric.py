"""Protocols of metrics of finished pictures and of their feature extractors. Metrics are frozen attrs classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Protocol

from attrs import evolve, field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Better = Literal["up", "down", "none"]


@frozen(kw_only=True)
class Column:
    """One number of a metric, as a column of a table.

    Attributes:
        name: Heading, e.g. ``FID_c``.
        better: Direction that is better, if there is one.
        decimals: Number of decimals shown.
        lowest: Lower bound of values and of intervals.
        highest: Upper bound of values and of intervals.
        is_whole: Whether it is a mean of one whole number per picture, as shares and counts are. Few pictures then
            give few distinct values, so a difference must also pass an exact test.
        needs_equal_counts: Whether it depends on the number of pictures, as FID does, so that only rows with equal
            numbers compare.
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
        """The column of the differences of two rows."""
        return evolve(self, lowest=self.lowest - self.highest, highest=self.highest - self.lowest)


@frozen(kw_only=True, eq=False)
class Shown:
    """A finished picture as a metric sees it, as it was saved.

    Attributes:
        picture: Float32[Tensor, "3 Height Width"] in [0, 1].
        prompt: Its prompt; "" if unknown.
        native_size: Side of a training picture of its model, pixels.
        rows: Pixel rows at which a view of its last stage begins or ends, the picture's own edges excepted; () if
            its views have no edges, as strided views.
        columns: Pixel columns, as above.
    """

    picture: Tensor
    prompt: str
    native_size: int
    rows: tuple[int, ...] = field(converter=as_tuple, default=())
    columns: tuple[int, ...] = field(converter=as_tuple, default=())

    def training_size(self, remedy: str) -> int:
        """Return the size in pixels that the model was trained at.

        Args:
            remedy: What a user can do about a picture that no model is known of, such as one of a folder.

        Raises:
            ConfigError: If it is unknown.
        """
        if not self.native_size:
            raise ConfigError(f"a picture whose model is unknown has no training size: {remedy}")
        return self.native_size


class FeatureExtractor(Protocol):
    """Compute features of one picture. Features are cached under its ``repr``, so no picture is computed twice.

    An extractor that reads weights or other files also has a ``digest``, a text that identifies their contents and is
    part of the cache key.
    """

    def look(self, shown: Shown) -> Tensor:
        """Compute the features of one picture.

        Returns:
            Float32[Tensor, "..."], of the same shape for every picture; nan where they are undefined.
        """


class Metric(Protocol):
    """Compute one or several columns of a table from the features of a cell's pictures."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns that ``gather`` returns, in order."""

    @property
    def extractor(self) -> FeatureExtractor:
        """The feature extractor; metrics with equal extractors share features. May be the metric itself."""

    @property
    def needs_reference(self) -> bool:
        """Whether ``gather`` compares with a reference set."""

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Compute the columns of a set of pictures.

        Args:
            features: Features, Float32[Tensor, "pictures ..."]; a resampled set may hold a picture twice.
            reference: Features of the reference set, Float32[Tensor, "references ..."], if there is one.

        Returns:
            One number per column; nan where there are too few pictures.
        """


class Features(Protocol):
    """Map pictures to vectors, between whose sets a distance is measured.

    An implementation that reads files also has a ``digest``, a text that identifies their contents.
    """

    def extract(self, pictures: Tensor) -> Tensor:
        """Compute the features of pictures of any size.

        Args:
            pictures: Float32[Tensor, "batch 3 Height Width"] in [0, 1].

        Returns:
            Float32[Tensor, "batch dim"].
        """

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Compute class probabilities, for the inception score and for repetition.

        Args:
            pictures: Float32[Tensor, "batch 3 Height Width"] in [0, 1].

        Returns:
            Float32[Tensor, "batch classes"]; the last class stands for nothing, or never occurs.
        """


class References(Protocol):
    """A set of real pictures to compare with."""

    def pictures(self, height: int, width: int) -> Iterator[Shown]:
        """Yield the pictures at a size in pixels, the same ones at every call."""

    @property
    def digest(self) -> str:
        """Text that identifies the contents of the set."""
