"""Signal and noise scale at every step, read from any diffusers-style scheduler.

Schedulers keep latents in one of three forms: variance preserving (``alpha^2 + sigma^2 = 1``), variance exploding
(``alpha = 1``, the scheduler scales the model input) and flow (``alpha = 1 - sigma``).
"""

from __future__ import annotations

import copy
import inspect
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, cast

from attrs import evolve, field, frozen

from vitrail.core.config.ambient import plain_defaults
from vitrail.core.config.fields import as_tuple
from vitrail.core.schedule.repeating import check_repeatable
from vitrail.core.schedule.scheduler_noise import check_own_noise
from vitrail.core.schedule.step import PredictionType, Step
from vitrail.core.schedule.step_options import numbers_of_method, refuse_unknown_options
from vitrail.errors import CapabilityError, ConfigError

if TYPE_CHECKING:
    from torch import Generator, Tensor

PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample", "flow_prediction")

ROUNDING = 1e-3  # tolerance in training timesteps: second-order schedulers compute the second call's timestep


class Scheduler(Protocol):
    """The interface of a scheduler that the engine uses; diffusers' schedulers have it."""

    timesteps: Tensor

    @property
    def config(self) -> object:
        """Settings that the scheduler was created with, as attributes."""

    def set_timesteps(self, num_inference_steps: int, **kwargs: object) -> None:
        """Choose the timesteps of a run."""

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **kwargs: object) -> Sequence[Tensor]:
        """Advance the latents by one timestep.

        Args:
            model_output: Output of the network, Float32[Tensor, "batch channels height width"].
            timestep: An entry of ``timesteps``.
            sample: The latents, of the shape of ``model_output``.
            **kwargs: ``return_dict``, and ``generator`` where the scheduler takes one.

        Returns:
            The latents first, then what else the scheduler returns.
        """


@frozen
class NoiseSchedule:
    """Signal and noise scales of the latents, one entry per call of the scheduler.

    ``trained`` is the ratio of noise to signal at every training timestep; it is empty for a flow, whose noise scale is
    its timestep.
    """

    timesteps: tuple[float, ...] = field(converter=as_tuple)
    alphas: tuple[float, ...] = field(converter=as_tuple)
    sigmas: tuple[float, ...] = field(converter=as_tuple)
    prediction_type: PredictionType
    train_timesteps: int = 1000
    trained: tuple[float, ...] = field(converter=as_tuple, default=())

    @classmethod
    def of(cls, scheduler: Scheduler) -> NoiseSchedule:
        """Read the scales of a scheduler whose timesteps are set.

        Raises:
            CapabilityError: If the scheduler has neither sigmas nor cumulative alphas, scales the network's output
                itself (EDM, consistency models), or has a step at which an output of its prediction type does not
                determine the picture or the noise.
        """
        timesteps = _floats(scheduler.timesteps)
        scales = None
        if getattr(scheduler.config, "sigma_data", None) is None:
            scales = _flow(scheduler) or _by_sigmas(scheduler) or _by_alphas(scheduler)
        if scales is None:
            raise CapabilityError(
                f"{type(scheduler).__name__} has neither `sigmas` nor `alphas_cumprod`, or scales the network's output "
                "itself, so what a step's latents and predictions mean is unknown; use a scheduler whose step is a "
                "function of (model output, timestep, sample)"
            )
        pairs = scales[: len(timesteps)]
        count = int(getattr(scheduler.config, "num_train_timesteps", 1000))
        kind = prediction_type_of(scheduler)
        _refuse_open_ends(scheduler, kind, pairs)
        return cls(timesteps, [a for a, _ in pairs], [s for _, s in pairs], kind, count, _trained(scheduler))

    def step_at(self, step: Step, alpha: float, sigma: float) -> Step:
        """Return a step with other scales, normalised as the network expects them, at the nearest training timestep.

        Args:
            step: Gives everything but timestep and scales.
            alpha: Signal scale, in any form.
            sigma: Noise scale, in the same form.
        """
        norm = evolve(step, alpha=alpha, sigma=sigma).norm
        timestep = self._timestep_at(alpha, sigma)
        return evolve(step, timestep=timestep, alpha=alpha / norm, sigma=sigma / norm)

    def _timestep_at(self, alpha: float, sigma: float) -> float:
        """Return the training timestep with the nearest log signal-to-noise ratio; for a flow the exact one."""
        if not self.trained:
            return self.train_timesteps * sigma / (alpha + sigma)
        ratio = sigma / alpha if alpha > 0 else math.inf
        above = bisect_left(self.trained, ratio)
        if above in (0, len(self.trained)):
            return float(min(above, len(self.trained) - 1))
        below, high, low = above - 1, self.trained[above], self.trained[above - 1]
        if high == ratio or low == 0:  # an exact match, or a neighbour without noise, which is infinitely far
            return float(above)
        return float(above if high / ratio < ratio / low else below)

    def steps(self, ends: Sequence[int], stages: Sequence[int] | None = None, begin: int = 0) -> list[Step]:
        """Return every step from ``begin`` on, each with the stage that it belongs to.

        Args:
            ends: First step after each stage, one entry per stage.
            stages: Numbers of the stages; counted from 0 if not given.
            begin: First step of the first stage.
        """
        result: list[Step] = []
        numbers = range(len(ends)) if stages is None else stages
        following = [*zip(self.alphas[1:], self.sigmas[1:], strict=True), (1.0, 0.0)]
        for stage, (first, end) in zip(numbers, pairwise((begin, *ends)), strict=True):
            result += [
                Step(
                    index=index,
                    num_steps=len(self.timesteps),
                    timestep=self.timesteps[index],
                    alpha=self.alphas[index],
                    sigma=self.sigmas[index],
                    stage=stage,
                    stage_step=index - first,
                    stage_num_steps=end - first,
                    prediction_type=self.prediction_type,
                    phase_step=index,
                    phase_num_steps=len(self.timesteps),
                    train_timesteps=self.train_timesteps,
                    next_alpha=following[index][0],
                    next_sigma=following[index][1],
                )
                for index in range(first, end)
            ]
        return result


def _trained(scheduler: Any) -> list[float]:
    """Return noise over signal at every training timestep; an empty list for a flow."""
    if is_flow(scheduler):
        return []
    cumulative = _floats(scheduler.alphas_cumprod)
    return [math.sqrt((1 - c) / c) if c > 0 else math.inf for c in cumulative]


def prediction_type_of(scheduler: Scheduler) -> PredictionType:
    """Return the prediction type in diffusers' words; flow-match schedulers do not name theirs.

    Raises:
        CapabilityError: If the scheduler's configuration names an unknown type.
    """
    if is_flow(scheduler):
        return "flow_prediction"
    name = getattr(scheduler.config, "prediction_type", "epsilon")
    if name not in PREDICTION_TYPES:
        raise CapabilityError(f"prediction type {name!r} is unknown; known: {', '.join(PREDICTION_TYPES)}")
    return cast(PredictionType, name)


def _refuse_open_ends(scheduler: Scheduler, kind: PredictionType, pairs: Sequence[tuple[float, float]]) -> None:
    """Refuse a step at which an output of this type does not determine the picture, or the noise."""
    name = type(scheduler).__name__
    if kind == "epsilon" and any(a == 0 for a, _ in pairs):
        raise CapabilityError(
            f"{name} begins with noise alone (alpha = 0), where a prediction of type 'epsilon' says nothing of the "
            "picture; use prediction_type='v_prediction' if the model was trained so, or switch off "
            "rescale_betas_zero_snr"
        )
    if kind == "sample" and any(s == 0 for _, s in pairs):
        raise CapabilityError(
            f"{name} has a step without noise (sigma = 0), where a prediction of type 'sample' says nothing of the "
            "noise; leave that step out"
        )


def _floats(values: Any) -> list[float]:
    """Return the numbers of a tensor, an array or a list; ``tolist`` is about 100 times faster than a loop."""
    return [float(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


def is_flow(scheduler: Scheduler) -> bool:
    """Whether the noise scale is the timestep, so that there is no table of cumulative alphas."""
    config = scheduler.config
    named = getattr(config, "prediction_type", None) == "flow_prediction" or getattr(config, "use_flow_sigmas", False)
    return bool(named) or not hasattr(scheduler, "alphas_cumprod")


def _flow(scheduler: Scheduler) -> list[tuple[float, float]] | None:
    if not is_flow(scheduler) or not hasattr(scheduler, "sigmas"):
        return None
    return [(1.0 - s, s) for s in _floats(scheduler.sigmas)]


def _by_sigmas(scheduler: Any) -> list[tuple[float, float]] | None:
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) < len(scheduler.timesteps):
        return None
    values = _floats(sigmas)
    between = getattr(scheduler, "sigmas_interpol", None)
    if between is not None:  # KDPM2: every second call is at a midpoint; the ancestral table lies one entry earlier
        first = 0 if hasattr(scheduler, "sigmas_up") else 1
        values[1::2] = [float(s) for s in between][first::2]
    if float(scheduler.init_noise_sigma) != 1.0:
        return [(1.0, s) for s in values]
    return [(1 / math.hypot(1, s), s / math.hypot(1, s)) for s in values]


def _by_alphas(scheduler: Any) -> list[tuple[float, float]] | None:
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        return None
    cumulative = [float(table[int(t)]) for t in scheduler.timesteps]
    return [(math.sqrt(c), math.sqrt(1 - c)) for c in cumulative]


def _set_timesteps(scheduler: Scheduler, num_inference_steps: int, options: Mapping[str, object]) -> None:
    """Set the timesteps; raise ConfigError for a number of steps that the scheduler does not support."""
    name, most = type(scheduler).__name__, getattr(scheduler.config, "num_train_timesteps", math.inf)
    if num_inference_steps > most:
        raise ConfigError(f"num_inference_steps must be at most {most} with {name}, got {num_inference_steps}")
    try:
        scheduler.set_timesteps(num_inference_steps, **options)
    except ValueError as error:
        raise ConfigError(f"{name} refuses {num_inference_steps} steps: {error}") from error


def _refuse_other_step(scheduler: Scheduler) -> None:
    """Refuse a scheduler whose ``step`` has required arguments that the engine cannot supply."""
    wanted = inspect.signature(scheduler.step).parameters.values()
    more = [p.name for p in wanted if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD][3:]
    if more:
        raise CapabilityError(
            f"{type(scheduler).__name__} steps from {' and '.join(more)} besides a prediction, a timestep and latents, "
            "so no picture can be sampled with it; use another scheduler"
        )


def _refuse_rising(scheduler: Scheduler, options: Mapping[str, object]) -> None:
    """Refuse timesteps that do not fall, as those of an inverse scheduler, which goes from a picture to noise.

    Two calls may share a timestep, as those of second-order schedulers do. One timestep has no direction, so a copy of
    the scheduler is set to a few.
    """
    shown = scheduler
    if len(scheduler.timesteps) == 1:
        shown = copy.deepcopy(scheduler)
        few = min(4, int(getattr(scheduler.config, "num_train_timesteps", 4)))
        try:
            shown.set_timesteps(few, **options)
        except ValueError:  # a scheduler for one step only
            return
    times = _floats(shown.timesteps)
    rises = any(later > before + ROUNDING for before, later in pairwise(times))
    if len(times) > 1 and (rises or times[-1] >= times[0]):
        raise CapabilityError(
            f"the timesteps of {type(scheduler).__name__} must fall from noise to the picture, and go from "
            f"{times[0]:g} to {times[-1]:g}: an inverse scheduler, inverted sigmas, or more steps than its spacing "
            "tells apart; sample with the scheduler that the model was published with, e.g. scheduler="
            f'"{_plain_name(scheduler)}"'
        )


def _plain_name(scheduler: Scheduler) -> str:
    """Return the name of the diffusers class that samples instead of inverting."""
    name = type(scheduler).__name__
    return name.replace("Inverse", "") if "Inverse" in name else "EulerDiscreteScheduler"


class Stepper:
    """A scheduler set for one run: scaling of the model input, one step on the canvas, the noise schedule."""

    @plain_defaults()
    def __init__(
        self,
        scheduler: Scheduler,
        num_inference_steps: int,
        set_timesteps: Mapping[str, object] | None = None,
        solver_args: Mapping[str, float] | None = None,
    ):
        """Set the scheduler's timesteps and read its schedule.

        Args:
            scheduler: Changed in place.
            num_inference_steps: As ``set_timesteps`` counts them.
            set_timesteps: Further keywords of ``set_timesteps``.
            solver_args: Numbers that ``step`` takes by name, such as DDIM's ``eta``.

        Raises:
            ConfigError: If the scheduler does not support the number of steps, or takes no such option.
            CapabilityError: If the engine cannot sample with the scheduler.
        """
        _refuse_other_step(scheduler)
        self._options = dict(solver_args or {})
        if self._options:
            refuse_unknown_options(type(scheduler).__name__, numbers_of_method(type(scheduler).step), self._options)
        self._num_steps, self._timestep_options = num_inference_steps, dict(set_timesteps or {})
        _set_timesteps(scheduler, num_inference_steps, set_timesteps or {})
        _refuse_rising(scheduler, set_timesteps or {})
        self._scheduler: Any = scheduler
        self._takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        self.timesteps: Tensor = scheduler.timesteps
        self.schedule = NoiseSchedule.of(scheduler)
        check_own_noise(scheduler, self._takes_generator, self._options)

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler itself, for callbacks."""
        return cast("Scheduler", self._scheduler)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial latents."""
        return float(getattr(self._scheduler, "init_noise_sigma", 1.0))

    @plain_defaults()
    def begin_at(self, first: int) -> None:
        """Start at a later step, as img2img does; must be the first call after the timesteps were set."""
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(first)

    @plain_defaults()
    def check_repeatable(self) -> None:
        """Refuse a scheduler that cannot do a timestep again; see ``repeating.check_repeatable``."""
        check_repeatable(self._scheduler, self._takes_generator, self._options)

    @plain_defaults()
    def again(self, latents: Tensor, noise: Tensor, index: int) -> Tensor:
        """Go back to a step that was just done: add its noise again, and set the scheduler to do it once more.

        With latents ``a' x0 + s' n'`` after the step, the result ``k x + sqrt(s^2 - k^2 s'^2) n`` with ``k = a / a'``
        is distributed as the latents before it; for a variance preserving schedule that is the training betas walked up
        again, each with fresh noise (Lugmayr et al., 2022, https://arxiv.org/abs/2201.09865, eq. 8).

        Args:
            latents: After the step, Float32[Tensor, "batch channels height width"].
            noise: Standard normal noise of the same shape.
            index: The step in the schedule, not its last.

        Returns:
            Float32[Tensor, "batch channels height width"].
        """
        _set_timesteps(self._scheduler, self._num_steps, self._timestep_options)
        self.begin_at(index)
        alphas, sigmas = self.schedule.alphas, self.schedule.sigmas
        kept = alphas[index] / alphas[index + 1]
        return kept * latents + math.sqrt(max(0.0, sigmas[index] ** 2 - (kept * sigmas[index + 1]) ** 2)) * noise

    @plain_defaults()
    def noised(self, latents: Tensor, noise: Tensor, index: int) -> Tensor:
        """Add the noise of a step to clean latents.

        Args:
            latents: Clean latents, Float32[Tensor, "batch channels height width"].
            noise: Standard normal noise of the same shape.
            index: Step of the schedule.
        """
        add = self._scheduler.scale_noise if _is_flow_match(self._scheduler) else self._scheduler.add_noise
        timestep = self.timesteps[index : index + 1]
        mixed = add(latents, timestep, noise) if _is_flow_match(self._scheduler) else add(latents, noise, timestep)
        return cast("Tensor", mixed)

    def scale_ratio(self, index: int) -> float:
        """Return the ratio of the model input scaled for the next step to that scaled for step ``index``."""
        if index + 1 >= len(self.schedule.sigmas) or not self._scales_input:
            return 1.0
        return self.input_norm(index) / self.input_norm(index + 1)

    def input_norm(self, index: int) -> float:
        """Return the divisor by which ``scale`` scales the latents for the network; 1 if it does not."""
        return math.hypot(1, self.schedule.sigmas[index]) if self._scales_input else 1.0

    @property
    def _scales_input(self) -> bool:
        """Whether latents are variance exploding, so that the network sees them scaled."""
        return self.schedule.prediction_type != "flow_prediction" and self.schedule.alphas[0] == 1.0

    def timestep(self, step: Step) -> Tensor:
        """Return a step's timestep as the network expects it; also for one that is not in the schedule."""
        own = self.timesteps[step.phase_step]
        if step.timestep == self.schedule.timesteps[step.phase_step]:
            return own
        return own.new_tensor(step.timestep)

    @property
    def order(self) -> int:
        """Scheduler calls per inference step (of a Heun scheduler 2, with one call fewer in total)."""
        return int(getattr(self._scheduler, "order", 1))

    @plain_defaults()
    def scale(self, latents: Tensor, index: int) -> Tensor:
        """Scale the latents of the whole canvas for the network; called once per step."""
        if not hasattr(self._scheduler, "scale_model_input"):
            return latents
        return cast("Tensor", self._scheduler.scale_model_input(latents, self.timesteps[index]))

    @plain_defaults()
    def step(self, model_output: Tensor, index: int, latents: Tensor, generator: Generator) -> Tensor:
        """Do one scheduler step on the whole canvas.

        Args:
            model_output: Of the canvas, Float32[Tensor, "batch channels height width"].
            index: Step of the schedule.
            latents: Of the same shape.
            generator: Source of the scheduler's noise, if it adds any.

        Returns:
            The new latents, Float32[Tensor, "batch channels height width"].
        """
        extra: dict[str, object] = {**self._options, **({"generator": generator} if self._takes_generator else {})}
        stepped = self._scheduler.step(model_output, self.timesteps[index], latents, return_dict=False, **extra)
        return cast("Tensor", stepped[0])

    @property
    def works_by_cell(self) -> bool:
        """Whether a cell of the new latents depends on that cell alone; with thresholding it depends on all cells."""
        return not getattr(self._scheduler.config, "thresholding", False)

    def state(self) -> dict[str, object]:
        """Return the scheduler's attributes that are plain data or tensors, what it carries between steps included."""
        return {name: value for name, value in vars(self._scheduler).items() if _is_state(value)}

    def load(self, state: Mapping[str, object]) -> None:
        """Restore a state that ``state`` returned."""
        for name, value in state.items():
            setattr(self._scheduler, name, value)

    def replace(self, state: Mapping[str, object]) -> None:
        """Restore a state that ``state`` returned, and nothing of what the scheduler has carried since."""
        for name in self.state().keys() - state.keys():
            delattr(self._scheduler, name)
        self.load(state)

    def canvases(self, latents: Tensor) -> list[Tensor]:
        """Return the tensors of the canvas's shape that the scheduler holds, e.g. outputs of earlier steps."""
        found = []
        for value in vars(self._scheduler).values():
            items = value if isinstance(value, (list, tuple)) else [value]
            found += [item for item in items if getattr(item, "shape", None) == latents.shape]
        return found


def _is_flow_match(scheduler: Any) -> bool:
    """Whether the scheduler adds noise by ``scale_noise(sample, timestep, noise)``."""
    return hasattr(scheduler, "scale_noise")


def _is_state(value: Any) -> bool:
    import torch

    if isinstance(value, (list, tuple)):
        return all(_is_state(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.Tensor))
