"""Numbers that a scheduler's ``step`` takes besides what the engine gives, such as DDIM's ``eta``."""

from __future__ import annotations

import ast
import dis
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitrail.errors import ConfigError

OWN = ("model_output", "timestep", "sample", "generator", "return_dict")  # arguments that the engine gives


def numbers_of(step: ast.FunctionDef) -> list[str]:
    """Return the names of those parameters of a ``step`` that are options of a run: numbers that its body reads.

    Some schedulers have parameters that they ignore, such as the churn of the flow-matching Euler method.
    """
    arguments = step.args
    names = [argument.arg for argument in arguments.args]
    defaults = [default.value if isinstance(default, ast.Constant) else 0.0 for default in arguments.defaults]
    given = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    read = {node.id for part in step.body for node in ast.walk(part) if isinstance(node, ast.Name)}
    numbers = (name for name, default in given.items() if isinstance(default, (bool, int, float)))
    return [name for name in numbers if name in read and name not in OWN]


def numbers_of_method(step: Callable[..., object]) -> list[str]:
    """Return the same of a scheduler's method, from its code; reading its source is not safe in threads.

    Raises:
        TypeError: If it is no function of Python.
    """
    function = inspect.unwrap(step)
    code = getattr(function, "__code__", None)
    if code is None:
        raise TypeError(f"{step} is no function of Python")
    loaded = {each.argval for each in dis.get_instructions(code) if each.opname.startswith("LOAD_")}
    numbers = inspect.signature(function).parameters.values()
    return [
        each.name
        for each in numbers
        if isinstance(each.default, (bool, int, float)) and each.name in loaded and each.name not in OWN
    ]


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
