"""``direction``: classifier-free guidance whose direction is that of small copies of the canvas.

ElasticDiffusion (Haji-Ali et al., 2023, https://arxiv.org/abs/2311.18822), sec. 4. Views are asked without the text
alone, which says what is local; what the text adds, ``d = cond - uncond``, is asked of copies of the training size,
which shows the network the whole picture, and the canvas's output is ``uncond + g d``:

- a copy has one cell of every 2 x 2 block of the canvas, which is brought to twice the copy's sides first. The first
  has the upper left ones; each further one takes another cell of some blocks at random, until all are taken. A cell of
  the canvas has the latest ``d`` of a copy that it was in, or that of its block in the last copy.
- after the scheduler's step the latents are moved towards the clean prediction of the last copy, by the gradient of
  ``w mean((copy - canvas)^2)`` in the canvas's clean prediction, with ``w = pull (1/2 (1 + cos(pi k / (until K))))^3``
  at step k of K: reduced-resolution guidance. A timestep that is done again is pulled once, after its last time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import evolve, field, frozen
from attrs import validators as v

from vitrail.core.config.fields import share
from vitrail.core.engine.asked import CanvasPart
from vitrail.core.engine.micro_batches import rescaled
from vitrail.core.geometry.views import Span, View
from vitrail.core.method.cost import Cost
from vitrail.core.method.micro_batch import Branch
from vitrail.core.method.protocols import Point
from vitrail.core.schedule.prediction import Prediction
from vitrail.plugins.guidance.copies import Copies

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.geometry.views import Canvas
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams

LEAST = 0.01  # share of the pull below which it rests


@frozen(kw_only=True)
class Direction:
    """Add the direction of classifier-free guidance from small copies, and pull the canvas towards the last of them.

    ElasticDiffusion (Haji-Ali et al., 2023, https://arxiv.org/abs/2311.18822), sec. 4.1 to 4.3. A picture of the
    training size is its own copy. Where the ends of an axis meet, the canvas is turned at random before it is copied,
    so that no copy's edge stays in one place.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "canvas"
    also_at: ClassVar[tuple[Point, ...]] = ("after",)
    views_branches: ClassVar[tuple[Branch, ...]] = ("uncond",)
    resampling: int = field(default=7, validator=v.ge(0))  # copies after the first; none when a timestep is done again
    redraw: float = field(default=0.3, validator=share)  # share of the blocks of which a copy takes another cell
    pull: float = field(default=1000.0, validator=v.ge(0))  # w at the first step; 0 is off
    until: float = field(default=0.8, validator=share)  # share of the steps after which w is 0
    pad: Literal["none", "background"] = field(
        default="background", validator=v.in_(("none", "background"))
    )  # fill up a copy that is narrower than a training picture with a noised plain colour

    def init(self) -> None:
        """None: nothing is known before the first step."""

    def guide(
        self, step: Step, subject: Prediction | Tensor, scene: GuidanceContext, state: Tensor | None
    ) -> tuple[Prediction | Tensor, Tensor | None]:
        """At "canvas" the guided prediction, at "after" the latents moved by the difference that the state holds.

        Args:
            step: Position of the run.
            subject: The canvas's prediction without text, or the latents after the scheduler's step.
            scene: Its ``ask_branches`` answers about the copies.
            state: Clean prediction of the last copy, enlarged, minus that of the canvas,
                Float32[Tensor, "batch channels height width"]; None where there is no pull.
        """
        if isinstance(subject, Prediction):
            return self._guided(step, subject, scene)
        if state is None:
            return subject, None
        after = evolve(step, alpha=step.next_alpha, sigma=step.next_sigma)
        weight = 2 * self._weight(step) / math.prod(state.shape[1:])
        return subject + weight * after.norm * state, None  # the authors' latents are variance preserving

    def cost(self, step: Step, canvas: Canvas, branches: int) -> Cost:
        """Every copy with all branches."""
        shape = self._shown(canvas)[0]
        return Cost(rows={math.prod(shape): branches * self._count(step, canvas)})

    def needs_background(self, canvas: Canvas) -> bool:
        """Whether copies are narrower than a training picture along an axis whose ends do not meet."""
        return self._shown(canvas)[0] != copy_shape(canvas)

    def _count(self, step: Step, canvas: Canvas) -> int:
        """Number of copies of a step; a canvas of the copy's size has one, since all would be the same."""
        alike = copy_shape(canvas) == (canvas.height, canvas.width)
        return 1 if alike or step.repeat else 1 + self.resampling

    def _weight(self, step: Step) -> float:
        """The weight w of a step; 0 where it rests."""
        done = step.phase_step / max(1, step.phase_num_steps)
        if done >= self.until or step.repeat < step.num_repeats:
            return 0.0
        weight = self.pull * (0.5 * (1 + math.cos(math.pi * done / self.until))) ** 3
        return weight if weight > LEAST * self.pull else 0.0

    def _shown(self, canvas: Canvas) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width that the network sees of a copy, and the cells before it along each axis."""
        copy, meets = copy_shape(canvas), (canvas.wraps("y"), canvas.wraps("x"))
        fills = self.pad == "background"
        height, width = (
            max(side, canvas.native) if fills and not wraps else side for side, wraps in zip(copy, meets, strict=True)
        )
        return (height, width), ((height - copy[0]) // 2, (width - copy[1]) // 2)

    def _guided(self, step: Step, subject: Prediction, scene: GuidanceContext) -> tuple[Prediction, Tensor | None]:
        canvas, streams = scene.canvas, scene.streams
        assert canvas is not None
        assert streams is not None
        turn = turned(canvas, step, streams)
        latents = subject.latents.roll(turn, (-2, -1))
        height, width = latents.shape[-2:]
        copies = Copies.drawn(
            (height, width), copy_shape(canvas), self._count(step, canvas), self.redraw, streams, step.index
        )
        small = copies.read(latents)
        uncond, cond = self._asked(step, small, copies, turn, scene)
        found = copies.spread(cond - uncond).roll((-turn[0], -turn[1]), (-2, -1))
        guided = subject.model_output + scene.guidance_scale * found
        guided = rescaled(guided[None], (subject.model_output + found)[None], scene.guidance_rescale)[0]
        prediction = evolve(subject, model_output=guided)
        if not self._weight(step):
            return prediction, None
        last = Prediction(small[-1], uncond[-1] + scene.guidance_scale * (cond[-1] - uncond[-1]), step)
        low = copies.enlarged(last.clean).roll((-turn[0], -turn[1]), (-2, -1))
        return prediction, low - prediction.clean

    def _asked(
        self, step: Step, small: Tensor, copies: Copies, turn: tuple[int, int], scene: GuidanceContext
    ) -> tuple[Tensor, Tensor]:
        """The network's output for all copies, without and with text, Float32[Tensor, "copies batch channels h w"].

        Args:
            step: Position of the run.
            small: Latents of the copies, of that shape.
            copies: Which cells of the rolled canvas they have.
            turn: Cells by which it is rolled down and to the right.
            scene: Asks the network.
        """
        ask, scale, canvas = scene.ask_branches, scene.scale, scene.canvas
        assert ask is not None
        assert scale is not None
        assert canvas is not None
        shape, (top, left) = self._shown(canvas)
        height, width = small.shape[-2:]
        inner = (..., slice(top, top + height), slice(left, left + width))
        if shape != (height, width):
            assert scene.background is not None
            filled = scene.background(shape).expand(*small.shape[:-2], *shape).clone()
            filled[inner] = small
            small = filled
        around = zip(copies.cells_around(shape, (top, left)), turn, copies.size, strict=True)
        rows, cols = (tuple((cell - rolled) % length for cell in cells) for cells, rolled, length in around)
        shown = CanvasPart(View(Span(0, shape[0], copies.steps[0]), Span(0, shape[1], copies.steps[1])), (rows, cols))
        answers = ask(step, scale(small), [shown] * len(small))
        return answers["uncond"][inner], answers["cond"][inner]


def copy_shape(canvas: Canvas) -> tuple[int, int]:
    """Height and width of a copy in cells: the canvas's proportions with the longer side native, or the canvas's."""
    longer = max(canvas.height, canvas.width, canvas.native)
    return max(1, canvas.height * canvas.native // longer), max(1, canvas.width * canvas.native // longer)


def turned(canvas: Canvas, step: Step, streams: Streams) -> tuple[int, int]:
    """Cells by which the canvas is rolled down and to the right before it is copied; 0 where ends do not meet."""
    draws = streams.uniform((2,), "turn of copies", step.index).tolist()
    down = int(draws[0] * canvas.height) if canvas.wraps("y") else 0
    return down, int(draws[1] * canvas.width) if canvas.wraps("x") else 0
