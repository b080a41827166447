"""Give Vitrail's named streams what the authors' code drew, so that both see the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from attrs import field, frozen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vitrail.core.schedule.streams import Streams

from .draws import Draw
from .forms import FORMS, UnfitDrawError

SHOWN = 5  # draws that are listed of many


@frozen(kw_only=True)
class Rule:
    """Which draws of the authors a stream of Vitrail gets.

    Attributes:
        stream: Name of the stream.
        form: How their draws are made its numbers, one of ``FORMS``.
        at: Function of the checkout that draws them; "" for any.
        cells: Latent cells of a unit that they draw.
    """

    stream: str
    form: str = "same"
    at: str = ""
    cells: int = 1


class DrawsDifferError(Exception):
    """The two sides do not draw the same; its text says which draw, of which shape, and where.

    Attributes:
        problems: One text for each draw.
    """

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class Feeder:
    """Hand out recorded draws to streams.

    Attributes:
        given: Names of the streams that were given numbers, in order.
    """

    def __init__(self, draws: list[Draw], rules: tuple[Rule, ...], unused: tuple[str, ...] = ()):
        """Begin with all draws.

        Args:
            draws: What the authors' code drew.
            rules: What each stream gets.
            unused: Functions of the checkout that draw what Vitrail does not, without an effect.
        """
        self._draws = [draw for draw in draws if draw.place.function not in unused]
        self._rules = {rule.stream: rule for rule in rules}
        self._used: set[int] = set()
        self._from: dict[tuple[str, str], Iterator[Draw]] = {}
        self._answers: dict[tuple[object, ...], Tensor] = {}
        self.given: list[str] = []

    def answer(self, stream: str, index: tuple[int, ...], ordinal: int, asked: Tensor) -> Tensor:
        """Return the numbers of a stream; the same ones whenever they are asked for again.

        Args:
            stream: Its name.
            index: Its index, e.g. the step.
            ordinal: How many times its generator drew before.
            asked: What it drew itself, for the shape and type.

        Raises:
            DrawsDifferError: If the authors drew nothing for it, or something of another shape.
        """
        key, who = (stream, index, ordinal), f"Vitrail's stream {' '.join([repr(stream), *map(str, index)])}"
        if key not in self._answers:
            if stream not in self._rules:
                raise DrawsDifferError(
                    [f"{who} draws numbers of shape {tuple(asked.shape)} that no draw of the authors is for"]
                )
            rule = self._rules[stream]

            def take(kind: str) -> Draw:
                return self._take(kind, rule.at, f"{who} (shape {tuple(asked.shape)})")

            try:
                made = FORMS[rule.form](take, tuple(asked.shape), rule.cells)
            except UnfitDrawError as error:
                raise DrawsDifferError([f"{who} (shape {tuple(asked.shape)}): {error}"]) from error
            self._answers[key] = made
            self.given.append(" ".join([stream, *map(str, index)]))
        return self._answers[key]

    def left(self) -> list[Draw]:
        """Return the authors' draws that no stream was given."""
        return [draw for draw in self._draws if draw.number not in self._used]

    def check_all_used(self) -> None:
        """Refuse draws that are left.

        Raises:
            DrawsDifferError: Naming them.
        """
        left = self.left()
        if left:
            more = [f"and {len(left) - SHOWN} more"] if len(left) > SHOWN else []
            raise DrawsDifferError([f"only the authors' code has {draw}" for draw in left[:SHOWN]] + more)

    def _take(self, kind: str, at: str, who: str) -> Draw:
        """Return the next draw of a kind, in their order."""
        every = self._from.setdefault(
            (kind, at), (draw for draw in self._draws if draw.kind == kind and at in ("", draw.place.function))
        )
        for draw in every:
            if draw.number not in self._used:
                self._used.add(draw.number)
                return draw
        where = f" in {at}" if at else ""
        had = [str(draw) for draw in self._draws if draw.kind == kind][-1:]
        last = f"; the last one is {had[0]}" if had else ""
        raise DrawsDifferError([f"{who} wants a {kind} draw, and the authors' code has no further one{where}{last}"])


@contextmanager
def fed(feeder: Feeder, seed: int) -> Iterator[None]:
    """Answer the draws of a run's streams by recorded ones.

    Args:
        feeder: What they are.
        seed: Seed of the run; streams of other seeds draw as ever.
    """
    named: dict[int, _Asked] = {}
    plain = Streams.generator

    def generator(self: Streams, name: str, *index: int) -> torch.Generator:
        made = plain(self, name, *index)
        if self.seed == seed:
            named[made.initial_seed()] = _Asked(name, index)
        return made

    with patch.object(Streams, "generator", generator), _Replace(feeder, named):
        yield


@frozen(eq=False)
class _Asked:
    """A generator of a stream, and how often it drew.

    Attributes:
        name: The stream's name.
        index: The stream's index.
        count: One entry for each draw.
    """

    name: str
    index: tuple[int, ...]
    count: list[None] = field(factory=list)


class _Replace(TorchDispatchMode):
    """Replace what generators of streams draw. A generator is known by its seed, since it has no identity here."""

    def __init__(self, feeder: Feeder, named: dict[int, _Asked]):
        super().__init__()
        self._feeder, self._named = feeder, named

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return result
        seeds = [g.initial_seed() for g in (*args, *(kwargs or {}).values()) if isinstance(g, torch.Generator)]
        asked = self._named.get(seeds[0]) if seeds else None
        if asked is not None:
            value = self._feeder.answer(asked.name, asked.index, len(asked.count), result)
            asked.count.append(None)
            result.copy_(value)
        return result
