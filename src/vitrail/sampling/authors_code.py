"""How near methods of papers are to their authors' own code, as it was measured; does not import torch."""

from __future__ import annotations

import functools
from pathlib import Path

from attrs import field, frozen

from vitrail import plugins
from vitrail.core.config.fields import as_tuple
from vitrail.core.config.files import read_file
from vitrail.errors import ConfigError

FILE = Path(plugins.__file__).parent / "authors.toml"


@frozen(kw_only=True)
class AuthorsCode:
    """A method beside its authors' code.

    Attributes:
        code: Address and commit of the code; "" if none is public.
        equal: When pictures are equal.
        largest: Largest difference that is known.
        differs: What differs by design, one line each.
        set: Assignments to the method, as of ``--set``, that come nearest to the code.
        run: Fields of the run that come nearest to the code, by name.
    """

    code: str
    equal: str
    largest: str
    differs: tuple[str, ...] = field(converter=as_tuple)
    set: tuple[str, ...] = field(converter=as_tuple, default=())
    run: dict[str, str | float] = field(factory=dict)

    def command(self, method: str) -> list[str]:
        """Return the lines of a command that comes nearest to the code; [] if the method needs no option for it."""
        fields = [f"--{name.replace('_', '-')} {value}" for name, value in self.run.items()]
        options = [*fields, *(f'--set "{each}"' for each in self.set)]
        lines = [f"vitrail sample PROMPT --method {method}", *(f"  {option}" for option in options)]
        return [f"{line} \\" for line in lines[:-1]] + lines[-1:] if options else []


@functools.cache
def authors_codes() -> dict[str, AuthorsCode]:
    """Return the entry of every method that has one."""
    return {name: AuthorsCode(**entry) for name, entry in read_file(FILE).items()}


def authors_code(method: str) -> AuthorsCode:
    """Return the entry of a method.

    Raises:
        ConfigError: If nobody has entered one, as for methods of plugins.
    """
    try:
        return authors_codes()[method]
    except KeyError as error:
        raise ConfigError(
            f"method {method!r} was not compared with an authors' code; docs/results/authors.md has those that were"
        ) from error
