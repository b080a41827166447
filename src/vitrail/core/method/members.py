"""Optional members of a strategy, besides its slot's protocol, and their defaults.

One class per slot lists every optional member with its type and default. A strategy need not inherit from it, but may.
All reads go through ``of``, so that a misspelt member is an error of the type checker and not a default:

    OptionalGuidance.of(guidance).reads_mask

To test whether a strategy defines an optional method itself, call ``has_own(patching, OptionalPatching.prepare)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TypeGuard, cast

from vitrail.core.method.cost import Cost, UpscalingCost
from vitrail.core.method.protocols import MessageGuidance, Point

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
        """Return a view of the strategy that falls back to the defaults for members that it lacks."""
        return cast("Self", _WithDefaults(strategy, cls))


class _WithDefaults:
    """Read the members that a class of optional ones lists from a strategy, and no others."""

    def __init__(self, strategy: object, optional: type[Members]):
        self._strategy, self._optional = strategy, optional

    def __getattr__(self, name: str) -> object:
        default = getattr(self._optional, name)
        if inspect.getattr_static(self._strategy, name, ABSENT) is not ABSENT:
            return getattr(self._strategy, name)
        return default.__get__(self._strategy) if inspect.isfunction(default) else default


def has_own(strategy: object, member: Callable[..., object]) -> bool:
    """Whether a strategy defines an optional method itself, e.g. ``has_own(patching, OptionalPatching.prepare)``."""
    own = inspect.getattr_static(strategy if isinstance(strategy, type) else type(strategy), member.__name__, ABSENT)
    return own is not ABSENT and own is not member


class NamesFiles(Members):
    """Optional members of a class of any slot whose options name files or folders."""

    path_options: tuple[str, ...] = ()  # options that are paths: a relative one in a file lies beside that file


class ReadsFiles(NamesFiles):
    """Optional members of a strategy of any slot that reads files."""

    def check(self) -> None:
        """Raise a VitrailError for a file that is missing or broken; called before anything is loaded."""

    def digest(self) -> str:
        """Return a digest of the contents of all files that the strategy reads, whatever their paths; "" if none.

        Recipes and the addresses of an experiment's cells include it, so that a changed file is a different picture.
        """
        return ""


class OptionalPatching(ReadsFiles):
    """Optional members of a patching."""

    shows_whole: bool = False  # every view shows the whole picture, so its maps are the picture's

    def needs_background(self, canvas: Canvas) -> bool:
        """Whether cells that views have beyond the ends of a canvas show a noised plain colour instead of zeros.

        A model needs a VAE to encode the colour; the call of it is counted.
        """
        return False

    def outline(self, step: Step, canvas: Canvas) -> Outline:
        """Return number and shape of the views that ``patch`` will return; without it views are laid out and counted.

        Plans call it, so that planning takes no longer for a picture of a gigapixel.

        Raises:
            NotImplementedError: By default; test with ``has_own``.
        """
        raise NotImplementedError

    def prepare(self, step: Step, model_input: Tensor, canvas: Canvas) -> Tensor:
        """Return the canvas that the views are read from.

        Predictions are still interpreted relative to the canvas as it is.

        Args:
            step: Position of the run.
            model_input: Scaled latents of the canvas, Float32[Tensor, "batch channels height width"].
            canvas: The canvas, padding included.

        Returns:
            Float32[Tensor, "batch channels height width"].
        """
        return model_input


class OptionalGuidance(ReadsFiles):
    """Optional members of a guidance, besides the three methods of ``MessageGuidance``, which go together."""

    reads_mask: bool = False  # reads the context's mask; a mask that no guidance of a stage reads is refused
    follows_start: bool = False  # needs the picture of the size before, so it is refused at the first size
    compares_pictures: bool = False  # needs the resized picture in pixels, so enter.resize = "latents" is refused
    is_idle: bool = False  # does nothing, as the null strategy
    interpolates_key: bool = False  # reads the key view between its cells, so views that show parts are refused
    also_at: tuple[Point, ...] = ()  # further points of a step at which it acts, with the same state; see scene.point
    views_branches: tuple[Branch, ...] = ()  # the only CFG branches that views are asked with; () for the run's

    def needs_background(self, canvas: Canvas) -> bool:
        """Whether it fills up what it asks about with ``scene.background``; see ``OptionalPatching``."""
        return False

    def branches(self, step: Step) -> tuple[Branch, ...]:
        """Return the CFG branches that a guidance at "branches" needs besides the run's."""
        return ()

    def cost(self, step: Step, canvas: Canvas, branches: int) -> Cost:
        """Return the network and VAE calls of one step, besides those of the views.

        Args:
            step: Position of the run.
            canvas: The canvas, padding included.
            branches: Number of CFG branches of a view.
        """
        return Cost()

    def cost_of_views(self, step: Step, outline: Outline, branches: int) -> Cost:
        """Return further calls of one step, where they depend on the views of the main group.

        Args:
            step: Position of the run.
            outline: Number and shape of the main group's views.
            branches: Number of CFG branches of a view.
        """
        return Cost()


class OptionalMasking(ReadsFiles):
    """Optional members of a mask source."""

    recalls: bool = False  # needs kept attention maps, so an earlier stage must remember them
    knows_whole: bool = False  # its mask covers the whole canvas and is cropped for every view
    is_everywhere: bool = False  # its mask is 1 everywhere, as the null strategy


class OptionalPrompting(ReadsFiles):
    """Optional members of a prompting."""

    recalls: bool = False  # needs kept attention maps, so an earlier stage must remember them


class OptionalFusion(ReadsFiles):
    """Optional members of a fusion."""

    is_local: bool = False  # if the views are a partition, a cell of the canvas depends only on the views that hold it
    is_cellwise: bool = False  # a cell of the canvas depends only on the cells there of the views that write it, their
    # outputs and latents and the canvas's, whatever the values elsewhere, not finite ones included; so ranks that
    # exchange as a dataflow need not wait for views that lie elsewhere


class OptionalUpscaler(ReadsFiles):
    """Optional members of an upscaler."""

    reach: int = 32  # pixels of the picture, on one side, that a pixel of the result depends on

    def cost(self, before: tuple[int, int], after: tuple[int, int]) -> UpscalingCost:
        """Return the work on one picture, for the plan of a run.

        Args:
            before: Height and width of the picture, pixels.
            after: Height and width of the result, pixels.
        """
        return UpscalingCost()


class OptionalRectification(NamesFiles):
    """Optional members of a rectification; its ``check`` is about the network and is not optional."""

    branches: tuple[Branch, ...] = ()  # CFG branches on whose rows it acts; () for all

    def further_rows(self, step: Step, branch: Branch, cells: int, native_cells: int) -> int:
        """Return how many rows it has the network compute in the forward of one row, besides that; plans count them.

        Args:
            step: Position of the run.
            branch: CFG branch of the row.
            cells: Latent cells of the row's view.
            native_cells: Latent cells of a training picture.
        """
        return 0

    def digest(self) -> str:
        """Return what ``ReadsFiles.digest`` returns."""
        return ""


class OptionalFeatureExtractor(NamesFiles):
    """Optional members of metrics and feature extractors."""

    digest: str = ""  # of the contents of the files that it reads


class OptionalBackend(Members):
    """Optional members of a communicator's backend."""

    def join(self, environment: RankEnvironment, run_id: str = "run") -> RankCommunicator:
        """Return the communicator of a process started by another program; a backend without it has no processes.

        Raises:
            NotImplementedError: By default; test with ``has_own``.
        """
        raise NotImplementedError


OPTIONAL: dict[str, type[ReadsFiles] | type[OptionalRectification]] = {
    "patching": OptionalPatching,
    "guidance": OptionalGuidance,
    "masking": OptionalMasking,
    "fusion": OptionalFusion,
    "prompting": OptionalPrompting,
    "rectification": OptionalRectification,
    "upscaler": OptionalUpscaler,
}


def recalls(strategy: object) -> bool:
    """Whether a mask source or a prompting needs kept attention maps."""
    return OptionalMasking.of(strategy).recalls


def points_of(guidance: Guidance) -> tuple[Point, ...]:
    """Return the points of a step at which a guidance acts."""
    return (guidance.point, *OptionalGuidance.of(guidance).also_at)


def combines_branches(guidance: Guidance) -> bool:
    """Whether a guidance says itself how the CFG branches are combined, so that it needs both and must be alone."""
    return "branches" in points_of(guidance) or bool(OptionalGuidance.of(guidance).views_branches)


def speaks(guidance: Guidance) -> TypeGuard[MessageGuidance]:
    """Whether a guidance reads the key view through messages."""
    return has_own(guidance, MessageGuidance.tell)
