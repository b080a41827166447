"""Contract check of a guidance strategy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, get_args

import torch
from attrs import evolve
from torch import Tensor

from vitrail.comm.backends.in_process import solo
from vitrail.core.engine.asked import CanvasPart
from vitrail.core.engine.exchange import Exchange
from vitrail.core.engine.guidance_context import Branches, GuidanceContext, Start, subject_tensor
from vitrail.core.geometry.views import Canvas, Outline, Patches, Span, View
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.members import OptionalGuidance, points_of, speaks
from vitrail.core.method.micro_batch import Branch, SizeConditioning
from vitrail.core.method.protocols import Point
from vitrail.core.method.returned_values import check_branches, check_cost, check_guided, check_lag
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.step import PredictionType, Step
from vitrail.core.schedule.streams import Streams
from vitrail.testing.contract import check_repeats, contract, instance_of
from vitrail.testing.steps_to_visit import CHANNELS, PREDICTION_TYPES, described, make_prediction, make_steps

CELL = 4  # side of a latent cell in pixels
OF_VIEWS = ("inputs", "branches", "views")  # points whose subject is the views
VIEWS = tuple(View(Span(y, 8, 2), Span(x, 8, 2)) for y in range(2) for x in range(2))


def check_guidance(guidance: Any) -> None:
    """Check that a guidance returns a finite subject of the same kind, shape and dtype, and modifies no input.

    The check covers every prediction type, with and without mask, the first steps and both ends of the schedule, in
    the first phase of a cascade and in a later one that starts from an enlarged picture. A guidance with
    ``follows_start`` must have an effect in the latter. One that works by messages must give equal results through
    them. State must be new in every run, costs are integers, and equal arguments must give equal results, see
    ``check_repeats``.

    Args:
        guidance: A class, built with its defaults, or an instance.

    Raises:
        AssertionError: Naming the broken rule.
    """
    strategy = instance_of("guidance", guidance)
    answers = _played(strategy, Exchange.among(solo()), PREDICTION_TYPES)
    acts = any(moved for _, moved in answers)
    assert acts or not OptionalGuidance.of(strategy).follows_start, (
        "it changes nothing where it has a picture to follow"
    )
    assert strategy.init() is None or strategy.init() is not strategy.init(), "state must start anew in every run"
    _check_costs(strategy)
    check_repeats(strategy, _play)


def _check_costs(strategy: Any) -> None:
    """Check the declared costs of a canvas and of its views, at every step of both phases."""
    own, canvas = OptionalGuidance.of(strategy), Canvas(16, 16, 8, cell=CELL)
    with contract():
        for step in (*make_steps("v_prediction", phase=0), *make_steps("v_prediction", phase=1)):
            asked = StrategyCall("guidance", strategy, step)
            check_cost(asked, "cost", own.cost(step, canvas, 2))
            check_cost(asked, "cost_of_views", own.cost_of_views(step, Outline.of(Patches(VIEWS)), 2))


def _play(strategy: Any, exchange: Exchange) -> list[tuple[Tensor, bool]]:
    """Guide at all steps of v-prediction, the one type whose schedule has both ends."""
    return _played(strategy, exchange, ("v_prediction",))


def _played(strategy: Any, exchange: Exchange, kinds: Sequence[PredictionType]) -> list[tuple[Tensor, bool]]:
    """Guide in whole runs with checks; return each guided subject and whether it differs from the input."""
    answers = []
    for kind, phase, masked in itertools.product(kinds, (0, 1), (True, False)):
        state: Any = strategy.init()
        messages: list[Tensor] = []
        for number, step in enumerate(make_steps(kind, phase=phase)):
            if step.stage_step == 0:
                state, messages = strategy.init(), []
            for point in (each for each in get_args(Point) if each in points_of(strategy)):
                scene = _scene(point, step, strategy, exchange, masked)
                subject = _subject(strategy, point, step, seed=number)
                before_it = state
                guided, state = _checked(strategy, step, subject, scene, state)
                if point == "views" and _speaks(strategy, step) and step.stage_step == len(messages):
                    messages.append(strategy.tell(step, subject, scene.key, scene.mask))
                    _check_follows(strategy, step, subject, scene.key, messages, guided)
                    _check_kept(strategy, step, messages, before_it)
                after, before = subject_tensor(guided), subject_tensor(subject)
                answers.append((after, not torch.equal(after, before)))
    return answers


def _checked(strategy: Any, step: Step, subject: Any, scene: GuidanceContext, state: Any) -> tuple[Any, Any]:
    """Call ``guide`` once with checks; return the guided subject and the new state."""
    before, around = [each.clone() for each in _within(subject)], [tensor.clone() for tensor in _around(scene)]
    pair = strategy.guide(step, subject, scene, state)
    assert isinstance(pair, tuple) and len(pair) == 2, f"expected (subject, state), got {type(pair).__name__}"
    guided, new = pair
    with contract():
        check_guided(StrategyCall("guidance", strategy, step), subject, guided, scene.point)
    assert bool(subject_tensor(guided).isfinite().all()), f"not finite at {described(step)}"
    assert all(map(torch.equal, _within(subject), before)), "guidance must not write into its input"
    assert all(map(torch.equal, _around(scene), around)), "guidance must not write into the scene"
    return guided, new


def _speaks(strategy: Any, step: Step) -> bool:
    """Return whether the guidance uses a message at a step."""
    if not speaks(strategy):
        return False
    with contract():
        return check_lag(StrategyCall("guidance", strategy, step), strategy.lag(step)) is not None


def _check_follows(
    strategy: Any, step: Step, subject: Prediction, key: int, messages: Sequence[Tensor], guided: Prediction
) -> None:
    """Check that following a message equals computing the guidance directly."""
    version = len(messages) - 1 - strategy.lag(step)
    followed = strategy.follow(step, subject, key, messages[version] if version >= 0 else None)
    with contract():
        check_guided(StrategyCall("guidance", strategy, step), subject, followed, strategy.point)
    equal = torch.equal(followed.model_output, guided.model_output)
    assert equal, f"`guide` must equal `follow` with the message that `lag` names, not so at {described(step)}"


def _check_kept(strategy: Any, step: Step, messages: Sequence[Tensor], state: Any) -> None:
    """Check that the state before a step that applies the message of the step before is that message."""
    if strategy.lag(step) == 1 and len(messages) > 1:
        same = isinstance(state, Tensor) and torch.equal(state, messages[-2])
        assert same, f"the state must be the message of the step before, which resumed runs need, at {described(step)}"


def _within(subject: Any) -> list[Tensor]:
    """Collect the tensors of a subject."""
    if isinstance(subject, Branches):
        return [subject.combined, subject.latents, *subject.rows.values()]
    return [subject.latents, subject.model_output] if isinstance(subject, Prediction) else [subject]


def _around(scene: GuidanceContext) -> list[Tensor]:
    """Collect the tensors of a guidance context."""
    start = [] if scene.start is None else [scene.start.clean, scene.start.noise, scene.start.picture]
    return [tensor for tensor in (scene.mask, *start) if tensor is not None]


def _subject(guidance: Any, point: Point, step: Step, seed: int) -> Any:
    """Make the subject of a point, of four views where it concerns views."""
    lead = (4, 1) if point in OF_VIEWS else (1,)
    made = make_prediction((*lead, CHANNELS, 8, 8), step, seed)
    if point == "branches":
        wanted = OptionalGuidance.of(guidance).branches(step)
        with contract():
            check_branches(StrategyCall("guidance", guidance, step), wanted, ("uncond", "cond"))
        shape, streams = made.latents.shape, Streams(seed)
        rows = {branch: streams.normal(tuple(shape), branch) for branch in ("uncond", "cond", *wanted)}
        return Branches(rows, 2.0, made.model_output, made.latents)
    return made.latents if point in ("before", "inputs", "after") else made


def _scene(point: Point, step: Step, strategy: Any, exchange: Exchange, masked: bool) -> GuidanceContext:
    """Make the context of a canvas of twice the training size; the network returns its input, or half of it."""
    of_views = point in OF_VIEWS
    side, native = (16, 8) if of_views else (8, 4)
    canvas, streams = Canvas(side, side, native, cell=CELL), Streams(5)
    clean, noise = (streams.normal((1, CHANNELS, side, side), name) for name in ("clean", "noise"))
    picture = 2 * streams.uniform((1, 3, side * CELL, side * CELL), "picture") - 1
    return GuidanceContext(
        point=point,
        guidance_scale=2.0,
        mask=Streams(3).uniform((1, 1, 8, 8), "mask") if masked and point in ("views", "canvas") else None,
        patches=Patches(VIEWS) if of_views else None,
        canvas=canvas,
        streams=Streams(4),
        start=Start(clean, noise, picture) if step.phase else None,
        vae=_Blocks(),
        ask=lambda asked, model_input, view, sizes=None: model_input,
        ask_branches=_half_without_text,
        scale=lambda latents: latents / step.norm,
        background=lambda shape: Streams(6).normal((1, CHANNELS, *shape), "background"),
        step_at=lambda alpha, sigma: evolve(step, alpha=alpha, sigma=sigma),
        gradients=_Cells(),
        exchange=exchange,
        needs=frozenset(strategy.needs),
        guidance=type(strategy).__name__,
    )


def _half_without_text(
    step: Step, model_input: Tensor, shown: Sequence[CanvasPart], /, sizes: SizeConditioning | None = None
) -> dict[Branch, Tensor]:
    """Return the inputs as the answers with text, and half of them as those without."""
    return {"uncond": model_input / 2, "cond": model_input}


class _Cells:
    """Gradients stub: the picture of a view is its latents, so the gradient is a difference."""

    def picture(self, step: Step, latents: Tensor, view: View) -> Tensor:
        """Return the latents as the picture."""
        return latents

    def of_distance(
        self, step: Step, latents: Tensor, views: Sequence[View], picture: Tensor, weights: str | None
    ) -> Tensor:
        """Return the gradient of half the squared distance."""
        return latents - picture


class _Blocks:
    """VAE stub: the picture is the first three channels, one block of ``CELL`` pixels per latent cell."""

    def decode(self, latents: Tensor, canvas: Canvas, clip: bool = True) -> Tensor:
        """Decode to a picture without the canvas's padding, Float32[Tensor, "batch 3 Height Width"]."""
        height, width = canvas.inner
        picture = latents[:, :3, :height, :width].repeat_interleave(canvas.cell, -2).repeat_interleave(canvas.cell, -1)
        return (picture / 2 + 0.5).clamp(0, 1) if clip else picture / 2 + 0.5

    def encode(self, picture: Tensor, canvas: Canvas) -> Tensor:
        """Encode to the blocks' means, and their mean over the colours as a fourth channel."""
        cells = torch.nn.functional.avg_pool2d(picture, canvas.cell)
        return torch.cat([cells, cells.mean(1, keepdim=True)], dim=1)
