"""Entries of methods: where an authors' pipeline is, how it is called, and what corresponds to it here."""

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import as_tuple
from vitrail.core.config.files import read_file
from vitrail.sampling.authors_code import authors_codes

from .checkout import RefusedError
from .feeding import Rule
from .forms import FORMS

FILE = Path(__file__).with_name("entries.toml")
BUILDS = ("components", "folder", "applied", "scalecrafter")
FAMILIES = ("sd", "sdxl")


def _rules(tables: Any) -> tuple[Rule, ...]:
    return tuple(each if isinstance(each, Rule) else Rule(**each) for each in tables)


@frozen(kw_only=True)
class Entry:
    """A method beside its authors' code.

    Attributes:
        method: Name of the method.
        file: Path of the pipeline in the checkout.
        name: The class or function that is its way in.
        build: How it becomes a pipeline, one of ``BUILDS``; see ``builders.py``.
        call: Arguments of its call; texts with ``$`` are filled in, see ``Setting.filled``.
        streams: What Vitrail's streams get of its draws.
        package_root: Folder in the checkout from which its imports are named.
        calls: Method of the object that is called; "" for the object itself.
        config: Settings of the authors' that the builder reads, a path in the checkout.
        family: ``sd`` or ``sdxl``, the family of the tiny model.
        native: Side of the tiny model's training picture in latent cells.
        size: Height and width of the picture in training sides.
        steps: Number of steps.
        steps_are_fixed: Whether ``call`` holds numbers that belong to that number of steps.
        guidance: Guidance scale.
        set: Assignments to the method; those of docs/results/authors.md if None.
        run: Further options of Vitrail's call.
        unused: Functions of the checkout that draw what has no effect, or what is fixed here.
        variables: Texts that the file reads from its own command line, as attributes of ``args``.
        needs: Packages that its imports need, besides Vitrail's own.
        device: The only type of device that it runs on; "" for any.
        seen: Commit whose text the entry was written from; nothing was run there.
        notes: What to know when reading the result.
    """

    method: str
    file: str
    name: str
    build: str = field(validator=v.in_(BUILDS))
    call: dict[str, Any]
    streams: tuple[Rule, ...] = field(converter=_rules)
    package_root: str = ""
    calls: str = ""
    config: str = ""
    family: str = field(default="sdxl", validator=v.in_(FAMILIES))
    native: int = 16
    size: tuple[float, float] = field(converter=tuple, default=(2, 2))
    steps: int = 20
    steps_are_fixed: bool = False
    guidance: float = 5.0
    set: tuple[str, ...] | None = field(converter=lambda given: None if given is None else tuple(given), default=None)
    run: dict[str, Any] = field(factory=dict)
    unused: tuple[str, ...] = field(converter=as_tuple, default=())
    variables: dict[str, Any] = field(factory=dict)
    needs: tuple[str, ...] = field(converter=as_tuple, default=())
    device: str = ""
    seen: str = ""
    notes: tuple[str, ...] = field(converter=as_tuple, default=())

    def __attrs_post_init__(self) -> None:
        unknown = {rule.form for rule in self.streams} - set(FORMS)
        if unknown:
            raise ValueError(
                f"{self.method}: there is no form {', '.join(sorted(unknown))}; there are {', '.join(FORMS)}"
            )


def entries(file: Path = FILE) -> dict[str, Entry]:
    """Return the entries of a file by method.

    Args:
        file: A TOML file, a table for each method.

    Raises:
        RefusedError: If an entry is wrong.
    """
    try:
        return {name: Entry(method=name, **table) for name, table in read_file(file).items()}
    except (TypeError, ValueError) as error:
        raise RefusedError(f"{file}: {error}") from error


def entry_of(method: str, every: Mapping[str, Entry]) -> Entry:
    """Return the entry of a method.

    Raises:
        RefusedError: If there is none, saying why.
    """
    if method in every:
        return every[method]
    known = authors_codes().get(method)
    why = f"its authors published no code ({known.equal})" if known and not known.code else "nobody has written one"
    raise RefusedError(f"method {method!r} has no entry, since {why}; there are entries for {', '.join(sorted(every))}")


def options_of(entry: Entry) -> dict[str, Any]:
    """Return the options of Vitrail's call, as docs/results/authors.md names them, and the entry's own."""
    known = authors_codes().get(entry.method)
    return {**(known.run if known else {}), **entry.run}


@frozen(kw_only=True)
class Setting:
    """Numbers of one comparison.

    Attributes:
        prompt: Text of the picture.
        height: Pixels.
        width: Pixels.
        native: Side of a training picture in latent cells.
        factor: Side of a latent cell in pixels.
        steps: Number of steps.
        guidance: Guidance scale.
        eta: Share of DDPM's noise, 0 unless the switches say more.
        generator: The generator that the authors' call is given.
    """

    prompt: str
    height: int
    width: int
    native: int
    factor: int
    steps: int
    guidance: float
    eta: float
    generator: object

    @property
    def _values(self) -> dict[str, Any]:
        side = self.native * self.factor
        down, right = (max(1, round(2 * length / side) - 1) for length in (self.height, self.width))
        return {
            "prompt": self.prompt,
            "height": self.height,
            "width": self.width,
            "steps": self.steps,
            "guidance": self.guidance,
            "twice_guidance": 2 * self.guidance,
            "eta": self.eta,
            "generator": self.generator,
            "native": self.native,
            "half_native": self.native // 2,
            "side": side,
            "half_side": side // 2,
            "middle": side * 3 // 2,
            "grid": [[self.prompt] * right for _ in range(down)],
        }

    def filled(self, value: Any) -> Any:
        """Fill in ``$NAME``: alone it becomes the value itself, within a text its words. Lists become tuples.

        Names are the attributes, and ``twice_guidance``, ``half_native`` (cells), ``side``, ``half_side`` (pixels of a
        training picture), ``middle`` (one and a half of it) and ``grid`` (the prompt for every half overlapping tile).

        Args:
            value: What an entry says.
        """
        if isinstance(value, (list, tuple)):
            return tuple(self.filled(each) for each in value)
        if not isinstance(value, str) or "$" not in value:
            return value
        values = self._values
        return values[value[1:]] if value[1:] in values else Template(value).substitute(values)
