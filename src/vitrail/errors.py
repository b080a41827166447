"""The errors a user can meet; every message says what, where, why and what to do."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

MOST_NAMES, LONGEST_NAME = 200, 100  # that a message lists, and characters of each


class VitrailError(Exception):
    """Base of every error that Vitrail raises on purpose."""


class ConfigError(VitrailError, ValueError):
    """A file, option or argument is wrong; all problems of a file are listed at once."""


class RegistrationError(VitrailError, ValueError):
    """A plugin cannot be registered: a name taken, a class unfit, a hook misspelt."""


class CompositionError(VitrailError, ValueError):
    """Strategies that do not fit together, or plugins that answer an exclusive stage twice."""


class CapabilityError(VitrailError, ValueError):
    """A strategy needs something that the backbone does not offer."""


class ModelError(VitrailError, ValueError):
    """A model cannot be found or loaded."""


class ShapeError(VitrailError, ValueError):
    """A strategy returned something else than its slot's contract says: another type, shape, dtype, count or range."""


class CoverageError(VitrailError, ValueError):
    """A latent cell lies in no view."""


class PredictionError(VitrailError, ArithmeticError):
    """The network or the scheduler produced values that are not finite."""


class OutOfMemory(VitrailError, MemoryError):
    """A forward does not fit in memory, and cutting it into smaller ones is forbidden or no longer possible."""


class DecodeError(VitrailError, RuntimeError):
    """Latents could not be turned into pictures.

    Attributes:
        latents: Of all pictures, as they were sampled, Float32[Tensor, "images channels height width"].
        recipes: One a picture.
    """

    def __init__(self, reason: str, latents: Any, recipes: Sequence[Any]):
        super().__init__(reason)
        self.latents, self.recipes = latents, tuple(recipes)


class OutputError(VitrailError, RuntimeError):
    """A file cannot be written.

    Attributes:
        path: Of the file.
        reason: What the system says.
    """

    def __init__(self, path: Any, reason: str):
        super().__init__(f"{path}: cannot be written: {reason}")
        self.path, self.reason = path, reason


class Interrupted(DecodeError):
    """A run was stopped at once; what was sampled whole by then is not lost, see ``DecodeError``."""


class CommError(VitrailError, RuntimeError):
    """Ranks cannot go on together.

    Attributes:
        is_known: Whether the run's store tells of it, so that whoever started the ranks can.
        kept: If all was sampled here by then, what a failed decode would have raised; else None.
    """

    is_known: bool = False
    kept: "DecodeError | None" = None


class ProtocolError(CommError):
    """A rank called something else than its peers, or a channel out of turn; the run is aborted."""


class DriftError(CommError):
    """Ranks no longer have the same values, so each would end with a picture of its own; all ranks raise it."""


class StaleVersion(CommError, LookupError):
    """A channel no longer keeps this version."""


class CommTimeout(CommError, TimeoutError):
    """A rank waited too long; the run is aborted. Names who is behind."""


class CommAborted(CommError):
    """The run was revoked on all ranks.

    Attributes:
        culprit: The rank where it began.
        reason: What happened there.
    """

    is_known = True

    def __init__(self, culprit: int, reason: str):
        super().__init__(f"rank {culprit} ended the run: {reason}")
        self.culprit, self.reason = culprit, reason

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        """So that it comes out of another process as it went in, without what was kept there."""
        return type(self), (self.culprit, self.reason)


def shortened(text: str, most: int = 200) -> str:
    """A text for a message, which says how long it is where it is cut."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def nearest(name: str, known: Iterable[str]) -> str:
    """Text for an unknown name: the nearest known one, if any is near, and the list of all, or of the first of many."""
    every = sorted(known)
    names, name = [shortened(each, LONGEST_NAME) for each in every[:MOST_NAMES]], shortened(name, LONGEST_NAME)
    plain = {each: each.lower().replace("-", "").replace("_", "") for each in (name, *names)}
    close = difflib.get_close_matches(name, names, n=1)
    if not close and len(plain[name]) > 2:  # a part of a name: rather its beginning, rather the shorter name
        holding = [each for each in names if plain[name] in plain[each]]
        close = sorted(holding, key=lambda each: (not plain[each].startswith(plain[name]), len(each)))
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    more = f" and {len(every) - len(names)} more" if len(every) > len(names) else ""
    return f"{hint}; known: {', '.join(names) or 'none'}{more}"


class Problems:
    """Collects what is wrong, to be told at once."""

    def __init__(self) -> None:
        self._errors: list[VitrailError] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep an error of the block for later."""
        try:
            yield
        except VitrailError as error:
            self._errors.append(error)

    def tell(self) -> None:
        """Raise the only error as it is, several as one that says nothing twice."""
        messages = list(dict.fromkeys(map(str, self._errors)))
        if len(messages) == 1:
            raise self._errors[0]
        if messages:
            raise ConfigError("\n".join(messages))
