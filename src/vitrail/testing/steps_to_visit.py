"""Steps and predictions for tests of single strategies: inside of a schedule and at its ends.

At the ends a division by alpha or sigma fails: flow schedules and those with zero terminal signal-to-noise ratio begin
at alpha = 0, a schedule may end at sigma = 0, and a schedule of one step has both.
"""

from __future__ import annotations

from typing import Any, Literal

from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.step import PredictionType, Step
from vitrail.core.schedule.streams import Streams

CHANNELS = 4  # of test latents
PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample", "flow_prediction")
End = Literal["noise", "clean", "only"]
ENDS: dict[PredictionType, tuple[End, ...]] = {  # ends at which a prediction type determines clean latents and noise
    "epsilon": ("clean",),  # at alpha = 0 epsilon does not determine the clean latents
    "v_prediction": ("noise", "clean", "only"),
    "sample": ("noise", "only"),  # at sigma = 0 the sample does not determine the noise
    "flow_prediction": ("noise", "clean", "only"),
}


def make_step(
    index: int = 0, num_steps: int = 10, prediction_type: Any = "epsilon", end: End | None = None, **changes: Any
) -> Step:
    """Make a step for tests, inside of a schedule or at one of its ends.

    Args:
        index: Index of the step; sigma decreases with it.
        num_steps: Number of steps of the run.
        prediction_type: A prediction type of diffusers.
        end: ``noise`` is a first step with alpha = 0; ``clean`` a last step with sigma = 0; ``only`` the single step of
            a run, from alpha = 0 to sigma = 0. It determines the index.
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
    """Make the steps that a strategy is checked at: the first three of ten, then the ends in ``ENDS``.

    Args:
        prediction_type: A prediction type of diffusers.
        **changes: Other fields of every step.
    """
    ends = [make_step(prediction_type=prediction_type, end=end, **changes) for end in ENDS[prediction_type]]
    return [*(make_step(index, prediction_type=prediction_type, **changes) for index in range(3)), *ends]


def described(step: Step) -> str:
    """Describe a step in an error message."""
    scales = f"alpha {step.alpha:g}, sigma {step.sigma:g}"
    return f"step {step.index} of {step.num_steps}, size {step.phase}, {step.prediction_type}, {scales}"


def make_prediction(shape: tuple[int, ...], step: Step, seed: int = 0) -> Prediction:
    """Make a prediction of random latents and a random output, each Float32[Tensor, "*shape"].

    Args:
        shape: Shape of both tensors.
        step: The step of the prediction.
        seed: Seed of both tensors.
    """
    streams = Streams(seed)
    return Prediction(streams.normal(shape, "latents"), streams.normal(shape, "output"), step)
