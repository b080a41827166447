"""What a strategy may have besides its slot's protocol, and what holds where it says nothing.

One class a slot lists every optional member with its type and default. A strategy need not inherit from it, but may.
Whoever reads one goes through ``of``, so that a misspelt member is an error of the type checker and not a default:

    OptionalGuidance.of(guidance).reads_mask

and whoever must know whether a method was given at all asks ``has_own(patching, OptionalPatching.prepare)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TypeGuard, cast

from vitrail.core.method.cost import Cost
from vitrail.core.method.protocols import MessageGuidance

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.comm.communicator import RankCommunicator
    from vitrail.comm.environment import RankEnvironment
    from vitrail.core.geometry.views import Canvas, Outline
    from vitrail.core.method.micro_batch import Branch
    from vitrail.core.method.protocols import Guidance
    from vitrail.core.schedule.step import Step

ABSENT = object()


class Members:
    """Optional members of a slot. Public names of a subclass are the members, their values the defaults."""

    @classmethod
    def of(cls, strategy: object) -> Self:
        """The strategy's own members, the defaults in the place of those that it has not."""
        return cast("Self", _WithDefaults(strategy, cls))


class _WithDefaults:
    """Reads members of a strategy that a class of optional ones lists, and no others."""

    def __init__(self, strategy: object, optional: type[Members]):
        self._strategy, self._optional = strategy, optional

    def __getattr__(self, name: str) -> object:
        default = getattr(self._optional, name)
        if inspect.getattr_static(self._strategy, name, ABSENT) is not ABSENT:
            return getattr(self._strategy, name)
        return default.__get__(self._strategy) if inspect.isfunction(default) else default


def has_own(strategy: object, member: Callable[..., object]) -> bool:
    """Whether a strategy has an optional method of its own, e.g. ``has_own(patching, OptionalPatching.prepare)``."""
    own = inspect.getattr_static(strategy if isinstance(strategy, type) else type(strategy), member.__name__, ABSENT)
    return own is not ABSENT and own is not member


class ReadsFiles(Members):
    """What a strategy of any slot may say of files that it reads."""

    def check(self) -> None:
        """Refuse a file that is missing or broken, by a VitrailError; asked before anything is loaded."""

    def digest(self) -> str:
        """Stands for the contents of all files that the strategy reads, wherever they lie; "" if it reads none.

        It goes into recipes and into the addresses of an experiment's cells, so a changed file is another picture.
        """
        return ""


class OptionalPatching(ReadsFiles):
    """Of a patching."""

    shows_whole: bool = False  # each view shows the whole picture, so that the maps of one are those of the picture

    def outline(self, step: Step, canvas: Canvas) -> Outline:
        """How many views ``patch`` will answer, and what they are like; without it they are laid out to be counted.

        A plan asks for it, so that it takes no longer for a picture of a gigapixel.
        """
        raise NotImplementedError

    def prepare(self, step: Step, model_input: Tensor, canvas: Canvas) -> Tensor:
        """What the views are read from, Float32[Tensor, "batch channels height width"].

        What they predict is held against the canvas as it is.
        """
        return model_input


class OptionalGuidance(ReadsFiles):
    """Of a guidance; besides the three methods of ``MessageGuidance``, which go together."""

    reads_mask: bool = False  # looks at the context's mask; a mask that no guidance of a stage reads is refused
    follows_start: bool = False  # needs what a size begins with, so it is refused at the first
    compares_pictures: bool = False  # needs the grown picture in pixels, so latents must not grow
    is_idle: bool = False  # is no guidance

    def branches(self, step: Step) -> tuple[Branch, ...]:
        """At "branches": the CFG branches that it wants besides the run's."""
        return ()

    def cost(self, step: Step, canvas: Canvas, branches: int) -> Cost:
        """What it asks of networks besides the views."""
        return Cost()

    def cost_of_views(self, step: Step, outline: Outline, branches: int) -> Cost:
        """The same, where it depends on the main family's views."""
        return Cost()


class OptionalMasking(ReadsFiles):
    """Of a mask source."""

    recalls: bool = False  # wants remembered maps, so an earlier stage must remember
    knows_whole: bool = False  # its mask is of the whole canvas, of which every view gets its own cut
    is_everywhere: bool = False  # is no mask


class OptionalPrompting(ReadsFiles):
    """Of a prompting."""

    recalls: bool = False  # wants remembered maps, so an earlier stage must remember


class OptionalFusion(ReadsFiles):
    """Of a fusion."""

    is_local: bool = False  # a cell of the canvas depends on the views that hold it alone, if they are a partition


class OptionalRectification(Members):
    """Of a rectification, whose ``check`` is about the network and is no option."""

    branches: tuple[Branch, ...] = ()  # it acts on rows of these CFG branches alone, if there are any in it

    def digest(self) -> str:
        """As ``ReadsFiles.digest``."""
        return ""


class OptionalFeatureExtractor(Members):
    """Of what metrics look with, and of features."""

    digest: str = ""  # stands for the contents of the files that it looks with


class OptionalBackend(Members):
    """Of a communicator's backend."""

    def join(self, environment: RankEnvironment, run_id: str = "run") -> RankCommunicator:
        """The communicator of a process that something else has started; a backend without it has no processes."""
        raise NotImplementedError


OPTIONAL: dict[str, type[ReadsFiles] | type[OptionalRectification]] = {
    "patching": OptionalPatching,
    "guidance": OptionalGuidance,
    "masking": OptionalMasking,
    "fusion": OptionalFusion,
    "prompting": OptionalPrompting,
    "rectification": OptionalRectification,
}


def recalls(strategy: object) -> bool:
    """Whether a mask source or a prompting wants remembered maps."""
    return OptionalMasking.of(strategy).recalls


def speaks(guidance: Guidance) -> TypeGuard[MessageGuidance]:
    """Whether a guidance goes by messages of the key view."""
    return has_own(guidance, MessageGuidance.tell)
