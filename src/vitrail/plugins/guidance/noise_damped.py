"""``noise-damped``: classifier-free guidance of one network from the unconditional output of another (ScaleCrafter)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import evolve, field, frozen

from vitrail.core.config.fields import share
from vitrail.core.engine.micro_batches import rescaled
from vitrail.core.method.micro_batch import Branch
from vitrail.core.method.protocols import Point

if TYPE_CHECKING:
    from vitrail.core.engine.guidance_context import Branches, GuidanceContext
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True)
class NoiseDamped:
    """Add classifier-free guidance to the unconditional answer of a network that is rectified less.

    ScaleCrafter (He et al., 2023, https://arxiv.org/abs/2310.07702), sec. 3: with the network A of the branches
    ``uncond`` and ``cond`` and the network B of the branch ``damped``, the answer is B(u) + g (A(c) - A(u)) for the
    texts u and c. B is dilated less, which leaves its noise estimate better; the ``branches`` of rectifications make
    the difference between A and B. Without one it is classifier-free guidance. One further row a view.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "branches"
    until: float = field(default=1.0, validator=share)  # share of the run's steps after which it rests

    def init(self) -> None:
        """None: there is no state."""

    def branches(self, step: Step) -> tuple[Branch, ...]:
        """``damped`` in the first share ``until`` of the steps, rounded half up; none after it."""
        return ("damped",) if step.phase_step < math.floor(self.until * step.phase_num_steps + 0.5) else ()

    def guide(self, step: Step, subject: Branches, scene: GuidanceContext, state: None) -> tuple[Branches, None]:
        """Sets ``combined`` to B(u) + g (A(c) - A(u)), rescaled to the contrast of A(c) as the run wants.

        Each branch is Float32[Tensor, "views batch channels h w"]. After the share ``until`` the subject is returned
        unchanged, for classifier-free guidance.
        """
        if not self.branches(step):
            return subject, None
        uncond, cond, damped = (subject.rows[branch] for branch in ("uncond", "cond", "damped"))
        guided = damped + subject.guidance_scale * (cond - uncond)
        return evolve(subject, combined=rescaled(guided, cond, subject.guidance_rescale)), None
