"""Contract check of a mask source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vitrail.core.engine.exchange import Exchange
from vitrail.core.geometry.views import Canvas, Span, View
from vitrail.core.method.attention_maps import AttentionRequest, KeptMaps
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.core.method.returned_values import check_mask, outside
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.step import PredictionType, Step
from vitrail.core.schedule.streams import Streams
from vitrail.testing.contract import check_repeats, contract, instance_of
from vitrail.testing.steps_to_visit import CHANNELS, PREDICTION_TYPES, described, make_prediction, make_steps

SHAPE = (1, 1, 8, 8)


def check_masking(masking: Any) -> None:
    """Check that a mask is float32 in [0, 1] of the key view's shape, or None for the whole view.

    The check covers calls with and without attention maps and kept maps, every prediction type, every step and both
    ends of the schedule. State must be new in every run, and equal arguments must give equal masks, see
    ``check_repeats``.

    Args:
        masking: A class, built with its defaults, or an instance.

    Raises:
        AssertionError: Naming the broken rule.
    """
    strategy = instance_of("masking", masking)
    request = strategy.request
    assert request is None or isinstance(request, AttentionRequest), f"request is {request!r}, no AttentionRequest"
    _played(strategy, PREDICTION_TYPES)
    assert strategy.init() is None or strategy.init() is not strategy.init(), "state must start anew in every run"
    check_repeats(strategy, _play)


def _play(strategy: Any, exchange: Exchange) -> list[Tensor | None]:
    """Mask at all steps of v-prediction, the one type whose schedule has both ends."""
    return _played(strategy, ("v_prediction",))


def _played(strategy: Any, kinds: Sequence[PredictionType]) -> list[Tensor | None]:
    """Mask in whole runs with checks, and return all masks."""
    masks = []
    for kind in kinds:
        for maps in ("none", "attention", "no content", "memory"):
            state = strategy.init()
            for index, step in enumerate(make_steps(kind)):
                state = strategy.init() if step.stage_step == 0 else state
                key = make_prediction((1, CHANNELS, *SHAPE[-2:]), step, seed=index)
                predicted = _predicted(key, maps, index)
                mask, state = _checked(strategy, step, key, predicted, state)
                masks.append(mask)
    return masks


def _predicted(key: Prediction, maps: str, seed: int) -> ModelOutput:
    """Make the network's output for the key view, with attention maps or kept maps as ``maps`` says."""
    attention = Streams(seed).uniform(SHAPE, "attention") if maps in ("attention", "no content") else None
    remembered = KeptMaps(("fox", "snow"), Streams(0).uniform((1, 2, 16, 16), "maps")) if maps == "memory" else None
    output = key.model_output[None]
    return ModelOutput(
        output,
        attention,
        has_content=maps != "no content",
        memory=remembered,
        view=View(Span(0, SHAPE[-2]), Span(0, SHAPE[-1])),
        canvas=Canvas(*SHAPE[-2:], SHAPE[-1]),
        inner=SHAPE[-2:],
    )


def _checked(
    strategy: Any, step: Step, key: Prediction, predicted: ModelOutput, state: Any
) -> tuple[Tensor | None, Any]:
    before = key.model_output.clone(), key.latents.clone()
    pair = strategy.mask(step, key, predicted, state)
    assert isinstance(pair, tuple) and len(pair) == 2, f"expected (mask, state), got {type(pair).__name__}"
    mask, new = pair
    with contract():
        check_mask(StrategyCall("masking", strategy, step), mask, key.latents, SHAPE[-2:])
    assert mask is None or not int(outside(mask)), f"a mask lies in [0, 1], not so at {described(step)}"
    kept = (key.model_output == before[0]).all() and (key.latents == before[1]).all()
    assert bool(kept), "masking must not write into what it receives"
    return mask, new
