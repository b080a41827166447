"""Validation of a user's pipeline as a whole: classes of its parts, missing parts, direction of the scheduler."""

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
STEPS = 4  # steps of the trial


def check_adopted(pipe: Any, family: ModelFamily) -> None:
    """Refuse a pipeline that cannot be sampled with, before anything is computed.

    Args:
        pipe: A diffusers pipeline of a class that an adapter supports.
        family: The adapter's family.

    Raises:
        VitrailError: Listing every part that is missing, of another class, or an inverse scheduler.
    """
    problems = Problems()
    with problems.collect():
        check_parts(pipe, family)
    if pipe.scheduler is not None:
        with problems.collect():
            _check_scheduler(pipe, family)
    problems.tell()


def check_parts(pipe: Any, family: ModelFamily) -> None:
    """Refuse parts that are missing or of an unsupported class; they may change between calls.

    Args:
        pipe: A diffusers pipeline of a class that an adapter supports.
        family: The adapter's family.

    Raises:
        CapabilityError: Listing every such part, its class and what to do.
    """
    name = type(pipe).__name__
    found = [problem for part in family.parts for problem in _wrong(pipe, part, name)]
    if found:
        raise CapabilityError("\n".join(found))
    family.check(pipe)  # reads configs of these parts


def missing_encoders(pipe: Any, family: ModelFamily) -> list[str]:
    """Return the names of the missing parts that are needed to encode a text."""
    return [part.name for part in family.parts if part.encodes and getattr(pipe, part.name, None) is None]


def _wrong(pipe: Any, part: PipelinePart, name: str) -> Iterator[str]:
    """Yield what is wrong with one part."""
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
        pipe: A diffusers pipeline.
        family: The adapter's family.
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
    """Refuse parts of a pipeline with active dropout, since each call and each rank would make another picture.

    Args:
        components: Components of a diffusers pipeline, by name.

    Raises:
        CapabilityError: Listing every such part, and what to do.
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
    """Yield the names of layers with active dropout."""
    layers = ((name, each) for name, each in part.named_modules() if isinstance(each, LAYERS))
    return (name for name, layer in layers if layer.training and layer.p > 0)
