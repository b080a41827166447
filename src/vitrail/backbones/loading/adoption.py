"""A pipeline that a user brings, looked at as a whole: every part's class, what is missing, which way noise goes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from vitrail.backbones.attention.cross_attention import eager
from vitrail.backbones.model_family import PipelinePart
from vitrail.core.schedule.noise_schedule import Stepper
from vitrail.errors import CapabilityError, Problems, VitrailError

if TYPE_CHECKING:
    from vitrail.backbones.model_family import ModelFamily

VAES = ("AutoencoderKL", "AsymmetricAutoencoderKL", "AutoencoderTiny", "ConsistencyDecoderVAE")
SCHEDULER = PipelinePart("scheduler", remedy="give one of diffusers' schedulers")
WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
STEPS = 4  # that a scheduler is asked for


def check_adopted(pipe: Any, family: ModelFamily) -> None:
    """Refuse a pipeline that a run would stumble over, before anything is computed.

    Args:
        pipe: Of diffusers, of a class that an adapter serves.
        family: The adapter's.

    Raises:
        VitrailError: With every part that is missing, of another class, or goes from the picture to noise.
    """
    problems = Problems()
    with problems.collect():
        check_parts(pipe, family)
    if pipe.scheduler is not None:
        with problems.collect():
            _check_scheduler(pipe, family)
    problems.tell()


def check_parts(pipe: Any, family: ModelFamily) -> None:
    """Refuse parts that are missing or of a class that is not served; they may change between calls.

    Args:
        pipe: Of diffusers, of a class that an adapter serves.
        family: The adapter's.

    Raises:
        CapabilityError: With every part, its class and what to do.
    """
    name = type(pipe).__name__
    found = [problem for part in family.parts for problem in _wrong(pipe, part, name)]
    if found:
        raise CapabilityError("\n".join(found))
    family.check(pipe)  # reads configs of these parts


def missing_encoders(pipe: Any, family: ModelFamily) -> list[str]:
    """The parts that a text would need to be encoded, and that are not there."""
    return [part.name for part in family.parts if part.encodes and getattr(pipe, part.name, None) is None]


def _wrong(pipe: Any, part: PipelinePart, name: str) -> Iterator[str]:
    """What is wrong with one part."""
    found = getattr(pipe, part.name, None)
    if found is None:
        if part.remedy:
            yield f"{name} has no {part.name}; {part.remedy}"
        return
    is_several = part.name == "controlnet" and hasattr(found, "nets")
    for each in found.nets if is_several else [found]:
        cls = type(eager(each))
        if cls.__name__ in WRAPPERS:
            yield (
                f"the {part.name} of {name} is wrapped in {cls.__name__}, whose forward is not the network's; set "
                f"pipe.{part.name} = pipe.{part.name}.module, and let ranks share the work (docs/how-to/ranks.md)"
            )
        elif part.classes and not {base.__name__ for base in cls.__mro__} & set(part.classes):
            yield (
                f"the {part.name} of {name} is of class {cls.__name__}, which is not served; give one of class "
                f"{' or '.join(part.classes)}, or write an adapter for it"
            )


def _check_scheduler(pipe: Any, family: ModelFamily) -> None:
    """Refuse a scheduler whose steps cannot be read, or whose timesteps do not fall.

    Args:
        pipe: Of diffusers.
        family: The adapter's.
    """
    scheduler, name = pipe.scheduler, type(pipe).__name__
    lacking = [each for each in ("config", "set_timesteps", "step") if not hasattr(scheduler, each)]
    if lacking:
        raise CapabilityError(
            f"the scheduler of {name} is of class {type(scheduler).__name__}, which has no {', '.join(lacking)}; "
            f"{SCHEDULER.remedy}"
        )
    shifts = scheduler.config.get("use_dynamic_shifting", False)
    try:
        Stepper(copy.deepcopy(scheduler), STEPS, {"mu": 1.0} if shifts else {})
    except VitrailError as error:
        raise CapabilityError(f"the scheduler of {name} cannot be used: {error}") from error


LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def check_dropout(components: Mapping[str, Any]) -> None:
    """Refuse parts of a pipeline whose dropout is on: every call, and every rank, would make another picture.

    Args:
        components: Of a diffusers pipeline, by name.

    Raises:
        CapabilityError: With every part, and what to do.
    """
    problems = Problems()
    for name, part in components.items():
        layer = next(_dropping(part), None) if isinstance(part, nn.Module) else None
        with problems.collect():
            if layer is not None:
                raise CapabilityError(
                    f"{name} is in training mode and drops values at random in {layer!r}, so that no picture could be "
                    f"made twice: call pipe.{name}.eval()"
                )
    problems.tell()


def _dropping(part: nn.Module) -> Iterator[str]:
    """Names of layers that drop values."""
    layers = ((name, each) for name, each in part.named_modules() if isinstance(each, LAYERS))
    return (name for name, layer in layers if layer.training and layer.p > 0)
