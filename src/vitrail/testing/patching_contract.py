"""Contract check of a patching strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve

from vitrail.core.config.run_config import Wrap
from vitrail.core.engine.exchange import Exchange
from vitrail.core.engine.micro_batches import permute_views, restore_order
from vitrail.core.geometry.views import Canvas, Outline, Patches, View
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.members import OptionalPatching, has_own
from vitrail.core.method.returned_values import check_granularity, check_patches, check_permutation, uncovered
from vitrail.core.schedule.step import Step
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CoverageError
from vitrail.testing.contract import check_repeats, contract, instance_of
from vitrail.testing.steps_to_visit import CHANNELS, make_step, make_steps

WRAPS: tuple[Wrap, ...] = ("none", "x", "y", "xy")
SIZES = ((8, 8), (16, 16), (17, 31), (40, 24), (64, 48))  # height and width of canvases in latent cells
NATIVE = 16  # training size in latent cells


def check_patching(patching: Any) -> None:
    """Check that views lie on the canvas and cover it, with and without wrapping, at all steps of a schedule.

    Reading views from a canvas and writing them back must restore it, a permutation must be invertible, and a stage
    must have equally many views at every step. Equal arguments must give equal views, see ``check_repeats``. A patching
    whose views each show the whole picture may leave cells to its fusion in a run, but not in this check.

    Args:
        patching: A class, built with its defaults, or an instance.

    Raises:
        AssertionError: Naming the broken rule.
    """
    strategy = instance_of("patching", patching)
    for height, width in SIZES:
        for wrap in WRAPS:
            canvas = _fitting(strategy, Canvas(height, width, NATIVE, wrap=wrap))
            for index in (0, 3):
                _check_patches(strategy, make_step(index), canvas)
    for wrap in WRAPS:
        canvas = _fitting(strategy, Canvas(40, 24, NATIVE, wrap=wrap))
        counts = [len(_check_patches(strategy, step, canvas).views) for step in make_steps("flow_prediction")]
        assert len(set(counts)) == 1, f"a stage has as many views at every step, got {counts}"
    check_repeats(strategy, _play)


def check_cover(views: Sequence[View], height: int, width: int) -> None:
    """Refuse views that do not cover the canvas.

    Args:
        views: The views.
        height: Height of the canvas in latent cells.
        width: Width of the canvas in latent cells.

    Raises:
        CoverageError: Naming the first uncovered cell.
    """
    hole = uncovered(tuple(views), height, width)
    if hole is not None:
        raise CoverageError(f"latent cell {hole} of {height}x{width} lies in no view")


def _play(strategy: Any, exchange: Exchange) -> Any:
    """Return views, turns, permutations, key views and prepared canvases at every step of a run."""
    answers: list[Any] = []
    canvas = _fitting(strategy, Canvas(40, 24, NATIVE, wrap="x"))
    for step in make_steps("flow_prediction"):
        patches = strategy.patch(step, canvas, CHANNELS, Streams(1))
        answers += [patches.views, [view.roll for view in patches.views], patches.permutation, patches.key]
        answers.append(_prepared(strategy, step, canvas))
    return answers


def _fitting(strategy: Any, canvas: Canvas) -> Canvas:
    """Return the canvas with sides that fit the patching's granularity: padded, or enlarged on wrapped axes."""
    with contract():
        down, right = check_granularity(StrategyCall("patching", strategy), strategy.granularity(canvas))
    if canvas.wraps("y"):
        canvas = evolve(canvas, height=canvas.height + -canvas.height % down)
    if canvas.wraps("x"):
        canvas = evolve(canvas, width=canvas.width + -canvas.width % right)
    return canvas.padded(down, right)


def _check_patches(strategy: Any, step: Step, canvas: Canvas) -> Patches:
    patches = strategy.patch(step, canvas, CHANNELS, Streams(1))
    assert isinstance(patches, Patches), f"expected Patches, got {type(patches).__name__}"
    asked = StrategyCall("patching", strategy, step)
    with contract():
        check_patches(asked, patches, canvas, shows_whole=False)
        check_permutation(asked, patches, CHANNELS)
    if has_own(strategy, OptionalPatching.outline):
        outline = strategy.outline(step, canvas)
        assert outline == Outline.of(patches), f"outline told of {outline}, and the views are {Outline.of(patches)}"
    assert all(view.rolled.shape == view.shape for view in patches.views), "a rolled view has the same cells"
    picture = _picture(canvas)
    total, seen = torch.zeros_like(picture), torch.zeros_like(picture)
    for view in patches.views:
        view.add_to(total, view.read(picture))
        view.add_to(seen, torch.ones_like(view.read(picture)))
    torch.testing.assert_close(total / seen, picture, rtol=1e-5, atol=1e-5)
    if patches.permutation is not None:
        sample = Streams(2).normal((len(patches.views), 1, CHANNELS, *patches.views[0].shape), "sample")
        back = restore_order(permute_views(sample, patches), patches)
        assert torch.equal(back, sample), "permute then un-permute must be the identity"
    again = strategy.patch(step, canvas, CHANNELS, Streams(1))
    rolls = [(view, view.roll) for view in patches.views]
    assert [(view, view.roll) for view in again.views] == rolls, "the same seed must give the same views"
    _prepared(strategy, step, canvas)
    return patches


def _prepared(strategy: Any, step: Step, canvas: Canvas) -> torch.Tensor | None:
    """Call ``prepare`` with checks, if the patching has it; return the prepared canvas, else None."""
    if not has_own(strategy, OptionalPatching.prepare):
        return None
    picture = _picture(canvas)
    before = picture.clone()
    prepared = strategy.prepare(step, picture, canvas)
    assert isinstance(prepared, torch.Tensor), "prepare must return a tensor"
    message = f"expected {before.dtype} {tuple(before.shape)}, got {prepared.dtype} {tuple(prepared.shape)}"
    assert (prepared.shape, prepared.dtype) == (before.shape, before.dtype), f"prepare: {message}"
    assert bool(prepared.isfinite().all()), "prepare gave values that are not finite"
    assert torch.equal(picture, before), "prepare must not write into its input"
    return prepared


def _picture(canvas: Canvas) -> torch.Tensor:
    return Streams(3).normal((1, CHANNELS, canvas.height, canvas.width), "canvas")
