"""Checks of what metrics, features and reference sets return, before a number is computed from it.

A report and ``vitrail.testing`` make the same ones. Messages name the class by a ``StrategyCall`` of its slot:
``metrics``, ``features`` or ``references``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.metric import Column, Shown
from vitrail.core.method.returned_values import kind, outside

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.method.metric import Features, Metric, References

ROUNDING = 1e-4  # tolerance of a number beyond the ends of its column, and of the sum of class probabilities
END = object()
Vectors = Literal["extract", "probabilities"]  # methods of features


def columns_of(asked: StrategyCall, metric: Metric) -> tuple[Column, ...]:
    """Return the columns of a metric.

    Raises:
        ShapeError: If they are not one or more columns with different names.
    """
    with asked.noted():
        columns: object = metric.columns
    if not isinstance(columns, tuple) or not columns or any(not isinstance(each, Column) for each in columns):
        asked.refuse(f"must have `columns` that are a tuple of one Column or more, got {columns!r}")
    names = [each.name for each in columns]
    if len(set(names)) < len(names):
        asked.refuse(f"must have columns with names of their own, got {', '.join(names)}")
    return columns


def look_at(asked: StrategyCall, metric: Metric, shown: Shown) -> Tensor:
    """Return what a metric's extractor sees in a picture, Float32[Tensor, "..."] on the CPU.

    Raises:
        ShapeError: If it returns anything else.
    """
    import torch

    with asked.noted():
        seen: object = metric.extractor.look(shown)
    if not isinstance(seen, torch.Tensor) or seen.dtype != torch.float32 or seen.device.type != "cpu":
        asked.refuse(f"must have an extractor whose `look` returns a tensor of float32 on the cpu, got {kind(seen)}")
    return seen


def numbers_of(asked: StrategyCall, metric: Metric, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
    """Return the number of every column of a metric for a set of pictures.

    Args:
        asked: The metric, for messages.
        metric: The metric.
        features: What its extractor saw, Float32[Tensor, "pictures ..."].
        reference: The same of the reference set, if there is one.

    Raises:
        ShapeError: If it does not return a float for each column, nan or within the column's ends.
    """
    with asked.noted():
        numbers: object = metric.gather(features, reference)
    columns = metric.columns
    if not isinstance(numbers, tuple) or any(not isinstance(each, float) for each in numbers):
        kinds = ", ".join(map(kind, numbers)) if isinstance(numbers, tuple) else kind(numbers)
        asked.refuse(f"must return a tuple of floats from `gather`, got {kinds}")
    if len(numbers) != len(columns):
        asked.refuse(f"must return a number for each of {len(columns)} columns from `gather`, got {len(numbers)}")
    for column, number in zip(columns, numbers, strict=True):
        if number < column.lowest - ROUNDING or number > column.highest + ROUNDING:
            asked.refuse(f"returned {column.name} = {number:g}, outside of [{column.lowest:g}, {column.highest:g}]")
    return numbers


def vectors_of(asked: StrategyCall, features: Features, member: Vectors, pictures: Tensor) -> Tensor:
    """Return the features or the class probabilities of pictures, Float32[Tensor, "batch dim"].

    Args:
        asked: The features, for messages.
        features: The features.
        member: The method to call.
        pictures: In [0, 1], Float32[Tensor, "batch 3 Height Width"].

    Raises:
        ShapeError: If it returns anything else, or probabilities that do not add up to 1.
    """
    import torch

    found: object = asked.ask(features.extract if member == "extract" else features.probabilities, pictures)
    shape = tuple(found.shape[:1]) if isinstance(found, torch.Tensor) and found.ndim == 2 else ()
    if not isinstance(found, torch.Tensor) or found.dtype != torch.float32 or shape != (len(pictures),):
        asked.refuse(f"must return float32 ({len(pictures)}, dim) from `{member}`, got {kind(found)}")
    if found.requires_grad:
        asked.refuse(f"must return float32 without a graph from `{member}`; decorate it with @torch.no_grad()")
    if member == "probabilities":
        is_sure = ((found.sum(dim=1) - 1).abs() < ROUNDING) & (found >= 0).all(dim=1)
        if not bool(is_sure.all()):
            asked.refuse("must return probabilities from 0 on that add up to 1")
    return found


def digest_of_set(asked: StrategyCall, references: References) -> str:
    """Return the digest of a reference set; raise ShapeError if it is no text or an empty one."""
    with asked.noted():
        digest: object = references.digest
    if not isinstance(digest, str) or not digest:
        asked.refuse(f"must have a `digest`, a text that stands for the pictures, got {digest!r}")
    return digest


def pictures_of(asked: StrategyCall, references: References, height: int, width: int) -> Iterator[Shown]:
    """Yield the pictures of a reference set at a size in pixels.

    Raises:
        ShapeError: For one that is no float32 (3, height, width) in [0, 1].
    """
    pictures = iter(asked.ask(references.pictures, height, width))
    while (shown := asked.ask(next, pictures, END)) is not END:
        yield _checked(asked, shown, (3, height, width))


def _checked(asked: StrategyCall, shown: object, shape: tuple[int, int, int]) -> Shown:
    import torch

    picture = shown.picture if isinstance(shown, Shown) else None
    if not isinstance(shown, Shown) or not isinstance(picture, torch.Tensor):
        asked.refuse(f"must yield a Shown with a picture from `pictures`, got {kind(shown)}")
    if picture.dtype != torch.float32 or tuple(picture.shape) != shape:
        asked.refuse(f"must yield pictures of float32 {shape}, got {kind(picture)}")
    if wrong := int(outside(picture)):
        asked.refuse(f"must yield pictures in [0, 1], got {wrong} other values of {picture.numel()}")
    return shown
