"""Every error that Vitrail raises; each message says what failed, where, why and what to do about it."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

MOST_NAMES, LONGEST_NAME = 200, 100  # names that a message lists at most, and characters of each


class VitrailError(Exception):
    """Base of every error that Vitrail raises on purpose."""


class ConfigError(VitrailError, ValueError):
    """A file, option or argument is invalid; all problems of one file are listed in one message."""


class RegistrationError(VitrailError, ValueError):
    """A plugin cannot be registered: its name is taken, its class does not fit the slot, or a hook is misspelt."""


class CompositionError(VitrailError, ValueError):
    """Strategies do not fit together, or two plugins implement one exclusive hook."""


class CapabilityError(VitrailError, ValueError):
    """A strategy needs something that the backbone does not offer."""


class ModelError(VitrailError, ValueError):
    """A model cannot be found or loaded."""


class ShapeError(VitrailError, ValueError):
    """A strategy's result breaks the contract of its slot: wrong type, shape, dtype, count or range."""


class CoverageError(VitrailError, ValueError):
    """The views leave a latent cell of the canvas uncovered."""


class PredictionError(VitrailError, ArithmeticError):
    """The network or the scheduler produced values that are not finite."""


class OutOfMemory(VitrailError, MemoryError):
    """A forward pass does not fit in memory, and splitting it into micro-batches is disabled or exhausted."""


class DecodeError(VitrailError, RuntimeError):
    """Latents could not be decoded to pictures.

    Attributes:
        latents: The sampled latents of all pictures, Float32[Tensor, "images channels height width"].
        recipes: One recipe per picture, in the order of the latents.
    """

    def __init__(self, reason: str, latents: Any, recipes: Sequence[Any]):
        super().__init__(reason)
        self.latents, self.recipes = latents, tuple(recipes)


class OutputError(VitrailError, RuntimeError):
    """A file cannot be written.

    Attributes:
        path: The file that was to be written.
        reason: The operating system's message.
    """

    def __init__(self, path: Any, reason: str):
        super().__init__(f"{path}: cannot be written: {reason}")
        self.path, self.reason = path, reason


class Interrupted(DecodeError):
    """A run was stopped immediately; pictures whose sampling was complete are in ``latents``, see ``DecodeError``."""


class CommError(VitrailError, RuntimeError):
    """The ranks of a run cannot continue together.

    Attributes:
        is_known: Whether the failure is recorded in the run's store, where the launcher of the ranks can report it.
        kept: The finished latents and recipes of this rank as a ``DecodeError``; None if sampling was incomplete.
    """

    is_known: bool = False
    kept: "DecodeError | None" = None


class ProtocolError(CommError):
    """A rank made another collective call than its peers, or used a channel out of order; the run is aborted."""


class DriftError(CommError):
    """Values that must be equal on all ranks differ, so their pictures would differ; raised on every rank."""


class StaleVersion(CommError, LookupError):
    """The version read from a channel is older than its window of kept versions."""


class CommTimeout(CommError, TimeoutError):
    """A rank waited longer than the timeout; the run is aborted. The message names the ranks that are behind."""


class CommAborted(CommError):
    """The run was aborted on all ranks.

    Attributes:
        culprit: The rank that failed first.
        reason: The failure on that rank, as text.
    """

    is_known = True

    def __init__(self, culprit: int, reason: str):
        super().__init__(f"rank {culprit} ended the run: {reason}")
        self.culprit, self.reason = culprit, reason

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        """Pickle the two constructor arguments; ``kept`` does not cross process boundaries."""
        return type(self), (self.culprit, self.reason)


def shortened(text: str, most: int = 200) -> str:
    """Cut a text to ``most`` characters for a message, and append its full length if it was cut."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def first_line(text: str) -> str:
    """Return the first line of a message, with the next one if the first ends with a colon."""
    lines = [*text.strip().splitlines(), "", ""]
    return f"{lines[0]} {lines[1].strip()}".rstrip() if lines[0].endswith(":") else lines[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the closest known name, if any, and the known names.

    The list holds at most ``MOST_NAMES`` names, in alphabetical order, and the number of those left out.
    """
    every = sorted(known)
    names, name = [shortened(each, LONGEST_NAME) for each in every[:MOST_NAMES]], shortened(name, LONGEST_NAME)
    plain = {each: each.lower().replace("-", "").replace("_", "") for each in (name, *names)}
    close = difflib.get_close_matches(name, names, n=1)
    if not close and len(plain[name]) > 2:  # a part of a name: prefixes first, then the shorter name
        holding = [each for each in names if plain[name] in plain[each]]
        close = sorted(holding, key=lambda each: (not plain[each].startswith(plain[name]), len(each)))
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    more = f" and {len(every) - len(names)} more" if len(every) > len(names) else ""
    return f"{hint}; known: {', '.join(names) or 'none'}{more}"


class Problems:
    """Collects errors so that they are raised together."""

    def __init__(self) -> None:
        self._errors: list[VitrailError] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Catch a ``VitrailError`` of the block and keep it for ``tell``."""
        try:
            yield
        except VitrailError as error:
            self._errors.append(error)

    def tell(self) -> None:
        """Raise the collected errors; return if there are none.

        Raises:
            VitrailError: The error itself, if all collected messages are equal.
            ConfigError: One line per different message, if there are several.
        """
        messages = list(dict.fromkeys(map(str, self._errors)))
        if len(messages) == 1:
            raise self._errors[0]
        if messages:
            raise ConfigError("\n".join(messages))
