"""Numbers that a scheduler's ``step`` takes besides what the engine gives, such as DDIM's ``eta``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitrail.errors import ConfigError

OWN = ("model_output", "timestep", "sample", "generator", "return_dict")  # arguments that the engine gives


def numbers_of(parameters: Iterable[tuple[str, object]]) -> list[str]:
    """Return the names of those parameters of a ``step`` that are options of a run.

    Args:
        parameters: Name and default of each parameter.
    """
    return [name for name, default in parameters if name not in OWN and isinstance(default, (bool, int, float))]


def refuse_unknown_options(scheduler: str, takes: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse options that the step of a scheduler does not take, so that none is ignored.

    Args:
        scheduler: Name of its class.
        takes: As ``numbers_of`` returns them.
        options: Numbers by name.

    Raises:
        ConfigError: Naming those that it takes.
    """
    unknown = [option for option in options if option not in takes]
    if unknown:
        known = f"it takes {', '.join(takes)}" if takes else "it takes none"
        instead = "; DDIMScheduler and TCDScheduler take eta" if "eta" in unknown else ""
        raise ConfigError(
            f"{', '.join(unknown)}: the step of {scheduler} takes no such option, so it would be ignored; "
            f"{known}{instead}. Leave it out, or choose another scheduler"
        )
