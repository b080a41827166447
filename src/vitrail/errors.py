"""The errors a user can meet; every message says what, where, why and what to do."""

import difflib
from collections.abc import Iterable


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
    """A strategy returned a tensor of another shape than its contract says."""


class CoverageError(VitrailError, ValueError):
    """A latent cell lies in no view."""


class PredictionError(VitrailError, ArithmeticError):
    """The network or the scheduler produced values that are not finite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Text for an unknown name: the nearest known one, if any is near, and the list of all."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{hint}; known: {', '.join(names) or 'none'}"
