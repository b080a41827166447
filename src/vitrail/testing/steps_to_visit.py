"""Steps and predictions for tests of a strategy alone: in the middle of a schedule, and at its ends.

At the ends divisions by a scale fail: flow schedules and those of a signal-to-noise ratio of zero begin at alpha = 0, a
schedule may end at sigma = 0, and with one step both ends meet.
"""

from __future__ import annotations

from typing import Any, Literal

from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.step import PredictionType, Step
from vitrail.core.schedule.streams import Streams

CHANNELS = 4
PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample", "flow_prediction")
End = Literal["noise", "clean", "only"]
ENDS: dict[PredictionType, tuple[End, ...]] = {  # which ends a schedule of a type can have
    "epsilon": ("clean",),  # of noise alone it says nothing
    "v_prediction": ("noise", "clean", "only"),
    "sample": ("noise", "only"),  # without noise it says nothing of it
    "flow_prediction": ("noise", "clean", "only"),
}


def make_step(
    index: int = 0, num_steps: int = 10, prediction_type: Any = "epsilon", end: End | None = None, **changes: Any
) -> Step:
    """A step for tests of a strategy alone, in the middle of nowhere or at an end of a schedule.

    Args:
        index: Of the step; its noise falls with it.
        num_steps: Of the run.
        prediction_type: In diffusers' words.
        end: ``noise`` is the first step, whose latents are noise alone (alpha = 0); ``clean`` the last, whose latents
            have none (sigma = 0); ``only`` the one step of a run, from noise alone to the picture. It sets the index.
        **changes: Other fields of the step.
    """
    if end is not None:
        index, num_steps = {"noise": (0, num_steps), "clean": (num_steps - 1, num_steps), "only": (0, 1)}[end]
    sigma, after = max(0.0, 0.9 - 0.08 * index), max(0.0, 0.82 - 0.08 * index)
    if end is not None:
        sigma, after = (0.0 if end == "clean" else 1.0), (after if end == "noise" else 0.0)
    is_flow = prediction_type == "flow_prediction"
    defaults: dict[str, Any] = {
        "index": index,
        "num_steps": num_steps,
        "timestep": max(0.0, 900.0 - 80 * index) if end is None else 999.0 * sigma,
        "alpha": 1 - sigma if is_flow else (1 - sigma**2) ** 0.5,
        "sigma": sigma,
        "next_alpha": 1 - after if is_flow else (1 - after**2) ** 0.5,
        "next_sigma": after,
        "stage": 0,
        "stage_step": index,
        "stage_num_steps": num_steps,
        "prediction_type": prediction_type,
    }
    return Step(**(defaults | changes))


def make_steps(prediction_type: PredictionType, **changes: Any) -> list[Step]:
    """Steps that a strategy must stand, one after the other: the first three of ten, then every end there can be.

    Args:
        prediction_type: In diffusers' words.
        **changes: Fields of every step.
    """
    ends = [make_step(prediction_type=prediction_type, end=end, **changes) for end in ENDS[prediction_type]]
    return [*(make_step(index, prediction_type=prediction_type, **changes) for index in range(3)), *ends]


def described(step: Step) -> str:
    """A step in an assertion's words."""
    scales = f"alpha {step.alpha:g}, sigma {step.sigma:g}"
    return f"step {step.index} of {step.num_steps}, size {step.phase}, {step.prediction_type}, {scales}"


def make_prediction(shape: tuple[int, ...], step: Step, seed: int = 0) -> Prediction:
    """A record of random latents and a random output, each Float32[Tensor, "*shape"]."""
    streams = Streams(seed)
    return Prediction(streams.normal(shape, "latents"), streams.normal(shape, "output"), step)
