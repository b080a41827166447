"""Random draws of foreign code: what was drawn, in which order, of which shape, and where.

Draws of torch are seen by the dispatcher, whatever name they were called by; those of ``random`` and ``numpy.random``
by their module's functions, which are replaced while a recorder is ready.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

TORCH_KINDS = {
    "normal": ("randn", "randn_like", "normal", "normal_"),
    "uniform": ("rand", "rand_like", "uniform", "uniform_"),
    "integers": ("randint", "randint_like", "random", "random_"),
    "permutation": ("randperm",),
    "other": (
        *("bernoulli", "bernoulli_", "multinomial", "exponential_", "cauchy_", "geometric_", "log_normal_", "poisson"),
        *("binomial", "native_dropout"),
    ),
}
BY_OPERATION = {f"aten::{name}": kind for kind, names in TORCH_KINDS.items() for name in names}
STANDARD = {"normal": (0.0, 1.0), "uniform": (0.0, 1.0)}  # the arguments of in-place draws that are the plain ones
RANDOM = {"random": "uniform", "randint": "integers"} | dict.fromkeys(
    ("randrange", "uniform", "choice", "choices", "sample", "shuffle", "gauss", "normalvariate", "betavariate"), "other"
)
NUMPY = {
    **dict.fromkeys(("randn", "standard_normal"), "normal"),
    **dict.fromkeys(("rand", "random", "random_sample"), "uniform"),
    **dict.fromkeys(("normal", "uniform", "randint", "permutation", "shuffle", "choice"), "other"),
    **dict.fromkeys(("default_rng", "RandomState"), "other"),  # generators whose own draws cannot be seen
}
OURS = str(Path(__file__).parent)
LIBRARIES = (OURS, str(Path(torch.__file__).parent), random.__file__, str(Path(np.__file__).parent))


@frozen
class Place:
    """A place in code.

    Attributes:
        file: Path within the checkout, or the file's name if it is elsewhere.
        line: Number of the line.
        function: Name of the function.
    """

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


@frozen(eq=False)
class Draw:
    """One draw.

    Attributes:
        number: Counted from 1, in the order of draws.
        name: What was called, e.g. ``torch.randn_like``.
        kind: ``normal``, ``uniform``, ``integers``, ``permutation`` or ``other``; the first two are standard.
        value: What was drawn, on the CPU, as a tensor of the draw's shape; None if that is no number.
        place: The innermost line of the checkout on the way to it.
        bounds: Lowest and highest possible number of a draw of integers.
    """

    number: int
    name: str
    kind: str
    value: Tensor | None = field(repr=False)
    place: Place
    bounds: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what was drawn; () for a single number."""
        return () if self.value is None else tuple(self.value.shape)

    def __str__(self) -> str:
        span = f" from {self.bounds[0]} to {self.bounds[1]}" if self.bounds else ""
        return f"draw {self.number}: {self.name}, {self.kind}{span}, of shape {self.shape}, at {self.place}"


class Recorder:
    """Record what is drawn while it listens.

    Attributes:
        draws: Every draw so far.
    """

    def __init__(self, checkout: Path):
        self.draws: list[Draw] = []
        self._root = str(checkout.resolve()) + "/"
        self._listens = False

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Stand in for the functions of ``random`` and ``numpy.random``, which code may import by name in the block."""
        with ExitStack() as stack:
            for module, named, kinds in ((random, "random", RANDOM), (np.random, "numpy.random", NUMPY)):
                for name, kind in kinds.items():
                    own = self._watched(getattr(module, name), f"{named}.{name}", kind)
                    stack.enter_context(patch.object(module, name, own))
            yield

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record the draws of a block within a ``ready`` one."""
        self._listens = True
        try:
            with _Watch(self._add):
                yield
        finally:
            self._listens = False

    def _add(self, name: str, kind: str, value: Any, bounds: tuple[int, int] | None = None) -> None:
        kept = value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else _as_tensor(value)
        self.draws.append(Draw(len(self.draws) + 1, name, kind, kept, self._place(), bounds))

    def _watched(self, function: Callable[..., Any], name: str, kind: str) -> Callable[..., Any]:
        def drawn(*args: Any, **kwargs: Any) -> Any:
            value = function(*args, **kwargs)
            given = (*args, *kwargs.values())
            if self._listens:
                self._add(name, kind, value, (int(given[0]), int(given[1])) if name == "random.randint" else None)
            return value

        return drawn

    def _place(self) -> Place:
        """Return the innermost place in the checkout, else outside of libraries that draw."""
        frame, outside = sys._getframe(1), None
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(self._root):
                return Place(name.removeprefix(self._root), frame.f_lineno, _function(frame))
            if outside is None and not name.startswith(LIBRARIES):
                outside = Place(Path(name).name, frame.f_lineno, _function(frame))
            frame = frame.f_back
        return outside or Place("?", 0, "?")


def _function(frame: FrameType) -> str:
    """Return the name of a frame's function, also within a comprehension, which some versions of Python run in it."""
    around: FrameType | None = frame
    while around is not None and around.f_code.co_name in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"):
        around = around.f_back
    return (around or frame).f_code.co_name


class _Watch(TorchDispatchMode):
    """Tell of every operation of torch that draws."""

    def __init__(self, tell: Callable[..., None]):
        super().__init__()
        self._tell = tell

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func._schema.name
        if operation in BY_OPERATION:
            kind, bounds = torch_kind(operation, args), None
            if kind == "integers":
                bounds = _bounds(func, args)
            drawn = result[0] if isinstance(result, tuple) else result
            self._tell(operation.replace("aten::", "torch."), kind, drawn, bounds)
        return result


def torch_kind(operation: str, args: tuple[Any, ...]) -> str:
    """Return the kind of draw of an operation of torch; a normal or uniform one that is not standard is ``other``.

    Args:
        operation: Its name, ``aten::NAME``, one of ``BY_OPERATION``.
        args: Its positional arguments.
    """
    kind = BY_OPERATION[operation]
    if operation.rstrip("_") in ("aten::normal", "aten::uniform"):
        given = tuple(each for each in args if isinstance(each, float))
        inside = any(isinstance(each, Tensor) for each in args[1:])
        return kind if given in ((), STANDARD[kind]) and not inside else "other"
    return kind


def _bounds(func: Any, args: tuple[Any, ...]) -> tuple[int, int] | None:
    """Return the lowest and the highest number of a draw of integers, as far as its operation says them."""
    numbers = [each for each in args if isinstance(each, int)]
    if func._schema.name != "aten::randint" or not numbers:
        return None
    low, high = (numbers[0], numbers[1]) if len(numbers) > 1 else (0, numbers[0])
    return low, high - 1


def _as_tensor(value: Any) -> Tensor | None:
    """Return a number or an array as a tensor; None for anything else."""
    if isinstance(value, (bool, int, float, np.number, np.ndarray)):
        return torch.as_tensor(np.array(value))
    return None
