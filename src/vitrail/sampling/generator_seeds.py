"""Seeds drawn from torch's generators, for callers who give these instead of a seed, as to a diffusers pipeline.

A run draws from named streams of a seed, so a generator cannot be handed through to it. What it means stays what it
means in diffusers: the picture is a function of the generator's state, also of one that was used before, and a call
moves it on, so that the next call with it makes another picture. Therefore the seed is drawn from the generator and
not taken from ``initial_seed()``, which would forget the state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from torch import Generator, Tensor

ABOVE = 2**53  # seeds are below it, so that every reader of a recipe's JSON has them exactly


@frozen(eq=False)
class DrawnSeeds:
    """Seeds of a call's pictures.

    Attributes:
        seeds: One per picture.
        after: Generators, with their states after the draw.
    """

    seeds: tuple[int, ...] = field(converter=as_tuple)
    after: tuple[tuple[Generator, Tensor], ...] = field(converter=as_tuple)

    def advance(self) -> None:
        """Move the caller's generators on; a call that fails leaves them as they were."""
        for generator, state in self.after:
            generator.set_state(state)


def drawn_seeds(generator: object, count: int) -> DrawnSeeds:
    """Draw the seeds of a call's pictures; the generators stay as they are.

    Args:
        generator: A torch.Generator for the first picture's seed, to which picture i adds i; or a list of one per
            picture. Each draws on its own device: that of a GPU gives other seeds than a CPU's, as in diffusers.
        count: Number of pictures.

    Raises:
        ConfigError: For a list of another length, or what is no generator.
    """
    import torch

    is_list = isinstance(generator, (list, tuple))
    listed = list(generator) if isinstance(generator, (list, tuple)) else [generator]
    if is_list and len(listed) != count:
        raise ConfigError(
            f"generator: a list of {len(listed)} for {count} picture{'s' * (count > 1)}; give one per picture, or one"
        )
    copies: dict[int, tuple[Generator, Generator]] = {}  # the same one may be listed twice
    seeds = []
    for each in listed:
        if not isinstance(each, torch.Generator):
            raise ConfigError(
                f"generator must be a torch.Generator or a list of them, got {type(each).__name__}; for a number give "
                "seed"
            )
        if id(each) not in copies:
            copy = torch.Generator(each.device)
            copy.set_state(each.get_state())
            copies[id(each)] = (each, copy)
        copy = copies[id(each)][1]
        seeds.append(int(torch.randint(ABOVE, (), generator=copy, dtype=torch.int64, device=copy.device)))
    if not is_list:
        seeds = [seeds[0] + number for number in range(count)]
    return DrawnSeeds(seeds, [(each, copy.get_state()) for each, copy in copies.values()])
