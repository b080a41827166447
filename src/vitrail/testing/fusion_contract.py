"""Contract check of a fusion strategy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitrail.core.engine.exchange import Exchange
from vitrail.core.geometry.views import Span, View
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.members import OptionalFusion
from vitrail.core.method.returned_values import check_fused
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.step import Step
from vitrail.testing.contract import check_repeats, contract, instance_of
from vitrail.testing.steps_to_visit import CHANNELS, PREDICTION_TYPES, described, make_prediction, make_steps

PLAIN = tuple(View(Span(y, 8, 2), Span(x, 8, 2)) for y in range(2) for x in range(2))
MOVED = tuple(View(Span(y, 8, 2, 16), Span(x, 8, 2, 16)) for y in (6, 7) for x in (10, 11))  # wrapped around the edges
CONTEXT = tuple(  # windows that see more than they write
    View(Span(y, 6, context=(0, 2) if y == 0 else (2, 0) if y == 10 else (1, 1)), Span(x, 8))
    for y in (0, 3, 7, 10)
    for x in (0, 8)
)
WINDOWS = tuple(View(Span(y, 8), Span(x, 8)) for y in (0, 4, 8) for x in (0, 4, 8))  # up to four views overlap


def check_fusion(fusion: Any) -> None:
    """Check that views cut from one canvas prediction fuse back to it: weights sum to one on every cell.

    Overlapping windows do so as well, or are refused by a ValueError such as CoverageError. The check covers every
    prediction type, every step and both ends of the schedule. Inputs must not be modified, and equal arguments must
    give equal canvases, see ``check_repeats``. A fusion with ``is_cellwise`` gives a cell the same bits whatever the
    views that do not write it say, and whatever any view and the canvas hold in other cells, not finite ones too.

    Args:
        fusion: A class, built with its defaults, or an instance.

    Raises:
        AssertionError: Naming the broken rule.
    """
    strategy = instance_of("fusion", fusion)
    for kind in PREDICTION_TYPES:
        for step in make_steps(kind):
            for views in (PLAIN, MOVED):
                _check_fused(strategy, step, views)
            _check_overlap(strategy, step)
            if OptionalFusion.of(strategy).is_cellwise:
                for views in (PLAIN, MOVED, WINDOWS, CONTEXT):
                    _check_cellwise(strategy, step, views)
    check_repeats(strategy, _play)


def _play(strategy: Any, exchange: Exchange) -> list[Tensor]:
    """Fuse at all steps of v-prediction, the one type whose schedule has both ends."""
    return [_fused(strategy, step, PLAIN)[0] for step in make_steps("v_prediction")]


def _check_fused(strategy: Any, step: Step, views: tuple[View, ...]) -> None:
    fused, expected, latents = _fused(strategy, step, views)
    with contract():
        check_fused(StrategyCall("fusion", strategy, step), fused, latents)
    assert bool(fused.isfinite().all()), f"not finite at {described(step)}"
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(fused, _fused(strategy, step, views)[0]), "the same views must fuse to the same canvas"


def _check_overlap(strategy: Any, step: Step) -> None:
    """Check overlapping windows of one canvas: they agree on every cell, so the weights must not matter."""
    canvas = make_prediction((1, CHANNELS, 16, 16), step)
    cut = Prediction(_cut(canvas.latents, WINDOWS), _cut(canvas.model_output, WINDOWS), step)
    try:
        fused = _asked(strategy, step, WINDOWS, cut, canvas.latents)
    except ValueError:  # it refuses overlapping windows
        return
    message = f"windows that overlap do not fuse to the canvas that they were cut from, at {described(step)}"
    torch.testing.assert_close(fused, canvas.model_output, rtol=1e-4, atol=1e-4, msg=message)


def _check_cellwise(strategy: Any, step: Step, views: tuple[View, ...]) -> None:
    """Check that a cell depends on the views that write it alone, bit for bit, and on no other cell."""
    canvas = make_prediction((1, CHANNELS, 16, 16), step)
    latents, cut = canvas.latents, Prediction(_cut(canvas.latents, views), _cut(canvas.model_output, views), step)
    scales = torch.linspace(0.5, 1.5, len(views), dtype=torch.float32, device="cpu")[:, None, None, None, None]
    cut = Prediction(cut.latents, cut.model_output * scales, step)
    try:
        expected = _asked(strategy, step, views, cut, latents)
    except ValueError:  # it refuses these views
        return
    for late in range(len(views)):
        written = torch.zeros(latents.shape[-2:], dtype=torch.bool, device="cpu")
        views[late].write(written, torch.ones(views[late].shape, dtype=torch.bool, device="cpu"))
        for wrong in (float("nan"), float("inf"), 0.0):
            spoilt = torch.where(written, torch.full_like(latents, wrong), latents)
            outputs, inputs = cut.model_output.clone(), _cut(spoilt, views)
            outputs[late] = wrong
            fused = _asked(strategy, step, views, Prediction(inputs, outputs, step), spoilt)
            message = (
                f"is_cellwise: view {late}, where it says {wrong}, changes cells that it does not write, at "
                f"{described(step)}"
            )
            assert torch.equal(fused[..., ~written], expected[..., ~written]), message


def _fused(strategy: Any, step: Step, views: tuple[View, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the fused canvas, the expected one and the canvas's latents, each "1 channels 16 16"."""
    canvas = make_prediction((1, CHANNELS, 16, 16), step)
    flat = canvas.model_output[..., :1, :1].expand_as(canvas.model_output).contiguous()
    cut = Prediction(_cut(canvas.latents, views), _cut(flat, views), step)
    try:
        return _asked(strategy, step, views, cut, canvas.latents), flat, canvas.latents
    except ValueError:  # it accepts one view only
        one = Prediction(cut.latents[:1], cut.model_output[:1], step)
        fused = _asked(strategy, step, views[:1], one, canvas.latents)
        clean = one.clean[0].repeat_interleave(2, -1).repeat_interleave(2, -2)
        clean = clean.roll((views[0].vertical.start, views[0].horizontal.start), (-2, -1))
        return fused, Prediction(canvas.latents, fused, step).with_clean(clean).model_output, canvas.latents


def _asked(strategy: Any, step: Step, views: tuple[View, ...], cut: Prediction, latents: Tensor) -> Tensor:
    """Call ``fuse`` and assert that its inputs are unchanged."""
    handed = (cut.latents, cut.model_output, latents)
    before = [tensor.clone() for tensor in handed]
    fused: Tensor = strategy.fuse(step, views, cut, latents)
    same = (torch.equal(own.view(torch.int32), old.view(torch.int32)) for own, old in zip(handed, before, strict=True))
    assert all(same), "fusion must not write into what it receives"
    return fused


def _cut(canvas: Tensor, views: tuple[View, ...]) -> Tensor:
    return torch.stack([view.read(canvas) for view in views])
